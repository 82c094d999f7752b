package consensus

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"

	"github.com/hashicorp/raft"

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
	fatal   func(error) error                  // ends the node
}

var _ raft.BatchingFSM = (*fsm)(nil)

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any {
	cmd, err := wire.DecodeEntry(l.Data)
	switch {
	case errors.Is(err, wire.ErrIgnored):
		// The store still moves to this index, so that nobody waits for it in vain.
		f.log.Warn("a log entry of a newer version was skipped, as it allows", "index", l.Index, "err", err)
		cmd = nil
	case err != nil:
		// Going on would make this replica differ from the others, silently.
		_ = f.fatal(fmt.Errorf("consensus: log entry %d (term %d): %w: %w; this server must not go on; "+
			"run the version of weft that the other servers run, or a newer one", l.Index, l.Term, ErrStorage, err))
		runtime.Goexit()
	}
	if f.observe != nil {
		f.observe(l.Index, l.Data)
	}
	result, err := f.store.Apply(l.Index, cmd)
	if cmd == nil {
		return answer{}
	}
	return answer{result, err}
}

// ApplyBatch implements raft.BatchingFSM.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for i, l := range logs {
		if l.Type == raft.LogCommand {
			out[i] = f.Apply(l)
		}
	}
	return out
}

// Snapshot implements raft.FSM. It takes a reference, no copy.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return &backup{f.store.Backup()}, nil }

// Restore implements raft.FSM.
func (f *fsm) Restore(r io.ReadCloser) error {
	return errors.Join(f.store.Restore(bufio.NewReaderSize(r, 64<<10)), r.Close())
}

// backup is a state of the store on its way to the disk.
type backup struct{ of *store.Backup }

// Persist implements raft.FSMSnapshot.
func (b *backup) Persist(sink raft.SnapshotSink) error {
	w := bufio.NewWriterSize(sink, 64<<10)
	if err := errors.Join(b.of.Write(w), w.Flush()); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (b *backup) Release() {}
