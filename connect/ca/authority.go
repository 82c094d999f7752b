package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

// maxCSR bounds a request: twice what an RSA key of 8192 bits needs.
const maxCSR = 8 << 10

// Authority signs leaves under one root. It is immutable and safe for concurrent use.
type Authority struct {
	cfg    Config
	cert   *x509.Certificate
	key    crypto.Signer
	domain string
	// intermediates are sent after each leaf, for peers that trust an older root only.
	intermediates string
}

// Open unseals the key of a root.
func Open(root *catalog.Root, cfg Config, seal Sealer) (*Authority, error) {
	if root == nil {
		return nil, errors.New("CA: there is no root")
	}
	if cfg.ClusterID != "" && cfg.ClusterID != root.ExternalTrustDomain {
		return nil, fmt.Errorf("CA root %s is of cluster %s, this is %s", root.ID, root.ExternalTrustDomain, cfg.ClusterID)
	}
	cfg.ClusterID = root.ExternalTrustDomain
	cert, err := identity.ParseCert([]byte(root.RootCert))
	if err != nil {
		return nil, fmt.Errorf("CA root %s: %w", root.ID, err)
	}
	if len(root.SealedKey) == 0 {
		return nil, fmt.Errorf("CA root %s: its key is not kept any more", root.ID)
	}
	der, err := seal.Open(root.SealedKey, aad(root.ExternalTrustDomain, root.ID))
	if err != nil {
		return nil, fmt.Errorf("CA root %s: the key %w", root.ID, err)
	}
	defer clear(der)
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("CA root %s: the key %w", root.ID, ErrUnseal)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok || !identity.SameKey(key.Public(), cert.PublicKey) {
		return nil, fmt.Errorf("CA root %s: the sealed key is not that of the certificate", root.ID)
	}
	return &Authority{
		cfg: cfg, cert: cert, key: key,
		domain:        catalog.TrustDomain(root.ExternalTrustDomain),
		intermediates: strings.Join(root.IntermediateCerts, ""),
	}, nil
}

// TrustDomain is the domain that all leaves are of.
func (a *Authority) TrustDomain() string { return a.domain }

// RootID names the root that signs.
func (a *Authority) RootID() string { return Fingerprint(a.cert) }

// NotAfter is the end of the root; no leaf lives longer.
func (a *Authority) NotAfter() time.Time { return a.cert.NotAfter }

// Request is a certificate request that is well formed and signed by its own key.
// Whether whoever sent it may have that name is still to be decided.
type Request struct {
	// ID is an identity.ServiceID or an identity.AgentID.
	ID  identity.ID
	key crypto.PublicKey
}

// ParseRequest reads a PKCS #10 request in DER. Errors are catalog.ErrInvalid.
func ParseRequest(csr []byte) (*Request, error) {
	if len(csr) > maxCSR {
		return nil, fmt.Errorf("certificate request: %w: %d bytes, at most %d are allowed", catalog.ErrTooLarge, len(csr), maxCSR)
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, badRequest(err)
	}
	// Before the signature: checking that of a huge key is costly.
	if err := checkLeafKey(req.PublicKey); err != nil {
		return nil, badRequest(err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, badRequest(fmt.Errorf("it is not signed by its own key: %w", err))
	}
	id, err := identity.IDOfCSR(req)
	if err != nil {
		return nil, badRequest(err)
	}
	switch id.(type) {
	case identity.ServiceID, identity.AgentID:
	default:
		return nil, badRequest(fmt.Errorf("%s names neither a service nor an agent", id))
	}
	return &Request{ID: id, key: req.PublicKey}, nil
}

// SignOptions are what the signing server adds.
type SignOptions struct {
	Now        time.Time
	Datacenter string // requests for any other are refused
}

// Sign is ParseRequest and SignRequest.
func (a *Authority) Sign(csr []byte, o SignOptions) (*catalog.Leaf, error) {
	req, err := ParseRequest(csr)
	if err != nil {
		return nil, err
	}
	return a.SignRequest(req, o)
}

// SignRequest issues a leaf. Only the key and the name are taken from the request.
func (a *Authority) SignRequest(req *Request, o SignOptions) (*catalog.Leaf, error) {
	if req.ID.Domain() != a.domain {
		return nil, badRequest(fmt.Errorf("%s is of another trust domain than ours, %q", req.ID, a.domain))
	}
	leaf := &catalog.Leaf{}
	var dc string
	switch id := req.ID.(type) {
	case identity.ServiceID:
		leaf.Service, leaf.ServiceURI, dc = id.Service, id.String(), id.Datacenter
	case identity.AgentID:
		leaf.Agent, leaf.AgentURI, dc = id.Node, id.String(), id.Datacenter
	}
	if dc != o.Datacenter {
		return nil, badRequest(fmt.Errorf("%s is of another datacenter than ours, %q", req.ID, o.Datacenter))
	}
	cert, err := a.issue(req.ID, req.key, o.Now)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", req.ID, err)
	}
	leaf.SerialNumber = identity.Serial(cert.SerialNumber)
	leaf.CertPEM = string(identity.EncodeCert(cert.Raw)) + a.intermediates
	leaf.ValidAfter, leaf.ValidBefore = cert.NotBefore, cert.NotAfter
	return leaf, nil
}

func (a *Authority) issue(id identity.ID, key crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	notAfter := now.Add(a.cfg.LeafTTL)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	if !notAfter.After(now) {
		return nil, fmt.Errorf("root %s has expired at %s: rotate it", a.RootID(), a.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	skid, err := keyID(key)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		// The subject stays empty, which makes the URI the name, and critical.
		URIs:                  []*url.URL{id.URI()},
		NotBefore:             now.Add(-min(backdate, a.cfg.LeafTTL/12)),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment | x509.KeyUsageKeyAgreement,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		SubjectKeyId:          skid,
		AuthorityKeyId:        a.cert.SubjectKeyId,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// try issues a certificate for a made-up name and has it verified as peers would
// who trust roots.
func (a *Authority) try(roots []string, now time.Time) error {
	key, err := identity.NewKey()
	if err != nil {
		return err
	}
	id := identity.ServiceID{TrustDomain: a.domain, Datacenter: "trial", Service: "trial"}
	leaf, err := a.issue(id, key.Public(), now)
	if err != nil {
		return err
	}
	chain, err := identity.ParseChain([]byte(string(identity.EncodeCert(leaf.Raw)) + a.intermediates))
	if err != nil {
		return err
	}
	bundle, err := identity.NewBundle(a.domain, roots)
	if err != nil {
		return err
	}
	_, err = bundle.VerifyPeer(chain.Certificates(), now)
	return err
}

// newSerial is random, positive and of exactly 128 bits, so that it looks the same
// to everybody.
func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x7f | 0x40 // DER would put a zero byte before a set high bit
	return new(big.Int).SetBytes(b[:]), nil
}

func checkLeafKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if bits := k.Curve.Params().BitSize; bits != 256 && bits != 384 {
			return fmt.Errorf("an EC key of %d bits: P-256 and P-384 only", bits)
		}
		return nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 8192 {
			return fmt.Errorf("an RSA key of %d bits: 2048 to 8192 only", bits)
		}
		return nil
	}
	return fmt.Errorf("a key of type %T: EC P-256, EC P-384 and RSA only", pub)
}

func badRequest(err error) error {
	return fmt.Errorf("certificate request: %w: %w", catalog.ErrInvalid, err)
}
