package consensus

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// hcLogger lets Raft, which logs through hclog, write to slog. What Raft calls
// INFO is of interest to who debugs Raft, so it becomes DEBUG: the one line an
// operator needs, who leads, is written by Node.
type hcLogger struct {
	to   *slog.Logger
	name string
	args []any
}

func newHclog(to *slog.Logger) hclog.Logger { return &hcLogger{to: to, name: "raft"} }

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Error:
		return slog.LevelError
	default:
		return slog.LevelDebug
	}
}

// Log implements hclog.Logger.
func (h *hcLogger) Log(level hclog.Level, msg string, args ...any) {
	if level == hclog.Off || level == hclog.Trace || !h.enabled(slogLevel(level)) {
		return
	}
	kv := make([]any, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case hclog.Format: // a layout and its arguments
			kv[i] = a
			if layout, ok := first(v).(string); ok {
				kv[i] = fmt.Sprintf(layout, v[1:]...)
			}
		case string:
			if kv[i] = v; i%2 == 0 {
				kv[i] = logKey(v)
			}
		default:
			kv[i] = a
		}
	}
	h.to.Log(context.Background(), slogLevel(level), h.name+": "+msg, kv...) //nolint:sloglint // Raft's words, passed on
}

func first(f hclog.Format) any {
	if len(f) == 0 {
		return nil
	}
	return f[0]
}

// logKey gives the keys of Raft's lines the names that ours have.
func logKey(k string) string {
	switch k {
	case "error":
		return "err"
	case "leader-address", "leader-addr":
		return "peer"
	case "path":
		return "file"
	default:
		return strings.ReplaceAll(k, "-", "_")
	}
}

func (h *hcLogger) Trace(string, ...any)          {}
func (h *hcLogger) Debug(msg string, args ...any) { h.Log(hclog.Debug, msg, args...) }
func (h *hcLogger) Info(msg string, args ...any)  { h.Log(hclog.Info, msg, args...) }
func (h *hcLogger) Warn(msg string, args ...any)  { h.Log(hclog.Warn, msg, args...) }
func (h *hcLogger) Error(msg string, args ...any) { h.Log(hclog.Error, msg, args...) }

func (h *hcLogger) enabled(l slog.Level) bool { return h.to.Enabled(context.Background(), l) }

func (h *hcLogger) IsTrace() bool { return false }
func (h *hcLogger) IsDebug() bool { return h.enabled(slog.LevelDebug) }
func (h *hcLogger) IsInfo() bool  { return h.enabled(slog.LevelDebug) }
func (h *hcLogger) IsWarn() bool  { return h.enabled(slog.LevelWarn) }
func (h *hcLogger) IsError() bool { return h.enabled(slog.LevelError) }

func (h *hcLogger) ImpliedArgs() []any { return h.args }
func (h *hcLogger) Name() string       { return h.name }

// With implements hclog.Logger.
func (h *hcLogger) With(args ...any) hclog.Logger {
	return &hcLogger{to: h.to.With(args...), name: h.name, args: append(append([]any(nil), h.args...), args...)}
}

// Named implements hclog.Logger.
func (h *hcLogger) Named(name string) hclog.Logger { return h.ResetNamed(h.name + "." + name) }

// ResetNamed implements hclog.Logger.
func (h *hcLogger) ResetNamed(name string) hclog.Logger {
	return &hcLogger{to: h.to, name: name, args: h.args}
}

// SetLevel implements hclog.Logger; the level is that of the slog handler.
func (h *hcLogger) SetLevel(hclog.Level) {}

// GetLevel implements hclog.Logger.
func (h *hcLogger) GetLevel() hclog.Level {
	switch {
	case h.IsDebug():
		return hclog.Debug
	case h.IsWarn():
		return hclog.Warn
	default:
		return hclog.Error
	}
}

// StandardLogger implements hclog.Logger.
func (h *hcLogger) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(h.StandardWriter(o), "", 0)
}

// StandardWriter implements hclog.Logger.
func (h *hcLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return lineWriter{h} }

type lineWriter struct{ to *hcLogger }

func (w lineWriter) Write(b []byte) (int, error) {
	w.to.Log(hclog.Info, strings.TrimSpace(string(b)))
	return len(b), nil
}
