package connect

import (
	"sync/atomic"
	"testing"
	"time"
)

// An instance that rests lets its connections finish, takes new ones all the same,
// and cuts those that are left at the end of the grace; one that comes back in time
// cuts none.
func TestRest(t *testing.T) {
	p := newPair(t, echo)
	c := dialTCP(t, p.addr)
	must(t, roundTrip(c, "before"))

	p.db.update(func(s *Snapshot) { s.Rest = &Rest{Why: "maintenance", Grace: time.Hour} })
	must(t, roundTrip(c, "while it rests"))
	must(t, tryOnce(p.addr))
	p.db.update(func(s *Snapshot) { s.Rest = nil })
	p.db.log.find(t, "serves again")

	p.db.update(func(s *Snapshot) { s.Rest = &Rest{Why: "critical", Grace: time.Millisecond} })
	if _, err := c.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("after the grace: %v, want a reset", err)
	}
	p.db.log.find(t, "reason=draining", "source=web")
	must(t, tryOnce(p.addr)) // nowhere else to go
}

// Who comes during the grace of a rest has nowhere else to go, and stays.
func TestRestSparesWhoCameLater(t *testing.T) {
	var ahead atomic.Int64
	ca := newTestCA(t, testDomain)
	db := startSidecarWith(t, ca, "db", ProxyConfig{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }}, func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, echo), allow("web")
	})
	web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", db.inbound())} })
	addr := web.upstream("db")
	old := dialTCP(t, addr)
	must(t, roundTrip(old, "before"))
	db.update(func(s *Snapshot) { s.Rest = &Rest{Why: "critical", Grace: 500 * time.Millisecond} })
	ahead.Store(int64(restKnown))
	late := dialTCP(t, addr)
	must(t, roundTrip(late, "while it rests"))
	if _, err := old.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("after the grace: %v, want a reset", err)
	}
	must(t, roundTrip(late, "after the grace"))

	known := func() time.Time {
		db.mu.Lock()
		defer db.mu.Unlock()
		return db.resting.known
	}
	was := known()
	db.update(func(s *Snapshot) { s.Rest = &Rest{Why: "maintenance", Grace: time.Hour} })
	if !known().Equal(was) {
		t.Error("who came during the rest is to be cut, as it has another reason now")
	}
}

// A rest under way holds up no stop.
func TestRestEndsWithTheProxy(t *testing.T) {
	p := newPair(t, echo)
	p.db.update(func(s *Snapshot) { s.Rest = &Rest{Why: "maintenance", Grace: time.Hour} })
	begun := time.Now()
	p.db.close()
	if took := time.Since(begun); took > 15*time.Second {
		t.Errorf("stopped after %s", took)
	}
}
