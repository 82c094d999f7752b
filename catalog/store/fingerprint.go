package store

import (
	"crypto/sha256"
	"encoding/hex"
	"reflect"
)

// tables in the order of fingerprints and backups.
var tables = []*table{
	tableNodes, tableServices, tableChecks, tableEntries, tableCA, tableRoots, tableStated,
	tableSessions, tableKV, tableDelays,
	tableQueries, tableCoordinates, tableAutopilot, tableIndex,
	tableVirtualIPs, tableRevocations, tableCertRevocations,
}

// Fingerprint is a digest of all that is stored, indexes included: servers that
// applied the same log have the same one.
func (s *Store) Fingerprint() string {
	st := s.state.Load()
	r := st.read()
	h := sha256.New()
	fingerprint(h, reflect.ValueOf(r.lastIndex()), true)
	for _, t := range tables {
		fingerprintText(h, t.name)
		for _, row := range all[any](r, t, byID) {
			fingerprint(h, reflect.ValueOf(row), true)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
