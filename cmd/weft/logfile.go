package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// rotation says when a log file is moved aside, and how many are kept.
type rotation struct {
	bytes int64         // 0: whatever its size
	age   time.Duration // 0: whatever its age
	keep  int           // 0: all, below 0: none
}

// logFile appends to a file, opens it anew when told to, and moves it aside when it
// is large or old: weft.log becomes weft-20060102T150405.000000000.log.
type logFile struct {
	path string
	rot  rotation
	mu   sync.Mutex
	f    *os.File
	size int64
	born time.Time
	// stuck is set after a rotation that failed, so that it is tried once a minute.
	stuck time.Time
}

const (
	rotatedStamp = "20060102T150405.000000000"
	rotateRetry  = time.Minute
)

func openLogFile(path string, rot rotation) (*logFile, error) {
	if strings.HasSuffix(path, "/") {
		path += "weft.log"
	}
	l := &logFile{path: path, rot: rot}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("log_file: %w", err)
	}
	return l, l.reopen()
}

func (l *logFile) reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open()
}

// open opens the file; l.mu is held. Its age counts from when it was opened: files
// do not know when they were made.
func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("log_file: %w", err)
	}
	l.size, l.born = 0, time.Now()
	if info, err := f.Stat(); err == nil {
		l.size = info.Size()
	}
	if l.f != nil {
		err = l.f.Close()
	}
	l.f = f
	return err
}

// Write implements io.Writer. A full disk must not stop the agent: what cannot be
// written is lost, standard output still has it.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return len(p), nil
	}
	if l.due(len(p)) {
		if err := l.rotate(); err != nil {
			l.stuck = time.Now()
			fmt.Fprintf(os.Stderr, "log_file: it cannot be rotated: %v\n", err)
		}
	}
	n, _ := l.f.Write(p)
	l.size += int64(n)
	return len(p), nil
}

func (l *logFile) due(more int) bool {
	if l.size == 0 || time.Since(l.stuck) < rotateRetry {
		return false
	}
	return l.rot.bytes > 0 && l.size+int64(more) > l.rot.bytes || l.rot.age > 0 && time.Since(l.born) >= l.rot.age
}

// rotate moves the file aside and opens a new one; l.mu is held.
func (l *logFile) rotate() error {
	ext := filepath.Ext(l.path)
	base := strings.TrimSuffix(l.path, ext)
	if l.rot.keep < 0 {
		if err := os.Remove(l.path); err != nil {
			return err
		}
		return l.open()
	}
	if err := os.Rename(l.path, base+"-"+time.Now().UTC().Format(rotatedStamp)+ext); err != nil {
		return err
	}
	return errors.Join(l.open(), l.prune(base, ext))
}

// prune removes the oldest of the files moved aside.
func (l *logFile) prune(base, ext string) error {
	if l.rot.keep <= 0 {
		return nil
	}
	entries, err := os.ReadDir(filepath.Dir(l.path))
	if err != nil {
		return err
	}
	var old []string
	prefix := filepath.Base(base) + "-"
	for _, e := range entries { // sorted by name, which is by time
		stamp, ok := strings.CutPrefix(strings.TrimSuffix(e.Name(), ext), prefix)
		if _, err := time.Parse(rotatedStamp, stamp); ok && err == nil && strings.HasSuffix(e.Name(), ext) {
			old = append(old, e.Name())
		}
	}
	slices.Sort(old)
	for len(old) > l.rot.keep {
		err = errors.Join(err, os.Remove(filepath.Join(filepath.Dir(l.path), old[0])))
		old = old[1:]
	}
	return err
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		if err := l.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			fmt.Fprintf(os.Stderr, "log_file: %v\n", err)
		}
		l.f = nil
	}
}
