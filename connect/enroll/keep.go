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
	text, err := readPrivate(file, 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer clear(text)
	const begin = "-----BEGIN CERTIFICATE-----"
	at := strings.Index(string(text), begin)
	if at < 0 {
		return nil, damaged(file, errors.New("there is no certificate in it"))
	}
	key, err := identity.ParseKey(text[:at])
	if err != nil {
		return nil, damaged(file, err)
	}
	certs, err := identity.ParseCerts(text[at:])
	if err != nil {
		return nil, damaged(file, err)
	}
	if len(certs) != 2 || !identity.SameKey(key.Public(), certs[0].PublicKey) || certs[0].CheckSignatureFrom(certs[1]) != nil {
		return nil, damaged(file, errors.New("its parts do not belong together"))
	}
	return &kept{key: key, leaf: certs[0], root: certs[1]}, nil
}

func damaged(file string, err error) error {
	return fmt.Errorf("%s is damaged: %w; restore it, or remove it and join again with a token", file, err)
}

func writeKept(dir string, k *kept) error {
	text, err := identity.EncodeKey(k.key)
	if err != nil {
		return err
	}
	defer clear(text)
	text = append(text, identity.EncodeCert(k.leaf.Raw)...)
	text = append(text, identity.EncodeCert(k.root.Raw)...)
	return writePrivate(filepath.Join(dir, identityFile), text)
}

// newCSR asks for a certificate: of a request only the key is used.
func newCSR(key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// ReadSecret reads the cluster secret from a file that nobody else may read.
func ReadSecret(file string) (Secret, error) {
	text, err := readPrivate(file, maxText)
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
	if err := writePrivate(file, []byte(s.Text()+"\n")); err != nil {
		return fmt.Errorf("%w: %w", ErrSecret, err)
	}
	return nil
}

// WriteToken writes a token into a file of mode 0600, in place of what is there.
func WriteToken(file string, t Token) error {
	if err := writePrivate(file, []byte(t.Text()+"\n")); err != nil {
		return fmt.Errorf("%w: %w", ErrToken, err)
	}
	return nil
}

// WriteClusterID writes down of which cluster a data directory is, on the disk when it
// returns.
func WriteClusterID(file, id string) error { return writePrivate(file, []byte(id+"\n")) }

// ReadToken reads a join token from a file that nobody else may read.
func ReadToken(file string) (Token, error) {
	text, err := readPrivate(file, maxText)
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

// readPrivate reads a file of bounded size, of which others know nothing.
func readPrivate(file string, most int64) ([]byte, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w; it must be readable by the user with ID %d", err, os.Getuid())
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	forbidden := fs.FileMode(0o077)
	if credential(file) {
		forbidden = 0o007 // systemd grants by an ACL, whose mask stands where the group's bits do
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("%s is no regular file", file)
	case mode.Perm()&forbidden != 0:
		return nil, fmt.Errorf("%s is open to other users (%s): chmod 600 %s", file, mode.Perm(), file)
	case info.Size() > most:
		return nil, fmt.Errorf("%s has %d bytes, at most %d belong there", file, info.Size(), most)
	}
	b := make([]byte, info.Size())
	n, err := f.ReadAt(b, 0)
	if err != nil && n < len(b) {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return b, nil
}

// credential tells whether the file is a credential that systemd hands in.
func credential(file string) bool {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	return dir != "" && filepath.Dir(filepath.Clean(file)) == filepath.Clean(dir)
}

// writePrivate writes a file of mode 0600 so that it is there whole, or as before.
func writePrivate(file string, b []byte) (err error) {
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, filepath.Base(file)+".*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
