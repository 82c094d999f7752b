package connect

import (
	"container/list"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Guard bounds what strangers may cost a process, over all of its services: the
// processors that handshakes take are shared fairly by the addresses they come from,
// and some descriptors are kept from the mesh, so that an operator can still get in.
type Guard struct {
	limit   int64 // descriptors that the mesh may have; 0: no bound
	ceiling int   // a connection with a higher descriptor is not taken; 0: none is too high
	taken   atomic.Int64

	mu      sync.Mutex
	free    int
	waiting map[netip.Prefix]*list.List // of chan struct{}, each source in order of arrival
	order   []netip.Prefix              // of sources that wait, the next first
}

// GuardConfig configures a Guard.
type GuardConfig struct {
	// Descriptors is how many files this process may have open. 0: what the system says.
	Descriptors int
	// Handshakes is how many may compute at a time. 0: one for each processor.
	Handshakes int
}

// descriptorsOf is what a connection has at most: one to the peer, one to the
// application. A stream in a tunnel has the second alone.
const descriptorsOf = 2

const (
	reserveLeast = 64
	reserveMost  = 1024
)

// NewGuard makes a Guard.
func NewGuard(cfg GuardConfig) *Guard {
	if cfg.Descriptors == 0 {
		cfg.Descriptors = descriptorLimit()
	}
	if cfg.Handshakes <= 0 {
		cfg.Handshakes = runtime.GOMAXPROCS(0)
	}
	g := &Guard{free: cfg.Handshakes, waiting: map[netip.Prefix]*list.List{}}
	if n := cfg.Descriptors; n > 0 {
		// An eighth is for everybody else: the API, Raft, gossip, files.
		g.ceiling = n - min(max(n/8, min(reserveLeast, n/2)), reserveMost)
		g.limit = int64(g.ceiling)
	}
	return g
}

// full tells whether one more connection, with its two ends, could take descriptors
// that the mesh must not have.
func (g *Guard) full() bool { return g.limit > 0 && g.taken.Load()+descriptorsOf > g.limit }

// tooHigh tells whether a connection has a descriptor that is kept for others: the
// system gives the lowest that is free.
func (g *Guard) tooHigh(w *wire) bool {
	if g.ceiling == 0 || w.raw == nil {
		return false
	}
	high := false
	_ = w.raw.Control(func(fd uintptr) { high = fd >= uintptr(g.ceiling) }) // fails when it is closed: of no cost then
	return high
}

// turn waits until a handshake of src may compute, at most until the time given, or
// until it is gone. The sources that wait take turns, however many handshakes each has.
func (g *Guard) turn(src netip.Prefix, until time.Time, gone <-chan struct{}) error {
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	l := g.waiting[src]
	if l == nil {
		l = list.New()
		g.waiting[src] = l
		g.order = append(g.order, src)
	}
	place := l.PushBack(mine)
	g.mu.Unlock()

	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-mine:
		return nil
	case <-gone:
	case <-t.C:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-mine: // it came while we gave up
		g.passOn()
	default:
		l.Remove(place) // an empty list is dropped when its turn comes
	}
	return os.ErrDeadlineExceeded
}

// done ends a turn.
func (g *Guard) done() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passOn()
}

// passOn gives a turn to the next source that waits; g.mu is held.
func (g *Guard) passOn() {
	for len(g.order) > 0 {
		src := g.order[0]
		g.order = g.order[1:]
		l := g.waiting[src]
		first := l.Front()
		if first == nil {
			delete(g.waiting, src)
			continue
		}
		l.Remove(first)
		if l.Len() > 0 {
			g.order = append(g.order, src)
		} else {
			delete(g.waiting, src)
		}
		close(first.Value.(chan struct{}))
		return
	}
	g.free++
}

// turnstile holds a wire's turns during a handshake: one is held only while TLS
// computes, which is between a read and what follows it.
type turnstile struct {
	g     *Guard
	src   netip.Prefix
	until time.Time
	gone  <-chan struct{} // of the wire
	held  bool
}

func (t *turnstile) begin() error {
	if t == nil || t.held {
		return nil
	}
	if err := t.g.turn(t.src, t.until, t.gone); err != nil {
		return err
	}
	t.held = true
	return nil
}

func (t *turnstile) end() {
	if t != nil && t.held {
		t.held = false
		t.g.done()
	}
}
