package connect

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// maxSnapshotFile bounds a snapshot file.
const maxSnapshotFile = 64 << 20

// FileSource is a Snapshot in a JSON file, watched: for tests, demonstrations and
// hosts without an agent. A file that becomes unreadable is reported once and the
// snapshot before it stays in force.
type FileSource struct {
	Path   string
	Every  time.Duration // how often the file is looked at; 0 is 500 ms
	Logger *slog.Logger  // nil: slog.Default

	mu    sync.Mutex
	seen  []byte
	snap  *Snapshot
	index uint64
	err   string
}

var _ catalog.Watch[*Snapshot] = (*FileSource)(nil)

// Next implements catalog.Watch. It fails when there has never been a good file.
// A snapshot whose Index is 0 takes the number of its version.
func (f *FileSource) Next(ctx context.Context, after uint64) (*Snapshot, uint64, error) {
	every := f.Every
	if every <= 0 {
		every = 500 * time.Millisecond
	}
	for {
		snap, index, err := f.look()
		if err != nil && snap == nil {
			return nil, 0, err
		}
		if index > after {
			return snap, index, nil
		}
		if !pause(ctx, every) {
			return nil, 0, context.Cause(ctx)
		}
	}
}

// look reads the file and returns the newest good snapshot.
func (f *FileSource) look() (*Snapshot, uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := readSnapshotFile(f.Path)
	if err == nil && bytes.Equal(b, f.seen) {
		return f.snap, f.index, nil
	}
	var snap Snapshot
	if err == nil {
		err = catalog.DecodeJSON(b, &snap)
	}
	if err != nil {
		err = fmt.Errorf("snapshot file %s: %w", f.Path, err)
		if f.snap != nil && err.Error() != f.err {
			log := f.Logger
			if log == nil {
				log = slog.Default()
			}
			log.Error("the snapshot before it stays in force", "file", f.Path, "err", err)
			f.err = err.Error()
		}
		return f.snap, f.index, err
	}
	f.err = ""
	f.index++
	if snap.Index == 0 {
		snap.Index = f.index
	}
	snap.Intentions.Sort()
	f.seen, f.snap = b, &snap
	return f.snap, f.index, nil
}

func readSnapshotFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxSnapshotFile+1))
	if err == nil && len(b) > maxSnapshotFile {
		err = fmt.Errorf("over %d bytes: %w", maxSnapshotFile, catalog.ErrTooLarge)
	}
	return b, err
}
