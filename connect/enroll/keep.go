package enroll

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/weftmesh/weft/catalog/durable"
	"github.com/weftmesh/weft/connect/identity"
)

// identityFile holds the key, the certificate and the cluster's root in one, so that
// no crash can part them.
const identityFile = "identity.pem"

// identityKey is a private key.
type identityKey = crypto.Signer

// kept is what an agent keeps of itself.
type kept struct {
	key        identityKey
	leaf, root *x509.Certificate
}

// readKept gives nil when there is nothing yet.
func readKept(dir string) (*kept, error) {
	file := filepath.Join(dir, identityFile)
	held := durable.File{Path: file, Most: 64 << 10, Private: true, Remedy: "restore it, or remove it and join again with a token"}
	var k *kept
	_, err := held.Read(func(text []byte) (err error) {
		k, err = parseKept(text)
		return err
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

func parseKept(text []byte) (*kept, error) {
	const begin = "-----BEGIN CERTIFICATE-----"
	at := strings.Index(string(text), begin)
	if at < 0 {
		return nil, errors.New("there is no certificate in it")
	}
	key, err := identity.ParseKey(text[:at])
	if err != nil {
		return nil, err
	}
	certs, err := identity.ParseCerts(text[at:])
	if err != nil {
		return nil, err
	}
	if len(certs) != 2 || !identity.SameKey(key.Public(), certs[0].PublicKey) || certs[0].CheckSignatureFrom(certs[1]) != nil {
		return nil, errors.New("its parts do not belong together")
	}
	return &kept{key: key, leaf: certs[0], root: certs[1]}, nil
}

func writeKept(dir string, k *kept) error {
	text, err := identity.EncodeKey(k.key)
	if err != nil {
		return err
	}
	defer clear(text)
	text = append(text, identity.EncodeCert(k.leaf.Raw)...)
	text = append(text, identity.EncodeCert(k.root.Raw)...)
	return durable.Write(filepath.Join(dir, identityFile), text)
}

// newCSR asks for a certificate: of a request only the key is used.
func newCSR(key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// ReadSecret reads the cluster secret from a file that nobody else may read.
func ReadSecret(file string) (Secret, error) {
	text, err := durable.File{Path: file, Most: maxText, Private: true}.Bytes()
	if err != nil {
		return Secret{}, fmt.Errorf("%w: %w", ErrSecret, err)
	}
	defer clear(text)
	s, err := ParseSecret(string(text))
	if err != nil {
		return Secret{}, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}

// WriteSecret writes a secret into a new file of mode 0600. A file that is there is
// left alone, and the error wraps fs.ErrExist.
func WriteSecret(file string, s Secret) error {
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("%w: %s: %w; it is not overwritten, for a cluster may live by it", ErrSecret, file, fs.ErrExist)
	}
	if err := durable.Write(file, []byte(s.Text()+"\n")); err != nil {
		return fmt.Errorf("%w: %w", ErrSecret, err)
	}
	return nil
}

// WriteToken writes a token into a file of mode 0600, in place of what is there.
func WriteToken(file string, t Token) error {
	if err := durable.Write(file, []byte(t.Text()+"\n")); err != nil {
		return fmt.Errorf("%w: %w", ErrToken, err)
	}
	return nil
}

// WriteClusterID writes down of which cluster a data directory is, on the disk when it
// returns.
func WriteClusterID(file, id string) error { return durable.Write(file, []byte(id+"\n")) }

// ReadToken reads a join token from a file that nobody else may read.
func ReadToken(file string) (Token, error) {
	text, err := durable.File{Path: file, Most: maxText, Private: true}.Bytes()
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	defer clear(text)
	t, err := ParseToken(string(text))
	if err != nil {
		return Token{}, fmt.Errorf("%s: %w", file, err)
	}
	return t, nil
}
