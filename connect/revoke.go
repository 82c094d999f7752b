package connect

import (
	"slices"

	"github.com/weftmesh/weft/connect/identity"
)

func (s *Snapshot) sameRevoked(o *Snapshot) bool {
	return slices.Equal(s.RevokedSerials, o.RevokedSerials) && slices.Equal(s.RevokedIDs, o.RevokedIDs)
}

// untrusted names what of the trust of w ended a connection: the revocation that its
// peer falls under, or the bundle.
func (w *world) untrusted(r *row) string {
	if len(r.chain) > 0 {
		if id, err := identity.IDOf(r.chain[0]); err == nil {
			if what := w.bundle.Revoked(r.chain[0], id); what != "" {
				return "revoked: " + what
			}
		}
	}
	return "trust bundle"
}

// ownRevocation says why this service itself is trusted by nobody, "" when it is.
func (w *world) ownRevocation() string {
	if !w.bundle.RevokedID(w.id) {
		return ""
	}
	return "the identity " + w.id.String() + " is revoked; weft cert unrevoke ends that"
}
