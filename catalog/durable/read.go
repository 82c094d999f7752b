package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrDamaged is a file that is there and cannot be what was written.
var ErrDamaged = errors.New("damaged")

// File is a file that is read back.
type File struct {
	Path    string
	Most    int64  // bytes; what has more is damaged
	Private bool   // others may not read it
	Remedy  string // what to do when it is damaged
}

// Read hands the content to parse; found is false where there is no file. An error of
// parse comes back as ErrDamaged, with the name of the file and the remedy. parse must keep
// nothing of what it was given when the file is private: it is cleared.
func (f File) Read(parse func(b []byte) error) (found bool, err error) {
	b, err := f.Bytes()
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	if f.Private {
		defer clear(b)
	}
	if err := parse(b); err != nil {
		return true, f.damaged(err)
	}
	return true, nil
}

// Bytes gives the content, or an error that wraps fs.ErrNotExist where there is none.
func (f File) Bytes() ([]byte, error) {
	in, err := os.Open(f.Path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w; it must be readable by the user with ID %d", err, os.Getuid())
	}
	if err != nil {
		return nil, err
	}
	defer in.Close() //nolint:errcheck // only read
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", f.Path)
	}
	if mode := info.Mode().Perm(); f.Private && mode&f.forbidden() != 0 {
		return nil, fmt.Errorf("%s is open to other users (%s): chmod 600 %s", f.Path, mode, f.Path)
	}
	if info.Size() > f.Most {
		return nil, f.tooLarge(info.Size())
	}
	b := make([]byte, info.Size())
	n, err := io.ReadFull(in, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) { // it may have shrunk
		return nil, err
	}
	return b[:n], nil
}

func (f File) tooLarge(size int64) error {
	return f.damaged(fmt.Errorf("it has %d bytes, at most %d belong there", size, f.Most))
}

func (f File) damaged(cause error) error {
	if f.Remedy == "" {
		return fmt.Errorf("%s is %w: %w", f.Path, ErrDamaged, cause)
	}
	return fmt.Errorf("%s is %w: %w; %s", f.Path, ErrDamaged, cause, f.Remedy)
}

// forbidden are the bits of a mode by which others could read the file. systemd grants its
// credentials by an ACL, whose mask stands where the group's bits do.
func (f File) forbidden() fs.FileMode {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir != "" && filepath.Dir(filepath.Clean(f.Path)) == filepath.Clean(dir) {
		return 0o007
	}
	return 0o077
}
