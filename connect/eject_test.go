package connect

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestEjection(t *testing.T) {
	now := time.Unix(1000, 0)
	refused := errors.New("refused")
	rig := func(rule Ejection, n int) (*balancer, *upstream, []*endpoint) {
		b := &balancer{now: func() time.Time { return now }}
		up := &upstream{key: "db", Upstream: Upstream{Ejection: rule}}
		for i := range n {
			up.Instances = append(up.Instances, Endpoint{Addr: string(rune('a' + i))})
		}
		tried := make([]bool, n)
		var states []*endpoint
		for range n {
			b.pick(up, tried)
		}
		for i := range up.Instances {
			states = append(states, b.state(up, &up.Instances[i]))
		}
		return b, up, states
	}
	out := func(s *endpoint) bool { return now.Before(s.until) }

	t.Run("so many failures in a row", func(t *testing.T) {
		b, _, s := rig(Ejection{Failures: 3, Within: time.Minute, Base: 30 * time.Second}, 2)
		b.failed(s[0], now, false, refused)
		b.failed(s[0], now, false, refused)
		now = now.Add(2 * time.Minute) // too long ago to be in a row
		b.failed(s[0], now, false, refused)
		b.failed(s[0], now, false, refused)
		if out(s[0]) {
			t.Fatal("ejected after two in a row")
		}
		b.failed(s[0], now, false, refused)
		if !out(s[0]) || s[0].until.Sub(now) != 30*time.Second {
			t.Fatalf("after three: %s", s[0].until.Sub(now))
		}
		now = now.Add(31 * time.Second)
		b.failed(s[0], now, false, refused)
		if s[0].until.Sub(now) != time.Minute {
			t.Errorf("the fourth: %s, want twice as long", s[0].until.Sub(now))
		}
		b.reached(s[0])
		b.failed(s[0], now, false, refused)
		if out(s[0]) {
			t.Error("ejected after one failure that followed a success")
		}
	})
	t.Run("no more than a share", func(t *testing.T) {
		b, up, s := rig(Ejection{MaxPercent: 50}, 4)
		for i := range s {
			b.failed(s[i], now, false, refused)
		}
		if !out(s[0]) || !out(s[1]) || out(s[2]) || out(s[3]) {
			t.Errorf("ejected %v %v %v %v, want half", out(s[0]), out(s[1]), out(s[2]), out(s[3]))
		}
		_ = up
		b, _, s = rig(Ejection{MaxPercent: 10}, 3)
		b.failed(s[0], now, false, refused)
		if !out(s[0]) {
			t.Error("one may always be ejected")
		}
	})
	t.Run("connections that end before a byte", func(t *testing.T) {
		b, _, s := rig(Ejection{}, 2)
		b.spoke(s[0], now, ReasonServerClosed, 0)
		b.spoke(s[0], now, ReasonServerClosed, 0)
		b.spoke(s[0], now, ReasonServerClosed, 9)
		b.spoke(s[0], now, ReasonServerClosed, 0)
		b.spoke(s[0], now, ReasonClientClosed, 0)
		b.spoke(s[0], now, ReasonOK, 0)
		b.spoke(s[0], now, ReasonServerClosed, 0)
		if out(s[0]) {
			t.Fatal("ejected too early")
		}
		b.spoke(s[0], now, ReasonServerClosed, 0)
		if !out(s[0]) {
			t.Error("not ejected after three in a row")
		}
	})
}

// TestNextInstanceBeforeTheApp: instances that refuse, that are no TLS, that are
// somebody else or that never answer cost the application no error.
func TestNextInstanceBeforeTheApp(t *testing.T) {
	p := newPair(t, echo)
	must(t, tryOnce(p.addr)) // a tunnel stands: a handshake may take longer on a busy machine
	other := startSidecar(t, p.ca, "other", func(s *Snapshot) { s.Inbound, s.Local = "127.0.0.1:0", p.db.snap.Local })
	gone := serve(t, func(c *net.TCPConn) {})
	plain := serve(t, func(c *net.TCPConn) { _, _ = c.Write([]byte("220 hello\r\n")) })
	mute := serve(t, func(c *net.TCPConn) { _, _ = c.Read(make([]byte, 1<<16)); _, _ = c.Read(make([]byte, 1)) })
	p.web.update(func(s *Snapshot) {
		s.Upstreams = []Upstream{upstreamOf("db", "127.0.0.1:1", gone, plain, other.inbound(), mute, p.db.inbound())}
		s.Upstreams[0].ConnectTimeout = 300 * time.Millisecond
	})
	addr := p.web.upstream("db")
	for range 30 {
		if err := tryOnce(addr); err != nil {
			t.Fatal(err)
		}
	}
	bad := 0
	for _, in := range p.web.Status().Upstreams[0].Instances {
		if in.Error != "" {
			bad++
		}
	}
	if bad != 5 {
		t.Errorf("%d instances are shown with an error, want 5: %+v", bad, p.web.Status().Upstreams[0].Instances)
	}
}

// TestOneEventEjectsOnce: however many connections meet an instance that is down, it is
// left alone as for one failure more than the rule asks for.
func TestOneEventEjectsOnce(t *testing.T) {
	now := time.Unix(1000, 0)
	down := errors.New("refused")
	b := &balancer{now: func() time.Time { return now }}
	up := &upstream{key: "db", Upstream: Upstream{Ejection: Ejection{Failures: 5, Base: 10 * time.Second}}}
	up.Instances = []Endpoint{{Addr: "a"}}
	meet := func(n int) (all []*candidate) {
		for range n {
			all = append(all, b.pick(up, make([]bool, len(up.Instances))))
		}
		now = now.Add(time.Second)
		return all
	}
	fail := func(all []*candidate) {
		for _, c := range all {
			b.failed(c.state, c.at, true, down)
			now = now.Add(time.Millisecond)
		}
	}
	s := b.state(up, &up.Instances[0])
	fail(meet(4))
	if now.Before(s.until) {
		t.Fatal("ejected after four failures of five")
	}
	fail(meet(100))
	if left := s.until.Sub(s.ejectedAt); left != 10*time.Second {
		t.Fatalf("left alone for %s by the first event", left)
	}
	until := s.until
	fail(meet(50)) // there is no other
	if s.until != until {
		t.Fatalf("left alone for longer by what was tried in spite of it: %s", s.until.Sub(s.ejectedAt))
	}
	now = s.until
	fail(meet(50))
	if left := s.until.Sub(s.ejectedAt); left != 20*time.Second {
		t.Fatalf("left alone for %s when it was down still", left)
	}
	if s.active != 0 {
		t.Errorf("%d connections are counted", s.active)
	}
}

// TestWhatClearsFailures: to be there is enough for an instance that could not be
// reached; one that did not serve has to serve, and what began before does not count.
func TestWhatClearsFailures(t *testing.T) {
	now := time.Unix(1000, 0)
	b := &balancer{now: func() time.Time { return now }}
	up := &upstream{key: "db", Upstream: Upstream{Instances: []Endpoint{{Addr: "a"}}}}
	s := b.state(up, &up.Instances[0])
	fail := func(reached bool) {
		now = now.Add(time.Hour) // it is not left alone any more
		c := b.pick(up, make([]bool, len(up.Instances)))
		now = now.Add(time.Second)
		b.failed(c.state, c.at, reached, errors.New("refused"))
	}
	before := now
	fail(false)
	b.reached(s)
	if s.fails != 0 || s.err != "" {
		t.Error("it was reached again, and is shown with a failure")
	}
	fail(true)
	fail(false)
	b.reached(s)
	if s.fails != 2 {
		t.Errorf("%d failures: its proxy alone is back", s.fails)
	}
	b.spoke(s, before, ReasonClientClosed, 100)
	if s.fails != 2 {
		t.Error("what began before the failure cleared it")
	}
	b.spoke(s, now, ReasonClientClosed, 0)
	if s.fails != 2 {
		t.Error("a connection without a byte cleared it")
	}
	b.spoke(s, now, ReasonClientClosed, 100)
	if s.fails != 0 || now.Before(s.until) {
		t.Error("it answers, and is left alone")
	}
}

// TestOpenConnectionsClearFailures: a connection need not end to show that its instance
// serves again.
func TestOpenConnectionsClearFailures(t *testing.T) {
	p := newPair(t, echo)
	must(t, roundTrip(dialTCP(t, p.addr), "x"))
	b := &p.web.svc.balancer
	up := p.web.svc.world.Load().upstreams["db"]
	s := b.state(up, &up.Instances[0])
	b.suspect(s, time.Now(), errors.New("the application is down"))
	p.web.svc.heard(time.Now())
	if len(b.failing()) == 0 {
		t.Fatal("a connection of before the failure cleared it")
	}
	must(t, roundTrip(dialTCP(t, p.addr), "x"))
	eventually(t, "the failure forgotten, as it answers", func() bool { // its row may be a moment behind
		p.web.svc.heard(time.Now())
		return len(b.failing()) == 0
	})
}

// TestListeningClearsFailures: an instance that only listens serves, too.
func TestListeningClearsFailures(t *testing.T) {
	p := newPair(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	b := &p.web.svc.balancer
	up := p.web.svc.world.Load().upstreams["db"]
	s := b.state(up, &up.Instances[0])
	b.suspect(s, time.Now(), errors.New("the application is down"))
	c := dialTCP(t, p.addr)
	p.web.svc.heard(time.Now().Add(heardOut))
	if len(b.failing()) == 0 {
		t.Fatal("a connection of which nothing was said cleared it")
	}
	_, err := c.Write([]byte("x"))
	must(t, err)
	eventually(t, "the failure forgotten", func() bool {
		p.web.svc.heard(time.Now())
		if len(b.failing()) == 0 {
			t.Fatal("a connection of a moment cleared it")
		}
		p.web.svc.heard(time.Now().Add(heardOut))
		return len(b.failing()) == 0
	})
}
