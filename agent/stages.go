package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// stage is a running component.
type stage struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// start runs a component. Its failure goes to failed, which must have room.
func start(base context.Context, name string, failed chan<- error, run func(context.Context) error) stage {
	ctx, cancel := context.WithCancel(base)
	s := stage{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		err := run(ctx)
		switch {
		case err != nil:
			failed <- fmt.Errorf("%s: %w", name, err)
		case ctx.Err() == nil:
			failed <- fmt.Errorf("%s: ended without being asked to", name)
		}
	}()
	return s
}

// end stops a component and waits until it has.
func end(s stage) {
	s.cancel()
	<-s.done
}

// orIdle is run where the component is there, or else nothing, for as long.
func orIdle(there bool, run func(context.Context) error) func(context.Context) error {
	if there {
		return run
	}
	return func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	}
}

// goodbye bounds the farewell to a cluster that may not listen.
const goodbye = 3 * time.Second

// sayGoodbye takes this host out of the catalog and out of gossip, as far as
// anybody listens. What is registered stays on disk.
func sayGoodbye(base context.Context, a *Agent) {
	ctx, cancel := context.WithTimeout(base, goodbye)
	defer cancel()
	if err := a.local.Leave(ctx); err != nil {
		a.log.Warn("the services of this host could not be taken out of the catalog", "err", err)
	}
	if a.gossip == nil {
		return
	}
	if err := a.gossip.Leave(ctx); err != nil {
		a.log.Warn("the other members could not be told that this host leaves", "err", err)
	}
}

// control is what the API may ask of the agent as a whole.
type control struct{ a *Agent }

// Reload implements httpapi.Control.
func (c control) Reload(ctx context.Context) error { return c.a.Reload(ctx) }

// Leave implements httpapi.Control. It returns at once: the answer has to be sent
// before the API ends.
func (c control) Leave(context.Context) error {
	c.a.Leave()
	return nil
}

// Join implements httpapi.Control.
func (c control) Join(ctx context.Context, addr string, wan bool) error {
	if wan {
		return fmt.Errorf("join %s: %w: this agent takes part in no WAN gossip", addr, catalog.ErrInvalid)
	}
	if c.a.gossip == nil {
		return fmt.Errorf("join %s: %w: this agent takes part in no gossip", addr, catalog.ErrInvalid)
	}
	return c.a.joiner.meet(ctx, addr)
}

// ForceLeave implements httpapi.Control.
func (c control) ForceLeave(_ context.Context, node string, prune bool) error {
	if c.a.gossip == nil {
		return fmt.Errorf("force-leave %s: %w: this agent takes part in no gossip", node, catalog.ErrInvalid)
	}
	return c.a.gossip.ForceLeave(node, prune)
}
