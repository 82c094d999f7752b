package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// hcLogger lets Raft, which logs through hclog, write to slog. What Raft calls
// INFO is of interest to who debugs Raft, so it becomes DEBUG: the one line an
// operator needs, who leads, is written by Node.
type hcLogger struct {
	to      *slog.Logger
	name    string
	args    []any
	repeats *repeats
}

func newHclog(to *slog.Logger) hclog.Logger {
	return &hcLogger{to: to, name: "raft", repeats: &repeats{seen: map[string]repeat{}}}
}

const (
	// repeatEvery is how often Raft may say the same of the same server: of one that is
	// gone it says it several times a second.
	repeatEvery = 10 * time.Second
	maxRepeats  = 256
)

// repeats holds back lines that were logged a moment ago.
type repeats struct {
	mu   sync.Mutex
	seen map[string]repeat
}

type repeat struct {
	at   time.Time
	held int
}

// again tells whether a line is to be held back, and otherwise how many were.
func (r *repeats) again(line string, now time.Time) (hold bool, held int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was, ok := r.seen[line]
	if ok && now.Sub(was.at) < repeatEvery {
		was.held++
		r.seen[line] = was
		return true, 0
	}
	if len(r.seen) >= maxRepeats {
		clear(r.seen)
	}
	r.seen[line] = repeat{at: now}
	return false, was.held
}

// lineKey is what makes a line of Raft the same as another: what it says of whom.
func lineKey(msg string, args []any) string {
	for i := 0; i+1 < len(args); i += 2 {
		switch args[i] {
		case "peer", "server-id", "id":
			return fmt.Sprint(msg, args[i+1])
		}
	}
	return ""
}

// usual are Raft's warnings of what each start of a server brings with it.
var usual = map[string]bool{
	"no known peers, aborting election":          true, // it waits to be taken in
	"failed to get previous log":                 true, // a follower with less than the leader,
	"appendEntries rejected, sending older logs": true, // as the leader sees it
}

// ordinary tells whether an error is what happens when a server ends or another does.
func ordinary(args []any) bool {
	for i := 1; i < len(args); i += 2 {
		if err, ok := args[i].(error); ok && (errors.Is(err, net.ErrClosed) || errors.Is(err, raft.ErrTransportShutdown) ||
			errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
			return true
		}
	}
	return false
}

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
	if level > hclog.Debug && (usual[msg] || ordinary(args)) {
		level = hclog.Debug
	}
	if level == hclog.Off || level == hclog.Trace || !h.enabled(slogLevel(level)) {
		return
	}
	held := 0
	if key := lineKey(msg, args); key != "" {
		var hold bool
		if hold, held = h.repeats.again(key, time.Now()); hold {
			return
		}
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
	if held > 0 {
		kv = append(kv, "repeated", held)
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
	return &hcLogger{to: h.to.With(args...), name: h.name, args: append(append([]any(nil), h.args...), args...), repeats: h.repeats}
}

// Named implements hclog.Logger.
func (h *hcLogger) Named(name string) hclog.Logger { return h.ResetNamed(h.name + "." + name) }

// ResetNamed implements hclog.Logger.
func (h *hcLogger) ResetNamed(name string) hclog.Logger {
	return &hcLogger{to: h.to, name: name, args: h.args, repeats: h.repeats}
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
