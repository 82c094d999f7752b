package server

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/connect/ca"
)

const aDay = 24 * time.Hour

// wrongClock is a leader's authority whose clock is off.
type wrongClock struct {
	*authority
	t   *testing.T
	off time.Duration
}

func newWrongClock(t *testing.T) *wrongClock {
	t.Helper()
	s, err := store.New(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	seal, err := ca.NewSealer([32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	w := &wrongClock{t: t}
	w.authority = &authority{
		store: s, raft: &directLog{store: s}, seal: seal, first: ca.DefaultConfig(), datacenter: "dc1",
		now: func() time.Time { return time.Now().Add(w.off) }, log: slog.New(slog.DiscardHandler),
	}
	if err := w.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *wrongClock) active() string { return ca.Active(w.store.Roots()).ID }

// doubts looks every so often for some time, as a leader whose duty fails, and reports
// a look that did not warn, or changed something.
func (w *wrongClock) doubts(every, long time.Duration) {
	w.t.Helper()
	was := w.active()
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(every) {
		if err := w.Ensure(w.t.Context()); err == nil || !strings.Contains(err.Error(), "set the clock right") || !strings.Contains(err.Error(), was) {
			w.t.Fatalf("%v before the end of the doubt: %v", time.Until(end), err)
		}
	}
	if w.active() != was {
		w.t.Fatal("the root was replaced")
	}
}

func (w *wrongClock) ensure() {
	w.t.Helper()
	if err := w.Ensure(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// A leader with a wrong clock warns, and leaves the root as it is while somebody may
// set the clock; a root that ended indeed is replaced without an operator.
func TestLeaderDoubtsItsClock(t *testing.T) {
	for name, off := range map[string]time.Duration{"behind": -34 * aDay, "ahead": 11 * 365 * aDay} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWrongClock(t)
				first := w.active()
				w.off = off
				w.doubts(30*time.Second, doubtFor)
				w.off = 0 // set right
				w.ensure()
				w.off = off // it counts anew
				w.doubts(30*time.Second, doubtFor)
				w.off += time.Hour // set, and still wrong
				w.doubts(30*time.Second, doubtFor)
				w.ensure() // nobody sets it
				if w.active() == first || len(w.store.Roots()) != 2 {
					t.Error("a root that ended is never replaced")
				}
				w.ensure()
				if len(w.store.Roots()) != 2 {
					t.Error("the first root was dropped")
				}
			})
		})
	}
}

// What it saw while it led before counts for nothing.
func TestDoubtEndsWithTheTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWrongClock(t)
		w.off = 11 * 365 * aDay
		for range 5 {
			w.doubts(time.Hour, 2*time.Hour)
		}
	})
}

// An operator who is sure need not wait.
func TestOperatorIsSureOfTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWrongClock(t)
		first := w.active()
		w.off = 11 * 365 * aDay
		cfg := ca.DefaultConfig()
		if _, err := w.Configure(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "ForceWithoutCrossSigning") {
			t.Error(err)
		}
		cfg.ForceWithoutCrossSigning = true
		if _, err := w.Configure(t.Context(), cfg); err != nil || w.active() == first {
			t.Error(err)
		}
		// The configuration that says so is kept: the next wrong clock is doubted all the same.
		w.off = 0
		w.doubts(30*time.Second, doubtFor)
		w.ensure()
		if w.active() != first || len(w.store.Roots()) != 2 {
			t.Error("the first root does not take over again")
		}
	})
}
