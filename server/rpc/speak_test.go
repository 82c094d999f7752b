package rpc

import (
	"context"
	"errors"
	"testing"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// TestTheLeaderJudges: a server that has not heard yet of a host that lives passes on
// what another agent says of it, and the leader, which knows better, refuses.
func TestTheLeaderJudges(t *testing.T) {
	const id = "11111111-1111-4111-8111-111111111111"
	leader := newRig(t, nil)
	leader.apply(t, &catalog.Register{
		Node:   &catalog.Node{Node: "b", Address: "10.0.0.2"},
		Checks: []*catalog.Check{{Node: "b", CheckID: catalog.NodeCheckID, Name: "alive", Status: catalog.StatusPassing}},
	})
	late := newRig(t, nil)
	late.log.lead("leader:8300")
	a := Caller{Agent: true, Node: "a", NodeID: id}
	cmd := func() *wire.ApplyRequest {
		return &wire.ApplyRequest{Command: wire.Command{Command: &catalog.Deregister{Node: "b"}}}
	}
	forward := func(c Caller) context.Context {
		c.Forwarded = true
		return WithCaller(t.Context(), c)
	}
	if err := late.maySpeak(a, cmd().Command.Command); err != nil {
		t.Fatal("the late server knows already:", err)
	}
	if _, err := leader.Apply(forward(a), cmd()); !errors.Is(err, catalog.ErrDenied) {
		t.Errorf("passed on for an agent: %v", err)
	}
	if _, err := leader.Txn(forward(a), &wire.TxnRequest{Txn: catalog.Txn{Ops: []catalog.TxnOp{
		{Node: &catalog.NodeOp{Verb: catalog.TxnDelete, Node: catalog.Node{Node: "b"}}},
	}}}); !errors.Is(err, catalog.ErrDenied) {
		t.Errorf("a transaction passed on for an agent: %v", err)
	}
	if _, err := leader.Apply(forward(a), &wire.ApplyRequest{Command: wire.Command{Command: &catalog.SetAutopilot{Config: catalog.DefaultAutopilot()}}}); !errors.Is(err, catalog.ErrDenied) {
		t.Errorf("an operator's command passed on for an agent: %v", err)
	}
	if _, err := leader.Apply(forward(Caller{Server: true, Node: "s1", NodeID: id}), cmd()); err != nil {
		t.Errorf("passed on for the operator on a server's host: %v", err)
	}
}
