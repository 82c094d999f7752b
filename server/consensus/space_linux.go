package consensus

import (
	"os"

	"golang.org/x/sys/unix"
)

// spaceOf measures the file system that holds dir.
func spaceOf(dir string) func() (free, total uint64, err error) {
	return func() (free, total uint64, err error) {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			return 0, 0, err
		}
		size := uint64(s.Bsize) //nolint:gosec // never negative
		return s.Bavail * size, s.Blocks * size, nil
	}
}

// allocate gives f blocks of its own.
func allocate(f *os.File, size int64) error { return unix.Fallocate(int(f.Fd()), 0, 0, size) }
