package httpapi

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
)

// LogTap is a slog.Handler that passes records on to another, and to whoever
// monitors at the moment. A monitor that reads too slowly misses lines and is told
// how many; it never holds the agent up.
type LogTap struct {
	next slog.Handler
	taps *taps
	with []func(slog.Handler) slog.Handler // groups and attributes, for the monitors' own handlers
}

type taps struct {
	mu     sync.Mutex
	all    []*tap
	lowest atomic.Int64 // the least level that a monitor wants
}

type tap struct {
	level   slog.Level
	records chan tapped
	missed  atomic.Int64
}

type tapped struct {
	record slog.Record
	with   []func(slog.Handler) slog.Handler
}

const (
	tapBuffer = 512
	noTap     = int64(1) << 32
)

// NewLogTap returns a handler that passes everything on to next.
func NewLogTap(next slog.Handler) *LogTap {
	t := &LogTap{next: next, taps: &taps{}}
	t.taps.lowest.Store(noTap)
	return t
}

// Enabled implements slog.Handler.
func (t *LogTap) Enabled(ctx context.Context, level slog.Level) bool {
	return int64(level) >= t.taps.lowest.Load() || t.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (t *LogTap) Handle(ctx context.Context, r slog.Record) error {
	if int64(r.Level) >= t.taps.lowest.Load() {
		t.taps.send(tapped{r.Clone(), t.with})
	}
	if !t.next.Enabled(ctx, r.Level) {
		return nil
	}
	return t.next.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (t *LogTap) WithAttrs(attrs []slog.Attr) slog.Handler {
	return t.derive(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (t *LogTap) WithGroup(name string) slog.Handler {
	return t.derive(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (t *LogTap) derive(f func(slog.Handler) slog.Handler) *LogTap {
	return &LogTap{next: f(t.next), taps: t.taps, with: append(slices.Clip(t.with), f)}
}

// Monitor implements Monitor.
func (t *LogTap) Monitor(ctx context.Context, level slog.Level, asJSON bool, w io.Writer) error {
	tp := &tap{level: level, records: make(chan tapped, tapBuffer)}
	t.taps.add(tp)
	defer t.taps.remove(tp)
	opts := &slog.HandlerOptions{Level: level}
	var out slog.Handler = slog.NewTextHandler(w, opts)
	if asJSON {
		out = slog.NewJSONHandler(w, opts)
	}
	slog.New(t).Info("log monitor attached", "min_level", level.String())
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-tp.records:
			if n := tp.missed.Swap(0); n > 0 {
				if err := slog.New(out).Handler().Handle(ctx, missedRecord(e.record, n)); err != nil {
					return err
				}
			}
			h := out
			for _, f := range e.with {
				h = f(h)
			}
			if err := h.Handle(ctx, e.record); err != nil {
				return err
			}
		}
	}
}

func missedRecord(next slog.Record, n int64) slog.Record {
	return slog.NewRecord(next.Time, slog.LevelWarn, fmt.Sprintf("%d log lines were left out: this monitor reads too slowly", n), 0)
}

func (s *taps) add(t *tap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, t)
	s.refresh()
}

func (s *taps) remove(t *tap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(o *tap) bool { return o == t })
	s.refresh()
}

func (s *taps) refresh() {
	lowest := noTap
	for _, t := range s.all {
		lowest = min(lowest, int64(t.level))
	}
	s.lowest.Store(lowest)
}

func (s *taps) send(e tapped) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.all {
		if e.record.Level < t.level {
			continue
		}
		select {
		case t.records <- e:
		default:
			t.missed.Add(1)
		}
	}
}
