package handover

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/weftmesh/weft/agent/sidecar"
	"github.com/weftmesh/weft/catalog"
)

const (
	ledgerName = "drainers"
	// maxLedger bounds what is read of one process.
	maxLedger = 16 << 20
)

// Ledger keeps one file for each process that drains, locked for as long as the
// process lives. It implements sidecar.Ledger.
type Ledger struct {
	dir string
	log *slog.Logger

	mu   sync.Mutex
	own  *os.File // what this process carries, locked; nil: it does not drain
	last map[int]map[string]catalog.Name
	bad  bool // the last look failed
}

var _ sidecar.Ledger = (*Ledger)(nil)

// NewLedger keeps the ledger of the agent whose data lies in dir.
func NewLedger(dir string, log *slog.Logger) *Ledger {
	return &Ledger{dir: filepath.Join(dir, ledgerName), log: log}
}

// line is a proxy that a process carries, or carries no more.
type line struct {
	ID      string
	Service catalog.Name `json:",omitempty"`
	Ended   bool         `json:",omitempty"`
}

// Carry implements sidecar.Ledger.
func (l *Ledger) Carry(proxies map[string]catalog.Name) error {
	var text bytes.Buffer
	for id, service := range proxies {
		if err := json.NewEncoder(&text).Encode(line{ID: id, Service: service}); err != nil {
			return fmt.Errorf("ledger of drainers: %w", err)
		}
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return fmt.Errorf("ledger of drainers: %w", err)
	}
	path := filepath.Join(l.dir, strconv.Itoa(os.Getpid()))
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a process that had this number
		return fmt.Errorf("ledger of drainers: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("ledger of drainers: %w", err)
	}
	err = lock(f)
	if err == nil {
		_, err = f.Write(text.Bytes())
	}
	if err != nil {
		return fmt.Errorf("ledger of drainers: %w", errors.Join(err, f.Close(), os.Remove(path)))
	}
	l.mu.Lock()
	l.own = f
	l.mu.Unlock()
	return nil
}

// Ended implements sidecar.Ledger.
func (l *Ledger) Ended(proxyID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own == nil {
		return
	}
	text, err := json.Marshal(line{ID: proxyID, Ended: true})
	if err == nil {
		_, err = l.own.Write(append(text, '\n'))
	}
	if err != nil {
		l.log.Warn("it is not noted that a proxy has drained; who waits for a policy to be enforced waits for the end of this process", "id", proxyID, "err", err)
	}
}

// Others implements sidecar.Ledger. What cannot be read is taken to be as it was.
func (l *Ledger) Others() map[int]map[string]catalog.Name {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, err := l.read()
	if err != nil && !l.bad {
		l.log.Warn("what earlier processes of this agent carry cannot be read; it is taken to be as before", "file", l.dir, "err", err)
	}
	l.last, l.bad = now, err != nil
	return now
}

// read gives what is known, whatever the error.
func (l *Ledger) read() (map[int]map[string]catalog.Name, error) {
	files, err := os.ReadDir(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return l.last, err
	}
	var out map[int]map[string]catalog.Name
	var failed error
	for _, f := range files {
		pid, err := strconv.Atoi(f.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		carried, err := readLedger(filepath.Join(l.dir, f.Name()))
		if err != nil {
			failed = errors.Join(failed, err)
			carried = l.last[pid]
		}
		if carried != nil {
			if out == nil {
				out = map[int]map[string]catalog.Name{}
			}
			out[pid] = carried
		}
	}
	return out, failed
}

// Alive implements sidecar.Ledger.
func (l *Ledger) Alive(pid int) bool {
	if pid <= 0 {
		return false
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	defer p.Release() //nolint:errcheck // nothing is lost
	err = p.Signal(syscall.Signal(0))
	return err == nil || errors.Is(err, fs.ErrPermission)
}

// readLedger reads what a process carries, and removes the file of one that has ended.
func readLedger(path string) (map[string]catalog.Name, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0) // NFS locks nothing that is only read
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	switch err := lock(f); {
	case err == nil:
		_ = os.Remove(path) // one that stays is found ended again
		return nil, nil
	case !errors.Is(err, errHeld):
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	out := map[string]catalog.Name{}
	in := bufio.NewReader(io.LimitReader(f, maxLedger))
	for {
		text, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return out, nil // what does not end in a new line is being written
		}
		if err != nil {
			return nil, err
		}
		var p line
		switch {
		case json.Unmarshal(text, &p) != nil: // of an end that a full disk cut short
		case p.Ended:
			delete(out, p.ID)
		default:
			out[p.ID] = p.Service
		}
	}
}
