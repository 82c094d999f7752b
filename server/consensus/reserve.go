package consensus

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

const (
	reserveFile = "reserve.bin"
	canaryFile  = "canary"
	maxReserve  = 64 << 20
)

// reserveSize is what is set aside on a disk of that size.
func reserveSize(total uint64) uint64 { return min(maxReserve, total/16) }

// reserve is a file that holds space which is given up when the disk is full.
type reserve struct {
	file string // "": none
	mu   sync.Mutex
}

// keep makes the file where it is missing and there is plenty of room.
func (r *reserve) keep(free, total uint64) error {
	if r.file == "" {
		return nil
	}
	size := reserveSize(total)
	r.mu.Lock()
	defer r.mu.Unlock()
	if info, err := os.Stat(r.file); err == nil && info.Size() > 0 {
		return nil
	}
	if free < 3*size {
		return nil
	}
	f, err := os.OpenFile(r.file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(allocate(f, int64(size)), f.Close()); err != nil {
		return errors.Join(err, os.Remove(r.file))
	}
	return nil
}

// release removes the file; false: there was none.
func (r *reserve) release() bool {
	if r.file == "" {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return os.Remove(r.file) == nil
}

// canary is a file that is written and synced to see whether the disk does it.
func canary(dir string) func() error {
	var f *os.File
	block := make([]byte, 4096)
	return func() (err error) {
		if f == nil {
			if f, err = os.OpenFile(filepath.Join(dir, canaryFile), os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
				f = nil
				return err
			}
		}
		block[0]++
		if _, err := f.WriteAt(block, 0); err != nil {
			return err
		}
		return f.Sync()
	}
}

// noSpace tells whether a write failed because the disk is full.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// outOfRoom tells whether a write failed because the disk is full, before any of it
// was synced: what was there still is, and the write can be tried again. A sync
// that fails, for that reason too, leaves nobody to know what is on the disk.
func outOfRoom(err error) bool {
	var p *fs.PathError
	return noSpace(err) && errors.As(err, &p) && (p.Op == "write" || p.Op == "truncate")
}
