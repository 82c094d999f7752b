package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	nodeID   = "11111111-1111-4111-8111-111111111111"
	patience = 20 * time.Second
)

func newStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.New(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func config(t testing.TB, dir string) Config {
	return Config{NodeID: nodeID, Addr: "127.0.0.1:8300", DataDir: dir, Bootstrap: true, Store: newStore(t)}
}

// open starts a node and waits until it leads.
func open(t testing.TB, cfg Config) *Node {
	t.Helper()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	waitLeader(t, n)
	return n
}

func waitLeader(t testing.TB, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for at := uint64(0); ; {
		l, i, err := n.Leadership().Next(ctx, at)
		if err != nil {
			t.Fatal("no leader:", err)
		}
		if at = i; l.Leading {
			return
		}
	}
}

func register(i int) catalog.Command {
	return &catalog.Register{Node: &catalog.Node{Node: fmt.Sprintf("n%d", i), Address: "10.0.0.1"}}
}

func apply(t testing.TB, n *Node, cmd catalog.Command) uint64 {
	t.Helper()
	index, _, err := n.Apply(context.Background(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func TestLoneNodeLeadsAtOnce(t *testing.T) {
	cfg := config(t, "")
	cfg.Timers.Heartbeat = 10 * time.Second
	start := time.Now()
	n := open(t, cfg)
	if d := time.Since(start); d > cfg.Timers.Heartbeat/2 {
		t.Errorf("took %v: the election waited for its timeout", d)
	} else {
		t.Logf("leads after %v", d)
	}
	addr, self, err := n.Leader()
	if addr != "127.0.0.1:8300" || !self || err != nil {
		t.Error(addr, self, err)
	}
	if p, err := n.Peers(); err != nil || fmt.Sprint(p) != "[127.0.0.1:8300]" {
		t.Error(p, err)
	}
	if n.LastContact() != 0 || n.Stats()["state"] != "Leader" {
		t.Error(n.LastContact(), n.Stats())
	}
}

func TestApply(t *testing.T) {
	cfg := config(t, "")
	n := open(t, cfg)
	ctx := t.Context()
	index := apply(t, n, register(1))
	if cfg.Store.Index() != index {
		t.Errorf("store at %d, entry at %d", cfg.Store.Index(), index)
	}
	entry := &catalog.SetIntention{Destination: "db", Source: catalog.SourceIntention{Name: "web", Action: catalog.ActionAllow}, CreateOnly: true}
	apply(t, n, entry)
	if i, _, err := n.Apply(ctx, entry); !errors.Is(err, catalog.ErrConflict) || i == 0 {
		t.Error("a refused command:", i, err)
	}
	cas := &catalog.DeleteConfigEntry{Kind: catalog.KindServiceIntentions, Name: "db", CAS: true, Index: 9999}
	if _, res, err := n.Apply(ctx, cas); err != nil || res != false {
		t.Error("a lost check-and-set:", res, err)
	}
	big := &catalog.Deregister{Node: strings.Repeat("x", 1<<20)}
	if _, _, err := n.Apply(ctx, big); !errors.Is(err, catalog.ErrTooLarge) {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err := n.Apply(ended, register(2)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := n.raft.Barrier(0).Error(); err != nil {
		t.Error(err)
	}
}

// TestReadIndex: whoever asks after a write was acknowledged gets an index that
// includes it, however many ask at once.
func TestReadIndex(t *testing.T) {
	n := open(t, config(t, ""))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				index, _, err := n.Apply(t.Context(), register(w*100+i))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := n.ReadIndex(t.Context())
				if err != nil || got < index {
					t.Errorf("wrote at %d, read at %d: %v", index, got, err)
					return
				}
			}
		})
	}
	wg.Wait()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.ReadIndex(ended); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestStoppedNode(t *testing.T) {
	n := open(t, config(t, ""))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error("a second Close:", err)
	}
	if _, _, err := n.Apply(t.Context(), register(1)); !errors.Is(err, catalog.ErrUnavailable) && !errors.Is(err, catalog.ErrNoLeader) {
		t.Error(err)
	}
	if _, err := n.ReadIndex(t.Context()); !errors.Is(err, catalog.ErrNoLeader) {
		t.Error(err)
	}
	if _, _, err := n.Leadership().Next(t.Context(), 1<<60); !errors.Is(err, catalog.ErrUnavailable) {
		t.Error(err)
	}
}

func TestWithoutBootstrapNobodyLeads(t *testing.T) {
	cfg := config(t, "")
	cfg.Bootstrap = false
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, _, err := n.Leader(); !errors.Is(err, catalog.ErrNoLeader) {
		t.Error(err)
	}
	if _, _, err := n.Apply(t.Context(), register(1)); !errors.Is(err, catalog.ErrNoLeader) {
		t.Error(err)
	}
	if _, err := n.ReadIndex(t.Context()); !errors.Is(err, catalog.ErrNoLeader) {
		t.Error(err)
	}
	if n.LastContact() >= 0 {
		t.Error("heard from a leader that there never was")
	}
}

// TestRestart: after a stop, and after the files were copied while the node was
// writing (a process killed in the middle leaves nothing else), the state is that
// of all acknowledged writes.
func TestRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	cfg := config(t, dir)
	n := open(t, cfg)
	for i := range 40 {
		apply(t, n, register(i))
		if i == 20 {
			if err := n.Backup(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	want, index := cfg.Store.Fingerprint(), cfg.Store.Index()
	killed := copyDir(t, dir)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"stopped": dir, "killed": killed} {
		t.Run(name, func(t *testing.T) {
			again := config(t, dir)
			again.Addr = "127.0.0.2:8300" // and the address changed
			m := open(t, again)
			if got := again.Store.Fingerprint(); got != want {
				t.Error("the state differs")
			}
			if again.Store.Index() != index {
				t.Errorf("index %d, want %d", again.Store.Index(), index)
			}
			if p, err := m.Peers(); err != nil || fmt.Sprint(p) != "[127.0.0.2:8300]" {
				t.Error(p, err)
			}
			if i := apply(t, m, register(99)); i <= index {
				t.Errorf("index fell to %d", i)
			}
		})
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if !info.IsDir() && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s may be read by others: %s", f, info.Mode())
		}
	}
}

// TestLongLogAtTheStart: a node that is never up for long enough to come to a backup
// writes one at its next start.
func TestLongLogAtTheStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	cfg := config(t, dir)
	cfg.Log = LogSettings{Threshold: 100, Trailing: 10}
	n := open(t, cfg)
	for i := range 120 {
		apply(t, n, register(i))
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Store = newStore(t)
	n = open(t, cfg)
	backedUp := func() uint64 {
		index, err := strconv.ParseUint(n.raft.Stats()["last_snapshot_index"], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return index
	}
	for end := time.Now().Add(patience); backedUp() == 0 && time.Now().Before(end); {
		runtime.Gosched()
	}
	if index := backedUp(); index < n.past {
		t.Errorf("the last backup is of entry %d, the log reached to %d at the start", index, n.past)
	}
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestCaughtUp: a node that restarts is caught up when its log is in the store, and
// one that cannot find out whether that log still holds is not.
func TestCaughtUp(t *testing.T) {
	dir := t.TempDir()
	n := open(t, config(t, dir))
	var last uint64
	for i := range 50 {
		last = apply(t, n, register(i))
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, dir)
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.CaughtUp(ctx); err != nil || cfg.Store.Index() < last {
		t.Errorf("caught up (%v) with the store at %d, the log ended at %d", err, cfg.Store.Index(), last)
	}
	n.past = 1 << 40 // as if there were more
	n.readyTerm.Store(0)
	soon, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if err := n.CaughtUp(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("caught up with what is not there: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.CaughtUp(ctx); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("after the end: %v", err)
	}
}

func TestBadDataDir(t *testing.T) {
	good := filepath.Join(t.TempDir(), "raft")
	n := open(t, config(t, good))
	for i := range 200 {
		apply(t, n, register(i))
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	file := func(dir string) string { return filepath.Join(dir, logFile) }
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  []string
	}{
		"garbage": {func(t *testing.T, dir string) {
			write(t, file(dir), []byte(strings.Repeat("not a database ", 10000)))
		}, []string{logFile, "corrupt", "copy"}},
		"cut": {func(t *testing.T, dir string) {
			if err := os.Truncate(file(dir), 3*4096); err != nil {
				t.Fatal(err)
			}
		}, []string{logFile, "corrupt", "cut off"}},
		"zeroes inside": {func(t *testing.T, dir string) {
			b, err := os.ReadFile(file(dir))
			if err != nil {
				t.Fatal(err)
			}
			clear(b[2*4096:])
			write(t, file(dir), b)
		}, []string{logFile, "corrupt"}},
		"a directory": {func(t *testing.T, dir string) {
			if err := errors.Join(os.Remove(file(dir)), os.Mkdir(file(dir), 0o700)); err != nil {
				t.Fatal(err)
			}
		}, []string{logFile, "not a file"}},
		"in the way": {func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			write(t, dir, nil)
		}, []string{"not a directory"}},
		"another host": {func(*testing.T, string) {}, []string{"22222222", nodeID, "node_id"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyDir(t, good)
			c.spoil(t, dir)
			cfg := config(t, dir)
			if name == "another host" {
				cfg.NodeID = "22222222-2222-4222-8222-222222222222"
			}
			n, err := New(cfg)
			if err == nil {
				_ = n.Close()
				t.Fatal("opened")
			}
			for _, w := range append(c.want, dir) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is not in: %v", w, err)
				}
			}
		})
	}
	t.Run("held", func(t *testing.T) {
		dir := copyDir(t, good)
		_ = open(t, config(t, dir))
		_, err := New(config(t, dir))
		if err == nil || !strings.Contains(err.Error(), "another process holds it") {
			t.Error(err)
		}
	})
	t.Run("snapshot", func(t *testing.T) {
		dir := copyDir(t, good)
		n := open(t, config(t, dir))
		if err := errors.Join(n.Backup(t.Context()), n.Close()); err != nil {
			t.Fatal(err)
		}
		states, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
		if err != nil || len(states) != 1 {
			t.Fatal(states, err)
		}
		write(t, states[0], []byte("not a backup"))
		_, err = New(config(t, dir))
		if err == nil || !strings.Contains(err.Error(), dir) {
			t.Error(err)
		}
	})
}

func write(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

var errDisk = errors.New("input/output error")

// brokenStore fails every write once told to.
type brokenStore struct {
	boltStore
	broken sync.Map
}

func (b *brokenStore) wrap(s boltStore) boltStore {
	b.boltStore = s
	return b
}

func (b *brokenStore) err() error {
	if _, ok := b.broken.Load("now"); ok {
		return errDisk
	}
	return nil
}

func (b *brokenStore) StoreLogs(l []*raft.Log) error {
	if err := b.err(); err != nil {
		return err
	}
	return b.boltStore.StoreLogs(l)
}

func (b *brokenStore) SetUint64(k []byte, v uint64) error {
	if left, ok := b.broken.Load("after"); ok {
		if b.broken.Store("after", left.(int)-1); left.(int) == 0 {
			return errDisk
		}
	}
	if err := b.err(); err != nil {
		return err
	}
	return b.boltStore.SetUint64(k, v)
}

// TestFailStop: the first write that fails ends the node, with a reason, and no
// later write reaches the disk even if it would succeed.
func TestFailStop(t *testing.T) {
	dir := t.TempDir()
	fatal := make(chan error, 2)
	cfg := config(t, dir)
	cfg.OnFatal = func(err error) { fatal <- err }
	broken := &brokenStore{}
	cfg.hooks.wrapStore = broken.wrap
	n := open(t, cfg)
	done := make(chan error, 1)
	go func() { done <- n.Run(t.Context()) }()
	broken.broken.Store("now", true)
	if _, _, err := n.Apply(t.Context(), register(1)); err == nil {
		t.Error("a write that failed was acknowledged")
	}
	broken.broken.Delete("now") // the kernel says all is well again, and it is not
	if _, _, err := n.Apply(t.Context(), register(2)); err == nil {
		t.Error("a write after the failed one was acknowledged")
	}
	err := <-done
	if !errors.Is(err, errDisk) || !errors.Is(err, ErrStorage) || !strings.Contains(err.Error(), dir) {
		t.Error(err)
	}
	if got := <-fatal; !errors.Is(got, errDisk) || len(fatal) != 0 {
		t.Error(got)
	}
}

// TestFailStopAtElection: Raft itself would panic when it cannot record its term.
func TestFailStopAtElection(t *testing.T) {
	cfg := config(t, t.TempDir())
	if err := open(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	broken := &brokenStore{}
	broken.broken.Store("now", true)
	cfg = config(t, cfg.DataDir)
	cfg.hooks.wrapStore = broken.wrap
	if _, err := New(cfg); !errors.Is(err, errDisk) {
		t.Error("at start:", err)
	}
	broken.broken.Delete("now")
	cfg = config(t, cfg.DataDir)
	broken.broken.Store("after", 1) // the term that is read back at start may be written
	cfg.hooks.wrapStore = broken.wrap
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Run(t.Context()); !errors.Is(err, errDisk) {
		t.Error(err)
	}
	if _, _, err := n.Apply(t.Context(), register(1)); err == nil {
		t.Error("acknowledged")
	}
}

func TestConfigRefused(t *testing.T) {
	good := config(t, "")
	for name, spoil := range map[string]func(*Config){
		"NodeID": func(c *Config) { c.NodeID = "" },
		"Addr":   func(c *Config) { c.Addr = "" },
		"store":  func(c *Config) { c.Store = nil },
	} {
		cfg := good
		spoil(&cfg)
		if _, err := New(cfg); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Error(name, err)
		}
	}
}

func TestHclog(t *testing.T) {
	var out strings.Builder
	l := newHclog(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn})))
	l.Info("quiet")
	l.Named("sub").With("peer-id", 3).Warn("loud", "error", errDisk, "leader-address", "a:1")
	if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, `msg="raft.sub: loud" peer-id=3 err="input/output error" peer=a:1`) {
		t.Error(s)
	}
	if l.IsDebug() || !l.IsWarn() {
		t.Error("levels")
	}
}

func BenchmarkApply(b *testing.B) {
	for name, dir := range map[string]string{"memory": "", "disk": b.TempDir()} {
		for _, writers := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/writers=%d", name, writers), func(b *testing.B) {
				if dir != "" {
					dir = b.TempDir()
				}
				n := open(b, config(b, dir))
				b.SetParallelism(writers)
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for i := 0; pb.Next(); i++ {
						if _, _, err := n.Apply(context.Background(), register(i%1000)); err != nil {
							b.Error(err)
						}
					}
				})
				b.StopTimer()
				_ = n.Close()
			})
		}
	}
}

func BenchmarkReadIndex(b *testing.B) {
	n := open(b, config(b, ""))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := n.ReadIndex(context.Background()); err != nil {
				b.Error(err)
			}
		}
	})
}

// laterCommand is a command of a version to come.
type laterCommand struct{ catalog.DeleteKey }

func (*laterCommand) CommandType() catalog.CommandType { return 999 }

// TestNewerEntryStops: a node that is sent an entry which it does not know stops with
// an error that says what to do, and does not go on without it.
func TestNewerEntryStops(t *testing.T) {
	n, err := New(config(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	waitLeader(t, n)
	index := apply(t, n, register(1))
	done := make(chan error, 1)
	go func() { done <- n.Run(t.Context()) }()
	entry, err := wire.EncodeEntry(&laterCommand{})
	if err != nil {
		t.Fatal(err)
	}
	n.raft.Apply(entry, 0) // never answered
	err = <-done
	if !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "install the version") {
		t.Error(err)
	}
	if got := n.cfg.Store.Index(); got > index {
		t.Errorf("the store went on to %d", got)
	}
	if _, _, err := n.Apply(t.Context(), register(2)); err == nil {
		t.Error("it takes writes still")
	}
}
