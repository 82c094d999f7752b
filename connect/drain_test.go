package connect

import (
	"io"
	"net"
	"testing"
	"time"
)

// A proxy that lingers serves who comes while it waits for those that were there, and
// does not wait for the others when it then drains.
func TestLinger(t *testing.T) {
	p := newPair(t, echo)
	for _, s := range []*sidecar{p.web, p.db} {
		s.update(func(s *Snapshot) { s.Limits.DrainTimeout = time.Minute })
	}
	old := dialTCP(t, p.addr)
	must(t, roundTrip(old, "x"))
	lingered := make(chan struct{})
	go func() {
		defer close(lingered)
		p.web.Linger(t.Context(), time.Millisecond)
	}()
	eventually(t, "it lingers", func() bool { return p.web.last.Load() > 0 })
	late := dialTCP(t, p.addr)
	must(t, roundTrip(late, "served meanwhile"))
	select {
	case <-lingered:
		t.Error("it did not wait for a connection that was there")
	default:
	}
	must(t, old.CloseWrite())
	if _, err := io.ReadAll(old); err != nil {
		t.Error(err)
	}
	<-lingered
	must(t, roundTrip(late, "still served"))
	p.web.close()
	if _, err := late.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlived the last moment")
	}
}

// A proxy that was told to stop while an application waits for its tunnel carries it
// still, and then ends.
func TestDrainCarriesWhoWaitsForATunnel(t *testing.T) {
	ca := newTestCA(t, testDomain)
	app := serve(t, echo)
	db := startSidecar(t, ca, "db", func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", app, allow("web")
	})
	behind := db.inbound()
	arrived, pass := make(chan struct{}, 16), make(chan struct{})
	gate := serve(t, func(c *net.TCPConn) {
		arrived <- struct{}{}
		<-pass
		far, err := net.Dial("tcp", behind)
		if err != nil {
			t.Error(err)
			return
		}
		defer far.Close()
		go func() {
			_, _ = io.Copy(far, c) // ends with either
			_ = far.Close()
		}()
		_, _ = io.Copy(c, far) // as above
	})
	web := startSidecar(t, ca, "web", func(s *Snapshot) {
		s.Upstreams = []Upstream{upstreamOf("db", gate)}
		s.Limits.DrainTimeout = time.Minute
	})
	c := dialTCP(t, web.upstream("db"))
	<-arrived
	web.stop()
	eventually(t, "the upstream's listener closed", func() bool {
		web.mu.Lock()
		defer web.mu.Unlock()
		return len(web.upstreams) == 0
	})
	close(pass)
	must(t, roundTrip(c, "carried"))
	must(t, c.CloseWrite())
	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
	<-web.done
	if n := len(arrived); n != 0 {
		t.Errorf("%d more tunnels were made", n)
	}
}

// Before the proxies of a host stop, nobody is taken for an upstream any more, and who
// was taken before gets there.
func TestRestUpstreams(t *testing.T) {
	ca := newTestCA(t, testDomain)
	arrived, pass := make(chan struct{}, 16), make(chan struct{})
	gate := serve(t, func(c *net.TCPConn) { // no tunnel can be made as long as it says nothing
		arrived <- struct{}{}
		<-pass
		_ = c.Close()
	})
	web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", gate)} })
	addr := web.upstream("db")
	c := dialTCP(t, addr)
	<-arrived
	rested := make(chan struct{})
	go func() {
		defer close(rested)
		web.RestUpstreams(t.Context())
	}()
	eventually(t, "the upstream's listener closed", func() bool {
		web.mu.Lock()
		defer web.mu.Unlock()
		return len(web.upstreams) == 0
	})
	select {
	case <-rested:
		t.Error("it did not wait for who was taken")
	default:
	}
	was := web.Applied()
	web.update(func(*Snapshot) {})
	eventually(t, "another snapshot is in force", func() bool { return web.Applied() > was })
	if late, err := net.Dial("tcp", addr); err == nil {
		_ = late.Close()
		t.Error("somebody is taken still")
	}
	close(pass)
	<-rested
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("it was carried to nobody")
	}
}
