package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"github.com/weftmesh/weft/catalog"
)

func entries(from, to, term uint64) []*raft.Log {
	var out []*raft.Log
	for i := from; i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: term, Type: raft.LogNoop})
	}
	return out
}

// diskWith opens an empty directory and writes a log there.
func diskWith(t *testing.T, logs []*raft.Log) *disk {
	t.Helper()
	cfg := config(t, t.TempDir())
	if err := cfg.validate(); err != nil {
		t.Fatal(err)
	}
	d, err := openDisk(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := d.logs.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestBackupMendsLog: entries that a backup shows to be of a deposed leader go, so
// that nobody is ever sent them; those that agree with it stay.
func TestBackupMendsLog(t *testing.T) {
	for _, tc := range []struct {
		name        string
		logs        []*raft.Log
		index, term uint64
		first, last uint64
	}{
		{"all of it is older, and another", entries(1, 30, 2), 50, 5, 0, 0},
		{"it goes on after it, and is another", entries(1, 90, 2), 50, 5, 51, 90},
		{"it agrees", append(entries(1, 40, 2), entries(41, 60, 5)...), 50, 5, 1, 60},
		{"it begins after it", entries(51, 60, 5), 50, 5, 51, 60},
		{"there is none", nil, 50, 5, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := diskWith(t, tc.logs)
			sink, err := d.snapshots.Create(raft.SnapshotVersionMax, tc.index, tc.term, raft.Configuration{}, 1, loneTransport("a:1"))
			if err != nil {
				t.Fatal(err)
			}
			if err := sink.Close(); err != nil {
				t.Fatal(err)
			}
			first, _ := d.logs.FirstIndex()
			last, _ := d.logs.LastIndex()
			if first != tc.first || last != tc.last {
				t.Errorf("the log is %d to %d, want %d to %d", first, last, tc.first, tc.last)
			}
			var l raft.Log
			if err := d.logs.GetLog(tc.index, &l); tc.first != 0 && (err != nil || l.Term != tc.term) {
				t.Errorf("the entry at which the backup ends: %+v %v", l, err)
			}
		})
	}
}

// TestP09DamagedBackup: a backup with a flipped byte is refused by name; so is an
// empty one.
func TestP09DamagedBackup(t *testing.T) {
	dir := t.TempDir()
	n := open(t, config(t, dir))
	for i := range 20 {
		apply(t, n, register(i))
	}
	if err := n.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at <= len(whole); at += fullCount(1+len(whole)/60, 1) {
		for how, b := range map[string][]byte{"flipped": flip(whole, at), "cut": whole[:at]} {
			if at == len(whole) && how == "cut" {
				continue
			}
			if err := os.WriteFile(files[0], b, 0o600); err != nil {
				t.Fatal(err)
			}
			n, err := New(config(t, dir))
			if err == nil {
				_ = n.Close()
				if how == "flipped" && at == len(whole) {
					continue // nothing was
				}
				t.Fatalf("%s at %d of %d: it started", how, at, len(whole))
			}
			if !errors.Is(err, errCorrupt) || !strings.Contains(err.Error(), filepath.Dir(files[0])) || !strings.Contains(err.Error(), "restore it from a copy") {
				t.Fatalf("%s at %d: %v", how, at, err)
			}
		}
	}
	if err := os.WriteFile(files[0], whole, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, config(t, dir))
}

// fullCount is how much is tried where the full count of a promise is asked for.
func fullCount(short, full int) int {
	if os.Getenv("WEFT_PROMISE") == "full" {
		return full
	}
	return short
}

func flip(b []byte, at int) []byte {
	out := append([]byte(nil), b...)
	if at < len(out) {
		out[at] ^= 0x10
	}
	return out
}

// damagedStore gives one entry with a changed byte.
type damagedStore struct {
	boltStore
	at uint64
}

func (d damagedStore) GetLog(index uint64, l *raft.Log) error {
	err := d.boltStore.GetLog(index, l)
	if index == d.at && len(l.Data) > 0 {
		l.Data = flip(l.Data, len(l.Data)-1)
	}
	return err
}

// TestP09DamagedWhileRunning: an entry that is read with a changed byte ends the
// node; it reaches nobody.
func TestP09DamagedWhileRunning(t *testing.T) {
	cfg := config(t, t.TempDir())
	cfg.hooks.wrapStore = func(s boltStore) boltStore { return damagedStore{s, 20} }
	n := open(t, cfg)
	for i := range 600 { // more than the cache holds
		apply(t, n, register(i%7))
	}
	var l raft.Log
	if err := n.disk.logs.GetLog(20, &l); !errors.Is(err, ErrStorage) || !errors.Is(err, errCorrupt) {
		t.Fatal(err)
	}
	if err := n.disk.failure(); err == nil || !strings.Contains(err.Error(), "raft.db") || !strings.Contains(err.Error(), "restore it from a copy") {
		t.Error(err)
	}
}

// TestCompact: a large and mostly empty log file is small after the next start.
func TestCompact(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, logFile)
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		t.Fatal(err)
	}
	put := func(b *bbolt.Bucket, from, to int) error {
		for i := from; i < to; i++ {
			if err := b.Put([]byte(fmt.Sprintf("%08d", i)), make([]byte, 1000)); err != nil {
				return err
			}
		}
		return nil
	}
	err = errors.Join(
		db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucket([]byte("logs"))
			return errors.Join(err, put(b, 0, 20000))
		}),
		db.Update(func(tx *bbolt.Tx) error {
			return errors.Join(tx.DeleteBucket([]byte("logs")), func() error {
				b, err := tx.CreateBucket([]byte("logs"))
				return errors.Join(err, put(b, 0, 50))
			}())
		}),
		db.Close())
	if err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(file)
	used, err := inspect(file)
	if err != nil || used <= 0 || used*compactUsed > before.Size() {
		t.Fatal(used, before.Size(), err)
	}
	log := slog.New(slog.DiscardHandler)
	little := func() (uint64, uint64, error) { return 1, 1 << 30, nil }
	for _, keep := range []error{compact(file, 1<<30, used, nil, log), compact(file, 1<<20, before.Size(), nil, log), compact(file, 1<<20, used, little, log)} {
		if info, _ := os.Stat(file); keep != nil || info.Size() != before.Size() {
			t.Error("it was compacted though it need not or cannot be:", keep)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, compactFile), []byte("of a start that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := compact(file, 1<<20, used, spaceOf(dir), log); err != nil {
		t.Fatal(err)
	}
	after, _ := os.Stat(file)
	if after.Size() > before.Size()/10 {
		t.Errorf("from %d to %d bytes", before.Size(), after.Size())
	}
	if _, err := inspect(file); err != nil {
		t.Error(err)
	}
	db, err = bbolt.Open(file, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_ = db.View(func(tx *bbolt.Tx) error {
		if n := tx.Bucket([]byte("logs")).Stats().KeyN; n != 50 {
			t.Errorf("%d of 50 entries are there", n)
		}
		return nil
	})
}

// TestTuner: the timers follow the lag of this host, up to a bound, and come back;
// the log after a backup follows the time that sending one takes.
func TestTuner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := raft.ReloadableConfig{}
		applied := uint64(0)
		tu := &tuner{
			base: Timers{}.withDefaults(), trailing: 10240, beat: 300 * time.Millisecond, keep: 10240, metrics: newDiskMetrics(),
			log: slog.New(slog.DiscardHandler), applied: func() uint64 { return applied },
			reload: func(change func(*raft.ReloadableConfig)) error { change(&c); return nil },
		}
		run := func(d, lag time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); applied += 100 {
				time.Sleep(lookEvery)
				tu.look(lag)
			}
		}
		run(10*time.Second, 2*time.Millisecond)
		if c.HeartbeatTimeout != 0 {
			t.Error("a lag that is usual changed the timers:", c.HeartbeatTimeout)
		}
		run(lookEvery, 100*time.Millisecond)
		if c.HeartbeatTimeout != 700*time.Millisecond || c.ElectionTimeout != c.HeartbeatTimeout {
			t.Error(c.HeartbeatTimeout, c.ElectionTimeout)
		}
		run(lookEvery, 5*time.Second)
		if c.HeartbeatTimeout != 1200*time.Millisecond {
			t.Error("the bound:", c.HeartbeatTimeout)
		}
		run(20*time.Second, 0)
		if c.HeartbeatTimeout < time.Second {
			t.Error("forgotten at once:", c.HeartbeatTimeout)
		}
		run(10*time.Minute, 0)
		if c.HeartbeatTimeout != 300*time.Millisecond {
			t.Error("not forgotten:", c.HeartbeatTimeout)
		}
		tu.tookInstall(30 * time.Second) // at 1,000 entries a second
		run(10*time.Second, 0)
		if c.TrailingLogs < 55000 || c.TrailingLogs > 70000 {
			t.Error("trailing:", c.TrailingLogs)
		}
		run(9*time.Hour, 0)
		if c.TrailingLogs != 10240 {
			t.Error("trailing is not shortened again:", c.TrailingLogs)
		}
	})
}

// TestStuckFollower: who answers heartbeats and takes no entries is told of, once.
func TestStuckFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a := raft.NewInmemTransport("a:1")
		_, b := raft.NewInmemTransport("b:1")
		a.Connect("b:1", b)
		done := make(chan struct{})
		defer close(done)
		go func() {
			for {
				select {
				case rpc := <-b.Consumer():
					req, ok := rpc.Command.(*raft.AppendEntriesRequest)
					rpc.Respond(&raft.AppendEntriesResponse{Term: 4, Success: ok && len(req.Entries) == 0, LastLog: 7}, nil)
				case <-done:
					return
				}
			}
		}()
		g := newGate(a, func() error { return nil })
		send := func(req *raft.AppendEntriesRequest) {
			if err := g.AppendEntries("b", "b:1", req, &raft.AppendEntriesResponse{}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 15 {
			send(&raft.AppendEntriesRequest{Term: 4})
			send(&raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 7, Entries: entries(8, 9, 4)})
			if all, fresh := g.stuck(4); (all == 1) != (i >= 10) || (len(fresh) == 1) != (i == 10) {
				t.Errorf("second %d: %d stuck, new %v", i, all, fresh)
			}
			time.Sleep(time.Second)
		}
		send(&raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 7})
		if all, _ := g.stuck(4); all != 0 {
			t.Error("it took something, and is stuck")
		}
		if all, _ := g.stuck(5); all != 0 {
			t.Error("of another term")
		}
	})
}

// TestP32PeersFile: the classic file is read once, and all that was written is there.
func TestP32PeersFile(t *testing.T) {
	dir := t.TempDir()
	n := open(t, config(t, dir))
	apply(t, n, put("backed up", "yes"))
	if err := n.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	index := apply(t, n, put("kept", "yes"))
	err := n.await(t.Context(), func() raft.Future { return n.raft.AddVoter("gone", "127.0.0.9:8300", 0, 0) })
	if err == nil {
		t.Log("the second server was added")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, peersFile)
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`[{"id": 7}]`)
	if _, err := New(config(t, dir)); err == nil || !strings.Contains(err.Error(), file) {
		t.Fatal("a file that is none:", err)
	}
	write(`[{"id": "` + nodeID + `", "address": "127.0.0.1:8300", "non_voter": false}]`)
	cfg := config(t, dir)
	n = open(t, cfg)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Error("the file is still there:", err)
	}
	ctx, end := context.WithTimeout(t.Context(), patience)
	defer end()
	if err := cfg.Store.WaitIndex(ctx, index); err != nil {
		t.Fatal(err)
	}
	view, err := cfg.Store.Read(catalog.Query{Kind: catalog.QueryKey, Name: "kept"})
	if value, _ := pairOf(view); err != nil || value != "yes" {
		t.Error(value, err)
	}
	if p, err := n.Peers(); err != nil || len(p) != 1 {
		t.Error(p, err)
	}
	apply(t, n, put("new", "one"))
}

// TestLatestList: the index of the latest list of servers is known, which tells a list
// from an older one, also after a backup, a restart, and where the entry is taken back.
func TestLatestList(t *testing.T) {
	cfg := config(t, t.TempDir())
	n := open(t, cfg)
	if got := n.Position().ConfigIndex; got != 1 {
		t.Errorf("the first list of servers is entry %d, not 1", got)
	}
	apply(t, n, register(1))
	f := n.raft.AddNonvoter("other", "127.0.0.9:8300", 0, patience)
	if err := f.Error(); err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return nil },
		func() error { return n.Backup(t.Context()) },
		func() error {
			err := n.Close()
			cfg.Store = newStore(t)
			n = open(t, cfg)
			return err
		},
	} {
		apply(t, n, register(2))
		if err := step(); err != nil {
			t.Fatal(err)
		}
		if got := n.Position().ConfigIndex; got != f.Index() {
			t.Errorf("the latest list of servers is entry %d, not %d", got, f.Index())
		}
		if meta, err := n.Describe(); err != nil || meta.ConfigurationIndex != f.Index() {
			t.Errorf("a backup says %d, not %d: %v", meta.ConfigurationIndex, f.Index(), err)
		}
	}
	logs := entries(1, 9, 1)
	logs[2].Type, logs[6].Type = raft.LogConfiguration, raft.LogConfiguration
	d := diskWith(t, nil)
	for _, do := range []struct {
		what func() error
		want uint64
	}{
		{func() error { return d.logs.StoreLogs(logs) }, 7},
		{func() error { return d.logs.DeleteRange(8, 9) }, 7},
		{func() error { return d.logs.DeleteRange(7, 7) }, 3},
		{func() error { return d.logs.DeleteRange(1, 4) }, 3},
	} {
		if err := do.what(); err != nil || d.listed.Load() != do.want {
			t.Errorf("the latest list is entry %d, not %d: %v", d.listed.Load(), do.want, err)
		}
	}
}

// TestReserve: it is made where there is room, given up once, and made anew.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	r := &reserve{file: filepath.Join(dir, reserveFile)}
	const total = 1 << 24 // 1 MiB of reserve
	if err := r.keep(2<<20, total); err != nil || r.release() {
		t.Error("it was made where there is little room:", err)
	}
	if err := r.keep(8<<20, total); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(r.file); err != nil || info.Size() != 1<<20 {
		t.Error(info, err)
	}
	if !r.release() || r.release() {
		t.Error("it was not given up once")
	}
}

// fullStore cannot write entries any more.
type fullStore struct{ boltStore }

func (fullStore) StoreLogs([]*raft.Log) error { return errors.New("input/output error") }

// TestP09CutAndNotWritten: where a follower's log was cut and its new end could not be
// written, Raft, which takes the log for longer than it is, ends without a panic: the
// process is to end with its own reason.
func TestP09CutAndNotWritten(t *testing.T) {
	d := diskWith(t, entries(1, 9, 1))
	f := &failStopStore{d: d, to: fullStore{d.bolt}}
	d.running.Store(true)
	var l raft.Log
	if err := f.GetLog(12, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatal("before the failure:", err)
	}
	if err := errors.Join(f.DeleteRange(5, 9), f.StoreLogs(entries(5, 12, 2))); !errors.Is(err, ErrStorage) {
		t.Fatal(err)
	}
	ended, returned := make(chan struct{}), false
	go func() {
		defer close(ended)
		var l raft.Log
		_ = f.GetLog(5, &l)
		returned = true
	}()
	if <-ended; returned {
		t.Error("Raft was told that an entry is missing, and would panic")
	}
}

// TestOlderBackupIsRefused: a leader that was deposed, or did not hear the answer, sends a
// backup of what this server has applied. It does not go back to it.
func TestOlderBackupIsRefused(t *testing.T) {
	n := open(t, config(t, t.TempDir()))
	var last uint64
	for i := range 20 {
		last = apply(t, n, register(i))
	}
	ask := func(index, term uint64) (refused, have bool) {
		rest := strings.NewReader("a backup")
		answers := make(chan raft.RPCResponse, 1)
		rpc := raft.RPC{RespChan: answers, Reader: rest, Command: &raft.InstallSnapshotRequest{
			Term: n.Term(), LastLogIndex: index, LastLogTerm: term, Size: rest.Size(),
		}}
		if _, ok := n.judge(rpc); ok {
			return false, false
		}
		resp, ok := (<-answers).Response.(*raft.InstallSnapshotResponse)
		if !ok || rest.Len() > 0 {
			t.Fatalf("%T, %d bytes of the backup were left on the connection", resp, rest.Len())
		}
		return true, resp.Success
	}
	for what, c := range map[string]struct {
		index, term   uint64
		refused, have bool
	}{
		"of what is in the log": {last - 5, n.Term(), true, true}, "of what comes next": {last + 100, n.Term(), false, false},
		"of another history": {last - 5, n.Term() + 7, false, false},
	} {
		if refused, have := ask(c.index, c.term); refused != c.refused || have != c.have {
			t.Errorf("a backup %s: refused %t, and had %t", what, refused, have)
		}
	}
	rc := n.raft.ReloadableConfig()
	rc.TrailingLogs = 2
	if err := n.raft.ReloadConfig(rc); err != nil {
		t.Fatal(err)
	}
	if err := n.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if refused, have := ask(last-5, n.Term()); !refused || have {
		t.Errorf("a backup that cannot be compared with the log any more: refused %t, and had %t", refused, have)
	}
	if refused, have := ask(last, n.Term()); !refused || !have {
		t.Errorf("the same backup: refused %t, and had %t", refused, have)
	}
	// A leader that did not hear an answer begins again where the log is no more.
	entries := []*raft.Log{{Index: last - 4, Term: n.Term()}, {Index: last, Term: n.Term()}, {Index: last + 1, Term: n.Term()}}
	sent := &raft.AppendEntriesRequest{Term: n.Term(), PrevLogEntry: last - 5, PrevLogTerm: n.Term(), Entries: entries}
	as, ok := n.judge(raft.RPC{Command: sent})
	got, is := as.Command.(*raft.AppendEntriesRequest)
	if !ok || !is || got.PrevLogEntry != last || len(got.Entries) != 1 || got.Entries[0].Index != last+1 || len(sent.Entries) != 3 || entries[1].Index != last {
		t.Errorf("%+v of %+v", got, sent)
	}
}

// TestBackupThatIsOvertaken: a backup of this server's own that is written slowly is not
// kept when a later one has come from the leader.
func TestBackupThatIsOvertaken(t *testing.T) {
	n := open(t, config(t, t.TempDir()))
	last := apply(t, n, register(1))
	begin := func(index uint64) raft.SnapshotSink {
		sink, err := n.disk.snapshots.Create(1, index, n.Term(), raft.Configuration{}, 1, n.witness)
		if err != nil {
			t.Fatal(err)
		}
		return sink
	}
	slow := begin(last - 1)
	if err := begin(last).Close(); err != nil {
		t.Fatal(err)
	}
	if err := slow.Close(); !errors.Is(err, errOutdated) {
		t.Error("the slower, older backup was kept:", err)
	}
	list, err := n.disk.snapshots.List()
	if err != nil || len(list) != 1 || list[0].Index != last {
		t.Errorf("%d backups, %v", len(list), err)
	}
	if b := n.disk.base.Load(); b == nil || b.index != last || n.disk.failure() != nil {
		t.Errorf("%+v, %v", b, n.disk.failure())
	}
}
