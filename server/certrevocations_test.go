package server

import (
	"context"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
)

type storeLog struct{ s *store.Store }

func (l storeLog) Apply(_ context.Context, cmd catalog.Command) (uint64, any, error) {
	index := max(2, l.s.Index()+1)
	v, err := l.s.Apply(index, cmd)
	return index, v, err
}

func TestPruneCertRevocations(t *testing.T) {
	s, err := store.New(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	log := storeLog{s}
	for _, r := range []catalog.CertRevocation{
		{Serial: "01", RevokedAt: now.Add(-pruneAfter - time.Second)},
		{Serial: "02", RevokedAt: now.Add(-pruneAfter + time.Second)},
		{URI: "spiffe://d/x", RevokedAt: now.Add(-10 * pruneAfter)},
	} {
		if _, _, err := log.Apply(t.Context(), &catalog.SetCertRevocation{Revocation: r}); err != nil {
			t.Fatal(err)
		}
	}
	p := &pruner{store: s, raft: log, now: func() time.Time { return now }}
	for range 2 {
		if err := p.prune(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	v, err := s.Read(catalog.Query{Kind: catalog.QueryCertRevocations})
	if err != nil || len(v.RevokedCerts) != 2 || v.RevokedCerts[0].Serial != "02" {
		t.Errorf("%v %+v", err, v.RevokedCerts)
	}
	if s.Index() != 5 {
		t.Errorf("the second look wrote to the log: index %d", s.Index())
	}
}
