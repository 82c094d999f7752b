package consensus

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
)

// answer is what applying an entry gave; Raft hands it to who waits for it.
type answer struct {
	result any
	err    error
}

// fsm feeds the store with the log. Raft calls it from one goroutine.
type fsm struct {
	store   *store.Store
	log     *slog.Logger
	observe func(index uint64, command []byte) // nil but in tests
	// stop ends this node. It is called once, and does not return.
	stop func(error)
	// applied is told the last index of what was applied together.
	applied func(index uint64)
	closing <-chan struct{}
}

// ErrNewer is why a node stops that was sent a log entry which it cannot read: it is
// older than the others. Going on without the entry would make its state another one.
var ErrNewer = errors.New("the log has an entry that this version of weft does not know")

var _ raft.BatchingFSM = (*fsm)(nil)

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.applyAll([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. What was committed together is one
// transaction of the store: it copies, and wakes who waits, once.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	out := f.applyAll(logs)
	if n := len(logs); n > 0 {
		f.applied(logs[n-1].Index)
	}
	return out
}

func (f *fsm) applyAll(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	entries, at := make([]store.Entry, 0, len(logs)), make([]int, 0, len(logs))
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		cmd, err := f.decode(l)
		if err != nil {
			f.apply(entries, at, out) // they are committed, and can be read
			f.stop(err)
		}
		if f.observe != nil {
			f.observe(l.Index, l.Data)
		}
		entries, at = append(entries, store.Entry{Index: l.Index, Command: cmd}), append(at, i)
	}
	f.apply(entries, at, out)
	return out
}

// apply puts the answer to each entry to its place in out.
func (f *fsm) apply(entries []store.Entry, at []int, out []any) {
	for i, r := range f.store.ApplyBatch(entries) {
		out[at[i]] = answer{r.Value, r.Err}
		if entries[i].Command == nil {
			out[at[i]] = answer{}
		}
	}
}

// decode gives the command of an entry, nil for one that may be skipped.
func (f *fsm) decode(l *raft.Log) (catalog.Command, error) {
	cmd, err := wire.DecodeEntry(l.Data)
	switch {
	case errors.Is(err, wire.ErrIgnored):
		// The store still moves to this index, so that nobody waits for it in vain.
		f.log.Warn("a log entry of a newer version was skipped, as it allows", "index", l.Index, "err", err)
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("consensus: log entry %d (term %d): %w: %w; this server stops before it differs from the others: "+
			"install the version of weft that they run, and start it again", l.Index, l.Term, ErrNewer, err)
	}
	return cmd, nil
}

// Snapshot implements raft.FSM. It takes a reference, no copy.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return &backup{f.store.Backup(), f.closing}, nil }

// Restore implements raft.FSM.
func (f *fsm) Restore(r io.ReadCloser) error {
	return errors.Join(f.store.Restore(bufio.NewReaderSize(r, 64<<10)), r.Close())
}

// backup is a state of the store on its way to the disk.
type backup struct {
	of      *store.Backup
	closing <-chan struct{}
}

// Persist implements raft.FSMSnapshot.
func (b *backup) Persist(sink raft.SnapshotSink) error {
	w := bufio.NewWriterSize(&paced{to: sink, since: time.Now(), closing: b.closing}, 64<<10)
	if err := errors.Join(b.of.Write(w), w.Flush()); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// paced rests three times as long as what it is given took to make, so that a backup
// leaves most of a processor to those who wait for an answer. Servers begin theirs at
// the same entry of the log, all at once.
type paced struct {
	to      io.Writer
	since   time.Time
	closing <-chan struct{}
}

// Write implements io.Writer.
func (p *paced) Write(b []byte) (int, error) {
	n, err := p.to.Write(b)
	select {
	case <-time.After(min(3*time.Since(p.since), maxRest)):
	case <-p.closing:
	}
	p.since = time.Now()
	return n, err
}

// maxRest bounds what one slow write to a disk can add.
const maxRest = 50 * time.Millisecond

// Release implements raft.FSMSnapshot.
func (b *backup) Release() {}
