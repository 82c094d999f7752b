package server

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/weftmesh/weft/connect/ca"
)

// listening keeps what is unsealed.
type listening struct {
	ca.Sealer
	der *[]byte
}

func (l listening) Open(sealed, aad []byte) ([]byte, error) {
	plain, err := l.Sealer.Open(sealed, aad)
	*l.der = bytes.Clone(plain)
	return plain, err
}

// TestBackupsRevealNothing: neither a snapshot nor the data directory of a server whose
// secret lies elsewhere has the key of the certificate authority, nor what opens it.
func TestBackupsRevealNothing(t *testing.T) {
	f := newFleet(t, 1)
	r := f.up(1)
	f.leader()
	root := r.roots().Roots[0]
	var der []byte
	stored := ca.Active(r.server.store.Roots())
	if _, err := ca.Open(stored, ca.Config{}, listening{r.server.authority.seal, &der}); err != nil || len(root.SealedKey) > 0 {
		t.Fatalf("%v; a sealed key of %d bytes went out", err, len(root.SealedKey))
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := parsed.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	seal := f.secret.SealKey()
	secret := map[string][]byte{
		"the secret": []byte(f.secret.Text()), "PEM of a private key": []byte("PRIVATE KEY-----"),
		"the key's DER": der, "the key in base64": []byte(base64.StdEncoding.EncodeToString(der))[:64],
		"the key's scalar": scalar, "the scalar in hex": []byte(hex.EncodeToString(scalar)),
		"the key of the seal": seal[:], "that in base64": []byte(base64.StdEncoding.EncodeToString(seal[:])),
	}
	sealed := 0
	look := func(where string, b []byte) {
		if zip, err := gzip.NewReader(bytes.NewReader(b)); err == nil {
			plain, err := io.ReadAll(zip)
			if err != nil {
				t.Fatal(where, err)
			}
			b = append(bytes.Clone(b), plain...)
		}
		if bytes.Contains(b, stored.SealedKey) {
			sealed++
		}
		for what, needle := range secret {
			if bytes.Contains(b, needle) {
				t.Errorf("%s reveals %s", where, what)
			}
		}
	}
	if err := r.server.raft.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	look("a snapshot", save(t, r.operators()))
	f.down(1)
	if err := filepath.WalkDir(f.dirs[1], func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		look(path, b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if sealed < 3 { // the snapshot, the log and the backup beside it
		t.Errorf("the sealed key was found in %d places only: it is not looked for where it would be", sealed)
	}
}
