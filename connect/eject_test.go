package connect

import (
	"errors"
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
		b.failed(s[0], refused)
		b.failed(s[0], refused)
		now = now.Add(2 * time.Minute) // too long ago to be in a row
		b.failed(s[0], refused)
		b.failed(s[0], refused)
		if out(s[0]) {
			t.Fatal("ejected after two in a row")
		}
		b.failed(s[0], refused)
		if !out(s[0]) || s[0].until.Sub(now) != 30*time.Second {
			t.Fatalf("after three: %s", s[0].until.Sub(now))
		}
		now = now.Add(31 * time.Second)
		b.failed(s[0], refused)
		if s[0].until.Sub(now) != time.Minute {
			t.Errorf("the fourth: %s, want twice as long", s[0].until.Sub(now))
		}
		b.worked(s[0])
		b.failed(s[0], refused)
		if out(s[0]) {
			t.Error("ejected after one failure that followed a success")
		}
	})
	t.Run("no more than a share", func(t *testing.T) {
		b, up, s := rig(Ejection{MaxPercent: 50}, 4)
		for i := range s {
			b.failed(s[i], refused)
		}
		if !out(s[0]) || !out(s[1]) || out(s[2]) || out(s[3]) {
			t.Errorf("ejected %v %v %v %v, want half", out(s[0]), out(s[1]), out(s[2]), out(s[3]))
		}
		_ = up
		b, _, s = rig(Ejection{MaxPercent: 10}, 3)
		b.failed(s[0], refused)
		if !out(s[0]) {
			t.Error("one may always be ejected")
		}
	})
	t.Run("connections that end before a byte", func(t *testing.T) {
		b, _, s := rig(Ejection{}, 2)
		b.spoke(s[0], ReasonServerClosed, 0)
		b.spoke(s[0], ReasonServerClosed, 0)
		b.spoke(s[0], ReasonServerClosed, 9)
		b.spoke(s[0], ReasonServerClosed, 0)
		b.spoke(s[0], ReasonClientClosed, 0)
		b.spoke(s[0], ReasonOK, 0)
		b.spoke(s[0], ReasonServerClosed, 0)
		if out(s[0]) {
			t.Fatal("ejected too early")
		}
		b.spoke(s[0], ReasonServerClosed, 0)
		if !out(s[0]) {
			t.Error("not ejected after three in a row")
		}
	})
}

// TestNextInstanceBeforeTheApp: instances that refuse, that are no TLS, that are
// somebody else or that never answer cost the application no error.
func TestNextInstanceBeforeTheApp(t *testing.T) {
	p := newPair(t, echo)
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
