package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/cmd/weft/config"
)

// logs is where the agent's log goes: standard output, a file, and whoever
// monitors at the moment. Its level may change.
type logs struct {
	level  *slog.LevelVar
	tap    *httpapi.LogTap
	file   *logFile       // may be nil
	syslog *syslogHandler // may be nil
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
		if l.file, err = openLogFile(cfg.LogFile, rotation{
			bytes: int64(cfg.Log.RotateBytes), age: cfg.Log.RotateDuration, keep: cfg.Log.RotateMaxFiles,
		}); err != nil {
			return nil, err
		}
		out = io.MultiWriter(stdout, l.file)
	}
	opts := &slog.HandlerOptions{Level: l.level}
	var h slog.Handler = slog.NewTextHandler(out, opts)
	if cfg.LogJSON {
		h = slog.NewJSONHandler(out, opts)
	}
	if cfg.Log.Syslog {
		if l.syslog, err = newSyslog(cfg.SyslogFacility(), l.level); err != nil {
			l.close()
			return nil, err
		}
		h = both{h, l.syslog}
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
	return l.file.reopen()
}

func (l *logs) close() {
	if l.file != nil {
		l.file.close()
	}
	if l.syslog != nil {
		l.syslog.close()
	}
}
