package server

import (
	"context"
	"time"

	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/consensus"
)

// recoverTimeout is how long a survivor tries to be elected.
const recoverTimeout = 30 * time.Second

// recoverBy lets the server with the node ID go on without servers that are lost for ever.
func recoverBy(raft *consensus.Node, nodeID string) func(ctx context.Context, lost []string) (*wire.RaftRecovery, error) {
	return func(ctx context.Context, lost []string) (*wire.RaftRecovery, error) {
		ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
		defer cancel()
		r, err := raft.Recover(ctx, lost)
		if err != nil {
			return nil, err
		}
		return &wire.RaftRecovery{
			Server: nodeID, Removed: r.Removed, Servers: r.Servers,
			LastIndex: r.LastIndex, KnownIndex: r.Known, LastContact: r.LastContact,
		}, nil
	}
}
