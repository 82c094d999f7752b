package server

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// TestP20LostConnection: a host whose agent is gone is critical as soon as its
// connection broke, by whatever server it was held, and passes again when it is back;
// one that only closed its connection stays as it is.
func TestP20LostConnection(t *testing.T) {
	f := newFleet(t, 3)
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	lead := f.leader()
	follower := 1 + lead%3
	ln, err := net.Listen("tcp", "127.0.0.1:0") // its gossip
	if err != nil {
		t.Fatal(err)
	}
	addr, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal(ln.Addr())
	}
	f.town.set(catalog.Member{
		Name: "a1", ID: idOf(7), Addr: "127.0.0.1", Port: uint16(addr.Port), Status: catalog.MemberAlive, //nolint:gosec // a port
		Tags: map[string]string{"role": "node", "dc": "dc1"},
	})
	creds := f.agent(follower, "a1", idOf(7))
	status := func() catalog.Status {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		rep, err := f.nodes[lead].Read(ctx, &wire.ReadRequest{Query: catalog.Query{Kind: catalog.QueryNodeChecks, Name: "a1"}})
		if err != nil || len(rep.View.Checks) == 0 {
			return ""
		}
		return rep.View.Checks[0].Status
	}
	connect := func() func() {
		cc := f.client(follower, creds)
		if _, err := wire.NewClient(cc).Status(t.Context(), &wire.StatusRequest{}); err != nil {
			t.Fatal(err)
		}
		return func() { _ = cc.Close() }
	}
	f.until("the node passes", func() bool { return status() == catalog.StatusPassing })

	connect()()
	time.Sleep(2 * leaseGrace)
	if got := status(); got != catalog.StatusPassing {
		t.Errorf("an agent that closed its connection and lives is %s", got)
	}
	stop := connect()
	_ = ln.Close()
	stop()
	begin := time.Now()
	f.until("the node is critical", func() bool { return status() == catalog.StatusCritical })
	t.Log("critical after", time.Since(begin))
	// It is back before gossip has missed it.
	if ln, err = net.Listen("tcp", addr.String()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	f.until("the node passes again", func() bool { return status() == catalog.StatusPassing })
}
