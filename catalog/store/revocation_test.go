package store

import (
	"time"

	"pgregory.net/rapid"

	"github.com/weftmesh/weft/catalog"
)

var (
	revocable    = []string{catalog.RevokedToken, catalog.RevokedNode}
	revocableIDs = []string{"r1", "r2", "r3"}
)

func drawRevoke(t *rapid.T) *catalog.Revoke {
	hour := func(label string) time.Time {
		return time.Date(2026, 1, 1, rapid.IntRange(0, 5).Draw(t, label), 0, 0, 0, time.UTC)
	}
	r := catalog.Revocation{Kind: pick(t, revocable, "kind"), ID: pick(t, revocableIDs, "revoked ID"), At: hour("at")}
	if r.Kind == catalog.RevokedToken {
		r.Expires = hour("expires")
	} else {
		r.Node = pick(t, nodeNames, "node")
	}
	return &catalog.Revoke{Revocation: r}
}

func (m *model) doRevoke(c *catalog.Revoke) bool {
	rows, key := m.operator.revocations, c.Revocation.Kind+" "+c.Revocation.ID
	if _, exists := rows[key]; exists {
		return false
	}
	for k, r := range rows {
		if !r.Expires.IsZero() && r.Expires.Before(c.Revocation.At) {
			delete(rows, k)
		}
	}
	put(m, rows, key, c.Revocation, func(r *catalog.Revocation) *catalog.RaftIndex { return &r.RaftIndex })
	return true
}
