package connect

import (
	"container/list"
	"context"
	"net"
	"net/netip"
	"sync"
)

const (
	maxHandshakes          = 1024 // of one proxy, under way at once
	maxHandshakesPerSource = 512  // of them, from one address
)

// gate bounds the connections that have not proven who they are. A source at its
// limit loses its oldest connection that has not sent a byte to the newest, so
// that silent connections cost little more than descriptors; where all have
// spoken, the newest is refused. A full gate holds up the accept loop.
type gate struct {
	max, perSource int

	mu      sync.Mutex
	n       int
	sources map[netip.Prefix]*list.List // of *wire, oldest first
	freed   chan struct{}               // closed when a place becomes free
}

// ticket is a place in the gate.
type ticket struct {
	g    *gate
	src  netip.Prefix
	elem *list.Element
}

func newGate(most, perSource int) *gate {
	return &gate{max: most, perSource: perSource, sources: map[netip.Prefix]*list.List{}}
}

// wait blocks while the gate is full of connections that have spoken.
func (g *gate) wait(ctx context.Context) error {
	for {
		g.mu.Lock()
		if g.n < g.max || g.silent() != nil {
			g.mu.Unlock()
			return nil
		}
		if g.freed == nil {
			g.freed = make(chan struct{})
		}
		freed := g.freed
		g.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
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
	if l == nil {
		l = list.New()
		g.sources[src] = l
	}
	var victim *list.Element
	from := l
	switch {
	case l.Len() >= g.perSource:
		victim = oldestSilent(l)
		if victim == nil {
			return nil
		}
	case g.n >= g.max:
		if from = g.silent(); from == nil {
			g.dropEmpty(src, l)
			return nil
		}
		victim = oldestSilent(from)
	}
	if victim != nil {
		loser := victim.Value.(*wire)
		loser.evicted.Store(true)
		loser.abort()
		from.Remove(victim)
		g.n--
	}
	g.n++
	return &ticket{g: g, src: src, elem: l.PushBack(w)}
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
	g.dropEmpty(t.src, l)
	if g.freed != nil {
		close(g.freed)
		g.freed = nil
	}
}

func (g *gate) dropEmpty(src netip.Prefix, l *list.List) {
	if l.Len() == 0 {
		delete(g.sources, src)
	}
}

// silent is the fullest source that has a silent connection.
func (g *gate) silent() *list.List {
	var most *list.List
	for _, l := range g.sources {
		if (most == nil || l.Len() > most.Len()) && oldestSilent(l) != nil {
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
