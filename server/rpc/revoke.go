package rpc

import (
	"fmt"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

// completeCertRevocation writes the serial and the SPIFFE ID of a command as certificates
// have them, and refuses an ID that no certificate of this mesh could have: a
// revocation with a slip of the pen would protect nobody.
func (h *Handler) completeCertRevocation(r *catalog.CertRevocation) error {
	r.Normalize()
	if r.URI == "" {
		return nil
	}
	id, err := identity.Parse(r.URI)
	if err != nil {
		return catalog.Invalidf("revocation: %v", err)
	}
	r.URI = id.String()
	v, err := h.cfg.Store.Read(catalog.Query{Kind: catalog.QueryRoots})
	if err != nil {
		return err
	}
	if v.CAConfig == nil {
		return nil // there is no trust domain yet
	}
	if domain := catalog.TrustDomain(v.CAConfig.ClusterID); id.Domain() != domain {
		return catalog.Invalidf("revocation: %s is of another trust domain than this mesh, which is %s", r.URI, domain)
	}
	return nil
}

// certRevocationOf completes the command where it is one about revocations.
func (h *Handler) certRevocationOf(cmd catalog.Command) error {
	switch c := cmd.(type) {
	case *catalog.SetCertRevocation:
		c.Revocation.RevokedAt = h.cfg.Now().UTC()
		return h.completeCertRevocation(&c.Revocation)
	case *catalog.DeleteCertRevocation:
		r := catalog.CertRevocation{Serial: c.Serial, URI: c.URI}
		r.Normalize()
		if id, err := identity.Parse(r.URI); err == nil {
			r.URI = id.String()
		}
		c.Serial, c.URI = r.Serial, r.URI
	}
	return nil
}

// mayHave refuses a certificate to an identity that is revoked.
func (h *Handler) mayHave(id identity.ID) error {
	v, err := h.cfg.Store.Read(catalog.Query{Kind: catalog.QueryRoots})
	if err != nil {
		return err
	}
	uri := id.String()
	for _, r := range v.RevokedCerts {
		if r.URI == uri {
			return fmt.Errorf("%w: %s is revoked since %s; weft cert unrevoke %s ends that", catalog.ErrDenied, uri, r.RevokedAt.Format("2006-01-02 15:04:05Z07:00"), uri)
		}
	}
	return nil
}

// mayRevoke refuses to revoke what a restore that is under way would undo. Otherwise the
// restore waits until done is called.
func (h *Handler) mayRevoke(cmd catalog.Command) (done func(), err error) {
	switch cmd.(type) {
	case *catalog.Revoke, *catalog.SetCertRevocation:
	default:
		return func() {}, nil
	}
	if !h.revoking.TryRLock() {
		return nil, catalog.Conflictf("nothing can be revoked while a snapshot is restored, which would undo it; try again when that is done")
	}
	return h.revoking.RUnlock, nil
}
