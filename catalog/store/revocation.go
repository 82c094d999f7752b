package store

import "github.com/weftmesh/weft/catalog"

func (r reader) revocation(kind, id string) (*catalog.Revocation, bool) {
	return first[*catalog.Revocation](r, tableRevocations, byID, kind, id)
}

// revoke adds a row and removes those that time has made needless, by the clock that
// the command was written with.
func (w *writer) revoke(c *catalog.Revoke) bool {
	if _, exists := w.revocation(c.Revocation.Kind, c.Revocation.ID); exists {
		return false
	}
	for _, old := range all[*catalog.Revocation](w.reader, tableRevocations, byID) {
		if !old.Expires.IsZero() && old.Expires.Before(c.Revocation.At) {
			w.remove(tableRevocations, old)
		}
	}
	row := c.Revocation
	row.RaftIndex = w.stamp(catalog.RaftIndex{})
	w.insert(tableRevocations, &row)
	w.touch(keyRevocations)
	return true
}

func (w *writer) allow(c *catalog.Allow) bool {
	row, exists := w.revocation(c.Kind, c.ID)
	if !exists {
		return false
	}
	w.remove(tableRevocations, row)
	w.touch(keyRevocations)
	return true
}
