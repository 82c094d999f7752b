package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/cmd/weft/config"
)

// logs is where the agent's log goes: standard output, a file, and whoever
// monitors at the moment. Its level may change.
type logs struct {
	level *slog.LevelVar
	tap   *httpapi.LogTap
	file  *logFile
}

func newLogs(cfg *config.Config, stdout io.Writer) (*logs, error) {
	level, err := parseLevel(cfg.LogLevel)
	if err != nil {
		return nil, fmt.Errorf("log_level: %w", err)
	}
	l := &logs{level: new(slog.LevelVar)}
	l.level.Set(level)
	out := stdout
	if cfg.LogFile != "" {
		if l.file, err = openLogFile(cfg.LogFile); err != nil {
			return nil, err
		}
		out = io.MultiWriter(stdout, l.file)
	}
	opts := &slog.HandlerOptions{Level: l.level}
	var h slog.Handler = slog.NewTextHandler(out, opts)
	if cfg.LogJSON {
		h = slog.NewJSONHandler(out, opts)
	}
	l.tap = httpapi.NewLogTap(h)
	return l, nil
}

func (l *logs) logger() *slog.Logger { return slog.New(l.tap) }

// reopen follows a log file that was moved away.
func (l *logs) reopen() error {
	if l.file == nil {
		return nil
	}
	return l.file.open()
}

func (l *logs) close() {
	if l.file != nil {
		l.file.close()
	}
}

// logFile appends to a file, and opens it anew when told to.
type logFile struct {
	path string
	mu   sync.Mutex
	f    *os.File
}

func openLogFile(path string) (*logFile, error) {
	if strings.HasSuffix(path, "/") {
		path += "weft.log"
	}
	l := &logFile{path: path}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("log_file: %w", err)
	}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("log_file: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
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
	if l.f != nil {
		_, _ = l.f.Write(p)
	}
	return len(p), nil
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
