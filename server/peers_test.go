package server

import (
	"context"
	"errors"
	"net"
	"testing"

	"google.golang.org/grpc/connectivity"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// TestCallThatWasNotSentMayBeMadeAgain covers a server that stops between the moment
// its connection was there and that of the call: what takes the connection then
// hangs up before a word of it was sent.
func TestCallThatWasNotSentMayBeMadeAgain(t *testing.T) {
	t.Parallel()
	p := newPeers(func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		return here, there.Close()
	}, func(string) bool { return false })
	defer p.close()
	c, err := p.at("id", "server-1:8300")
	if err != nil {
		t.Fatal(err)
	}
	err = c.send(t.Context(), "/weft.Peers/ReadIndex", &wire.ReadIndexRequest{}, &wire.ReadIndexReply{})
	if !errors.Is(err, catalog.ErrNoLeader) {
		t.Errorf("a call that nobody got ended with %v, which is not %v", err, catalog.ErrNoLeader)
	}
}

// TestInventedServers: servers that only gossip tells of do not end the connections to
// those that take part in Raft.
func TestInventedServers(t *testing.T) {
	t.Parallel()
	p := newPeers(func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody") },
		func(id string) bool { return id == "leader" })
	defer p.close()
	leader, err := p.at("leader", "server-1:8300")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxPeers {
		if _, err := p.at(idOf(i), "invented:8300"); err != nil {
			t.Fatal(err)
		}
	}
	if now, err := p.at("leader", "server-1:8300"); err != nil || now != leader || leader.cc.GetState() == connectivity.Shutdown {
		t.Error("the connection to the leader was ended", err)
	}
	if n := len(p.conns); n > maxPeers {
		t.Errorf("%d connections are kept", n)
	}
}
