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

// certRevocationModel is what is revoked, as a plain map.
type certRevocationModel struct {
	rows map[string]catalog.CertRevocation
	at   uint64 // when it last changed
}

func newCertRevocationModel() certRevocationModel {
	return certRevocationModel{rows: map[string]catalog.CertRevocation{}}
}

func (r certRevocationModel) clone() certRevocationModel {
	r.rows = maps.Clone(r.rows)
	return r
}

func (m *model) doCertRevocation(cmd catalog.Command) (any, error) {
	r := &m.certRevocations
	before := fmt.Sprint(slices.Sorted(maps.Keys(r.rows)))
	defer func() {
		if fmt.Sprint(slices.Sorted(maps.Keys(r.rows))) != before {
			r.at = m.index
		}
	}()
	switch c := cmd.(type) {
	case *catalog.SetCertRevocation:
		row := c.Revocation
		if old, ok := r.rows[row.Key()]; ok {
			row.RevokedAt = old.RevokedAt
		}
		put(m, r.rows, row.Key(), row, func(r *catalog.CertRevocation) *catalog.RaftIndex { return &r.RaftIndex })
	case *catalog.DeleteCertRevocation:
		key := (&catalog.CertRevocation{Serial: c.Serial, URI: c.URI}).Key()
		if _, ok := r.rows[key]; !ok {
			return nil, catalog.ErrNotFound
		}
		delete(r.rows, key)
	case *catalog.PruneCertRevocations:
		maps.DeleteFunc(r.rows, func(_ string, row catalog.CertRevocation) bool {
			return row.URI == "" && row.RevokedAt.Before(c.Before)
		})
	}
	return nil, nil
}

func (r certRevocationModel) list(all bool) []*catalog.CertRevocation {
	out := rowsOf(r.rows, func(a, b *catalog.CertRevocation) int { return cmp.Compare(a.Key(), b.Key()) }, func(*catalog.CertRevocation) bool { return true })
	for _, row := range out {
		if !all {
			row.Description, row.RaftIndex = "", catalog.RaftIndex{}
		}
	}
	return out
}

func TestCertRevocationsAreBounded(t *testing.T) {
	s := newStore(t, Config{})
	at := uint64(1)
	set := func(serial string) error {
		at++
		r := catalog.CertRevocation{Serial: serial, RevokedAt: time.Unix(1, 0)}
		r.Normalize()
		_, err := s.Apply(at, &catalog.SetCertRevocation{Revocation: r})
		return err
	}
	for i := range catalog.MaxCertRevocations {
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
	if _, err := s.Apply(at, &catalog.PruneCertRevocations{Before: time.Unix(2, 0)}); err != nil {
		t.Fatal(err)
	}
	if v := read(t, s, catalog.Query{Kind: catalog.QueryCertRevocations}); len(v.RevokedCerts) != 0 || v.Index != at {
		t.Errorf("%d left at %d, want none at %d", len(v.RevokedCerts), v.Index, at)
	}
}
