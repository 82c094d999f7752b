package store

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// revocationModel is what is revoked, as a plain map.
type revocationModel struct {
	rows map[string]catalog.Revocation
	at   uint64 // when it last changed
}

func newRevocationModel() revocationModel {
	return revocationModel{rows: map[string]catalog.Revocation{}}
}

func (r revocationModel) clone() revocationModel {
	r.rows = maps.Clone(r.rows)
	return r
}

func (m *model) doRevocation(cmd catalog.Command) (any, error) {
	r := &m.revocations
	before := fmt.Sprint(slices.Sorted(maps.Keys(r.rows)))
	defer func() {
		if fmt.Sprint(slices.Sorted(maps.Keys(r.rows))) != before {
			r.at = m.index
		}
	}()
	switch c := cmd.(type) {
	case *catalog.SetRevocation:
		row := c.Revocation
		if old, ok := r.rows[row.Key()]; ok {
			row.RevokedAt = old.RevokedAt
		}
		put(m, r.rows, row.Key(), row, func(r *catalog.Revocation) *catalog.RaftIndex { return &r.RaftIndex })
	case *catalog.DeleteRevocation:
		key := (&catalog.Revocation{Serial: c.Serial, URI: c.URI}).Key()
		if _, ok := r.rows[key]; !ok {
			return nil, catalog.ErrNotFound
		}
		delete(r.rows, key)
	case *catalog.PruneRevocations:
		maps.DeleteFunc(r.rows, func(_ string, row catalog.Revocation) bool { return row.URI == "" && row.RevokedAt.Before(c.Before) })
	}
	return nil, nil
}

func (r revocationModel) list(all bool) []*catalog.Revocation {
	out := rowsOf(r.rows, func(a, b *catalog.Revocation) int { return cmp.Compare(a.Key(), b.Key()) }, func(*catalog.Revocation) bool { return true })
	for _, row := range out {
		if !all {
			row.Description, row.RaftIndex = "", catalog.RaftIndex{}
		}
	}
	return out
}

func TestRevocationsAreBounded(t *testing.T) {
	s := newStore(t, Config{})
	at := uint64(1)
	set := func(serial string) error {
		at++
		r := catalog.Revocation{Serial: serial, RevokedAt: time.Unix(1, 0)}
		r.Normalize()
		_, err := s.Apply(at, &catalog.SetRevocation{Revocation: r})
		return err
	}
	for i := range catalog.MaxRevocations {
		if err := set(fmt.Sprintf("%08x", i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := set("ffffffff"); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("one more than the bound: %v", err)
	}
	if err := set("00000001"); err != nil {
		t.Errorf("one that is revoked already: %v", err)
	}
	at++
	if _, err := s.Apply(at, &catalog.PruneRevocations{Before: time.Unix(2, 0)}); err != nil {
		t.Fatal(err)
	}
	if v := read(t, s, catalog.Query{Kind: catalog.QueryRevocations}); len(v.Revocations) != 0 || v.Index != at {
		t.Errorf("%d left at %d, want none at %d", len(v.Revocations), v.Index, at)
	}
}
