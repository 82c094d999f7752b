package rpc

import (
	"context"
	"errors"
	"strings"
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

// TestNameOfAnother: an agent whose certificate has a name that was free when it was made
// does not speak for the host that has it now, nor for one whose name differs in case.
func TestNameOfAnother(t *testing.T) {
	const id, other = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
	r := newRig(t, nil)
	for node, of := range map[string]string{"db1": id, "DB2": other, "old": ""} {
		r.apply(t, &catalog.Register{
			Node:   &catalog.Node{Node: node, ID: of, Address: "10.0.0.2"},
			Checks: []*catalog.Check{{Node: node, CheckID: catalog.NodeCheckID, Name: "alive", Status: catalog.StatusPassing}},
		})
	}
	for _, c := range []struct {
		what, as, id, node string
		mayNot             bool
	}{
		{"its own", "db1", id, "db1", false},
		{"its own, the ID in capitals", "db1", strings.ToUpper(id), "db1", false},
		{"of its name, with another ID", "db1", other, "db1", true},
		{"of its name but for the case", "db2", id, "DB2", true},
		{"of its name, without an ID", "old", other, "old", false},
		{"that there is not", "new", other, "new", false},
	} {
		agent := Caller{Agent: true, Node: c.as, NodeID: c.id}
		ctx := WithCaller(t.Context(), agent)
		for how, err := range map[string]error{
			"deregister":  r.maySpeak(agent, &catalog.Deregister{Node: c.node, ServiceID: "x"}),
			"coordinates": r.maySpeak(agent, &catalog.SetCoordinates{Updates: []*catalog.NodeCoordinate{{Node: c.node}}}),
		} {
			if errors.Is(err, catalog.ErrDenied) != c.mayNot || err != nil && !c.mayNot {
				t.Errorf("%s of a node %s: %v", how, c.what, err)
			}
		}
		p, err := NewPolicies(PoliciesConfig{Handler: r.Handler})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Report(ctx, &wire.ReportRequest{Node: c.node}); errors.Is(err, catalog.ErrDenied) != c.mayNot || err != nil && !c.mayNot {
			t.Errorf("report of a node %s: %v", c.what, err)
		}
	}
}
