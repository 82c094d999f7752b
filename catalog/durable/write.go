package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// tempPrefix begins the names of files that are being written.
const tempPrefix = ".weft-tmp-"

// abandoned is how old a file under such a name is before nobody writes it any more:
// the process before this one may still, while it hands over.
const abandoned = time.Hour

// Write replaces a file by one of mode 0600 that holds b, and makes the folders that are
// missing (0700). Once it returned nil the new content outlives a power cut; where it did
// not, the file is as before, unless the error came from the very last step, when either
// may be there after a power cut.
func Write(file string, b []byte) error { return replace(system{}, file, b, true) }

// Swap is Write without waiting for the disk: a crash of the process leaves the old content
// or the new one, a power cut may leave neither. It is for what can be told to be damaged,
// or is as good as lost.
func Swap(file string, b []byte) error { return replace(system{}, file, b, false) }

// Remove removes a file for good; one that is not there is no error.
func Remove(file string) error {
	if err := os.Remove(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(file))
}

// SyncDir makes what was renamed, made or removed in a folder outlive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // a folder of our own data directory
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Sweep removes, from a folder and those in it, what processes left that ended while they
// wrote. What it cannot look into, or not remove, it passes over and reports.
func Sweep(dir string, now time.Time) error {
	if dir == "" {
		return nil
	}
	var failed []error
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error { // fails never: each error is kept
		if err == nil && !e.IsDir() && strings.HasPrefix(e.Name(), tempPrefix) {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil && now.Sub(info.ModTime()) > abandoned {
				err = os.Remove(path) //nolint:gosec // a folder of our own data directory, where nobody else writes
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && len(failed) < maxFailed { // what is gone is what was wanted
			failed = append(failed, err)
		}
		return nil
	})
	return errors.Join(failed...)
}

// maxFailed is how many failures Sweep reports.
const maxFailed = 3

// disk is what replace asks of the operating system.
type disk interface {
	create(dir string) (pending, error)
	mkdir(dir string) error
	rename(from, to string) error
	remove(file string) error
	syncDir(dir string) error
}

// pending is a file that is being written.
type pending interface {
	io.WriteCloser
	Sync() error
	Name() string
}

// replace writes beside the file and renames. The content is on the disk before its name
// is, and the name before it returns.
func replace(d disk, file string, b []byte, durable bool) error {
	dir := filepath.Dir(file)
	f, err := d.create(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = d.mkdir(dir); err == nil {
			f, err = d.create(dir)
		}
	}
	if err != nil {
		return about(file, err)
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.rename(f.Name(), file)
	}
	if err != nil {
		return about(file, errors.Join(err, d.remove(f.Name())))
	}
	if !durable {
		return nil
	}
	return about(file, d.syncDir(dir))
}

// about has an error name the file that was meant, not the one beside it.
func about(file string, err error) error {
	if err == nil {
		return nil
	}
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.As(err, &pe):
		err = pe.Err
	case errors.As(err, &le):
		err = le.Err
	}
	return &fs.PathError{Op: "write", Path: file, Err: err}
}

// system is the disk of this host.
type system struct{}

func (system) create(dir string) (pending, error) {
	return os.CreateTemp(dir, tempPrefix) // 0600
}

// mkdir makes a folder and those above it, each of which outlives a power cut.
func (s system) mkdir(dir string) error {
	parent := filepath.Dir(dir)
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err = s.mkdir(parent); err == nil {
			err = os.Mkdir(dir, 0o700)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return SyncDir(parent)
}

func (system) rename(from, to string) error { return os.Rename(from, to) }
func (system) remove(file string) error     { return os.Remove(file) }
func (system) syncDir(dir string) error     { return SyncDir(dir) }
