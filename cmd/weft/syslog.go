package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"log/syslog"
	"sync"
)

// syslogHandler sends the log to the syslog of this host, without time and level,
// which syslog has itself.
type syslogHandler struct {
	slog.Handler
	out *syslogWriter
}

// syslogWriter gives each line its severity. The level is that of the line that is
// being written; mu is held from before it is formatted.
type syslogWriter struct {
	mu    sync.Mutex
	to    *syslog.Writer
	level slog.Level
}

func newSyslog(facility int, level slog.Leveler) (*syslogHandler, error) {
	to, err := syslog.New(syslog.Priority(facility<<3)|syslog.LOG_INFO, "weft")
	if err != nil {
		return nil, fmt.Errorf("enable_syslog: no syslog answers on this host: %w", err)
	}
	return syslogOf(to, level), nil
}

func syslogOf(to *syslog.Writer, level slog.Leveler) *syslogHandler {
	out := &syslogWriter{to: to}
	return &syslogHandler{out: out, Handler: slog.NewTextHandler(out, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
				return slog.Attr{}
			}
			return a
		},
	})}
}

// Handle implements slog.Handler.
func (h *syslogHandler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.level = r.Level
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *syslogHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return &syslogHandler{h.Handler.WithAttrs(a), h.out}
}

// WithGroup implements slog.Handler.
func (h *syslogHandler) WithGroup(name string) slog.Handler {
	return &syslogHandler{h.Handler.WithGroup(name), h.out}
}

func (h *syslogHandler) close() { _ = h.out.to.Close() } // what was written is there

// Write implements io.Writer.
func (w *syslogWriter) Write(p []byte) (int, error) {
	line := string(bytes.TrimRight(p, "\n"))
	var err error
	switch {
	case w.level >= slog.LevelError:
		err = w.to.Err(line)
	case w.level >= slog.LevelWarn:
		err = w.to.Warning(line)
	case w.level >= slog.LevelInfo:
		err = w.to.Info(line)
	default:
		err = w.to.Debug(line)
	}
	return len(p), err
}

// both hands records to two handlers.
type both struct{ one, other slog.Handler }

// Enabled implements slog.Handler.
func (b both) Enabled(ctx context.Context, l slog.Level) bool {
	return b.one.Enabled(ctx, l) || b.other.Enabled(ctx, l)
}

// Handle implements slog.Handler.
func (b both) Handle(ctx context.Context, r slog.Record) error {
	return errors.Join(b.one.Handle(ctx, r.Clone()), b.other.Handle(ctx, r))
}

// WithAttrs implements slog.Handler.
func (b both) WithAttrs(a []slog.Attr) slog.Handler {
	return both{b.one.WithAttrs(a), b.other.WithAttrs(a)}
}

// WithGroup implements slog.Handler.
func (b both) WithGroup(name string) slog.Handler {
	return both{b.one.WithGroup(name), b.other.WithGroup(name)}
}
