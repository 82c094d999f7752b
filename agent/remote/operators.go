package remote

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// Remote is the way to what servers offer operators, too. None of these calls is
// made again by itself but those that only look: an operator should see what
// happened, and decide.
var _ wire.Operators = (*Remote)(nil)

func (r *Remote) operators() (wire.Operators, error) {
	if r.links == nil {
		return nil, fmt.Errorf("operators: %w: there is no connection to the servers", catalog.ErrUnavailable)
	}
	return wire.NewOperatorsClient(r.links), nil
}

func operate[T any](ctx context.Context, r *Remote, call string, rule retryRule, do func(context.Context, wire.Operators) (T, error)) (T, error) {
	ops, err := r.operators()
	if err != nil {
		var zero T
		return zero, err
	}
	return retry(ctx, r, call, rule, func(ctx context.Context) (T, error) { return do(ctx, ops) })
}

// RaftPeers lists the servers that take part in Raft.
func (r *Remote) RaftPeers(ctx context.Context, req *wire.RaftPeersRequest) (*wire.RaftPeersReply, error) {
	return operate(ctx, r, "raft_peers", retryAny, func(ctx context.Context, ops wire.Operators) (*wire.RaftPeersReply, error) {
		return ops.RaftPeers(ctx, req)
	})
}

// ChangeRaft removes a server from Raft or hands leadership over.
func (r *Remote) ChangeRaft(ctx context.Context, req *wire.ChangeRaftRequest) (*wire.ChangeRaftReply, error) {
	return operate(ctx, r, "change_raft", retryNone, func(ctx context.Context, ops wire.Operators) (*wire.ChangeRaftReply, error) {
		return ops.ChangeRaft(ctx, req)
	})
}

// Autopilot tells how healthy the servers are.
func (r *Remote) Autopilot(ctx context.Context, req *wire.AutopilotRequest) (*wire.AutopilotReply, error) {
	return operate(ctx, r, "autopilot", retryAny, func(ctx context.Context, ops wire.Operators) (*wire.AutopilotReply, error) {
		return ops.Autopilot(ctx, req)
	})
}

// SaveSnapshot sends an archive of the whole state. It takes what it takes: only
// ctx ends it.
func (r *Remote) SaveSnapshot(ctx context.Context, req *wire.SaveSnapshotRequest, send func(*wire.SnapshotPiece) error) error {
	ops, err := r.operators()
	if err != nil {
		return err
	}
	pause, end := newBackoff(time.Second), time.Now().Add(r.cfg.HoldTimeout)
	for {
		began := false
		r.metrics.calls.WithLabelValues("save_snapshot").Inc()
		err := ops.SaveSnapshot(ctx, req, func(p *wire.SnapshotPiece) error {
			began = true
			return send(p)
		})
		if err == nil {
			return nil
		}
		r.metrics.failed.WithLabelValues("save_snapshot").Inc()
		// It changes nothing: while there is no leader it waits for one, as reads do.
		wait := pause.next()
		if began || !errors.Is(err, catalog.ErrNoLeader) || time.Now().Add(wait).After(end) || !sleep(ctx, wait) {
			return err
		}
		r.metrics.retries.WithLabelValues("save_snapshot").Inc()
	}
}

// RestoreSnapshot replaces the whole state by an archive.
func (r *Remote) RestoreSnapshot(ctx context.Context, req *wire.RestoreSnapshotRequest, next func() ([]byte, error)) (*wire.RestoreSnapshotReply, error) {
	ops, err := r.operators()
	if err != nil {
		return nil, err
	}
	r.metrics.calls.WithLabelValues("restore_snapshot").Inc()
	rep, err := ops.RestoreSnapshot(ctx, req, next)
	if err != nil {
		r.metrics.failed.WithLabelValues("restore_snapshot").Inc()
	}
	return rep, err
}
