package connect

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// The instances of one upstream may be of other services, as redirects and
// failover have it: each shows its own identity, and no other is taken for it.
func TestInstancesOfOtherServices(t *testing.T) {
	ca := newTestCA(t, testDomain)
	open := func(s *Snapshot) { s.Default = catalog.ActionAllow }
	db, _ := startService(t, ca, "db", "", open)
	backup, _ := startService(t, ca, "backup", "", open)
	dbAddr, backupAddr := meshListener(t, db), meshListener(t, backup)
	gone := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer l.Close()
		return l.Addr().String()
	}()
	web, log := startService(t, ca, "web", "", nil)
	lead := func(es ...Endpoint) {
		snap := *web.Snapshot()
		snap.Upstreams = []Upstream{{Name: "db", Instances: es}}
		web.Update(&snap)
	}
	peer := func() string {
		t.Helper()
		c, err := web.Dial(t.Context(), "db")
		must(t, err)
		must(t, roundTrip(c, "hello"))
		must(t, c.Close())
		return c.(*Conn).Peer().Service
	}
	lead(Endpoint{ID: "b", Addr: backupAddr, Service: "backup"})
	if got := peer(); got != "backup" {
		t.Errorf("reached %s", got)
	}
	log.find(t, "reason=ok", "destination=backup", "upstream=db")
	lead(Endpoint{ID: "b", Addr: backupAddr, Service: "backup", Priority: 1}, Endpoint{ID: "d", Addr: dbAddr})
	for range 20 {
		if got := peer(); got != "db" {
			t.Fatalf("reached %s while the first choice is there", got)
		}
	}
	lead(Endpoint{ID: "b", Addr: backupAddr, Service: "backup", Priority: 1}, Endpoint{ID: "d", Addr: gone})
	for range 20 {
		if got := peer(); got != "backup" {
			t.Fatalf("reached %s", got)
		}
	}
	lead(Endpoint{ID: "b", Addr: dbAddr, Service: "backup"})
	if _, err := web.Dial(t.Context(), "db"); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Errorf("db was taken for backup: %v", err)
	}
}

func TestUpstreamLimit(t *testing.T) {
	ca := newTestCA(t, testDomain)
	db, _ := startService(t, ca, "db", "", func(s *Snapshot) { s.Default = catalog.ActionAllow })
	addr := meshListener(t, db)
	web, log := startService(t, ca, "web", "", func(s *Snapshot) {
		up := upstreamOf("db", addr)
		up.MaxConnections = 2
		s.Upstreams = []Upstream{up, upstreamOf("none", "127.0.0.1:1")}
		s.Upstreams[1].MaxConnections = 1
	})
	var open []net.Conn
	for range 2 {
		c, err := web.Dial(t.Context(), "db")
		must(t, err)
		open = append(open, c)
	}
	_, err := web.Dial(t.Context(), "db")
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Reason != ReasonLimit {
		t.Fatalf("%v", err)
	}
	log.find(t, "reason=limit", "destination=db")
	must(t, open[0].Close())
	c, err := web.Dial(t.Context(), "db")
	must(t, err)
	must(t, c.Close())
	must(t, open[1].Close())
	// What failed is not counted.
	for range 3 {
		if _, err := web.Dial(t.Context(), "none"); !errors.As(err, &refused) || refused.Reason != ReasonDialFailed {
			t.Fatalf("%v", err)
		}
	}
	if n := len(web.table.outbound); n != 0 {
		t.Errorf("%d upstreams are counted with nothing open", n)
	}
}

// TestConnectTimeoutIsOfAllOfAnAttempt: who waits for others that are at their
// handshakes with an upstream waits no longer than for the instance itself.
func TestConnectTimeoutIsOfAllOfAnAttempt(t *testing.T) {
	p := newPair(t, echo)
	p.web.update(func(s *Snapshot) { s.Upstreams[0].ConnectTimeout = 50 * time.Millisecond })
	hold := func(s *Service) {
		up := s.world.Load().upstreams["db"]
		for range cap(up.handshakes) {
			up.handshakes <- struct{}{}
		}
		t.Cleanup(func() {
			for range cap(up.handshakes) {
				<-up.handshakes
			}
		})
	}
	hold(p.web.svc)
	if err := tryOnce(p.web.upstream("db")); !isReset(err) {
		t.Errorf("%v, want a reset", err)
	}
	p.web.log.find(t, "reason=dial_failed", "within 50ms")
	web, _ := startService(t, p.ca, "web", "", func(s *Snapshot) {
		s.Upstreams = []Upstream{upstreamOf("db", p.db.inbound())}
		s.Upstreams[0].ConnectTimeout = 50 * time.Millisecond
	})
	hold(web)
	if _, err := web.Dial(t.Context(), "db"); err == nil || !strings.Contains(err.Error(), "within 50ms") {
		t.Errorf("%v", err)
	}
}

// TestTwoListenersOfOneDestination: each has its own instances and limits, and their
// connections outlive what makes them one again.
func TestTwoListenersOfOneDestination(t *testing.T) {
	ca := newTestCA(t, testDomain)
	instance := func(word string) string {
		return startSidecar(t, ca, "db", func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, speak(word)), allow("web")
		}).inbound()
	}
	a, b := upstreamOf("db", instance("a")), upstreamOf("db", instance("b"))
	b.MaxConnections = 1
	dir := t.TempDir()
	a.Listen, b.Listen = dir+"/a", dir+"/b"
	web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{a, b} })
	dial := func(at string) (c net.Conn) {
		t.Helper()
		eventually(t, "listener "+at, func() (ok bool) {
			var err error
			c, err = net.Dial("unix", at)
			return err == nil
		})
		t.Cleanup(func() { c.Close() })
		must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		return c
	}
	held := map[string]net.Conn{}
	for at, want := range map[string]string{a.Listen: "a", b.Listen: "b"} {
		held[want] = dial(at)
		if got := says(t, held[want]); got != want {
			t.Errorf("%s leads to %s", at, got)
		}
	}
	if got := says(t, dial(a.Listen)); got != "a" {
		t.Errorf("a second connection by the listener without a limit: %s", got)
	}
	if got := says(t, dial(b.Listen)); got != "refused" {
		t.Errorf("a second connection by the listener with a limit of one: %s", got)
	}
	web.log.find(t, "reason=limit", "destination=db ", "upstream=db@"+b.Listen)
	at := map[string]string{}
	for _, u := range web.Status().Upstreams {
		if u.Name != "db" || u.Listener == nil || len(u.Instances) != 1 {
			t.Fatalf("%+v", u)
		}
		at[u.Listener.Addr] = u.Instances[0].Addr
	}
	if at[a.Listen] != a.Instances[0].Addr || at[b.Listen] != b.Instances[0].Addr {
		t.Errorf("instances by listener: %v", at)
	}
	one := a
	one.Listen = b.Listen
	web.update(func(s *Snapshot) { s.Upstreams = []Upstream{a, one} })
	if got := says(t, dial(b.Listen)); got != "a" {
		t.Errorf("with the settings of the first it leads to %s", got)
	}
	web.Proxy.mu.Lock()
	if len(web.drains) != 0 {
		t.Errorf("connections are about to be cut: %v", web.drains)
	}
	web.Proxy.mu.Unlock()
	web.update(func(s *Snapshot) { s.Upstreams = nil })
	for word, c := range held {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s, whose upstream is gone: %v", word, err)
		}
	}
}

func TestUpstreamKeys(t *testing.T) {
	s := &Snapshot{Datacenter: "dc1", Upstreams: []Upstream{
		{Name: "db", Listen: "127.0.0.1:1"},
		{Name: "db", Listen: "127.0.0.1:2"},
		{Name: "db", Listen: "127.0.0.1:3", MaxConnections: 1},
		{Name: "db", Listen: "127.0.0.1:4", Instances: []Endpoint{{Addr: "b"}}},
		{Name: "db", MaxConnections: 1},
		{Name: "db", Datacenter: "dc2", Listen: "127.0.0.1:5"},
		{Name: "db", Datacenter: "dc2", Listen: "/run/db", ConnectTimeout: 1},
	}}
	want := []string{"db", "db", "db@127.0.0.1:3", "db@127.0.0.1:4", "db", "db@dc2", "db@dc2@/run/db"}
	if keys := s.upstreamKeys(); !slices.Equal(keys, want) {
		t.Errorf("keys %q, want %q", keys, want)
	}
}
