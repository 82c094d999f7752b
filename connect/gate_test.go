package connect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

// A flood of silent connections, far beyond the limit of its source: who speaks
// is served, and the flood is gone when its deadline is over.
func TestSilentFlood(t *testing.T) {
	p := newPair(t, echo)
	p.db.gate.mu.Lock()
	p.db.gate.max, p.db.gate.perSource, p.db.gate.grace = 32, 16, 20*time.Millisecond
	p.db.gate.mu.Unlock()
	p.db.update(func(s *Snapshot) { s.Limits.HandshakeTimeout = 2 * time.Second })
	var flood []net.Conn
	for i := range 300 {
		c, err := net.Dial("tcp", p.db.inbound())
		must(t, err)
		flood = append(flood, c)
		if i%50 == 49 {
			must(t, tryOnce(p.addr))
		}
	}
	p.db.log.find(t, "reason=tls_failed", "made room")
	var wg sync.WaitGroup
	for _, c := range flood {
		wg.Go(func() {
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			_, err := c.Read(make([]byte, 1))
			var late net.Error
			if errors.As(err, &late) && late.Timeout() {
				t.Error("a silent connection outlived its deadline")
			}
			c.Close()
		})
	}
	wg.Wait()
	eventually(t, "gate empty", func() bool {
		p.db.gate.mu.Lock()
		defer p.db.gate.mu.Unlock()
		return p.db.gate.n == 0 && len(p.db.gate.sources) == 0
	})
	if n := strings.Count(p.db.log.String(), "connection refused"); n > 10 {
		t.Errorf("%d log lines for a flood of 300", n)
	}
}

type fakeConn struct {
	net.Conn
	remote net.Addr
	closed bool
}

func (c *fakeConn) Close() error         { c.closed = true; return nil }
func (c *fakeConn) RemoteAddr() net.Addr { return c.remote }

func TestGate(t *testing.T) {
	from := func(ip string, port int) *wire {
		return newWire(&fakeConn{remote: &net.TCPAddr{IP: net.ParseIP(ip), Port: port}})
	}
	closed := func(w *wire) bool { return w.Conn.(*fakeConn).closed }
	g := newGate(3, 2)
	a1, a2, a3 := from("10.0.0.1", 1), from("::ffff:10.0.0.1", 2), from("10.0.0.1", 3)
	t1, t2 := g.enter(a1), g.enter(a2)
	a1.spoke.Store(true)
	t3 := g.enter(a3)
	if t3 == nil || closed(a1) || !closed(a2) || !a2.evicted() {
		t.Error("the oldest silent connection of the source should have made room")
	}
	a3.spoke.Store(true)
	if g.enter(from("10.0.0.1", 4)) != nil {
		t.Error("a source whose connections all spoke got more than its share")
	}
	b1 := from("2001:db8::1", 1)
	t4 := g.enter(b1)
	c1 := from("10.0.0.9", 1)
	t5 := g.enter(c1)
	if t5 == nil || !closed(a1) || closed(b1) {
		t.Error("the oldest of the fullest source should have made room, though it spoke")
	}
	b2 := from("2001:db8::2", 1)
	t6 := g.enter(b2)
	c2 := from("10.0.0.9", 2)
	t7 := g.enter(c2)
	if t6 == nil || t7 == nil || g.n != 3 {
		t.Errorf("a full gate refused a source that has few: %d of 3 places", g.n)
	}
	for _, tk := range []*ticket{t1, t2, t3, t4, t5, t5, t6, t7} {
		tk.leave()
	}
	if g.n != 0 || len(g.sources) != 0 {
		t.Errorf("%d places taken, %d sources at the end", g.n, len(g.sources))
	}
	must(t, g.wait(t.Context()))
}

// Nobody of a full gate loses a place for the next one, from however many sources they are
// and whether or not one got through, but a peer that has been waited for.
func TestGateWaits(t *testing.T) {
	for _, sources := range []int{2, 5, 128} {
		t.Run(fmt.Sprint(sources, " sources"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { gateWaits(t, sources) })
		})
	}
}

func gateWaits(t *testing.T, sources int) {
	g := newGate(128, 128)
	port := 0
	var all []*wire
	var tickets []*ticket
	enter := func(source int) {
		port++
		w := newWire(&fakeConn{remote: &net.TCPAddr{IP: net.IPv4(10, 0, 0, byte(source)), Port: port}})
		w.spoke.Store(true)
		w.turns = &turnstile{g: NewGuard(GuardConfig{Handshakes: 1000})}
		all, tickets = append(all, w), append(tickets, g.enter(w))
	}
	waited := func() time.Duration {
		start := time.Now()
		must(t, g.wait(t.Context()))
		return time.Since(start)
	}
	for i := range g.max {
		enter(i % sources)
	}
	if err := g.wait(cancelled(t)); err == nil {
		t.Error("wait returned while the gate was full of those who have just come")
	}
	time.AfterFunc(time.Millisecond, tickets[0].leave)
	if d := waited(); d != time.Millisecond {
		t.Errorf("waited %s for a place that was free after a millisecond", d)
	}
	enter(0)
	for _, w := range all[1:] { // all but one of them wait for a turn to compute
		if w != all[7] {
			must(t, w.begin())
		}
	}
	if d := waited(); d != crowdGrace-time.Millisecond {
		t.Errorf("waited %s for a peer that stalls, want %s", d, crowdGrace-time.Millisecond)
	}
	enter(200)
	for i, w := range all {
		if w.evicted() != (i == 7) {
			t.Errorf("connection %d evicted: %v", i, w.evicted())
		}
	}
	for _, w := range all[1:] {
		w.end()
	}
	if d := waited(); d != crowdGrace-time.Millisecond {
		t.Errorf("waited %s for those who had to wait for us, want %s", d, crowdGrace-time.Millisecond)
	}
	for _, tk := range tickets {
		tk.leave()
	}
	if g.n != 0 || len(g.sources) != 0 {
		t.Errorf("%d places taken, %d sources at the end", g.n, len(g.sources))
	}
}

// Whoever holds all the places, from as many addresses as that takes, and says one byte
// in each, keeps out nobody who comes from another.
func TestFloodOfAFewSources(t *testing.T) {
	ca := newTestCA(t, testDomain)
	web := ca.leaf(t, "web", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	ask := identity.ServiceID{TrustDomain: testDomain, Datacenter: testDC, Service: "db"}.SNI()
	for _, shared := range []bool{false, true} {
		for sources := 2; sources <= 3; sources++ {
			t.Run(fmt.Sprintf("shared %v, %d sources", shared, sources), func(t *testing.T) {
				cfg := ProxyConfig{}
				if shared {
					cfg.Port = startPort(t, &logBook{})
				}
				db := startSidecarWith(t, ca, "db", cfg, func(s *Snapshot) {
					s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, greeter("db")), allow("web")
					if shared {
						s.Inbound = cfg.Port.cfg.Addr
					}
					s.Limits.HandshakeTimeout = time.Hour
				})
				g := db.gate
				if shared {
					g = cfg.Port.gate
				}
				g.mu.Lock()
				g.max, g.perSource, g.grace = 32, 16, 20*time.Millisecond
				g.mu.Unlock()
				addr := db.inbound()
				ctx, stop := context.WithCancel(t.Context())
				var flood sync.WaitGroup
				for i := range sources {
					flood.Go(func() { floodFrom(ctx, net.IPv4(127, 0, 0, byte(2+i)), addr) })
				}
				eventually(t, "the gate to be full", func() bool {
					g.mu.Lock()
					defer g.mu.Unlock()
					return g.n == g.max
				})
				for i := range 20 {
					got := ""
					for tries := 0; got != "db" && tries < 10; tries++ { // on a busy machine one may take longer than the grace
						got, _ = reach(addr, ask, web)
					}
					if got != "db" {
						t.Errorf("handshake %d of another address failed", i)
						break
					}
				}
				stop()
				flood.Wait()
			})
		}
	}
}

// floodFrom keeps connections open that have sent one byte, and comes again with each
// that is cut.
func floodFrom(ctx context.Context, ip net.IP, addr string) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: ip}}
	var all sync.WaitGroup
	for range 24 {
		all.Go(func() {
			for ctx.Err() == nil {
				c, err := d.DialContext(ctx, "tcp", addr)
				if err != nil {
					continue
				}
				stop := context.AfterFunc(ctx, func() { c.Close() })
				_, _ = c.Write([]byte{22})
				_, _ = c.Read(make([]byte, 1))
				stop()
				c.Close()
			}
		})
	}
	all.Wait()
}

// failing is a listener whose Accept fails a few times as for want of descriptors.
type failing struct {
	net.Listener
	left int
}

func (f *failing) Accept() (net.Conn, error) {
	if f.left > 0 {
		f.left--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return f.Listener.Accept()
}

func TestAcceptGoesOnAfterEMFILE(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	log := &logBook{}
	served := make(chan net.Conn)
	l := &listener{spec: spec{addr: "x"}, owner: "test", log: log.logger(), serve: func(c net.Conn) { served <- c }}
	done := make(chan struct{})
	go func() { defer close(done); l.accept(t.Context(), &failing{inner, 3}) }()
	c := dialTCP(t, inner.Addr().String())
	(<-served).Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	inner.Close()
	<-done
	if n := strings.Count(log.String(), "accept failed"); n != 1 {
		t.Errorf("%d lines for one spell of failure:\n%s", n, log)
	}
}

// What is wrong with a caller is told even when another thing was wrong a moment ago.
func TestOtherRefusalsAreNoRepeats(t *testing.T) {
	log, now := &logBook{}, time.Unix(1e9, 0)
	var j journal
	j.init(log.logger(), func() time.Time { return now })
	for _, err := range []error{
		&identity.VerifyError{Reason: identity.ReasonTrustDomain, Peer: "spiffe://a"},
		&identity.VerifyError{Reason: identity.ReasonTrustDomain, Peer: "spiffe://b"}, // a repeat
		&identity.VerifyError{Reason: identity.ReasonExpired},
		errors.New("tls: client didn't provide a certificate"),
	} {
		j.write(&line{reason: ReasonTLSFailed, destination: "db", addr: "10.0.0.1:1", err: err})
	}
	for _, rule := range []string{"default", "default", "web → db (precedence 9)"} {
		j.write(&line{reason: ReasonDenied, source: "web", destination: "db", addr: "10.0.0.1:1", rule: rule})
	}
	if n := strings.Count(log.String(), "\n"); n != 5 {
		t.Errorf("%d lines, want 5:\n%s", n, log)
	}
	if strings.Contains(log.String(), `source=""`) {
		t.Errorf("an empty source:\n%s", log)
	}
}

func TestRepeatedRefusalsAreCounted(t *testing.T) {
	log, now := &logBook{}, time.Unix(1e9, 0)
	var j journal
	j.init(log.logger(), func() time.Time { return now })
	refuse := func(source, addr string) {
		j.write(&line{reason: ReasonDenied, source: source, destination: "db", addr: addr, err: catalog.ErrDenied})
	}
	lines := func() int { return strings.Count(log.String(), "\n") }
	for port := range 100 {
		refuse("web", fmt.Sprintf("10.0.0.1:%d", port))
	}
	refuse("api", "10.0.0.1:1")
	if lines() != 2 {
		t.Fatalf("%d lines, want one of each source:\n%s", lines(), log)
	}
	now = now.Add(repeatEvery)
	refuse("web", "10.0.0.1:1")
	log.find(t, "source=web", "suppressed=99")
	for i := range 100_000 {
		refuse("", fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255))
	}
	if lines() > maxRepeaters+10 {
		t.Errorf("%d lines for a flood of sources", lines())
	}
	if len(j.repeats) > maxRepeaters+10 || len(j.failures()) != maxRecent {
		t.Errorf("%d sources and %d failures remembered", len(j.repeats), len(j.failures()))
	}
	// Connections that were served are never left out.
	before := lines()
	for range 5 {
		j.write(&line{reason: ReasonOK, source: "web", destination: "db"})
	}
	if lines() != before+5 {
		t.Error("lines of served connections are missing")
	}
}

// Who is refused again and again, and strangers however many, push nobody else's
// failures out of the status.
func TestEqualFailuresAreOne(t *testing.T) {
	now := time.Unix(1e9, 0)
	var j journal
	j.init(logNothing, func() time.Time { return now })
	refuse := func(reason Reason, source, addr string, err error) {
		now = now.Add(time.Second)
		j.write(&line{reason: reason, source: source, destination: "db", addr: addr, rule: "default", err: err})
	}
	refuse(ReasonDenied, "rare", "10.0.0.9:1", catalog.ErrDenied)
	for port := range 100 {
		refuse(ReasonDenied, "web", fmt.Sprintf("10.0.0.1:%d", port), catalog.ErrDenied)
	}
	for _, detail := range []string{"it asks for a", "it asks for b"} { // as a scanner does
		refuse(ReasonTLSFailed, "", "10.0.0.2:1", &identity.VerifyError{Reason: identity.ReasonWrongService, Detail: detail})
	}
	for _, text := range []string{"one thing", "another thing"} {
		refuse(ReasonDialFailed, "web", "10.0.0.1:1", errors.New(text))
	}
	var told []string
	for _, e := range j.failures() {
		told = append(told, fmt.Sprintf("%s %s %s %d", e.Reason, e.Source, e.Addr, e.Count))
	}
	want := []string{
		"denied rare 10.0.0.9:1 1", "denied web 10.0.0.1:99 100", "tls_failed  10.0.0.2:1 2",
		"dial_failed web 10.0.0.1:1 1", "dial_failed web 10.0.0.1:1 1",
	}
	if !slices.Equal(told, want) {
		t.Errorf("%q, want %q", told, want)
	}
	if e := j.failures()[1]; !e.Time.Equal(time.Unix(1e9+101, 0)) {
		t.Errorf("the time of the last is %s", e.Time)
	}
	for i := range 1000 {
		refuse(ReasonTLSFailed, "", fmt.Sprintf("10.1.%d.%d:1", i>>8, i&255), io.EOF)
	}
	if all := j.failures(); len(all) != maxRecent || all[0].Source != "rare" || all[1].Source != "web" {
		t.Errorf("strangers pushed out the others: %+v", all)
	}
	for i := range maxRecent {
		refuse(ReasonDenied, fmt.Sprintf("s%d", i), "10.0.0.3:1", catalog.ErrDenied)
	}
	if all := j.failures(); len(all) != maxRecent || all[maxRecent-1].Source != fmt.Sprintf("s%d", maxRecent-1) {
		t.Errorf("the last are not there: %+v", all)
	}
}

// TestHealthCheckOfTheListener: a check that connects and closes warns nobody.
func TestHealthCheckOfTheListener(t *testing.T) {
	for name, end := range map[string]func(*net.TCPConn) error{
		"in order": (*net.TCPConn).Close,
		"reset":    func(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) },
	} {
		t.Run(name, func(t *testing.T) {
			ca := newTestCA(t, testDomain)
			db := startSidecar(t, ca, "db", func(s *Snapshot) { s.Inbound, s.Local = "127.0.0.1:0", "127.0.0.1:1" })
			must(t, end(dialTCP(t, db.inbound())))
			db.log.find(t, "level=DEBUG", "reason=client_closed", "destination=db")
			if errs := db.Status().Errors; len(errs) != 0 {
				t.Errorf("remembered as a failure: %+v", errs)
			}
			// One that says something and then goes is another matter.
			c := dialTCP(t, db.inbound())
			_, err := c.Write([]byte{22})
			must(t, err)
			must(t, c.CloseWrite())
			db.log.find(t, "level=WARN", "reason=tls_failed")
		})
	}
}
