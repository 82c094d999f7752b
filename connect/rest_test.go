package connect

import (
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
