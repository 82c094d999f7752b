package gossip

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// logAdapter turns memberlist's lines ("[WARN] memberlist: …") into records. A line
// that was written within repeatAfter is not written again: a member that cannot be
// reached is worth one line, not one a second.
type logAdapter struct {
	log *slog.Logger

	mu   sync.Mutex
	seen map[string]time.Time

	strangers rate.Sometimes
}

// newLogAdapter writes at most one line a second, after the first ones, of what comes
// in: an address in a packet is not proved, so that lines by address have no bound.
func newLogAdapter(log *slog.Logger) *logAdapter {
	return &logAdapter{log: log, seen: map[string]time.Time{}, strangers: rate.Sometimes{First: 8, Interval: time.Second}}
}

const (
	repeatAfter = 30 * time.Second
	maxSeen     = 512
)

// Write implements io.Writer for log.Logger, which calls it once a line.
func (a *logAdapter) Write(b []byte) (int, error) {
	level, text := parseLine(string(b))
	if !a.log.Enabled(context.Background(), level) {
		return len(b), nil
	}
	if strings.Contains(text, "from=") { // what comes in; whose address it bears proves nothing
		said := false
		a.strangers.Do(func() { said = true })
		if !said {
			return len(b), nil
		}
		level = min(level, slog.LevelWarn) // it was refused, and that is all
	}
	if a.repeated(text) {
		return len(b), nil
	}
	a.log.Log(context.Background(), level, "memberlist", "reason", text)
	return len(b), nil
}

func parseLine(line string) (slog.Level, string) {
	line = strings.TrimSpace(line)
	level := slog.LevelInfo
	if rest, ok := strings.CutPrefix(line, "["); ok {
		if name, text, found := strings.Cut(rest, "]"); found {
			line = strings.TrimSpace(text)
			switch name {
			case "DEBUG", "TRACE":
				level = slog.LevelDebug
			case "WARN":
				level = slog.LevelWarn
			case "ERR", "ERROR":
				level = slog.LevelError
			}
		}
	}
	return level, strings.TrimPrefix(line, "memberlist: ")
}

func (a *logAdapter) repeated(text string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if now.Sub(a.seen[text]) < repeatAfter {
		return true
	}
	if len(a.seen) >= maxSeen {
		clear(a.seen)
	}
	a.seen[text] = now
	return false
}

// oneLine gives the errors that memberlist makes a list of, over several lines, in one.
func oneLine(err error) error {
	var list interface{ WrappedErrors() []error }
	if !errors.As(err, &list) {
		return err
	}
	var texts []string
	for _, e := range list.WrappedErrors() {
		texts = append(texts, strings.Join(strings.Fields(e.Error()), " "))
	}
	return errors.New(strings.Join(texts, "; "))
}
