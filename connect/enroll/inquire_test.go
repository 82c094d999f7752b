package enroll

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
)

// TestInquire: a server learns the keys of gossip by its certificate alone; an agent
// and a server of another cluster learn nothing that way, and nobody gets a certificate.
func TestInquire(t *testing.T) {
	clk, secret := newClock(), NewSecret()
	s := newSite(t, secret, clk)
	key := bytes.Repeat([]byte{9}, 32)
	s.reg.with(func() { s.reg.grant.GossipKeys = [][]byte{key} })
	other := must(NewServer(ServerConfig{Secret: secret, Node: "s2", NodeID: "aaaaaaaa-0000-4000-8000-000000000002", Datacenter: dc, Now: clk.now}))
	got, err := other.Inquire(t.Context(), []string{"127.0.0.1:1", s.addr})
	if err != nil || len(got.GossipKeys) != 1 || !bytes.Equal(got.GossipKeys[0], key) || len(got.Servers) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if a := s.reg.last(t); a.Renewal == nil || a.Renewal.Role != RoleServer || a.Node != "s2" {
		t.Errorf("the registrar was asked about %+v", a)
	}
	far := must(NewServer(ServerConfig{Secret: secret, Node: "s3", NodeID: "aaaaaaaa-0000-4000-8000-000000000003", Datacenter: "dc2", Now: clk.now}))
	if _, err := far.Inquire(t.Context(), []string{s.addr}); ReasonOf(err) != ReasonDatacenter {
		t.Errorf("a server of another datacenter: %v", err)
	}
	foreign := must(NewServer(ServerConfig{Secret: NewSecret(), Node: "s2", NodeID: serverID, Datacenter: dc, Now: clk.now}))
	if _, err := foreign.Inquire(t.Context(), []string{s.addr}); err == nil {
		t.Error("a server of another cluster was told")
	}
	agent := s.joined(t)
	if got, err := agent.Inquire(t.Context(), []string{s.addr}); err == nil {
		t.Errorf("an agent that asks for no certificate was told %+v", got)
	}
}

// One asks at a time, whoever wants to renew.
func TestRenewTakesTurns(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	c := s.joined(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := c.Renew(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Renew(late); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
