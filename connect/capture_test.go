package connect

import (
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// capturing is a proxy of web to which a host redirects, as the test says where
// connections were going.
type capturing struct {
	*sidecar
	to atomic.Pointer[netip.AddrPort]
}

func startCapturing(t *testing.T, ca *testCA, change func(*Snapshot)) *capturing {
	t.Helper()
	c := &capturing{sidecar: startSidecar(t, ca, "web", nil)}
	c.capture.origin = func(conn net.Conn) (netip.AddrPort, error) {
		if to := c.to.Load(); to != nil {
			return *to, nil
		}
		return originalDst(conn)
	}
	c.update(func(s *Snapshot) {
		s.Capture = &Capture{}
		change(s)
	})
	return c
}

// dial makes a connection that was going to an address, or, where that is empty, one
// that nobody redirected. It is nil when it was reset before it could be looked at.
func (c *capturing) dial(t *testing.T, to string) net.Conn {
	t.Helper()
	c.to.Store(nil)
	if to != "" {
		at := netip.MustParseAddrPort(to)
		c.to.Store(&at)
	}
	addr := ""
	eventually(t, "the listener for redirected connections", func() bool {
		for _, l := range c.Status().Captured {
			if l.Listening && strings.HasPrefix(l.Addr, "127.") {
				addr = l.Addr
			}
		}
		return addr != ""
	})
	conn, err := net.Dial("tcp", addr)
	if err != nil && isReset(err) {
		return nil
	}
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

// says reads what the far end says first.
func says(t *testing.T, c net.Conn) string {
	t.Helper()
	if c == nil {
		return "refused"
	}
	b := make([]byte, 1)
	if _, err := c.Read(b); err != nil {
		return "refused"
	}
	return string(b)
}

func speak(word string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		_, _ = c.Write([]byte(word))
		_, _ = c.Read(make([]byte, 1))
	}
}

func TestRedirectedConnections(t *testing.T) {
	ca := newTestCA(t, testDomain)
	instance := func(word string) string {
		return startSidecar(t, ca, "db", func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, speak(word)), allow("web")
		}).inbound()
	}
	one, two := instance("1"), instance("2")
	outsider := serve(t, speak("o"))
	web := startCapturing(t, ca, func(s *Snapshot) {
		up := upstreamOf("db", one, two)
		up.Listen, up.Implicit, up.Virtual = "", true, []netip.Addr{netip.MustParseAddr("240.0.0.7"), netip.MustParseAddr("fd00::7")}
		up.Instances[1].Direct = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:5432")}
		s.Upstreams = []Upstream{up}
		s.Capture.Denied = []DeniedUpstream{{Name: "pay", Virtual: []netip.Addr{netip.MustParseAddr("240.0.0.8")}}}
	})
	for _, to := range []string{"240.0.0.7:80", "[fd00::7]:443"} {
		if got := says(t, web.dial(t, to)); got != "1" && got != "2" {
			t.Errorf("%s: %s", to, got)
		}
	}
	for range 6 {
		if got := says(t, web.dial(t, "10.0.0.2:5432")); got != "2" {
			t.Fatalf("one instance was asked for, and another answered: %s", got)
		}
	}
	if got := says(t, web.dial(t, "240.0.0.8:80")); got != "refused" {
		t.Errorf("pay: %s", got)
	}
	web.log.find(t, "refused", "reason=denied", "destination=pay", "rule=default", `hint="weft intention create web pay"`)
	if got := says(t, web.dial(t, "240.0.0.9:80")); got != "refused" {
		t.Errorf("an address of nobody: %s", got)
	}
	web.log.find(t, "reason=no_instance", "destination=240.0.0.9:80", "no service has the virtual address")

	open := web.dial(t, outsider)
	if got := says(t, open); got != "o" {
		t.Errorf("outside: %s", got)
	}
	st := web.Status()
	if len(st.Upstreams) != 1 || !st.Upstreams[0].Implicit || len(st.Upstreams[0].Virtual) != 2 {
		t.Errorf("%+v", st.Upstreams)
	}
	found := false
	for _, p := range st.Peers {
		found = found || p.Destination == outside && p.Open == 1
	}
	if !found {
		t.Errorf("the connection to the outside is not shown: %+v", st.Peers)
	}
	web.update(func(s *Snapshot) {
		mesh := *s.Capture
		mesh.MeshOnly = true
		s.Capture = &mesh
	})
	if got := says(t, open); got != "refused" {
		t.Errorf("the connection to the outside goes on: %s", got)
	}
	web.log.find(t, "reason=policy_changed", "destination="+outsider, "MeshDestinationsOnly")
	if got := says(t, web.dial(t, outsider)); got != "refused" {
		t.Errorf("outside: %s", got)
	}
	web.log.find(t, "reason=no_instance", "destination="+outsider, "MeshDestinationsOnly")
	if got := says(t, web.dial(t, "240.0.0.7:80")); got == "refused" {
		t.Error("db cannot be reached")
	}
	web.update(func(s *Snapshot) { s.Capture = nil })
	if c := web.Status().Captured; len(c) > 0 {
		t.Errorf("it still listens: %+v", c)
	}
}

func TestRedirectedToNowhere(t *testing.T) {
	web := startCapturing(t, newTestCA(t, testDomain), func(*Snapshot) {})
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := gone.Addr().String()
	must(t, gone.Close())
	if got := says(t, web.dial(t, addr)); got != "refused" {
		t.Error(got)
	}
	web.log.find(t, "reason=dial_failed", "destination="+addr, "connection refused")
	if got := says(t, web.dial(t, "")); got != "refused" {
		t.Error(got)
	}
	web.log.find(t, "reason=no_instance", "redirected it")
}

// A connection that the proxy made itself must not be passed on for ever, whichever of
// its ends is seen first.
func TestRedirectedLoop(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.1:40000")
	var g loopGuard
	g.takes(at)
	if !g.made(at) {
		t.Error("one that was taken before its other end was known is no loop")
	}
	g.gone(at)
	if !g.came(at) {
		t.Error("one that comes after its other end was known is no loop")
	}
	g.ended(at)
	if g.came(at) || len(g.makes)+len(g.taken) > 0 {
		t.Error("it is remembered")
	}
}

func TestHintOfDenied(t *testing.T) {
	d := catalog.Decision{Rule: catalog.Ref{Source: "web", Destination: "pay", Precedence: 9}}
	if got := hintFor("web", "pay", d); got != "weft intention create -replace -allow web pay" {
		t.Error(got)
	}
}
