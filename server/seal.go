package server

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/weftmesh/weft/connect/ca"
)

// sealFile holds the key under which the keys of the certificate authority are
// encrypted in the log and in backups.
const sealFile = "ca.seal"

// seals are what the keys of the authority are sealed with, and what they were
// sealed with before, nil for nothing.
type seals struct{ now, before ca.Sealer }

// openSeals makes the seal of the cluster from its secret, where there is one: all
// servers must be able to open what one of them sealed. A data directory that has a
// seal of its own, from before, keeps it until everything is sealed anew.
func openSeals(cfg Config) (out seals, err error) {
	if cfg.Cluster == nil {
		out.now, err = openSeal(cfg.DataDir)
		return out, err
	}
	if out.now, err = ca.NewSealer(cfg.Cluster.Secret.SealKey()); err != nil || cfg.DataDir == "" {
		return out, err
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, sealFile)); errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	out.before, err = openSeal(cfg.DataDir)
	return out, err
}

// sealHint says what to do when the key of the authority does not open.
func sealHint(cfg Config) string {
	const otherwise = "or set a new root with `weft connect ca set-config` and ForceWithoutCrossSigning"
	if cfg.Cluster != nil {
		return "start this server with the cluster secret that the others have, " + otherwise
	}
	return "restore " + filepath.Join(cfg.DataDir, sealFile) + " from a copy of this data directory, " + otherwise
}

// openSeal reads the seal of a data directory, or makes it, once. Without a
// directory it is one for this process.
func openSeal(dir string) (ca.Sealer, error) {
	var key [32]byte
	if dir == "" {
		_, _ = rand.Read(key[:]) // never fails
		return ca.NewSealer(key)
	}
	file := filepath.Join(dir, sealFile)
	b, err := os.ReadFile(file) //nolint:gosec // a file of our own data directory
	if errors.Is(err, fs.ErrNotExist) {
		_, _ = rand.Read(key[:])
		if err := writeOnce(dir, file, key[:]); err != nil {
			return nil, fmt.Errorf("server: make %s: %w", file, err)
		}
		return ca.NewSealer(key)
	}
	if err != nil {
		return nil, fmt.Errorf("server: read the seal of the CA: %w; it must be readable by the user with ID %d", err, os.Getuid())
	}
	defer clear(b)
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("server: read the seal of the CA: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("server: %s may be read by others (%s); it protects the keys of the CA: chmod 600 it", file, info.Mode().Perm())
	}
	if len(b) != len(key) {
		return nil, fmt.Errorf("server: %s has %d bytes, a seal has %d; restore it from a copy of the data directory", file, len(b), len(key))
	}
	copy(key[:], b)
	sealer, err := ca.NewSealer(key)
	if err != nil {
		return nil, fmt.Errorf("server: %s: %w; restore it from a copy of the data directory", file, err)
	}
	return sealer, nil
}

// writeOnce writes a new file so that it is there whole, or not at all.
func writeOnce(dir, file string, b []byte) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, sealFile+".*") // 0600
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
	d, err := os.Open(dir) //nolint:gosec // our own data directory
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
