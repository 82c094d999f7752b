package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
)

// PEM block types.
const (
	pemCert  = "CERTIFICATE"
	pemCSR   = "CERTIFICATE REQUEST"
	pemEC    = "EC PRIVATE KEY"
	pemRSA   = "RSA PRIVATE KEY"
	pemPKCS8 = "PRIVATE KEY"
)

// maxPEM bounds every PEM text that is parsed.
const maxPEM = 256 << 10

// NewKey makes a leaf key: ECDSA on P-256.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// NewCSR asks for a certificate for a service: an empty subject, exactly one URI,
// nothing else. DER.
func NewCSR(key crypto.Signer, id ServiceID) ([]byte, error) { return NewCSRFor(key, id) }

// NewCSRFor is NewCSR for an ID of any kind.
func NewCSRFor(key crypto.Signer, id ID) ([]byte, error) {
	if err := id.Validate(); err != nil {
		return nil, err
	}
	req := &x509.CertificateRequest{URIs: []*url.URL{id.URI()}}
	der, err := x509.CreateCertificateRequest(rand.Reader, req, key)
	if err != nil {
		return nil, fmt.Errorf("certificate request for %s: %w", id, err)
	}
	return der, nil
}

// EncodeKey writes a private key as PEM: SEC 1 for EC keys and PKCS #1 for RSA, as
// Consul does, PKCS #8 for others.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			return nil, fmt.Errorf("private key: %w", err)
		}
		return encode(pemEC, der), nil
	case *rsa.PrivateKey:
		return encode(pemRSA, x509.MarshalPKCS1PrivateKey(k)), nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	return encode(pemPKCS8, der), nil
}

// ParseKey reads exactly one private key. The error never quotes the input.
func ParseKey(text []byte) (crypto.Signer, error) {
	blocks, err := decodeAll(text)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	// openssl ecparam writes the curve in a block before the key, which names it too.
	if len(blocks) > 0 && blocks[0].Type == "EC PARAMETERS" {
		blocks = blocks[1:]
	}
	if len(blocks) != 1 {
		return nil, fmt.Errorf("private key: %d PEM blocks, want one", len(blocks))
	}
	var key any
	switch b := blocks[0]; b.Type {
	case pemEC:
		key, err = x509.ParseECPrivateKey(b.Bytes)
	case pemRSA:
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case pemPKCS8:
		key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	default:
		return nil, fmt.Errorf("private key: a PEM block of type %s is none (encrypted keys are not supported)", quote(b.Type))
	}
	if err != nil {
		return nil, errors.New("private key: the PEM block cannot be parsed")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("private key: a %T cannot sign", key)
	}
	return signer, nil
}

// EncodeCert writes a certificate as PEM.
func EncodeCert(der []byte) []byte { return encode(pemCert, der) }

// ParseCert reads exactly one certificate.
func ParseCert(text []byte) (*x509.Certificate, error) {
	certs, err := ParseCerts(text)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("certificate: %d PEM blocks, want one", len(certs))
	}
	return certs[0], nil
}

// ParseCerts reads one or more certificates and nothing else.
func ParseCerts(text []byte) ([]*x509.Certificate, error) {
	blocks, err := decodeAll(text)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if len(blocks) == 0 {
		return nil, errors.New("certificate: no PEM block found")
	}
	certs := make([]*x509.Certificate, 0, len(blocks))
	for _, b := range blocks {
		if b.Type != pemCert {
			return nil, fmt.Errorf("certificate: a PEM block of type %s is none", quote(b.Type))
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// EncodeCSR writes a certificate request as PEM.
func EncodeCSR(der []byte) []byte { return encode(pemCSR, der) }

// DecodeCSR gives the DER of a certificate request in PEM. It checks the wrapping
// only; the authority checks the request.
func DecodeCSR(text []byte) ([]byte, error) {
	blocks, err := decodeAll(text)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if len(blocks) != 1 || (blocks[0].Type != pemCSR && blocks[0].Type != "NEW "+pemCSR) {
		return nil, fmt.Errorf("certificate request: want one PEM block of type %q", pemCSR)
	}
	return blocks[0].Bytes, nil
}

func encode(typ string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
}

// maxBlocks bounds the PEM blocks of one text.
const maxBlocks = 64

// decodeAll reads every PEM block. Text before and between blocks is allowed, as
// openssl writes it; text after the last one is not, for it may be a cut-off block.
func decodeAll(text []byte) ([]*pem.Block, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("PEM of %d bytes, at most %d are allowed", len(text), maxPEM)
	}
	var out []*pem.Block
	for {
		b, rest := pem.Decode(text)
		if b == nil {
			if bytes.Contains(text, []byte("-----BEGIN")) || (len(out) > 0 && len(bytes.TrimSpace(text)) > 0) {
				return nil, errors.New("the PEM text is damaged or cut off")
			}
			return out, nil
		}
		if len(out) == maxBlocks {
			return nil, fmt.Errorf("more than %d PEM blocks", maxBlocks)
		}
		out, text = append(out, b), rest
	}
}
