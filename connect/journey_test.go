package connect

import (
	"errors"
	"net"
	"runtime"
	"testing"
	"weak"

	"github.com/weftmesh/weft/connect/tunnel"
)

// A connection that rests for days does not keep the snapshot of its first day.
func TestConnectionOutlivesItsSnapshot(t *testing.T) {
	check := func(t *testing.T) {
		p := newPair(t, echo)
		c := dialTCP(t, p.addr)
		must(t, roundTrip(c, "x"))
		began := weak.Make(p.web.svc.world.Load())
		listed := weak.Make(&p.web.svc.world.Load().upstreams["db"].Instances[0])
		at := p.db.inbound()
		for range 2 { // the proxy itself remembers the one before
			p.web.update(func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", at)} })
		}
		eventually(t, "the end of the first snapshot", func() bool {
			runtime.GC()
			return began.Value() == nil && listed.Value() == nil
		})
		must(t, roundTrip(c, "y"))
	}
	t.Run("tunnel", check)
	t.Run("short cut", func(t *testing.T) { useShortCut(t); check(t) })
}

// comesBack carries an application to an instance of db, has something happen, and then
// the end of its stream. It gives the application's end.
func comesBack(t *testing.T, web *sidecar, happens func(), end tunnel.End) net.Conn {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	mine := dialTCP(t, ln.Addr().String())
	app, err := ln.Accept()
	must(t, err)
	web.live.add()
	a := &attempt{journey: journey{p: web.Proxy, ctx: t.Context()}, app: app}
	w := web.svc.world.Load()
	up := w.upstreams["db"]
	a.begin(w, up)
	web.svc.table.reserve(up.key, 0)
	e := a.next()
	var ended tunnel.EndFunc
	f := new(tunnel.Flow)
	must(t, a.hand(e, web.svc.outboundEnds(w, up, e, up.peer(e.Endpoint), nil), func(_ net.Conn, tell tunnel.EndFunc) (*tunnel.Flow, error) {
		ended = tell
		return f, nil
	}))
	happens()
	end.App = app
	ended(f, end)
	return mine
}

func reserved(s *sidecar, upstream string) int {
	s.svc.table.mu.Lock()
	defer s.svc.table.mu.Unlock()
	return s.svc.table.outbound[upstream]
}

// An application that comes back goes on in the world of that moment.
func TestComesBackInAnotherWorld(t *testing.T) {
	refused := tunnel.End{Cause: tunnel.CausePeer, Code: tunnel.CodeDialFailed, Err: errors.New("reset by the peer")}
	unseen := tunnel.End{Cause: tunnel.CauseUnprocessed, Err: tunnel.ErrUnprocessed}
	setup := func(t *testing.T) (p *pair, other string) {
		p = newPair(t, echo)
		return p, startSidecar(t, p.ca, "db", func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, echo), allow("web")
		}).inbound()
	}
	t.Run("the instance that did not take it is not tried again", func(t *testing.T) {
		p, other := setup(t)
		at := p.db.inbound()
		c := comesBack(t, p.web, func() {
			p.web.update(func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", at, other)} })
		}, refused)
		must(t, roundTrip(c, "x"))
		if got := p.web.Connections(0)[0].Remote; got != other {
			t.Errorf("carried to %s, want %s", got, other)
		}
	})
	for name, end := range map[string]tunnel.End{"refused": refused, "not seen": unseen} {
		t.Run("its instance is gone: "+name, func(t *testing.T) {
			p, other := setup(t)
			c := comesBack(t, p.web, func() {
				p.web.update(func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", other)} })
			}, end)
			must(t, roundTrip(c, "x"))
			must(t, c.Close())
			eventually(t, "no connection counted", func() bool { return reserved(p.web, "db") == 0 })
		})
		t.Run("its upstream is gone: "+name, func(t *testing.T) {
			p, _ := setup(t)
			c := comesBack(t, p.web, func() { p.web.update(func(s *Snapshot) { s.Upstreams = nil }) }, end)
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("it was carried")
			}
			p.web.log.find(t, "reason=no_instance", "db is no upstream of web")
			eventually(t, "no connection counted", func() bool { return reserved(p.web, "db") == 0 })
		})
	}
	t.Run("one that never saw it has its turn again", func(t *testing.T) {
		p, _ := setup(t)
		c := comesBack(t, p.web, func() { p.web.update(nil) }, unseen)
		must(t, roundTrip(c, "x"))
	})
}
