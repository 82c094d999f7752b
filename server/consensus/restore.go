package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/weftmesh/weft/catalog/durable"
)

// A backup that an operator restores enters Raft as if it were an entry of the leader's
// log, which the leader applies at once: it is in the state before any other server has
// it. Where the leader loses its office then, and the next one does not have it, that
// state never was. So the leader's log is kept, with a hole up to the backup which makes
// Raft send that to others, and a leader that finds itself contradicted stops and leaves
// the backup out at its next start.

// begunKey is the place, in the log file, of the index of the newest backup with which an
// operator's restore began on this server; disownedKey the same, once it is known that no
// leader has it.
var begunKey, disownedKey = []byte("weft_restore_begun"), []byte("weft_restore_disowned")

// headroom is more entries than are written while a backup is checked.
const headroom = 1 << 20

// NextBackup is the least index of a backup that is to be restored soon.
func (n *Node) NextBackup() uint64 { return n.raft.LastIndex() + headroom }

// Restore replaces the state of the whole cluster by a backup with that index and
// size, which must be known to be readable: Raft panics over one that is not. The index
// is to be above all that is in the log, see NextBackup, so that no server takes its old
// state for new enough. Writes that are under way fail, and nobody reads, but for those
// who take old answers, until most servers have it.
func (n *Node) Restore(ctx context.Context, backup io.Reader, index uint64, size int64) error {
	if n.readyTerm.Load() == 0 {
		return errNoLeader
	}
	if last := n.raft.LastIndex(); index <= last {
		return unavailable("restore: the backup was to be entry %d, and the log has %d by now; nothing was restored, try again", index, last)
	}
	meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: index, Size: size}
	err := n.await(ctx, func() raft.Future {
		n.restores.Add(1)
		defer n.restores.Add(-1)
		n.disk.expected.Store(index + 1) // where Raft puts it
		return doneFuture{n.raft.Restore(meta, backup, 0)}
	})
	if err != nil {
		return outcome("restore", err)
	}
	return nil
}

// doneFuture is a raft.Future of what is over.
type doneFuture struct{ err error }

// Error implements raft.Future.
func (f doneFuture) Error() error { return f.err }

// beginRestore remembers a backup of an operator's restore, before anything of it is
// stored. Those that Raft takes by itself, or gets from a leader, have another index.
func (d *disk) beginRestore(index uint64) error {
	if index != d.expected.Load() {
		return nil
	}
	d.begun.Store(index)
	return d.stable.SetUint64(begunKey, index)
}

// contradicted tells whether a leader's log with such an entry cannot hold the one at
// which the newest backup here ends: terms only grow along a log. If that entry was ever
// committed there is no such leader (Leader Completeness, section 5.4.3 of the Raft paper).
func (d *disk) contradicted(index, term uint64) bool {
	b := d.base.Load()
	return b != nil && (index == b.index && term != b.term || index < b.index && term > b.term)
}

// disown stops this server, as a leader leads without the newest backup here.
func (d *disk) disown() error {
	b := d.base.Load()
	hint := "another leader went on without it; move the data directory away and let this server join anew"
	if b.index == d.begun.Load() {
		if err := d.stable.SetUint64(disownedKey, b.index); err != nil {
			return err
		}
		hint = "this server lost its leadership before most others had it; it stops, and leaves that backup out at its next start"
	}
	return d.stop(fmt.Errorf("consensus: the restored backup with index %d does not count: %s", b.index, hint))
}

// leaveOut removes a backup that was disowned, and what was written after it, before
// anything is read. It may be repeated.
func (d *disk) leaveOut() error {
	begun, err := d.number(begunKey)
	if err != nil {
		return err
	}
	d.begun.Store(begun)
	from, err := d.number(disownedKey)
	if err != nil || from == 0 {
		return err
	}
	list, err := d.snapshots.List()
	if err != nil {
		return err
	}
	dir := filepath.Join(d.dir, "snapshots")
	for _, meta := range list {
		if meta.Index < from {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, meta.ID)); err != nil {
			return err
		}
	}
	if err := durable.SyncDir(dir); err != nil {
		return err
	}
	if last, err := d.bolt.LastIndex(); err != nil || last >= from {
		if err = errors.Join(err, d.bolt.DeleteRange(from, last)); err != nil {
			return err
		}
	}
	d.log.Warn("a restored backup that the other servers did not take is left out", "index", from)
	return errors.Join(d.bolt.SetUint64(begunKey, 0), d.bolt.SetUint64(disownedKey, 0))
}

// number reads one from the log file, 0 where there is none.
func (d *disk) number(key []byte) (uint64, error) {
	n, err := d.bolt.GetUint64(key)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return 0, nil
	}
	return n, err
}
