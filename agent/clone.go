package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
)

// original keeps a host that was copied, with its ID and certificate, from speaking
// for the one that it is a copy of: what both say would undo each other for ever.
type original struct {
	local.Syncer
	gossip Gossip
	met    <-chan struct{} // closed once this host saw others, who know of the original
}

// meetWait is how long the first statement waits for gossip: by then it knows whether
// this host lives already, elsewhere, or is not to be had.
const meetWait = 3 * time.Second

// guard makes statements wait until gossip was heard, on a host whose servers are
// elsewhere, and refuses them on a copy.
func (j *joiner) guard(to local.Syncer) local.Syncer {
	if j.gossip == nil || j.pool == nil {
		return to
	}
	return original{Syncer: to, gossip: j.gossip, met: j.met}
}

// Sync implements local.Syncer.
func (o original) Sync(ctx context.Context, want catalog.NodeState) (uint64, error) {
	t := time.NewTimer(meetWait)
	defer t.Stop()
	select {
	case <-o.met:
	case <-t.C:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if addr := o.gossip.Elder(); addr != "" {
		return 0, fmt.Errorf("%w: this host has the name and the ID of the one that lives at %s, and came later: it is a clone and registers nothing. "+
			"Stop it, remove its data directory (or its files node-id and node/), give it another node_name and start it with a join token", catalog.ErrConflict, addr)
	}
	return o.Syncer.Sync(ctx, want)
}

// disown ends a server that is a copy of one that lives: two that Raft takes for one
// could each acknowledge what the other lacks.
func (j *joiner) disown() error {
	if !j.cfg.Server || j.cfg.Settled == nil {
		return nil
	}
	original := j.gossip.Elder()
	if original == "" || j.cfg.Settled() {
		return nil
	}
	return j.gossip.Disown(original)
}
