package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

const (
	logFile = "raft.db"
	// lockTimeout is how long a log that another process holds is waited for.
	lockTimeout = time.Second
)

// disk is where Raft keeps its log, its term and vote, and its backups: files, or
// memory. The first write that fails ends its use for good: after a failed sync
// nobody knows what is on the disk, whatever later writes say.
type disk struct {
	dir       string // "" in memory
	mark      string // says that there is a log in dir, and which; "" where none is kept
	logs      raft.LogStore
	stable    raft.StableStore
	snapshots raft.SnapshotStore
	bolt      *raftboltdb.BoltStore
	ahead     map[catalog.CommandType]func(catalog.Command) // Config.Ahead

	log      *slog.Logger
	onFatal  func(error)
	running  atomic.Bool // Raft has goroutines of its own
	restored bool        // the newest backup is in the store
	base     atomic.Pointer[base]
	expected atomic.Uint64 // index of the backup that an operator restores now
	begun    atomic.Uint64 // that of the newest with which a restore began here
	listed   atomic.Uint64 // index of the latest list of servers, which Raft does not tell
	dog      *watchdog
	closing  chan struct{} // writes that wait for space wait no longer
	failed   chan struct{}
	once     sync.Once
	err      error // set before failed is closed
}

func openDisk(cfg Config) (*disk, error) {
	d := &disk{
		dir: cfg.DataDir, ahead: cfg.Ahead, log: cfg.Logger, onFatal: cfg.OnFatal, failed: make(chan struct{}), closing: make(chan struct{}),
		dog: newWatchdog(cfg.DataDir, cfg.Logger),
	}
	d.dog.fail = func(err error) { _ = d.fail("sync", err) }
	var to boltStore
	if d.dir == "" {
		m := cfg.hooks.memory
		if m == nil {
			m = &memory{raft.NewInmemStore(), raft.NewInmemSnapshotStore(), nil, nil}
		}
		to, d.snapshots, d.dog.probe, d.dog.space = m.log, m.snapshots, m.probe, m.space
	} else {
		if err := d.openFiles(cfg); err != nil {
			return nil, err
		}
		if to = d.bolt; cfg.hooks.wrapStore != nil {
			to = cfg.hooks.wrapStore(d.bolt)
		}
	}
	store := &failStopStore{d: d, to: to}
	// In the order of a write: Raft, the cache, the wrapper that stops, the file.
	cache, err := raft.NewLogCache(logCacheEntries, store)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.logs, d.stable = cache, &failStopStore{d: d, to: to}
	d.snapshots = &guardedSnapshots{d.snapshots, d}
	if d.bolt != nil {
		if err := d.leaveOut(); err != nil {
			return nil, errors.Join(d.explain("leave a backup out of", err), d.Close())
		}
		if err := d.verify(); err != nil {
			return nil, errors.Join(d.explain("read", err), d.Close())
		}
		if err := d.restoreBackup(cfg.Store.Restore); err != nil {
			return nil, errors.Join(d.explain("read", err), d.Close())
		}
	}
	if err := d.reconcileLast(); err != nil {
		return nil, errors.Join(d.explain("write", err), d.Close())
	}
	if err := store.relistAll(); err != nil {
		return nil, errors.Join(d.explain("read", err), d.Close())
	}
	return d, nil
}

// relistAll finds the latest list of servers at the start.
func (f *failStopStore) relistAll() error {
	first, err := f.FirstIndex()
	if err != nil {
		return err
	}
	last, err := f.LastIndex()
	if err != nil {
		return err
	}
	return f.relist(last+1, max(first, 1))
}

// file is the log file.
func (d *disk) file() string { return filepath.Join(d.dir, logFile) }

// openFiles opens what is in the directory, after a look at all of it.
func (d *disk) openFiles(cfg Config) error {
	d.mark = cfg.MarkFile
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return d.explain("create", err)
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(d.dir, snapshotsKept, newHclog(cfg.Logger))
	if err != nil {
		return d.explain("keep backups in", err)
	}
	d.snapshots = snapshots
	used, err := inspect(d.file())
	if err != nil {
		return d.explain("open", err)
	}
	d.dog.space, d.dog.probe, d.dog.reserve.file = spaceOf(d.dir), canary(d.dir), filepath.Join(d.dir, reserveFile)
	if err := compact(d.file(), compactAbove, used, d.dog.space, d.log); err != nil {
		return d.explain("compact", err)
	}
	d.bolt, err = raftboltdb.New(raftboltdb.Options{
		Path:                    d.file(),
		BoltOptions:             &bbolt.Options{Timeout: lockTimeout, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
		MsgpackUseNewTimeFormat: true, // for ever: it is the format of the log
	})
	if err != nil {
		return d.explain("open", err)
	}
	return nil
}

// Close closes the files.
func (d *disk) Close() error {
	if d.bolt == nil {
		return nil
	}
	return d.bolt.Close()
}

// ErrStorage is why a node stops whose disk failed: the process should end with
// an exit code of its own for it.
var ErrStorage = errors.New("the disk failed")

// fail ends the use of the disk.
func (d *disk) fail(what string, err error) error {
	hint := "check the disk and its free space, then start it again"
	if errors.Is(err, errCorrupt) {
		hint = "the file is damaged: restore it from a copy, or, if other servers have the data, move the directory away and let this server join them anew"
	}
	return d.stop(fmt.Errorf("consensus: %s %s: %w: %w; this server stops, as it cannot know what is on the disk now; %s",
		what, d.file(), ErrStorage, err, hint))
}

// stop ends the use of the disk with a reason of its own.
func (d *disk) stop(err error) error {
	d.once.Do(func() {
		d.err = err
		d.log.Error("the Raft log cannot be used any more, the server stops", "err", err, "file", d.file())
		close(d.failed)
		d.onFatal(d.err)
	})
	return d.err
}

// failure is the error that ended the use of the disk, nil before.
func (d *disk) failure() error {
	select {
	case <-d.failed:
		return d.err
	default:
		return nil
	}
}

// explain names the place and says what to do about err.
func (d *disk) explain(what string, err error) error {
	place := d.dir
	if place == "" {
		return fmt.Errorf("consensus: %s the log in memory: %w", what, err)
	}
	hint := "check the disk, or restore the directory from a copy"
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		hint = "another process holds it; is another weft running with this data directory?"
	case errors.Is(err, fs.ErrPermission):
		hint = fmt.Sprintf("the user with ID %d must own it and be able to write", os.Getuid())
	case errors.Is(err, errLost):
		hint = fmt.Sprintf("restore %s from a copy of the data directory; to begin an empty cluster instead, "+
			"without the catalog, intentions and certificate authority of the old one, remove %s", place, d.mark)
	case errors.Is(err, errCorrupt):
		away := "the directory"
		if d.mark != "" {
			away += " and " + d.mark
		}
		hint = "the file is damaged or is not a Raft log of weft; restore it from a copy, or, if other servers " +
			"have the data, move " + away + " away and let this server join them anew"
	}
	return fmt.Errorf("consensus: %s %s: %w; %s", what, place, err, hint)
}

var errCorrupt = errors.New("corrupt")

// inspect walks all of the log file once, read-only. bbolt checks pages when it
// first meets them, and then panics, in goroutines of its own too, or is hit by a
// signal where a cut file is mapped; here that becomes an error.
//
// It gives the number of bytes that are used.
func inspect(file string) (used int64, err error) {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && info.Size() == 0) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s: %w: not a file", file, errCorrupt)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: %w: %v", file, errCorrupt, r)
		}
	}()
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockTimeout})
	if err != nil {
		if errors.Is(err, bolterrors.ErrTimeout) || errors.Is(err, fs.ErrPermission) {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		return 0, fmt.Errorf("%s: %w: %w", file, errCorrupt, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return used, db.View(func(tx *bbolt.Tx) error {
		if size := tx.Size(); size > info.Size() {
			return fmt.Errorf("%s: %w: it is cut off, %d of %d bytes are there", file, errCorrupt, info.Size(), size)
		}
		var err error
		if used, err = inspectPages(file, tx); err != nil {
			return fmt.Errorf("%s: %w: %w", file, errCorrupt, err)
		}
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(_, v []byte) error {
				if string(name) == "logs" && len(v) == 0 {
					return fmt.Errorf("%s: %w: an empty log entry", file, errCorrupt)
				}
				return nil
			})
		})
	})
}

// failStopStore passes everything to the log file, and nothing more after the
// first write that failed.
type failStopStore struct {
	d    *disk
	to   boltStore
	torn atomic.Bool // entries could not be written, or not be removed
}

// boltStore is what is used of the log file.
type boltStore interface {
	raft.LogStore
	raft.StableStore
}

func (f *failStopStore) write(what string, do func() error) error {
	if err := f.d.failure(); err != nil {
		return err
	}
	start := time.Now()
	err := f.once(do)
	f.d.dog.metrics.write.Observe(time.Since(start).Seconds())
	for outOfRoom(err) {
		if !f.d.dog.release() && !f.d.awaitRoom() {
			return err // it is the end of the node
		}
		err = f.once(do)
	}
	if err != nil {
		return f.d.fail(what, err)
	}
	return nil
}

// once does a write while the watchdog looks at it.
func (f *failStopStore) once(do func() error) (err error) {
	defer f.d.dog.begin()()
	defer faults(&err)()
	return do()
}

// faults makes an error of a page of the mapped file that the disk does not give.
func faults(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			*err = fmt.Errorf("the disk does not give a page of the file: %v", r)
		}
	}
}

// awaitRoom waits a moment for space on the disk; false: the node ends.
func (d *disk) awaitRoom() bool {
	d.dog.waitForRoom(1)
	defer d.dog.waitForRoom(-1)
	select {
	case <-time.After(lookEvery):
		return true
	case <-d.closing:
	case <-d.failed:
	}
	return false
}

// read is what a damaged or failing disk cannot do; it stops the node then.
func (f *failStopStore) read(do func() error) error {
	err := func() (err error) {
		defer faults(&err)()
		return do()
	}()
	if err == nil || errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, raftboltdb.ErrKeyNotFound) || err.Error() == "not found" {
		return err
	}
	if !f.d.running.Load() {
		return err
	}
	return f.d.fail("read", err)
}

// keep writes the term or the vote. Raft panics when that fails; as the process
// is about to end with a reason and an exit code of its own, only Raft's own
// goroutine ends here. While Raft is being made there is none, and start
// recovers from the panic.
func (f *failStopStore) keep(what string, do func() error) error {
	err := f.write(what, do)
	if err != nil && f.d.running.Load() {
		runtime.Goexit()
	}
	return err
}

// FirstIndex implements raft.LogStore.
func (f *failStopStore) FirstIndex() (i uint64, err error) {
	err = f.read(func() error { i, err = f.to.FirstIndex(); return err })
	return i, err
}

// LastIndex implements raft.LogStore.
func (f *failStopStore) LastIndex() (i uint64, err error) {
	err = f.read(func() error { i, err = f.to.LastIndex(); return err })
	return i, err
}

// GetLog implements raft.LogStore. What it gives was compared with its checksum:
// a damaged entry reaches neither the store nor another server. The entry at which
// a backup ends is known even where the log begins after it.
//
// A follower whose log could be cut but not be written goes on as if it ended where it
// did, and panics when it comes to what is not there. As in keep, only Raft's own
// goroutine ends then.
func (f *failStopStore) GetLog(index uint64, l *raft.Log) error {
	err := f.read(func() error {
		err := f.to.GetLog(index, l)
		if err == nil && l.Type == raft.LogCommand {
			if err := wire.VerifyEntry(l.Data); err != nil {
				return fmt.Errorf("entry %d: %w: %w", index, errCorrupt, err)
			}
		}
		return err
	})
	if b := f.d.base.Load(); errors.Is(err, raft.ErrLogNotFound) && b != nil && b.index == index && index > 1 {
		*l = raft.Log{Index: b.index, Term: b.term, Type: raft.LogNoop}
		return nil
	}
	if errors.Is(err, raft.ErrLogNotFound) && f.torn.Load() && f.d.running.Load() {
		runtime.Goexit()
	}
	return err
}

// Get implements raft.StableStore.
func (f *failStopStore) Get(key []byte) (b []byte, err error) {
	err = f.read(func() error { b, err = f.to.Get(key); return err })
	return b, err
}

// GetUint64 implements raft.StableStore.
func (f *failStopStore) GetUint64(key []byte) (n uint64, err error) {
	err = f.read(func() error { n, err = f.to.GetUint64(key); return err })
	return n, err
}

func (f *failStopStore) StoreLog(l *raft.Log) error { return f.StoreLogs([]*raft.Log{l}) }

func (f *failStopStore) StoreLogs(ls []*raft.Log) error {
	err := f.tear(f.write("write", func() error { return f.to.StoreLogs(ls) }))
	for _, l := range ls {
		if err == nil && l.Type == raft.LogConfiguration {
			f.d.listed.Store(l.Index)
		}
	}
	return err
}

func (f *failStopStore) DeleteRange(low, high uint64) error {
	first, err := f.FirstIndex()
	if err != nil || first == 0 {
		return err // it is empty
	}
	if err := f.tear(f.write("truncate", func() error { return f.to.DeleteRange(low, high) })); err != nil {
		return err
	}
	if at := f.d.listed.Load(); low <= at && at <= high && first < low { // entries that a leader's replace
		return f.relist(low, first)
	}
	return nil
}

// relist finds the latest list of servers below an entry.
func (f *failStopStore) relist(below, first uint64) error {
	if b := f.d.base.Load(); b != nil {
		first = max(first, b.index+1) // a backup has its own
	}
	var l raft.Log
	for i := below - 1; i >= first; i-- {
		switch err := f.GetLog(i, &l); {
		case errors.Is(err, raft.ErrLogNotFound):
		case err != nil:
			return err
		case l.Type == raft.LogConfiguration:
			f.d.listed.Store(i)
			return nil
		}
	}
	list, err := f.d.snapshots.List()
	if err == nil && len(list) > 0 {
		f.d.listed.Store(list[0].ConfigurationIndex)
	}
	return err
}

// tear remembers that the log is not what Raft takes it for.
func (f *failStopStore) tear(err error) error {
	if err != nil {
		f.torn.Store(true)
	}
	return err
}

func (f *failStopStore) Set(key, value []byte) error {
	return f.keep("record a vote in", func() error { return f.to.Set(key, value) })
}

func (f *failStopStore) SetUint64(key []byte, value uint64) error {
	return f.keep("record a term in", func() error { return f.to.SetUint64(key, value) })
}
