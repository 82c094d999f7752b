package server

import (
	"context"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/connect/ca"
)

// pruneEvery is how often the leader looks for revocations that have become moot.
const pruneEvery = time.Hour

// pruneAfter is when a revoked certificate has expired, whatever its life was, with
// room for clocks that differ.
const pruneAfter = ca.MaxLeafTTL + 24*time.Hour

// pruner forgets the serials of certificates that nobody could show any more.
type pruner struct {
	store *store.Store
	raft  applier
	now   func() time.Time
}

func (p *pruner) prune(ctx context.Context) error {
	v, err := p.store.Read(catalog.Query{Kind: catalog.QueryCertRevocations})
	if err != nil {
		return err
	}
	before := p.now().Add(-pruneAfter).UTC()
	for _, r := range v.RevokedCerts {
		if r.URI == "" && r.RevokedAt.Before(before) {
			_, _, err := p.raft.Apply(ctx, &catalog.PruneCertRevocations{Before: before})
			return err
		}
	}
	return nil
}
