// Package certfiles makes the certificates that operators give to agents by hand:
// an authority of their own and what it signs for servers, clients and the CLI.
//
// It owns what stands in them. It has nothing to do with the authority of the mesh,
// whose certificates live hours and renew themselves.
package certfiles

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// Pair is a certificate and its key, PEM. The key is a secret.
type Pair struct {
	Cert []byte
	Key  []byte
}

// String keeps the key out of logs.
func (Pair) String() string { return "a certificate with its key" }

// Authority says what an authority is like.
type Authority struct {
	CommonName string
	Days       int
	// Constraints are the DNS domains that it may sign names in; none: any.
	Constraints []string
}

// Leaf says what a certificate is for.
type Leaf struct {
	CommonName string
	Days       int
	DNSNames   []string
	IPs        []net.IP
	// Server and Client say which ends of a connection it may be shown at.
	Server bool
	Client bool
}

// skew is how far back certificates are valid, for hosts whose clock is behind.
const skew = time.Minute

func serial() (*big.Int, error) { return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) }

// NewAuthority makes an authority that signs itself.
func NewAuthority(a Authority) (Pair, error) {
	if a.Days < 1 {
		return Pair{}, fmt.Errorf("an authority must be valid for a day at least, not %d", a.Days)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	number, err := serial()
	if err != nil {
		return Pair{}, err
	}
	id, err := keyID(key.Public())
	if err != nil {
		return Pair{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: a.CommonName},
		NotBefore: now.Add(-skew), NotAfter: now.AddDate(0, 0, a.Days),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		SubjectKeyId: id, AuthorityKeyId: id,
		PermittedDNSDomains: a.Constraints, PermittedDNSDomainsCritical: len(a.Constraints) > 0,
	}
	return sign(template, template, key, key)
}

// Sign makes a certificate under an authority.
func Sign(authority Pair, l Leaf) (Pair, error) {
	if l.Days < 1 {
		return Pair{}, fmt.Errorf("a certificate must be valid for a day at least, not %d", l.Days)
	}
	ca, caKey, err := parse(authority)
	if err != nil {
		return Pair{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	number, err := serial()
	if err != nil {
		return Pair{}, err
	}
	id, err := keyID(key.Public())
	if err != nil {
		return Pair{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: l.CommonName},
		NotBefore: now.Add(-skew), NotAfter: now.AddDate(0, 0, l.Days),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		SubjectKeyId: id, DNSNames: l.DNSNames, IPAddresses: l.IPs,
	}
	if template.NotAfter.After(ca.NotAfter) {
		return Pair{}, fmt.Errorf("the authority ends on %s, before a certificate of %d days would: ask for fewer days", ca.NotAfter.Format(time.DateOnly), l.Days)
	}
	if l.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if l.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	out, err := sign(template, ca, key, caKey)
	if err != nil {
		return Pair{}, err
	}
	return out, verify(out, ca, template.ExtKeyUsage)
}

// verify refuses what the authority's own constraints would make useless.
func verify(p Pair, ca *x509.Certificate, usages []x509.ExtKeyUsage) error {
	block, _ := pem.Decode(p.Cert)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: usages}); err != nil {
		return fmt.Errorf("the authority may not sign this: %w", err)
	}
	return nil
}

func sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey, by crypto.Signer) (Pair, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		return Pair{}, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	}, nil
}

func parse(p Pair) (*x509.Certificate, crypto.Signer, error) {
	block, _ := pem.Decode(p.Cert)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, nil, errors.New("the authority's file holds no PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("the authority's certificate: %w", err)
	}
	if !cert.IsCA {
		return nil, nil, errors.New("the certificate given as authority is none: it may not sign others")
	}
	key, err := parseKey(p.Key)
	if err != nil {
		return nil, nil, err
	}
	if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return nil, nil, errors.New("the authority's key is not that of its certificate")
	}
	return cert, key, nil
}

func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the authority's key file holds no PEM key")
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	}
	return nil, errors.New("the authority's key is of no kind that can be read: EC, RSA or PKCS #8 without a passphrase")
}

func keyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:20], nil
}
