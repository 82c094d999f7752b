package server

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/weftmesh/weft/catalog/durable"
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
func openSeal(dir string) (sealer ca.Sealer, err error) {
	var key [32]byte
	if dir == "" {
		_, _ = rand.Read(key[:]) // never fails
		return ca.NewSealer(key)
	}
	file := durable.File{Path: filepath.Join(dir, sealFile), Most: int64(len(key)), Private: true, Remedy: "restore it from a copy of the data directory"}
	found, err := file.Read(func(b []byte) error {
		if len(b) != len(key) {
			return fmt.Errorf("it has %d bytes, a seal has %d", len(b), len(key))
		}
		copy(key[:], b)
		sealer, err = ca.NewSealer(key)
		return err
	})
	if err == nil && !found {
		_, _ = rand.Read(key[:]) // never fails
		if sealer, err = ca.NewSealer(key); err == nil {
			err = durable.Write(file.Path, key[:])
		}
	}
	if err != nil {
		return nil, fmt.Errorf("server: the seal of the CA: %w", err)
	}
	return sealer, nil
}
