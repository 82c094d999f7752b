package consensus

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// guardedSnapshots are the backups of the store, beside the log. One that cannot
// be read stops the node: a leader that cannot read its own would keep those who
// need it waiting for ever. So does a disk that fails while one is written; one
// that is merely full does not, the log is kept longer then.
//
// It also mends the log. After a backup from the leader was stored, Raft keeps the
// entries that this server had before it, and among them may be some that never
// were committed, because they came from a leader that was deposed. As a leader it
// would then give these to a server that lags, as the true ones. So what disagrees
// with a backup is removed when it is stored.
type guardedSnapshots struct {
	raft.SnapshotStore
	d *disk
}

// Create implements raft.SnapshotStore.
func (g *guardedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, at uint64, t raft.Transport) (raft.SnapshotSink, error) {
	if err := g.d.beginRestore(index); err != nil {
		return nil, err
	}
	sink, err := g.SnapshotStore.Create(version, index, term, c, at, t)
	if err != nil {
		return nil, g.writing(err)
	}
	return &guardedSink{sink, g, index, term, at}, nil
}

// Open implements raft.SnapshotStore. It reads all of the backup once, and
// compares its checksum.
func (g *guardedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := g.SnapshotStore.Open(id)
	if err != nil {
		if g.d.running.Load() {
			return nil, nil, g.d.fail("read the backup "+id+" beside", err)
		}
		return nil, nil, err
	}
	return meta, r, nil
}

func (g *guardedSnapshots) writing(err error) error {
	if noSpace(err) {
		g.d.dog.release() // for the next one
		return err
	}
	return g.d.fail("write a backup beside", err)
}

type guardedSink struct {
	raft.SnapshotSink
	g           *guardedSnapshots
	index, term uint64
	listed      uint64 // index of the list of servers in it
}

// Write implements raft.SnapshotSink.
func (s *guardedSink) Write(p []byte) (int, error) {
	n, err := s.SnapshotSink.Write(p)
	if err != nil {
		err = s.g.writing(err)
	}
	return n, err
}

// Close implements raft.SnapshotSink. A backup of this node's own that took so long that
// a later one came from the leader, or from an operator, is not wanted any more: Raft
// would take it for the newest.
func (s *guardedSink) Close() error {
	if b := s.g.d.base.Load(); b != nil && b.index > s.index {
		return errors.Join(errOutdated, s.Cancel())
	}
	if err := s.SnapshotSink.Close(); err != nil {
		return s.g.writing(err)
	}
	if err := s.g.d.reconcile(s.index, s.term); err != nil {
		return err
	}
	s.g.d.listed.Store(max(s.listed, s.g.d.listed.Load()))
	return nil
}

var errOutdated = errors.New("a later backup was stored meanwhile")

// base is the last entry of the newest backup, which stands in place of the log before it.
type base struct{ index, term uint64 }

// reconcile removes the entries up to the end of a backup where the log does not
// hold the entry at which that ends.
func (d *disk) reconcile(index, term uint64) error {
	var l raft.Log
	err := d.logs.GetLog(index, &l)
	agrees := err == nil && l.Term == term
	d.base.Store(&base{index, term}) // the log may begin after it, now or when it is shortened
	if index == d.begun.Load() {
		return nil // the log is this server's own, and may be needed again
	}
	if agrees || err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	first, err := d.logs.FirstIndex()
	if err != nil || first == 0 || first > index {
		return err
	}
	last, err := d.logs.LastIndex()
	if err != nil {
		return err
	}
	// Entries after it stay: they are replaced, as any that were never committed,
	// when the leader sends its own. For that the one before them must be known.
	d.log.Info("log entries that a backup replaces are removed", "from", first, "to", min(index, last))
	return d.logs.DeleteRange(first, min(index, last))
}

// reconcileLast does the same for the newest backup, at the start, as the process
// may have ended between the two steps.
func (d *disk) reconcileLast() error {
	list, err := d.snapshots.List()
	if err != nil || len(list) == 0 {
		return err
	}
	return d.reconcile(list[0].Index, list[0].Term)
}

// restoreBackup fills the store from the newest backup. Raft would do so too, but take
// an older one where it cannot be read, after which the log has a gap; and it is read
// once this way.
func (d *disk) restoreBackup(restore func(io.Reader) error) error {
	list, err := d.snapshots.List()
	if err != nil || len(list) == 0 {
		return err
	}
	file := filepath.Join(d.dir, "snapshots", list[0].ID)
	_, r, err := d.snapshots.Open(list[0].ID)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", file, errCorrupt, err)
	}
	if err = errors.Join(restore(r), r.Close()); err != nil {
		return fmt.Errorf("%s: %w: %w", file, errCorrupt, err)
	}
	d.restored = true
	return nil
}
