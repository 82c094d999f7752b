package rpc

import (
	"context"
	"fmt"
	"strings"
	"time"

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

// revocation is one of a node, a join token or a certificate: what it is of, for
// people, and the command that makes it.
type revocation struct {
	of  string
	cmd catalog.Command
}

// revocations are all that the state has, those of nodes first.
func (h *Handler) revocations() ([]revocation, error) {
	v, err := h.cfg.Store.Read(catalog.Query{Kind: catalog.QueryRevocations})
	if err != nil {
		return nil, err
	}
	certs, err := h.cfg.Store.Read(catalog.Query{Kind: catalog.QueryCertRevocations})
	if err != nil {
		return nil, err
	}
	var out []revocation
	for _, r := range v.Revocations {
		row := *r
		row.RaftIndex = catalog.RaftIndex{}
		out = append(out, revocation{row.Kind + " " + row.ID, &catalog.Revoke{Revocation: row}})
	}
	for _, r := range certs.RevokedCerts {
		row := *r
		row.RaftIndex = catalog.RaftIndex{}
		out = append(out, revocation{"certificate " + row.Key(), &catalog.SetCertRevocation{Revocation: row}})
	}
	return out, nil
}

// revokeWithin bounds how long a restore revokes again.
const revokeWithin = time.Minute

// revokeAgain revokes what a restored state has lost of the revocations before it: whoever
// was shut out is not let in by a backup.
func (h *Handler) revokeAgain(ctx context.Context, before []revocation) error {
	now, err := h.revocations()
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(now))
	for _, r := range now {
		there[r.of] = true
	}
	ctx, cancel := context.WithTimeout(ctx, revokeWithin)
	defer cancel()
	again := 0
	var lost []string
	var first error
	for _, r := range before {
		if there[r.of] {
			continue
		}
		if first == nil {
			if _, _, first = h.cfg.Log.Apply(ctx, r.cmd); first == nil {
				again++
				continue
			}
		}
		h.log.Error("what was revoked before a restore is not revoked any more", "revoked", r.of, "err", first)
		lost = append(lost, r.of)
	}
	if again > 0 {
		h.log.Warn("what was revoked before a restore was revoked again", "revocations", again)
	}
	if first == nil {
		return nil
	}
	const most = 16
	// The cause stays text, so that nobody takes it for that of the restore and tries again.
	text := strings.Join(lost[:min(len(lost), most)], ", ")
	if len(lost) > most {
		text += fmt.Sprintf(" and %d more, which this server's log names", len(lost)-most)
	}
	return fmt.Errorf("the snapshot was restored, but of what was revoked before it %d could not be revoked again: %s; revoke it by hand: %s", len(lost), first.Error(), text)
}
