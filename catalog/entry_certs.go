package catalog

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
)

// minRSABits is the least size of an RSA key that gateways serve with.
const minRSABits = 2048

// InlineCertificate holds a certificate and its key, PEM. The key is readable by
// whoever may read the entry, and in backups: prefer FileSystemCertificate.
type InlineCertificate struct {
	EntryHead
	Certificate string
	PrivateKey  string `bexpr:"-"`
}

// FileSystemCertificate names the files of a certificate and its key on the
// gateway's host.
type FileSystemCertificate struct {
	EntryHead
	Certificate string
	PrivateKey  string
}

// EntryKind implements ConfigEntry.
func (*InlineCertificate) EntryKind() string { return KindInlineCertificate }

// Normalize implements ConfigEntry.
func (*InlineCertificate) Normalize() {}

// Validate implements ConfigEntry. Errors never hold the key.
func (e *InlineCertificate) Validate() error {
	if err := validEntryName(e.Name); err != nil {
		return err
	}
	key, err := parseKey(e.PrivateKey)
	if err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(e.Certificate))
	if block == nil {
		return Invalidf("failed to parse certificate PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Invalidf("failed to parse certificate: %w", err)
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(cert.PublicKey) {
		return Invalidf("the private key is not that of the certificate")
	}
	if k, ok := key.(*rsa.PrivateKey); ok && k.N.BitLen() < minRSABits {
		return Invalidf("key length must be at least %d bits, it has %d", minRSABits, k.N.BitLen())
	}
	return nil
}

func parseKey(text string) (crypto.Signer, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, Invalidf("failed to parse private key PEM")
	}
	if k, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	if k, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	// What the parser says of the key is not passed on: it may quote it.
	if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		if signer, ok := k.(crypto.Signer); ok {
			return signer, nil
		}
	}
	return nil, Invalidf("failed to parse private key: it is in none of PKCS #8, PKCS #1 and SEC 1")
}

// EntryKind implements ConfigEntry.
func (*FileSystemCertificate) EntryKind() string { return KindFileSystemCertificate }

// Normalize implements ConfigEntry.
func (*FileSystemCertificate) Normalize() {}

// Validate implements ConfigEntry. Whether the files are there is known to the
// gateway's host alone.
func (e *FileSystemCertificate) Validate() error { return validEntryName(e.Name) }
