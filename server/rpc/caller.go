package rpc

import (
	"context"
	"fmt"

	"github.com/weftmesh/weft/catalog"
)

// Caller is who asks, as its connection proves. The zero Caller is the process
// itself, which is trusted as it is.
type Caller struct {
	// Server and Agent are what its certificate says; neither: the process itself.
	Server, Agent bool
	Node, NodeID  string
	// Forwarded: another server passes on what it was asked, having judged who may. It
	// is judged again here, as that server's state may be old, and not passed on again.
	// Where an agent asked, this is that agent.
	Forwarded bool
}

type callerKey struct{}

// WithCaller says in a context who asks.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf tells who asks.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// String names the caller in errors and logs.
func (c Caller) String() string {
	switch {
	case c.Server:
		return fmt.Sprintf("server %s (%s)", c.Node, c.NodeID)
	case c.Agent:
		return fmt.Sprintf("agent %s (%s)", c.Node, c.NodeID)
	}
	return "this process"
}

// own refuses an agent that speaks for another host than its own.
func (c Caller) own(node, id string) error {
	switch {
	case !c.Agent && (!c.Server || c.Forwarded):
		return nil
	case node != c.Node:
		return fmt.Errorf("%w: the certificate is that of node %q, which cannot speak for node %q", catalog.ErrDenied, c.Node, node)
	case id != c.NodeID:
		return fmt.Errorf("%w: node %q has the ID %s in its certificate, and says it were %q", catalog.ErrDenied, node, c.NodeID, id)
	}
	return nil
}

// operate refuses an agent what only an operator on a server's host may do: whoever
// holds one host of the mesh must not hold all of it.
func (c Caller) operate(what string) error {
	if !c.Agent {
		return nil
	}
	return fmt.Errorf("%w: %s is asked of servers on their own hosts only, this is %s; run the command on a server's host", catalog.ErrDenied, what, c)
}

// mayApply refuses commands with which an agent would speak for another host, or
// for an operator.
func (c Caller) mayApply(cmd catalog.Command) error {
	switch cmd := cmd.(type) {
	case *catalog.SyncNode:
		return c.own(cmd.State.Node.Node, cmd.State.Node.ID)
	case *catalog.SetCoordinates:
		for _, u := range cmd.Updates {
			if err := c.own(u.Node, c.NodeID); err != nil {
				return err
			}
		}
	case *catalog.SetAutopilot:
		return c.operate("to configure autopilot")
	case *catalog.Revoke, *catalog.Allow, *catalog.SetCertRevocation, *catalog.DeleteCertRevocation:
		return c.operate("to revoke, or to allow again,")
	}
	return nil
}
