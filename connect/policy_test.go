package connect

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/connect/identity"
)

// Many connections of many sources, half of them denied at once: those end, at
// once, and no other does (promise P16; the time is recorded, not judged).
func TestDenyHalfOfMany(t *testing.T) {
	ca := newTestCA(t, testDomain)
	app := serve(t, echo)
	sources := times(4, 20)
	each := times(50, 100)
	var names []string
	for i := range sources {
		names = append(names, fmt.Sprintf("web%d", i))
	}
	db := startSidecar(t, ca, "db", func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", app, allow(names...)
	})
	denied, kept := []net.Conn(nil), []net.Conn(nil)
	for i, name := range names {
		web := startSidecar(t, ca, name, func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", db.inbound())} })
		for range each {
			c := dialTCP(t, web.upstream("db"))
			must(t, roundTrip(c, "x"))
			if i%2 == 0 {
				denied = append(denied, c)
			} else {
				kept = append(kept, c)
			}
		}
	}
	var mu sync.Mutex
	var ended []time.Time
	var wg sync.WaitGroup
	for _, c := range denied {
		wg.Go(func() {
			if _, err := c.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("denied connection: %v, want a reset", err)
			}
			mu.Lock()
			defer mu.Unlock()
			ended = append(ended, time.Now())
		})
	}
	start := time.Now()
	db.update(func(s *Snapshot) {
		s.Intentions = nil
		for i, name := range names {
			if i%2 == 1 {
				s.Intentions = append(s.Intentions, allow(name)...)
			}
		}
	})
	enforced := time.Since(start)
	wg.Wait()
	for _, c := range kept {
		must(t, roundTrip(c, "still here"))
	}
	slices.SortFunc(ended, time.Time.Compare)
	took := func(at time.Time) time.Duration { return at.Sub(start) }
	t.Logf("%d of %d closed: applied after %s, p50 %s, last %s", len(denied), len(denied)+len(kept), enforced, took(ended[len(ended)/2]), took(ended[len(ended)-1]))
}

// What a connection costs in garbage, loosely: an order of magnitude more would
// be a mistake.
func TestAllocationsOfAConnection(t *testing.T) {
	ca := newTestCA(t, testDomain)
	s, err := NewService(ServiceConfig{ID: "db", Signer: ca, Logger: logNothing})
	must(t, err)
	s.Update(&Snapshot{Service: "db", Datacenter: testDC, TrustDomain: testDomain, Roots: []string{ca.pem}, Intentions: allow("web")})
	before := s.world.Load()
	id := identity.ServiceID{TrustDomain: testDomain, Datacenter: testDC, Service: "web"}
	n := testing.AllocsPerRun(100, func() {
		c, err := s.authorize(&Conn{wire: newWire(&deadConn{}), peer: id}, tlsState, before)
		if err != nil {
			t.Error(err)
			return
		}
		c.row.finish(ending{reason: ReasonOK}, false)
	})
	if n > 30 {
		t.Errorf("judging a connection allocates %v times, want at most 30", n)
	}
	p := newPair(t, echo)
	n = testing.AllocsPerRun(20, func() {
		if err := tryOnce(p.addr); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%v allocations for a connection through two proxies", n)
	if n > 5000 {
		t.Errorf("a connection allocates %v times, want at most 5000", n)
	}
	c := dialTCP(t, p.addr)
	n = testing.AllocsPerRun(200, func() {
		if err := roundTrip(c, "x"); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%v allocations for a request", n)
	if n > 40 {
		t.Errorf("a request allocates %v times, want at most 40", n)
	}
}
