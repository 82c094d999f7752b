package enroll

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// Limits of the gate. A cluster of a thousand nodes that starts at once comes in
// within seconds; a stranger who holds a token in each hand is a nuisance, no more.
const (
	waitingMost       = 1024 // connections that have not been answered
	waitingPerSource  = 128
	requestsPerSecond = 200
	requestsAtOnce    = 1000
	sourcePerSecond   = 50
	sourceAtOnce      = 500
	maxIdleSources    = 4096
)

// limits bound what those who are not members yet may ask of a server.
type limits struct {
	mu      sync.Mutex
	all     *rate.Limiter
	waiting int
	sources map[netip.Prefix]*asker
}

type asker struct {
	limit   *rate.Limiter
	waiting int
}

func newLimits() *limits {
	return &limits{all: rate.NewLimiter(requestsPerSecond, requestsAtOnce), sources: map[netip.Prefix]*asker{}}
}

// enter counts a connection in, unless there are too many.
func (l *limits) enter(a net.Addr) (leave func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.from(sourceOf(a))
	if l.waiting >= waitingMost || s.waiting >= waitingPerSource {
		return nil, false
	}
	l.waiting++
	s.waiting++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.waiting--
		s.waiting--
	}, true
}

// allow tells whether one more request may be worked on now.
func (l *limits) allow(a net.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.from(sourceOf(a)).limit.Allow() && l.all.Allow()
}

func (l *limits) from(key netip.Prefix) *asker {
	if s := l.sources[key]; s != nil {
		return s
	}
	if len(l.sources) >= maxIdleSources+waitingMost {
		for k, s := range l.sources {
			if s.waiting == 0 {
				delete(l.sources, k)
			}
		}
	}
	s := &asker{limit: rate.NewLimiter(sourcePerSecond, sourceAtOnce)}
	l.sources[key] = s
	return s
}

// sourceOf is an address, of IPv6 the network of 64 bits that one host may have.
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
	p, _ := ip.Prefix(bits) // zero when there is no address
	return p
}
