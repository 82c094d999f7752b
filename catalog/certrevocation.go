package catalog

import (
	"encoding/hex"
	"strings"
	"time"
)

// CertRevocation withdraws trust in one certificate, by its serial, or in an identity,
// by its SPIFFE ID: exactly one of the two. Nobody lets such a peer in, and the
// authority issues nothing for such an identity.
type CertRevocation struct {
	// Serial is that of a leaf, in lower-case hex with colons, as certificates are shown.
	Serial string `json:",omitempty"`
	// URI is a SPIFFE ID.
	URI         string `json:",omitempty"`
	Description string
	RevokedAt   time.Time
	RaftIndex
}

// Bounds of revocations.
const (
	// MaxCertRevocations bounds how many there are: every proxy holds all of them.
	MaxCertRevocations = 10_000
	maxSerialBytes     = 64
	maxRevocationText  = 1024
	maxRevokedURIBytes = 2048
)

// ParseCertRevocation reads what a person names: a SPIFFE ID, or a serial in hex, with
// colons or without.
func ParseCertRevocation(text string) (CertRevocation, error) {
	r := CertRevocation{Serial: text}
	if strings.Contains(text, "://") {
		r = CertRevocation{URI: text}
	}
	r.Normalize()
	return r, r.Validate()
}

// Normalize writes the serial as certificates are shown; one that is none stays.
func (r *CertRevocation) Normalize() {
	digits := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(r.Serial))
	if len(digits)%2 == 1 {
		digits = "0" + digits
	}
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) == 0 {
		return
	}
	for len(b) > 1 && b[0] == 0 {
		b = b[1:] // a sign byte of DER is no part of the number
	}
	parts := make([]string, len(b))
	for i := range b {
		parts[i] = hex.EncodeToString(b[i : i+1])
	}
	r.Serial = strings.Join(parts, ":")
}

// Key is what the revocation is known by: the serial or the SPIFFE ID.
func (r *CertRevocation) Key() string {
	if r.URI != "" {
		return r.URI
	}
	return r.Serial
}

// Validate refuses what names no certificate and no identity.
func (r *CertRevocation) Validate() error {
	switch {
	case (r.Serial == "") == (r.URI == ""):
		return Invalidf("revocation: name either the serial of a certificate or a SPIFFE ID")
	case len(r.Description) > maxRevocationText:
		return Invalidf("revocation: a description of %d bytes, at most %d are allowed", len(r.Description), maxRevocationText)
	case r.URI != "":
		if len(r.URI) > maxRevokedURIBytes || !strings.HasPrefix(r.URI, "spiffe://") || len(r.URI) == len("spiffe://") {
			return Invalidf("revocation: %q is no SPIFFE ID, which begins with spiffe:// and has at most %d bytes", clipText(r.URI), maxRevokedURIBytes)
		}
		return validName("revocation: SPIFFE ID", r.URI)
	}
	as := CertRevocation{Serial: r.Serial}
	as.Normalize()
	if as.Serial != r.Serial || len(r.Serial) > 3*maxSerialBytes || r.Serial != strings.Trim(r.Serial, ":") || !isHex(r.Serial) {
		return Invalidf("revocation: %q is no serial of a certificate: want hex with colons, such as 0a:1b:2c, as weft connect status shows it", clipText(r.Serial))
	}
	return nil
}

func isHex(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return !strings.ContainsRune("0123456789abcdef:", c) })
}

func clipText(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// SetCertRevocation revokes; what is revoked already keeps its time.
// Result: nil.
type SetCertRevocation struct{ Revocation CertRevocation }

// DeleteCertRevocation trusts again. What is not revoked is ErrNotFound.
// Result: nil.
type DeleteCertRevocation struct {
	Serial string
	URI    string
}

// PruneCertRevocations removes the serials that were revoked before a moment: their
// certificates have all expired. Identities stay.
// Result: nil.
type PruneCertRevocations struct{ Before time.Time }

// CommandType implements Command.
func (*SetCertRevocation) CommandType() CommandType { return CmdSetCertRevocation }

// CommandType implements Command.
func (*DeleteCertRevocation) CommandType() CommandType { return CmdDelCertRevocation }

// CommandType implements Command.
func (*PruneCertRevocations) CommandType() CommandType { return CmdPruneCertRevocations }

// Validate implements Command.
func (c *SetCertRevocation) Validate() error {
	if c.Revocation.RevokedAt.IsZero() {
		return Invalidf("revocation: it has no time")
	}
	return c.Revocation.Validate()
}

// Validate implements Command.
func (c *DeleteCertRevocation) Validate() error {
	return (&CertRevocation{Serial: c.Serial, URI: c.URI}).Validate()
}

// Validate implements Command.
func (c *PruneCertRevocations) Validate() error {
	if c.Before.IsZero() {
		return Invalidf("prune revocations: there is no moment")
	}
	return nil
}

// RevokedCerts lists the serials and the identities of revocations.
func RevokedCerts(list []*CertRevocation) (serials, uris []string) {
	for _, r := range list {
		if r == nil {
			continue
		}
		if r.URI != "" {
			uris = append(uris, r.URI)
		} else if r.Serial != "" {
			serials = append(serials, r.Serial)
		}
	}
	return serials, uris
}
