package connect

import (
	"container/list"
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	maxHandshakes          = 1024 // of one proxy, under way at once
	maxHandshakesPerSource = 512  // of them, from one address
)

// gate bounds the connections that have not proven who they are. A source at its
// limit loses its oldest connection that has not sent a byte to the newest, so
// that silent connections cost little more than descriptors; where all have
// spoken, the newest is refused. Of a full gate the source with the most loses one to
// the newest, its oldest silent one or else its oldest: strangers are in each other's
// way only.
type gate struct {
	max, perSource int

	mu      sync.Mutex
	n       int
	sources map[netip.Prefix]*list.List // of *wire, oldest first
	freed   chan struct{}               // closed when a place becomes free
	passed  time.Time                   // when one last proved who it is
}

const (
	// crowd is by how much a source has fewer places than there are where it is one of
	// a crowd.
	crowd = 64
	// crowdMoves is for how long a crowd is waited for after one of it got through.
	crowdMoves = 100 * time.Millisecond
)

// ticket is a place in the gate.
type ticket struct {
	g    *gate
	src  netip.Prefix
	elem *list.Element
}

func newGate(most, perSource int) *gate {
	return &gate{max: most, perSource: perSource, sources: map[netip.Prefix]*list.List{}}
}

// wait holds up the accept loop while a crowd gets through a full gate, as after the
// restart of a service that many call: a place is free soon, and nobody has to lose his.
// It waits for nobody where one source has many places, or none gets through.
func (g *gate) wait(ctx context.Context) error {
	for {
		g.mu.Lock()
		left := crowdMoves - time.Since(g.passed)
		if g.n < g.max || left <= 0 || g.fullest().Len() > g.max/crowd {
			g.mu.Unlock()
			return nil
		}
		if g.freed == nil {
			g.freed = make(chan struct{})
		}
		freed := g.freed
		g.mu.Unlock()
		late := time.NewTimer(left)
		select {
		case <-freed:
		case <-late.C:
		case <-ctx.Done():
		}
		late.Stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// enter takes a place for w, nil when its source has too many.
func (g *gate) enter(w *wire) *ticket {
	src := sourceOf(w.RemoteAddr())
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.sources[src]
	switch {
	case l != nil && l.Len() >= g.perSource:
		victim := oldestSilent(l)
		if victim == nil {
			return nil
		}
		g.evict(l, victim)
	case g.n >= g.max:
		from := g.fullest()
		victim := oldestSilent(from)
		if victim == nil {
			victim = from.Front()
		}
		g.evict(from, victim)
	}
	if l == nil {
		l = list.New()
		g.sources[src] = l
	}
	g.n++
	return &ticket{g: g, src: src, elem: l.PushBack(w)}
}

// evict takes the place of a connection and ends it. Its source is forgotten when its
// ticket is given back.
func (g *gate) evict(l *list.List, victim *list.Element) {
	l.Remove(victim)
	g.n--
	victim.Value.(*wire).evict()
}

// pass is leave for one that has proven who it is.
func (t *ticket) pass() {
	t.leave()
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	t.g.passed = time.Now()
}

// leave gives the place back; one that was lost already is no error.
func (t *ticket) leave() {
	g := t.g
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.sources[t.src]
	if l == nil {
		return
	}
	before := l.Len()
	l.Remove(t.elem) // does nothing for an element that was evicted
	g.n -= before - l.Len()
	if l.Len() == 0 {
		delete(g.sources, t.src)
	}
	if g.freed != nil {
		close(g.freed)
		g.freed = nil
	}
}

// fullest is the source that has the most places.
func (g *gate) fullest() *list.List {
	var most *list.List
	for _, l := range g.sources {
		if most == nil || l.Len() > most.Len() {
			most = l
		}
	}
	return most
}

func oldestSilent(l *list.List) *list.Element {
	for e := l.Front(); e != nil; e = e.Next() {
		if e.Value.(*wire).silent() {
			return e
		}
	}
	return nil
}

// sourceOf is what counts as one source: an IPv4 address, or an IPv6 /64.
func sourceOf(a net.Addr) netip.Prefix {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := t.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
