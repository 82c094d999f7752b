package gossip

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func text(key []byte) string { return base64.StdEncoding.EncodeToString(key) }

// A member that is shunned counts as failed although it lives: it is given no key, and may
// be forced to leave, until it is not shunned any more.
func TestShunned(t *testing.T) {
	old, fresh := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	secret := func(c *Config) { c.SecretKeys = [][]byte{old} }
	a, stopA := start(t, "a", secret)
	defer stopA()
	b, stopB := start(t, "b", secret)
	stopB = sync.OnceFunc(stopB)
	defer stopB()
	if _, err := b.Join(t.Context(), []string{a.Addr()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "two are alive", func() bool { return len(a.table.alive()) == 2 })
	shun := func(who string) { a.Shun(func(id string) bool { return id == who }) }
	shun("id-of-b")
	if got := statusOf(a, "b"); got != catalog.MemberFailed {
		t.Errorf("b is %s", got)
	}
	if addrs := a.lost(true); len(addrs) != 0 {
		t.Errorf("it is looked for at %v", addrs)
	}
	if r, err := a.Keyring(t.Context(), catalog.KeyringInstall, text(fresh)); err != nil || len(r.Keys) != 1 || len(r.Errors) != 0 {
		t.Errorf("a key is installed: %+v, %v", r, err)
	}
	if keys := b.keys.texts(); len(keys) != 1 {
		t.Errorf("b has %d keys", len(keys))
	}
	shun("")
	if got := statusOf(a, "b"); got != catalog.MemberAlive {
		t.Errorf("b, let in again, is %s", got)
	}
	if err := a.ForceLeave("b", false); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("one that lives is forced to leave: %v", err)
	}
	shun("id-of-b")
	if err := a.ForceLeave("b", false); err != nil {
		t.Error(err)
	}
	if got := statusOf(a, "b"); got != catalog.MemberLeft {
		t.Errorf("b, forced to leave, is %s", got)
	}
	shun("")
	if got := statusOf(a, "b"); got != catalog.MemberAlive {
		t.Errorf("b, forced to leave and let in again, is %s", got)
	}
	shun("id-of-b")
	if err := a.ForceLeave("b", true); err != nil {
		t.Error(err)
	}
	if _, ok := a.table.get("b"); ok {
		t.Error("b, forced to leave and pruned, is known")
	}
	shun("")
	if got := statusOf(a, "b"); got != catalog.MemberAlive {
		t.Errorf("b, pruned and let in again, is %s", got)
	}
	shun("id-of-b")
	if err := a.ForceLeave("b", false); err != nil {
		t.Error(err)
	}
	stopB()
	eventually(t, 30*time.Second, "memberlist misses b", func() bool { return a.list.NumMembers() == 1 })
	shun("id-of-a")
	if got := statusOf(a, "b"); got == catalog.MemberAlive {
		t.Error("b, which has died since, is alive")
	}
	if got := statusOf(a, "a"); got != catalog.MemberAlive {
		t.Errorf("a shuns itself: %s", got)
	}
}

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
		eventually(t, 10*time.Second, "three are alive", func() bool { return len(g.table.alive()) == 3 })
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

// TestKeyringPassesOverTheFailed asks for a change just after a member has crashed,
// while it is still thought alive: the change does not fail for it.
func TestKeyringPassesOverTheFailed(t *testing.T) {
	quick := func(c *Config) {
		c.SecretKeys = [][]byte{bytes.Repeat([]byte{1}, 32)}
		c.Pace = Pace{ProbeInterval: 100 * time.Millisecond, ProbeTimeout: 50 * time.Millisecond, SuspicionMult: 2}
	}
	a, stopA := start(t, "a", quick)
	defer stopA()
	b, stopB := start(t, "b", quick)
	if _, err := b.Join(t.Context(), []string{a.Addr()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "two are alive", func() bool { return len(a.table.alive()) == 2 })
	stopB()
	if n := len(a.table.alive()); n != 2 {
		t.Fatalf("%d alive: the crash was noticed too soon to show anything", n)
	}
	r, err := a.Keyring(t.Context(), catalog.KeyringInstall, text(bytes.Repeat([]byte{2}, 32)))
	if err != nil || len(r.Errors) != 0 || len(r.Keys) != 1 || len(r.Keys["a"]) != 2 {
		t.Errorf("%+v, %v", r, err)
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

// TestImport: a host that has only a key of its own takes the cluster's over and
// meets the others. Of two rings the one that was changed later counts, also after a
// restart.
func TestImport(t *testing.T) {
	k1, k2 := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	file := filepath.Join(t.TempDir(), "keyring")
	a, stopA := start(t, "a", func(c *Config) { c.SecretKeys = [][]byte{k1} })
	defer stopA()
	b, stopB := start(t, "b", func(c *Config) { c.AwaitKeys, c.KeyringFile = true, file })
	defer stopB()
	if _, err := b.Join(t.Context(), []string{a.Addr()}); err == nil {
		t.Fatal("b joined without a key")
	}
	if _, err := os.Stat(file); err == nil || b.Export() != nil {
		t.Error("the key that nobody else has was kept or given away")
	}
	first := a.Export()
	if err := b.Import(first); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Join(t.Context(), []string{a.Addr()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "both are there", func() bool { return !a.Alone() && !b.Alone() })
	for _, change := range []struct {
		op  catalog.KeyringOp
		key []byte
	}{{catalog.KeyringInstall, k2}, {catalog.KeyringUse, k2}, {catalog.KeyringRemove, k1}} {
		if r, err := a.Keyring(t.Context(), change.op, text(change.key)); err != nil || len(r.Errors) > 0 {
			t.Fatalf("%s: %v, %v", change.op, r, err)
		}
	}
	if err := b.Import(first); err != nil || len(b.Export()) != 2 || !bytes.Equal(b.Export()[0], k2) {
		t.Errorf("a ring of before the change was taken over: %v", err)
	}
	again, stopAgain := start(t, "c", func(c *Config) { c.AwaitKeys, c.KeyringFile = true, file })
	defer stopAgain()
	if err := again.Import(first); err != nil || !bytes.Equal(again.Export()[0], k2) {
		t.Errorf("after a restart, a ring of before the change was taken over: %v", err)
	}
	late, stopLate := start(t, "d", func(c *Config) { c.SecretKeys = [][]byte{k1} })
	defer stopLate()
	if err := late.Import(a.Export()); err != nil || len(late.Export()) != 2 || !bytes.Equal(late.Export()[0], k2) {
		t.Errorf("the ring of now was not taken over: %v", err)
	}
	if err := late.Import([][]byte{{1}}); err == nil {
		t.Error("a key of one byte was taken")
	}
}

// TestKeyringByClocksThatDiffer: a change that is asked for by an earlier clock than the
// one before is news to who missed it, all the same.
func TestKeyringByClocksThatDiffer(t *testing.T) {
	old, fresh := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	secret := func(c *Config) { c.SecretKeys = [][]byte{old} }
	stays, stopStays := start(t, "stays", secret)
	defer stopStays()
	away, stopAway := start(t, "away", secret)
	defer stopAway()
	now := time.Now()
	for _, g := range []*Gossip{stays, away} {
		if err := g.keys.do(catalog.KeyringInstall, text(fresh), now.Add(8*time.Minute).UnixMilli()); err != nil {
			t.Fatal(err)
		}
	}
	for _, op := range []catalog.KeyringOp{catalog.KeyringUse, catalog.KeyringRemove} {
		key := map[catalog.KeyringOp][]byte{catalog.KeyringUse: fresh, catalog.KeyringRemove: old}[op]
		if err := stays.keys.do(op, text(key), now.UnixMilli()); err != nil {
			t.Fatal(err)
		}
	}
	if err := away.Import(stays.Export()); err != nil {
		t.Fatal(err)
	}
	if _, err := away.Join(t.Context(), []string{stays.Addr()}); err != nil {
		t.Errorf("who was away has %v: %v", away.keys.texts(), err)
	}
}
