package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Bundle is a trust domain and the roots that may vouch for its names, old ones
// included while a rotation lasts. It is immutable. A nil Bundle trusts nobody.
type Bundle struct {
	trustDomain string
	roots       []*x509.Certificate
	pool        *x509.CertPool
	fingerprint string
	revoked     map[string]bool // serials, as Serial writes them, and SPIFFE IDs
}

// NewBundle reads roots in PEM; each text may hold several. At least one is needed.
func NewBundle(trustDomain string, rootPEMs []string) (*Bundle, error) {
	if err := validDomain(trustDomain); err != nil {
		return nil, fmt.Errorf("trust bundle: %w", err)
	}
	b := &Bundle{trustDomain: trustDomain, pool: x509.NewCertPool()}
	for i, text := range rootPEMs {
		certs, err := ParseCerts([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("trust bundle: root %d: %w", i+1, err)
		}
		for _, c := range certs {
			if err := b.add(c); err != nil {
				return nil, fmt.Errorf("trust bundle: root %d: %w", i+1, err)
			}
		}
	}
	if len(b.roots) == 0 {
		return nil, errors.New("trust bundle: no roots")
	}
	b.fingerprint = fingerprint(trustDomain, b.roots)
	return b, nil
}

// Revoking is the bundle without trust in the certificates of these serials, as
// Serial writes them, and in these SPIFFE IDs.
func (b *Bundle) Revoking(serials, ids []string) *Bundle {
	if len(serials)+len(ids) == 0 {
		return b
	}
	out := *b
	out.revoked = make(map[string]bool, len(serials)+len(ids))
	h := sha256.New()
	h.Write([]byte(b.fingerprint))
	for _, s := range slices.Sorted(slices.Values(slices.Concat(serials, ids))) {
		out.revoked[s] = true
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	out.fingerprint = hex.EncodeToString(h.Sum(nil))
	return &out
}

// RevokedID tells whether trust in an identity was withdrawn.
func (b *Bundle) RevokedID(id ID) bool { return b != nil && b.revoked[id.String()] }

// Revoked says which revocation a leaf falls under: its serial, its SPIFFE ID, or
// none, which is "".
func (b *Bundle) Revoked(leaf *x509.Certificate, id ID) string {
	if b == nil || len(b.revoked) == 0 {
		return ""
	}
	if s := Serial(leaf.SerialNumber); b.revoked[s] {
		return "serial " + s
	}
	if s := id.String(); b.revoked[s] {
		return s
	}
	return ""
}

func (b *Bundle) add(c *x509.Certificate) error {
	if !c.BasicConstraintsValid || !c.IsCA {
		return errors.New("the certificate is not that of an authority")
	}
	if slices.ContainsFunc(b.roots, c.Equal) {
		return nil
	}
	if len(b.roots) == maxBlocks {
		return fmt.Errorf("more than %d roots", maxBlocks)
	}
	b.roots = append(b.roots, c)
	b.pool.AddCert(c)
	return nil
}

func fingerprint(trustDomain string, roots []*x509.Certificate) string {
	sums := make([][]byte, len(roots))
	for i, c := range roots {
		s := sha256.Sum256(c.Raw)
		sums[i] = s[:]
	}
	slices.SortFunc(sums, bytes.Compare) // the order of roots means nothing
	h := sha256.New()
	h.Write([]byte(trustDomain))
	for _, s := range sums {
		h.Write(s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TrustDomain is the domain that peers must be of.
func (b *Bundle) TrustDomain() string { return b.trustDomain }

// Roots are the trusted authorities. Do not change the slice.
func (b *Bundle) Roots() []*x509.Certificate { return b.roots }

// Fingerprint is equal exactly for bundles of the same domain, roots and revocations.
func (b *Bundle) Fingerprint() string {
	if b == nil {
		return ""
	}
	return b.fingerprint
}

// String is for logs.
func (b *Bundle) String() string {
	if b == nil {
		return "no bundle"
	}
	return fmt.Sprintf("%s, %d roots, %s", b.trustDomain, len(b.roots), b.fingerprint[:16])
}

// VerifyPeer checks the certificates that a peer has shown, leaf first, for both
// ends of a connection, as every leaf of ours is good for both.
func (b *Bundle) VerifyPeer(certs []*x509.Certificate, now time.Time) (ServiceID, error) {
	if _, err := b.VerifyClient(certs, now); err != nil {
		return ServiceID{}, err
	}
	return b.VerifyServer(certs, now)
}

// VerifyClient checks what the dialling end has shown.
func (b *Bundle) VerifyClient(certs []*x509.Certificate, now time.Time) (ServiceID, error) {
	return b.service(certs, now, x509.ExtKeyUsageClientAuth)
}

// VerifyServer checks what the accepting end has shown. That it is the service
// that was asked for is for the caller to compare.
func (b *Bundle) VerifyServer(certs []*x509.Certificate, now time.Time) (ServiceID, error) {
	return b.service(certs, now, x509.ExtKeyUsageServerAuth)
}

func (b *Bundle) service(certs []*x509.Certificate, now time.Time, usage x509.ExtKeyUsage) (ServiceID, error) {
	id, err := b.Verify(certs, now, usage)
	if err != nil {
		return ServiceID{}, err
	}
	svc, ok := id.(ServiceID)
	if !ok {
		return ServiceID{}, verifyError(ReasonBadIdentity, certs[0], id, "it does not name a service", nil)
	}
	return svc, nil
}

// Verify checks a peer of any kind: an end certificate with exactly one SPIFFE ID
// of our trust domain, valid now, for this usage, with a chain to a root whose
// name constraints hold. Errors are *VerifyError.
func (b *Bundle) Verify(certs []*x509.Certificate, now time.Time, usage x509.ExtKeyUsage) (ID, error) {
	if len(certs) == 0 {
		return nil, verifyError(ReasonNoCertificate, nil, nil, "the peer shows no certificate", nil)
	}
	leaf := certs[0]
	if b == nil {
		return nil, verifyError(ReasonNoBundle, leaf, nil, "the roots are not known yet", nil)
	}
	if len(certs) > maxChain {
		return nil, verifyError(ReasonUnknownAuthority, leaf, nil, fmt.Sprintf("a chain of %d certificates, at most %d are allowed", len(certs), maxChain), nil)
	}
	id, err := IDOf(leaf)
	if err != nil {
		return nil, verifyError(ReasonBadIdentity, leaf, nil, "the certificate names nobody", err)
	}
	if id.Domain() != b.trustDomain {
		return nil, verifyError(ReasonTrustDomain, leaf, id, fmt.Sprintf("trust domain %q is not ours, %q", id.Domain(), b.trustDomain), nil)
	}
	if err := checkLeaf(leaf, id, now, usage); err != nil {
		return nil, err
	}
	if err := b.chain(certs, id, now, usage); err != nil {
		return nil, err
	}
	if what := b.Revoked(leaf, id); what != "" {
		return nil, verifyError(ReasonRevoked, leaf, id, "revoked: "+what, nil)
	}
	return id, nil
}

// checkLeaf is what can be said without the chain; it gives clearer reasons than
// crypto/x509, and is stricter where that is lenient.
func checkLeaf(leaf *x509.Certificate, id ID, now time.Time, usage x509.ExtKeyUsage) error {
	switch {
	case leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0:
		return verifyError(ReasonNotALeaf, leaf, id, "the certificate is that of an authority", nil)
	case now.Before(leaf.NotBefore):
		return verifyError(ReasonNotYetValid, leaf, id, fmt.Sprintf("valid from %s, the clock here says %s: check for clock skew between the hosts",
			stamp(leaf.NotBefore), stamp(now)), nil)
	case now.After(leaf.NotAfter):
		return verifyError(ReasonExpired, leaf, id, fmt.Sprintf("expired at %s, the clock here says %s", stamp(leaf.NotAfter), stamp(now)), nil)
	case !slices.Contains(leaf.ExtKeyUsage, usage):
		return verifyError(ReasonUsage, leaf, id, "the certificate is not for this end of a connection", nil)
	}
	return nil
}

func (b *Bundle) chain(certs []*x509.Certificate, id ID, now time.Time, usage x509.ExtKeyUsage) error {
	opts := x509.VerifyOptions{
		Roots:         b.pool,
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := certs[0].Verify(opts)
	if err == nil {
		return nil
	}
	reason, detail := ReasonUnknownAuthority, fmt.Sprintf("no root of this trust domain (%s) vouches for it", b)
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) {
		switch invalid.Reason {
		case x509.Expired:
			reason, detail = ReasonExpired, "an authority above it is not valid now"
		case x509.IncompatibleUsage:
			reason, detail = ReasonUsage, "an authority above it may not issue for this use"
		case x509.CANotAuthorizedForThisName, x509.UnconstrainedName, x509.NameConstraintsWithoutSANs, x509.TooManyConstraints:
			reason, detail = ReasonConstraint, "its authority may not issue for this name"
		}
	}
	return verifyError(reason, certs[0], id, detail, err)
}

func verifyError(r Reason, leaf *x509.Certificate, id ID, detail string, err error) error {
	e := &VerifyError{Reason: r, Detail: detail, Err: err}
	if leaf != nil {
		e.NotAfter = leaf.NotAfter
	}
	if id != nil {
		e.Peer = id.String()
	}
	return e
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
