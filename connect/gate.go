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
// spoken, the newest is refused. A full gate lets in nobody until a place is free, or
// a peer has been waited for so long that it may lose its own: of the sources of such
// peers that with the most places loses one, its oldest silent one or else its oldest.
// So a crowd, as after a restart of a service that many call, gets through in order, and
// strangers are in each other's way only.
type gate struct {
	max, perSource int
	grace          time.Duration // for how long a peer may be waited for before it is in the way

	mu      sync.Mutex
	n       int
	sources map[netip.Prefix]*list.List // of *wire, oldest first
	freed   chan struct{}               // closed when a place becomes free
}

// crowdGrace is what a stalled peer of a full gate holds up others by: many round trips,
// and much less than a handshake may take.
const crowdGrace = time.Second

// ticket is a place in the gate.
type ticket struct {
	g    *gate
	src  netip.Prefix
	elem *list.Element
}

func newGate(most, perSource int) *gate {
	return &gate{max: most, perSource: perSource, grace: crowdGrace, sources: map[netip.Prefix]*list.List{}}
}

// wait holds up the accept loop while the gate is full and nobody is in the way.
func (g *gate) wait(ctx context.Context) error {
	for {
		g.mu.Lock()
		if g.n < g.max {
			g.mu.Unlock()
			return nil
		}
		victim, left := g.inTheWay()
		if victim != nil {
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

// inTheWay is the connection that a full gate gives up, nil where no peer has been waited
// for long enough, and when to look again.
func (g *gate) inTheWay() (victim *list.Element, left time.Duration) {
	left = g.grace
	var from *list.List
	var oldest *list.Element
	for _, l := range g.sources {
		if from != nil && l.Len() <= from.Len() {
			continue
		}
		for e := l.Front(); e != nil; e = e.Next() {
			more := g.grace - e.Value.(*wire).awaited()
			if more <= 0 {
				from, oldest = l, e
				break
			}
			left = min(left, more)
		}
	}
	if from == nil {
		return nil, max(left, g.grace/100) // one whose turn to compute has come just now
	}
	for e := oldest; e != nil; e = e.Next() {
		if w := e.Value.(*wire); w.silent() && w.awaited() >= g.grace {
			return e, 0
		}
	}
	return oldest, 0
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
		victim, _ := g.inTheWay()
		if victim == nil { // it was in the way when wait saw it
			victim = g.fullest().Front()
		}
		g.evict(g.sources[sourceOf(victim.Value.(*wire).RemoteAddr())], victim)
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
