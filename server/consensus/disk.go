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

	log     *slog.Logger
	onFatal func(error)
	running atomic.Bool // Raft has goroutines of its own
	failed  chan struct{}
	once    sync.Once
	err     error // set before failed is closed
}

func openDisk(cfg Config) (*disk, error) {
	d := &disk{dir: cfg.DataDir, log: cfg.Logger, onFatal: cfg.OnFatal, failed: make(chan struct{})}
	if d.dir == "" {
		m := cfg.hooks.memory
		if m == nil {
			m = &memory{raft.NewInmemStore(), raft.NewInmemSnapshotStore()}
		}
		kept := &failStopStore{d: d, to: m.log}
		d.logs, d.stable, d.snapshots = kept, kept, m.snapshots
		return d, nil
	}
	d.mark = cfg.MarkFile
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, d.explain("create", err)
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(d.dir, snapshotsKept, newHclog(cfg.Logger))
	if err != nil {
		return nil, d.explain("keep backups in", err)
	}
	file := filepath.Join(d.dir, logFile)
	if err := inspect(file); err != nil {
		return nil, d.explain("open", err)
	}
	d.bolt, err = raftboltdb.New(raftboltdb.Options{
		Path:                    file,
		BoltOptions:             &bbolt.Options{Timeout: lockTimeout, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
		MsgpackUseNewTimeFormat: true, // for ever: it is the format of the log
	})
	if err != nil {
		return nil, d.explain("open", err)
	}
	// In the order of a write: Raft, the cache, the wrapper that stops, the file.
	failStop := &failStopStore{d: d, to: d.bolt}
	if cfg.hooks.wrapStore != nil {
		failStop.to = cfg.hooks.wrapStore(d.bolt)
	}
	cache, err := raft.NewLogCache(logCacheEntries, failStop)
	if err != nil {
		return nil, errors.Join(err, d.bolt.Close())
	}
	d.logs, d.stable, d.snapshots = cache, failStop, snapshots
	if err := d.verify(); err != nil {
		return nil, errors.Join(d.explain("read", err), d.bolt.Close())
	}
	return d, nil
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
	d.once.Do(func() {
		d.err = fmt.Errorf("consensus: %s %s: %w: %w; this server stops, as it cannot know what is on the disk now; "+
			"check the disk and its free space, then start it again", what, filepath.Join(d.dir, logFile), ErrStorage, err)
		d.log.Error("the Raft log could not be written, the server stops", "err", err, "file", filepath.Join(d.dir, logFile))
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
func inspect(file string) (err error) {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && info.Size() == 0) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: %w: not a file", file, errCorrupt)
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
			return fmt.Errorf("%s: %w", file, err)
		}
		return fmt.Errorf("%s: %w: %w", file, errCorrupt, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *bbolt.Tx) error {
		if size := tx.Size(); size > info.Size() {
			return fmt.Errorf("%s: %w: it is cut off, %d of %d bytes are there", file, errCorrupt, info.Size(), size)
		}
		if err := inspectPages(file, tx); err != nil {
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
	d  *disk
	to boltStore
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
	if err := do(); err != nil {
		return f.d.fail(what, err)
	}
	return nil
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

func (f *failStopStore) FirstIndex() (uint64, error)            { return f.to.FirstIndex() }
func (f *failStopStore) LastIndex() (uint64, error)             { return f.to.LastIndex() }
func (f *failStopStore) GetLog(index uint64, l *raft.Log) error { return f.to.GetLog(index, l) }
func (f *failStopStore) Get(key []byte) ([]byte, error)         { return f.to.Get(key) }
func (f *failStopStore) GetUint64(key []byte) (uint64, error)   { return f.to.GetUint64(key) }

func (f *failStopStore) StoreLog(l *raft.Log) error { return f.StoreLogs([]*raft.Log{l}) }

func (f *failStopStore) StoreLogs(ls []*raft.Log) error {
	return f.write("write", func() error { return f.to.StoreLogs(ls) })
}

func (f *failStopStore) DeleteRange(low, high uint64) error {
	return f.write("truncate", func() error { return f.to.DeleteRange(low, high) })
}

func (f *failStopStore) Set(key, value []byte) error {
	return f.keep("record a vote in", func() error { return f.to.Set(key, value) })
}

func (f *failStopStore) SetUint64(key []byte, value uint64) error {
	return f.keep("record a term in", func() error { return f.to.SetUint64(key, value) })
}
