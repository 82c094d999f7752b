package mux

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// maxIdleSources bounds the memory of addresses that have nothing open.
const maxIdleSources = 16 << 10

// fairShake is how long a handshake goes on undisturbed by those of others who have no
// more of them. When a whole fleet comes at once, after a power cut, each that is ended
// for the next comes again, and none would ever be done.
const fairShake = time.Second

// table counts what is open, by source. One mutex: its work for each connection is a
// few map operations, and a handshake costs a thousand times as much.
type table struct {
	maxHandshakes, maxConns, maxPerSource int
	rate                                  rate.Limit

	mu         sync.Mutex
	conns      map[*conn]struct{}
	sources    map[netip.Prefix]*source
	shakers    map[*source]struct{} // those of which any connection is shaking hands
	idle       int                  // sources without connections
	handshakes int
	ended      bool
}

// source is one address, of IPv6 one network of 64 bits, as one host has them all.
type source struct {
	key     netip.Prefix
	limit   *rate.Limiter
	conns   int
	shaking list.List // of *conn, the oldest first
}

func newTable(cfg *Config) *table {
	return &table{
		maxHandshakes: cfg.MaxHandshakes, maxConns: cfg.MaxConns, maxPerSource: cfg.MaxPerSource, rate: rate.Limit(cfg.RatePerSource),
		conns: map[*conn]struct{}{}, sources: map[netip.Prefix]*source{}, shakers: map[*source]struct{}{},
	}
}

// conn is an accepted connection below TLS: its closing is what the table sees.
type conn struct {
	net.Conn
	table   *table
	source  *source
	evicted atomic.Bool
	once    sync.Once
	err     error

	since time.Time

	// Under the table's mutex:
	shaking *list.Element // nil once hands are shaken
	state   *tls.ConnectionState
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		c.table.remove(c)
	})
	return c.err
}

// add takes a connection in, or says why not.
func (t *table) add(raw net.Conn) (*conn, string) {
	c, evicted, reason := t.enter(raw)
	if evicted != nil {
		evicted.evicted.Store(true)
		_ = evicted.Close()
	}
	return c, reason
}

func (t *table) enter(raw net.Conn) (c, evicted *conn, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.from(sourceOf(raw.RemoteAddr()))
	switch {
	case t.ended:
		return nil, nil, "closed"
	case len(t.conns) >= t.maxConns:
		return nil, nil, "too_many"
	case s.conns >= t.maxPerSource:
		return nil, nil, "too_many_of_source"
	case !s.limit.Allow():
		return nil, nil, "too_fast"
	}
	if t.handshakes >= t.maxHandshakes {
		// The oldest of the source with the most goes, so that strangers who connect
		// and say nothing are in each other's way only.
		if evicted = t.busiest(); !yields(evicted, s) {
			return nil, nil, "too_many_handshakes"
		}
		t.shaken(evicted)
	}
	c = &conn{Conn: raw, table: t, source: s, since: time.Now()}
	c.shaking = s.shaking.PushBack(c)
	t.shakers[s] = struct{}{}
	if s.conns == 0 {
		t.idle--
	}
	s.conns++
	t.handshakes++
	t.conns[c] = struct{}{}
	return c, evicted, ""
}

func (t *table) setPerSource(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.maxPerSource = n
}

// busiest is the oldest handshake of the source with the most, of several the oldest.
func (t *table) busiest() *conn {
	var most *conn
	for s := range t.shakers { // few, however many addresses are remembered
		c := s.shaking.Front().Value.(*conn)
		if most == nil || s.shaking.Len() > most.source.shaking.Len() ||
			s.shaking.Len() == most.source.shaking.Len() && c.since.Before(most.since) {
			most = c
		}
	}
	return most
}

// yields tells whether a handshake is ended for one of the source s.
func yields(c *conn, s *source) bool {
	return c.source == s || c.source.shaking.Len() > s.shaking.Len()+1 || time.Since(c.since) > fairShake
}

// from finds the source, or makes it. Idle ones are kept for their rate, until there
// are too many.
func (t *table) from(key netip.Prefix) *source {
	if s := t.sources[key]; s != nil {
		return s
	}
	if t.idle >= maxIdleSources {
		for k, s := range t.sources {
			if s.conns == 0 {
				delete(t.sources, k)
			}
		}
		t.idle = 0
	}
	s := &source{key: key, limit: rate.NewLimiter(t.rate, max(1, int(4*t.rate)))}
	t.sources[key] = s
	t.idle++
	return s
}

func sourceOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
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

// shaken ends the handshake of a connection, in whatever way.
func (t *table) shaken(c *conn) {
	if c.shaking != nil {
		c.source.shaking.Remove(c.shaking)
		c.shaking = nil
		t.handshakes--
		if c.source.shaking.Len() == 0 {
			delete(t.shakers, c.source)
		}
	}
}

// opened notes whom a connection is with.
func (t *table) opened(c *conn, cs tls.ConnectionState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shaken(c)
	c.state = &cs
}

func (t *table) remove(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shaken(c)
	delete(t.conns, c)
	c.source.conns--
	if c.source.conns == 0 {
		t.idle++
	}
}

func (t *table) closeIf(gone func(tls.ConnectionState) bool) int {
	type row struct {
		c  *conn
		cs tls.ConnectionState
	}
	t.mu.Lock()
	rows := make([]row, 0, len(t.conns))
	for c := range t.conns {
		if c.state != nil {
			rows = append(rows, row{c, *c.state})
		}
	}
	t.mu.Unlock()
	n := 0
	for _, r := range rows {
		if gone(r.cs) {
			_ = r.c.Close() // below TLS, so that a peer who does not read holds nothing up
			n++
		}
	}
	return n
}

// closeAll closes everything, and what comes after.
func (t *table) closeAll() {
	t.mu.Lock()
	t.ended = true
	all := make([]*conn, 0, len(t.conns))
	for c := range t.conns {
		all = append(all, c)
	}
	t.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

func (t *table) counts() (conns, handshakes int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.conns), t.handshakes
}
