package enroll

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"time"

	"github.com/weftmesh/weft/connect/identity"
)

const (
	// certLife is how long a node's certificate is good; it is renewed at half of it.
	certLife = 72 * time.Hour
	// backdate is how far before its making a certificate begins, for nodes whose
	// clock is behind.
	backdate = 5 * time.Minute
	// skew is by how much the clocks of two nodes may differ.
	skew = 2 * time.Minute
)

// authority is the cluster's root with its key: the same on every server, for all
// of it follows from the secret.
type authority struct {
	clusterID string
	key       *ecdsa.PrivateKey
	cert      *x509.Certificate
}

// sameSigner signs the same with the same bytes each time (RFC 6979).
type sameSigner struct{ *ecdsa.PrivateKey }

// Sign implements crypto.Signer.
func (s sameSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.PrivateKey.Sign(nil, digest, opts)
}

// root makes the cluster's root. It never ends: what ends is the secret, when the
// operator makes another cluster.
func (s Secret) root() (*authority, error) {
	if s.Empty() {
		return nil, fmt.Errorf("%w: there is none", ErrSecret)
	}
	// 16 bytes more than the scalar has: the remainder is as good as uniform.
	wide := new(big.Int).SetBytes(s.derive("root key", 48))
	below := new(big.Int).Sub(elliptic.P256().Params().N, big.NewInt(1))
	scalar := wide.Mod(wide, below)
	scalar.Add(scalar, big.NewInt(1))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar.FillBytes(make([]byte, 32)))
	if err != nil {
		return nil, fmt.Errorf("%w: derive the root's key: %w", ErrSecret, err)
	}
	id := s.ClusterID()
	domain := trustDomain(id)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(append([]byte{1}, s.derive("root serial", 15)...)),
		Subject:      pkix.Name{CommonName: "weft cluster " + id},
		NotBefore:    time.Unix(0, 0).UTC(),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		URIs:                        []*url.URL{identity.SigningID{TrustDomain: domain}.URI()},
		PermittedDNSDomainsCritical: true, PermittedURIDomains: []string{domain},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), sameSigner{key})
	if err != nil {
		return nil, fmt.Errorf("%w: make the root: %w", ErrSecret, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: make the root: %w", ErrSecret, err)
	}
	return &authority{clusterID: id, key: key, cert: cert}, nil
}

// issue makes a node's certificate. The subject's public key is all that a request
// has a say in.
func (a *authority) issue(p Peer, key crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	id, err := p.id()
	if err != nil {
		return nil, err
	}
	var serial [16]byte
	_, _ = rand.Read(serial[:])
	serial[0] = serial[0]&0x7f | 0x40 // positive, and of one length
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]),
		Subject:      pkix.Name{CommonName: p.Node},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(certLife),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{id.URI()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate of node %s: %w", p.Node, err)
	}
	return x509.ParseCertificate(der)
}

// pinOf is what a token says of a root.
func pinOf(root *x509.Certificate) [32]byte { return sha256.Sum256(root.RawSubjectPublicKeyInfo) }

func trustDomain(clusterID string) string { return clusterID + ".consul" }
