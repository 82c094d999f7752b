package gossip

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func text(key []byte) string { return base64.StdEncoding.EncodeToString(key) }

// TestKeyringTurnsOver replaces the key of three members while they gossip.
func TestKeyringTurnsOver(t *testing.T) {
	old, fresh := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	file := filepath.Join(t.TempDir(), "serf", "local.keyring")
	a, stopA := start(t, "a", func(c *Config) { c.SecretKeys, c.KeyringFile = [][]byte{old}, file })
	defer stopA()
	secret := func(c *Config) { c.SecretKeys = [][]byte{old} }
	b, stopB := start(t, "b", secret)
	defer stopB()
	c, stopC := start(t, "c", secret)
	defer stopC()
	ctx := context.Background()
	for _, g := range []*Gossip{b, c} {
		if _, err := g.Join(ctx, []string{a.Addr()}); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range []*Gossip{a, b, c} {
		eventually(t, 10*time.Second, "three are alive", func() bool { return len(g.table.with(catalog.MemberAlive)) == 3 })
	}
	do := func(op catalog.KeyringOp, key string) *catalog.KeyringReport {
		t.Helper()
		r, err := a.Keyring(ctx, op, key)
		if err != nil {
			t.Fatalf("%s: %v", op, err)
		}
		return r
	}
	r := do(catalog.KeyringList, "")
	if len(r.Keys) != 3 || len(r.Errors) != 0 || !slices.Equal(r.Keys["c"], []string{text(old)}) {
		t.Fatalf("%+v", r)
	}
	if r := do(catalog.KeyringUse, text(fresh)); len(r.Errors) != 3 {
		t.Errorf("a key that nobody has is in use: %+v", r)
	}
	if r := do(catalog.KeyringRemove, text(old)); len(r.Errors) != 3 {
		t.Errorf("the key in use was removed: %+v", r)
	}
	for _, op := range []catalog.KeyringOp{catalog.KeyringInstall, catalog.KeyringUse, catalog.KeyringRemove} {
		key := fresh
		if op == catalog.KeyringRemove {
			key = old
		}
		if r := do(op, text(key)); len(r.Errors) != 0 {
			t.Fatalf("%s: %+v", op, r)
		}
	}
	r = do(catalog.KeyringList, "")
	for _, node := range []string{"a", "b", "c"} {
		if !slices.Equal(r.Keys[node], []string{text(fresh)}) {
			t.Fatalf("%s: %+v", node, r)
		}
	}
	saved, err := loadKeys(file)
	if err != nil || len(saved) != 1 || !bytes.Equal(saved[0], fresh) {
		t.Errorf("saved %v, %v", saved, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if k, err := openKeyring(Config{SecretKeys: [][]byte{old}, KeyringFile: file, Logger: a.log}); err != nil || k.texts()[0] != text(fresh) {
		t.Errorf("the saved key is not the one in use: %v", err)
	}
}

func TestKeyringRefuses(t *testing.T) {
	plain, stop := start(t, "plain", nil)
	defer stop()
	if _, err := plain.Keyring(t.Context(), catalog.KeyringList, ""); !errors.Is(err, catalog.ErrConflict) {
		t.Error(err)
	}
	g, stopG := start(t, "g", func(c *Config) { c.SecretKeys = [][]byte{bytes.Repeat([]byte{1}, 16)} })
	defer stopG()
	for _, key := range []string{"", "no base64!", text([]byte("short"))} {
		if _, err := g.Keyring(t.Context(), catalog.KeyringInstall, key); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%q: %v", key, err)
		}
	}
	bad := filepath.Join(t.TempDir(), "k")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{NodeName: "n", BindAddr: "127.0.0.1", KeyringFile: bad}); !errors.Is(err, catalog.ErrInvalid) {
		t.Error(err)
	}
}

// TestCoordinatesMove: a host alone is at the origin; probes move it.
func TestCoordinatesMove(t *testing.T) {
	a, stopA := start(t, "a", nil)
	defer stopA()
	at := a.Coordinate()
	if err := at.Validate(); err != nil || at.Error != 1.5 || at.Height != 1e-5 {
		t.Fatalf("%+v: %v", at, err)
	}
	b, stopB := start(t, "b", nil)
	defer stopB()
	if _, err := b.Join(t.Context(), []string{a.Addr()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "both have moved", func() bool { return a.Coordinate().Error != 1.5 && b.Coordinate().Error != 1.5 })
	if d := a.Coordinate().DistanceTo(b.Coordinate()); d <= 0 || d > time.Second {
		t.Error(d)
	}
}

// TestSetKeys: a host that has only a key of its own takes the cluster's over and
// meets the others; one that others hear does not let stale keys part it from them.
func TestSetKeys(t *testing.T) {
	k1, k2, stale := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{3}, 32)
	file := filepath.Join(t.TempDir(), "keyring")
	a, stopA := start(t, "a", func(c *Config) { c.SecretKeys = [][]byte{k2, k1} })
	defer stopA()
	b, stopB := start(t, "b", func(c *Config) { c.AwaitKeys, c.KeyringFile = true, file })
	defer stopB()
	if _, err := b.Join(t.Context(), []string{a.Addr()}); err == nil {
		t.Fatal("b joined without a key")
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the key that nobody else has was kept")
	}
	if err := b.SetKeys([][]byte{k2, k1}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Join(t.Context(), []string{a.Addr()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "both are there", func() bool { return !a.Alone() && !b.Alone() })
	if err := b.SetKeys([][]byte{stale}); err != nil || !bytes.Equal(b.Keys()[0], k2) || len(b.Keys()) != 2 {
		t.Errorf("stale keys: %v, %d keys", err, len(b.Keys()))
	}
	if err := b.SetKeys([][]byte{k2}); err != nil || len(b.Keys()) != 1 {
		t.Errorf("a key that was removed: %v, %d keys", err, len(b.Keys()))
	}
	saved, err := loadKeys(file)
	if err != nil || len(saved) != 1 || !bytes.Equal(saved[0], k2) {
		t.Errorf("kept: %d keys, %v", len(saved), err)
	}
	if err := b.SetKeys([][]byte{{1}}); err == nil {
		t.Error("a key of one byte was taken")
	}
}
