package ca

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

// maxCarried bounds the intermediates that follow a leaf, and so the bytes of each
// handshake, when roots are rotated again before the last rotation is over.
const maxCarried = 4

// Active is the root that signs, nil when there is none.
func Active(roots []*catalog.Root) *catalog.Root {
	if i := slices.IndexFunc(roots, func(r *catalog.Root) bool { return r.Active }); i >= 0 {
		return roots[i]
	}
	return nil
}

// Reconcile is the set of roots that should be, given the one that is. It makes the
// first root, rotates to a new one when cfg asks for another than the active one or
// the active one nears its end, and drops old roots once nobody can hold a leaf of
// theirs. Nothing to do: it returns roots itself and false. The roots given are not
// changed.
//
// Call it at start, when the configuration changes, and now and then, and where the
// active root is Untimely only by a clock that is beyond doubt.
func Reconcile(roots []*catalog.Root, cfg Config, seal Sealer, now time.Time) ([]*catalog.Root, bool, error) {
	out, pruned := Prune(roots, cfg, now)
	active := Active(out)
	switch {
	case active == nil || NeedsNewRoot(active, cfg, now):
		next := former(out, cfg, seal, now)
		var err error
		if next == nil {
			if next, err = NewRoot(cfg, seal, now); err != nil {
				return roots, false, err
			}
		}
		if out, err = Rotate(out, next, cfg, seal, now); err != nil {
			return roots, false, err
		}
		return out, true, nil
	case active.LeafTTL < cfg.LeafTTL:
		longer := *active
		longer.LeafTTL = cfg.LeafTTL
		out = slices.Clone(out)
		out[slices.Index(out, active)] = &longer
		return out, true, nil
	case pruned:
		return out, true, nil
	}
	return roots, false, nil
}

// NeedsNewRoot tells whether cfg asks for another root than the active one: another
// certificate or key of the operator's, another type or size of key, or, for
// generated roots, one of another time. A configuration that says nothing of keys is
// content with any root.
func NeedsNewRoot(active *catalog.Root, cfg Config, now time.Time) bool {
	if asksForAnother(active, cfg) {
		return true
	}
	if cfg.RootCert != nil || cfg.key != nil {
		return false
	}
	// Leaves are to have their whole life, and old ones to end before the root does.
	margin := max(active.NotAfter.Sub(active.NotBefore)/10, 2*cfg.LeafTTL)
	return now.After(active.NotAfter.Add(-margin)) || now.Before(active.NotBefore)
}

// asksForAnother is NeedsNewRoot at any time.
func asksForAnother(r *catalog.Root, cfg Config) bool {
	if cfg.RootCert != nil {
		return Fingerprint(cfg.RootCert) != r.ID
	}
	if cfg.key != nil {
		cert, err := identity.ParseCert([]byte(r.RootCert))
		return err != nil || !identity.SameKey(cfg.key.Public(), cert.PublicKey)
	}
	return cfg.KeyBits != 0 && (cfg.KeyType != r.PrivateKeyType || cfg.KeyBits != r.PrivateKeyBits)
}

// Rotate makes next the active root. The old one cross-signs it, so that peers who
// have not heard of next yet accept its leaves; it stays trusted, without its key,
// until Prune drops it. Where it cannot cross-sign, Rotate refuses unless cfg.Force.
//
// An old one that is not good now vouches for nobody, and need not cross-sign. As the
// clock may be what is wrong, it keeps its key, to take over again when it is good.
func Rotate(roots []*catalog.Root, next *catalog.Root, cfg Config, seal Sealer, now time.Time) ([]*catalog.Root, error) {
	next, active := clone(next), Active(roots)
	timely := active == nil || good(active, now)
	out := make([]*catalog.Root, 0, len(roots)+1)
	for _, r := range roots {
		switch {
		case r.ID == next.ID: // comes back, or is written anew
			next.CreateIndex = r.CreateIndex
			next.LeafTTL = max(next.LeafTTL, r.LeafTTL)
		case r == active:
			old := clone(r)
			old.Active, old.RotatedOutAt = false, now
			if timely || asksForAnother(active, cfg) {
				old.SealedKey = nil
			}
			out = append(out, old)
		case !timely: // when it was rotated out was told by another clock
			old := clone(r)
			old.RotatedOutAt = now
			out = append(out, old)
		default:
			out = append(out, r)
		}
	}
	if !timely {
		out = bound(out, now)
	}
	if active != nil && active.ID != next.ID {
		cross, err := crossSign(active, next, cfg, seal, now)
		switch {
		case err == nil:
			next.IntermediateCerts = append([]string{cross}, active.IntermediateCerts...)
		case !timely:
		case cfg.Force:
			next.IntermediateCerts = nil
		default:
			return nil, fmt.Errorf("CA rotation: the active root cannot cross-sign the new one, so peers would be cut off until "+
				"they know it; set ForceWithoutCrossSigning to accept that: %w", err)
		}
	}
	next.Active, next.RotatedOutAt = true, time.Time{}
	next.IntermediateCerts = useful(next.IntermediateCerts, out, now)
	return append(out, next), nil
}

func crossSign(active, next *catalog.Root, cfg Config, seal Sealer, now time.Time) (string, error) {
	old, err := Open(active, cfg, seal)
	if err != nil {
		return "", err
	}
	cross, err := CrossSign(old, next, now)
	if err != nil {
		return "", err
	}
	// Try it as a peer would who trusts the old root only.
	a, err := Open(next, cfg, seal)
	if err != nil {
		return "", err
	}
	a.intermediates = cross
	at := now
	if at.Before(active.NotBefore) { // by a clock that is behind: try what will be when it is right
		at = active.NotBefore
	}
	if err := a.try([]string{active.RootCert}, at); err != nil {
		return "", err
	}
	return cross, nil
}

// CrossSign makes the intermediate, in PEM, with which leaves of next are accepted
// by peers who trust only the root of old.
func CrossSign(old *Authority, next *catalog.Root, now time.Time) (string, error) {
	cert, err := identity.ParseCert([]byte(next.RootCert))
	if err != nil {
		return "", fmt.Errorf("cross-signing of CA root %s: %w", next.ID, err)
	}
	serial, err := newSerial()
	if err != nil {
		return "", fmt.Errorf("cross-signing of CA root %s: %w", next.ID, err)
	}
	notAfter := now.Add(old.cfg.IntermediateTTL)
	for _, end := range []time.Time{old.cert.NotAfter, cert.NotAfter} {
		if end.Before(notAfter) {
			notAfter = end
		}
	}
	if !notAfter.After(now) {
		return "", fmt.Errorf("cross-signing of CA root %s: one of the two roots has expired", next.ID)
	}
	tmpl := &x509.Certificate{
		SerialNumber:                serial,
		RawSubject:                  cert.RawSubject,
		URIs:                        cert.URIs,
		NotBefore:                   now.Add(-rootBackdate),
		NotAfter:                    notAfter,
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid:       true,
		IsCA:                        true,
		SubjectKeyId:                cert.SubjectKeyId,
		AuthorityKeyId:              old.cert.SubjectKeyId,
		PermittedURIDomains:         []string{old.domain},
		PermittedDNSDomainsCritical: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, old.cert, cert.PublicKey, old.key)
	if err != nil {
		return "", fmt.Errorf("cross-signing of CA root %s: %w", next.ID, err)
	}
	return string(identity.EncodeCert(der)), nil
}

// Prune drops the old roots whose last leaf has ended, with a life to spare, and
// the intermediates that lead to none but them. It tells whether it dropped any;
// the roots given are not changed.
//
// A root that was rotated out by a clock by which it was not good may have live leaves
// by the right one: it stays until it has ended. While the active root is not good the
// clock proves nothing, and all stay.
func Prune(roots []*catalog.Root, cfg Config, now time.Time) ([]*catalog.Root, bool) {
	if active := Active(roots); active != nil && !good(active, now) {
		return roots, false
	}
	gone := func(r *catalog.Root) bool {
		life := min(max(r.LeafTTL, cfg.LeafTTL), math.MaxInt64/2)
		inTime := len(r.SealedKey) == 0 && good(r, r.RotatedOutAt)
		return !r.Active && now.After(r.RotatedOutAt.Add(2*life)) && (inTime || now.After(r.NotAfter))
	}
	if !slices.ContainsFunc(roots, gone) {
		return roots, false
	}
	out := slices.DeleteFunc(slices.Clone(roots), gone)
	if i := slices.IndexFunc(out, func(r *catalog.Root) bool { return r.Active }); i >= 0 {
		active := clone(out[i])
		active.IntermediateCerts = useful(active.IntermediateCerts, out, now)
		out[i] = active
	}
	return out, true
}

// useful keeps the intermediates that one of roots has signed and that are valid.
func useful(intermediates []string, roots []*catalog.Root, now time.Time) []string {
	var issuers []*x509.Certificate
	for _, r := range roots {
		if c, err := identity.ParseCert([]byte(r.RootCert)); err == nil && !r.Active {
			issuers = append(issuers, c)
		}
	}
	var out []string
	for _, text := range intermediates {
		c, err := identity.ParseCert([]byte(text))
		if err != nil || now.After(c.NotAfter) || len(out) == maxCarried {
			continue
		}
		if slices.ContainsFunc(issuers, func(i *x509.Certificate) bool { return c.CheckSignatureFrom(i) == nil }) {
			out = append(out, text)
		}
	}
	return out
}

func clone(r *catalog.Root) *catalog.Root { c := *r; return &c }
