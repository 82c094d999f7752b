package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// maxChain bounds the certificates of a chain, our own and a peer's.
const maxChain = 10

// Chain is a leaf certificate and the intermediates that are sent after it. The
// zero Chain is empty; all others come from ParseChain and are immutable.
type Chain struct {
	DER   [][]byte // leaf first
	certs []*x509.Certificate
}

// ParseChain reads a chain in PEM, leaf first.
func ParseChain(text []byte) (Chain, error) {
	certs, err := ParseCerts(text)
	if err != nil {
		return Chain{}, err
	}
	if len(certs) > maxChain {
		return Chain{}, fmt.Errorf("certificate chain: %d certificates, at most %d are allowed", len(certs), maxChain)
	}
	c := Chain{certs: certs}
	for _, cert := range certs {
		c.DER = append(c.DER, cert.Raw)
	}
	return c, nil
}

// Empty tells whether there is no certificate.
func (c Chain) Empty() bool { return len(c.certs) == 0 }

// Leaf is the first certificate, nil when there is none.
func (c Chain) Leaf() *x509.Certificate {
	if c.Empty() {
		return nil
	}
	return c.certs[0]
}

// Certificates are the leaf and what follows it. Do not change the slice.
func (c Chain) Certificates() []*x509.Certificate { return c.certs }

// PEM writes the chain, leaf first.
func (c Chain) PEM() []byte {
	var out []byte
	for _, der := range c.DER {
		out = append(out, EncodeCert(der)...)
	}
	return out
}

// ID is the one SPIFFE ID of the leaf.
func (c Chain) ID() (ID, error) {
	if c.Empty() {
		return nil, errors.New("certificate chain: empty")
	}
	return IDOf(c.Leaf())
}

// Expired tells whether the leaf is past its end.
func (c Chain) Expired(now time.Time) bool { return c.Empty() || now.After(c.Leaf().NotAfter) }

// RenewAt is when to ask for the next leaf; see the function of that name.
func (c Chain) RenewAt(jitter float64) time.Time {
	if c.Empty() {
		return time.Time{}
	}
	return RenewAt(c.Leaf().NotBefore, c.Leaf().NotAfter, jitter)
}

// Certificate joins the chain with its key, which must be that of the leaf.
func (c Chain) Certificate(key crypto.Signer) (*tls.Certificate, error) {
	if c.Empty() {
		return nil, errors.New("certificate chain: empty")
	}
	if key == nil || !SameKey(key.Public(), c.Leaf().PublicKey) {
		return nil, errors.New("certificate chain: the private key is not that of the leaf")
	}
	return &tls.Certificate{Certificate: c.DER, PrivateKey: key, Leaf: c.Leaf()}, nil
}

// SameKey tells whether two public keys are equal.
func SameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// Serial writes a serial number as lower-case hex with colons.
func Serial(n *big.Int) string {
	if n == nil || len(n.Bytes()) == 0 {
		return "00"
	}
	return HexColon(n.Bytes())
}

// HexColon writes bytes as lower-case hex with colons.
func HexColon(b []byte) string {
	s := make([]string, len(b))
	for i := range b {
		s[i] = hex.EncodeToString(b[i : i+1])
	}
	return strings.Join(s, ":")
}

// RenewAt is the moment to renew a certificate: at half its life, 10 % of the life
// earlier or later. jitter, uniform in [0, 1), picks the place in that span, so
// that certificates made together are not renewed together.
func RenewAt(notBefore, notAfter time.Time, jitter float64) time.Time {
	if !(jitter >= 0) { // NaN too
		jitter = 0
	}
	life := max(notAfter.Sub(notBefore), 0)
	return notBefore.Add(time.Duration((0.4 + 0.2*min(jitter, 1)) * float64(life)))
}
