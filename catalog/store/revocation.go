package store

import "github.com/weftmesh/weft/catalog"

func revocationKey(r *catalog.Revocation) []string { return []string{r.Key()} }

func (r reader) revocations() []*catalog.Revocation {
	return all[*catalog.Revocation](r, tableRevocations, byID)
}

// revoked is what all may see: who is not trusted, and not why.
func (r reader) revoked() []*catalog.Revocation {
	var out []*catalog.Revocation
	for _, row := range r.revocations() {
		out = append(out, &catalog.Revocation{Serial: row.Serial, URI: row.URI, RevokedAt: row.RevokedAt})
	}
	return out
}

func (w *writer) applyRevocation(cmd catalog.Command) (any, error) {
	switch c := cmd.(type) {
	case *catalog.SetRevocation:
		return nil, w.setRevocation(c.Revocation)
	case *catalog.DeleteRevocation:
		key := (&catalog.Revocation{Serial: c.Serial, URI: c.URI}).Key()
		old, ok := first[*catalog.Revocation](w.reader, tableRevocations, byID, key)
		if !ok {
			return nil, catalog.NotFoundf("%s is not revoked", key)
		}
		w.dropRevocation(old)
		return nil, nil
	case *catalog.PruneRevocations:
		for _, old := range w.revocations() {
			if old.URI == "" && old.RevokedAt.Before(c.Before) {
				w.dropRevocation(old)
			}
		}
		return nil, nil
	default:
		return nil, catalog.Invalidf("command %T is not known to this version", cmd)
	}
}

func (w *writer) setRevocation(row catalog.Revocation) error {
	row.RaftIndex = catalog.RaftIndex{}
	old, exists := first[*catalog.Revocation](w.reader, tableRevocations, byID, row.Key())
	switch {
	case exists:
		row.RevokedAt, row.RaftIndex = old.RevokedAt, old.RaftIndex
		if same(&row, old) {
			return nil
		}
	case w.count(tableRevocations, func(any) {}) >= catalog.MaxRevocations:
		return catalog.Invalidf("revoke %s: %d are revoked already, the most allowed; trust those again whose certificates have expired (weft cert unrevoke)",
			row.Key(), catalog.MaxRevocations)
	}
	if !exists {
		w.touch(keyRevoked)
	}
	row.RaftIndex = w.stamp(row.RaftIndex)
	w.insert(tableRevocations, &row)
	w.touch(keyRevocations)
	return nil
}

func (w *writer) dropRevocation(r *catalog.Revocation) {
	w.remove(tableRevocations, r)
	w.touch(keyRevocations)
	w.touch(keyRevoked)
}
