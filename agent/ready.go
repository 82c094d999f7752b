package agent

import (
	"context"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

const (
	// readyPoll is the time between questions while the answer is no.
	readyPoll = 25 * time.Millisecond
	// readyWait is how long one of them may take.
	readyWait = 10 * time.Second
)

// AwaitService waits until an agent knows a leader and a certificate authority,
// whether or not it serves an HTTP API. Its Run must be running.
func AwaitService(ctx context.Context, a *Agent) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for !serves(ctx, a) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

func serves(ctx context.Context, a *Agent) bool {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	st, err := a.remote.Status(ctx, &wire.StatusRequest{})
	if err != nil || st.Leader == "" {
		return false
	}
	rep, err := a.remote.Read(ctx, &wire.ReadRequest{Query: catalog.Query{Kind: catalog.QueryRoots}})
	if err != nil || rep.View == nil {
		return false
	}
	for _, r := range rep.View.Roots {
		if r.Active {
			return true
		}
	}
	return false
}
