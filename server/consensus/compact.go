package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"github.com/weftmesh/weft/catalog/durable"
)

// The log file never shrinks by itself. At the start one that is large and mostly
// empty is copied into a small one.
const (
	compactAbove = 1 << 30
	compactUsed  = 4 // a quarter or less is used
	compactTx    = 16 << 20
	compactFile  = logFile + ".compact"
)

// compact replaces the log file by a copy without its free pages where that is
// worth it. used is how many bytes of it are, space what is free on the disk.
func compact(file string, above, used int64, space func() (free, total uint64, err error), log *slog.Logger) (err error) {
	temp := filepath.Join(filepath.Dir(file), compactFile)
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	info, err := os.Stat(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil || info.Size() <= above || used*compactUsed > info.Size() {
		return err
	}
	if space != nil {
		if free, total, err := space(); err == nil && free < uint64(2*used)+reserveSize(total) { //nolint:gosec // never negative
			log.Warn("the log file is mostly empty, and there is not enough room to compact it",
				"file", file, "mib", info.Size()>>20, "used_mib", used>>20, "free_mib", free>>20)
			return nil
		}
	}
	start := time.Now()
	if err := copyLog(temp, file); err != nil {
		return errors.Join(fmt.Errorf("compact: %w", err), os.Remove(temp))
	}
	if err := os.Rename(temp, file); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(file)); err != nil {
		return err
	}
	after, err := os.Stat(file)
	if err != nil {
		return err
	}
	log.Info("the log file was compacted", "file", file, "was_mib", info.Size()>>20, "mib", after.Size()>>20, "dur", time.Since(start))
	return nil
}

func copyLog(to, from string) (err error) {
	src, err := bbolt.Open(from, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockTimeout})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	// Synced once, at the end: nobody looks at it before.
	dst, err := bbolt.Open(to, 0o600, &bbolt.Options{Timeout: lockTimeout, NoSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return err
	}
	if err := errors.Join(bbolt.Compact(dst, src, compactTx), dst.Sync()); err != nil {
		return errors.Join(err, dst.Close())
	}
	return dst.Close()
}
