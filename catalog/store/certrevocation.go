package store

import "github.com/weftmesh/weft/catalog"

func (r reader) certRevocations() []*catalog.CertRevocation {
	return all[*catalog.CertRevocation](r, tableCertRevocations, byID)
}

// revoked is what all may see: who is not trusted, and not why.
func (r reader) revokedCerts() []*catalog.CertRevocation {
	var out []*catalog.CertRevocation
	for _, row := range r.certRevocations() {
		out = append(out, &catalog.CertRevocation{Serial: row.Serial, URI: row.URI, RevokedAt: row.RevokedAt})
	}
	return out
}

func (w *writer) applyCertRevocation(cmd catalog.Command) (any, error) {
	switch c := cmd.(type) {
	case *catalog.SetCertRevocation:
		return nil, w.setCertRevocation(c.Revocation)
	case *catalog.DeleteCertRevocation:
		key := (&catalog.CertRevocation{Serial: c.Serial, URI: c.URI}).Key()
		old, ok := first[*catalog.CertRevocation](w.reader, tableCertRevocations, byID, key)
		if !ok {
			return nil, catalog.NotFoundf("%s is not revoked", key)
		}
		w.dropCertRevocation(old)
		return nil, nil
	case *catalog.PruneCertRevocations:
		for _, old := range w.certRevocations() {
			if old.URI == "" && old.RevokedAt.Before(c.Before) {
				w.dropCertRevocation(old)
			}
		}
		return nil, nil
	default:
		if c, ok := cmd.(interface{ IgnoreIfUnknown() bool }); ok && c.IgnoreIfUnknown() {
			return nil, nil // a server that does not know it must be the same after it
		}
		return nil, catalog.Invalidf("command %T is not known to this version", cmd)
	}
}

func (w *writer) setCertRevocation(row catalog.CertRevocation) error {
	row.RaftIndex = catalog.RaftIndex{}
	old, exists := first[*catalog.CertRevocation](w.reader, tableCertRevocations, byID, row.Key())
	switch {
	case exists:
		row.RevokedAt, row.RaftIndex = old.RevokedAt, old.RaftIndex
		if same(&row, old) {
			return nil
		}
	case w.count(tableCertRevocations, func(any) {}) >= catalog.MaxCertRevocations:
		return catalog.Invalidf("revoke %s: %d are revoked already, the most allowed; trust those again whose certificates have expired (weft cert unrevoke)",
			row.Key(), catalog.MaxCertRevocations)
	}
	if !exists {
		w.touch(keyRevokedCerts)
	}
	row.RaftIndex = w.stamp(row.RaftIndex)
	w.insert(tableCertRevocations, &row)
	w.touch(keyCertRevocations)
	return nil
}

func (w *writer) dropCertRevocation(r *catalog.CertRevocation) {
	w.remove(tableCertRevocations, r)
	w.touch(keyCertRevocations)
	w.touch(keyRevokedCerts)
}
