package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/weftmesh/weft/agent/handover"
	"github.com/weftmesh/weft/agent/sidecar"
	"github.com/weftmesh/weft/connect"
)

// ErrGaveUp is what Run returns after GiveUp: everything but the proxies has ended.
var ErrGaveUp = errors.New("the agent gave up all but its proxies")

// GiveUp ends everything of a running agent but its proxies, so that another process
// can take over: Run returns ErrGaveUp. It does not wait for that.
func GiveUp(a *Agent) { a.requests.giveOnce.Do(func() { close(a.requests.giveUp) }) }

// Drain follows the process that took over from an agent that gave up, and returns
// when the proxies have drained, at the latest after the grace or when ctx ends.
func Drain(ctx context.Context, a *Agent, grace time.Duration) {
	feed := handover.Feed{Dir: a.cfg.DataDir, Log: a.log}
	counting, stop := context.WithCancel(ctx)
	var told sync.WaitGroup
	told.Go(func() { feed.Count(counting, a.sidecars.Counts) })
	a.sidecars.Drain(ctx, feed, grace)
	stop()
	told.Wait()
	end(a.requests.proxies)
}

// feedDrainers serves the processes before this one. That it cannot is no reason to
// end: they go on with the policy that they know.
func feedDrainers(a *Agent) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := handover.Serve(ctx, a.cfg.DataDir, a.sidecars, a.log); err != nil {
			a.log.Error("earlier processes of this agent hear of no new policy", "err", err)
			<-ctx.Done()
		}
		return nil
	}
}

// sockets is nil where nobody keeps what listens.
func sockets(cfg Config) connect.Sockets {
	if cfg.Sockets == nil {
		return nil
	}
	return cfg.Sockets
}

// ledger is nil where no process can take over.
func ledger(cfg Config) sidecar.Ledger {
	if cfg.DataDir == "" {
		return nil
	}
	return handover.NewLedger(cfg.DataDir, cfg.Logger)
}
