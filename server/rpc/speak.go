package rpc

import (
	"fmt"
	"strings"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

// touched is a host of which a command writes or removes rows.
type touched struct{ node, id string }

func touchedBy(cmd catalog.Command) []touched {
	switch c := cmd.(type) {
	case *catalog.Register:
		return []touched{{c.Node.Node, c.Node.ID}}
	case *catalog.Deregister:
		return []touched{{node: c.Node}}
	case *catalog.SetCoordinates:
		out := make([]touched, 0, len(c.Updates))
		for _, u := range c.Updates {
			out = append(out, touched{node: u.Node})
		}
		return out
	case *catalog.Txn:
		var out []touched
		for i := range c.Ops {
			switch op := &c.Ops[i]; {
			case op.ReadOnly():
			case op.Node != nil:
				out = append(out, touched{op.Node.Node.Node, op.Node.Node.ID})
			case op.Service != nil:
				out = append(out, touched{node: op.Service.Node})
			case op.Check != nil:
				out = append(out, touched{node: op.Check.Check.Node})
			}
		}
		return out
	}
	return nil
}

// maySpeak refuses an agent that would write rows of another host whose own agent
// lives. Hosts without an agent, or with one that is gone, are for anybody to state.
func (h *Handler) maySpeak(c Caller, cmd catalog.Command) error {
	if !c.Agent {
		return nil
	}
	seen := make(map[touched]bool)
	for _, t := range touchedBy(cmd) {
		if seen[t] {
			continue
		}
		seen[t] = true
		if t.id != "" && !strings.EqualFold(t.id, c.NodeID) {
			if err := h.notLiving(c, h.cfg.Store.NodeOf(t.id)); err != nil {
				return err
			}
		}
		if err := h.notLiving(c, t.node); err != nil {
			return err
		}
	}
	return nil
}

// notLiving refuses an agent what is said of another host whose own agent lives. A name
// in a certificate is no proof of which host that is: it was free when the certificate was
// made, and whose it was may be back.
func (h *Handler) notLiving(c Caller, node string) error {
	if !c.Agent || node == "" || node == h.cfg.Store.NodeOf(c.NodeID) {
		return nil
	}
	v, err := h.cfg.Store.Read(catalog.Query{Kind: catalog.QueryNodeChecks, Name: node})
	if err != nil {
		return err
	}
	for _, ch := range v.Checks {
		if ch.CheckID != catalog.NodeCheckID || ch.Status != catalog.StatusPassing {
			continue
		}
		if own, err := h.nameless(node); err != nil || own && node == c.Node {
			return err
		}
		return fmt.Errorf("%w: node %q has an agent, which alone speaks for it while it lives, and this is %s; ask that agent, or run the command on a server's host",
			catalog.ErrDenied, node, c)
	}
	return nil
}

// nameless tells whether a node has no ID, so that its name is all there is to know it by.
func (h *Handler) nameless(node string) (bool, error) {
	v, err := h.cfg.Store.Read(catalog.Query{Kind: catalog.QueryNode, Name: node})
	return err == nil && len(v.Nodes) > 0 && v.Nodes[0].ID == "", err
}

// maySign refuses an agent a certificate in the name of another agent.
func (c Caller) maySign(id identity.ID) error {
	a, ok := id.(identity.AgentID)
	if !c.Agent || !ok || a.Node == c.Node || a.Node == c.NodeID {
		return nil
	}
	return fmt.Errorf("%w: %s gets no certificate in the name of agent %q", catalog.ErrDenied, c, a.Node)
}
