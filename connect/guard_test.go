package connect

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/connect/identity"
)

// Sources take turns: one with a thousand handshakes waiting holds up another by one.
func TestTurnsAreFair(t *testing.T) {
	g := NewGuard(GuardConfig{Handshakes: 1})
	flood, calm := netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.2/32")
	until := time.Now().Add(20 * time.Second)
	must(t, g.turn(flood, until, nil))
	var done atomic.Int64
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if g.turn(flood, until, nil) == nil {
				done.Add(1)
				g.done()
			}
		})
	}
	eventually(t, "the flood to wait", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.waiting[flood] != nil && g.waiting[flood].Len() == 200
	})
	before := make(chan int64, 1)
	wg.Go(func() {
		if err := g.turn(calm, until, nil); err != nil {
			t.Error(err)
		}
		before <- done.Load()
		g.done()
	})
	eventually(t, "the calm one to wait", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.waiting[calm] != nil
	})
	g.done()
	if n := <-before; n > 2 {
		t.Errorf("%d of the flood came before", n)
	}
	wg.Wait()
	if err := g.turn(calm, until, nil); err != nil || g.free != 0 || len(g.waiting)+len(g.order) != 0 {
		t.Errorf("%v, %d free, %d waiting", err, g.free, len(g.waiting))
	}
	if err := g.turn(flood, time.Now(), nil); err == nil {
		t.Error("a turn that nobody gave")
	}
	g.done()
	if g.free != 1 {
		t.Errorf("%d turns are free, want 1", g.free)
	}
}

// TestP25Floods: silent connections, garbage and handshakes that are not finished, more
// of them than the gate takes, hold up no caller for long, and leave nothing behind.
func TestP25Floods(t *testing.T) {
	p := newPair(t, echo)
	addr := p.db.inbound()
	ctx, stop := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	var made atomic.Int64
	for i := range 8 {
		flood.Go(func() {
			var held []net.Conn
			defer func() {
				for _, c := range held {
					c.Close()
				}
			}()
			for ctx.Err() == nil {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					continue
				}
				made.Add(1)
				switch i % 4 {
				case 0: // says nothing
				case 1:
					_, _ = c.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
				case 2: // the beginning of a handshake
					_, _ = c.Write([]byte{0x16, 3, 1, 0, 200, 1})
				case 3:
					go func() { _, _ = reach2(c) }()
				}
				if held = append(held, c); len(held) > 300 {
					held[0].Close()
					held = held[1:]
				}
			}
		})
	}
	var worst time.Duration
	good := 0
	for begun := time.Now(); time.Since(begun) < 2*time.Second; {
		start := time.Now()
		if err := tryOnce(p.addr); err != nil {
			t.Errorf("a caller was refused under the flood: %v", err)
			break
		}
		good++
		worst = max(worst, time.Since(start))
	}
	stop()
	flood.Wait()
	t.Logf("%d hostile connections; %d callers served, the slowest in %s", made.Load(), good, worst)
	eventually(t, "the gate to be empty", func() bool {
		p.db.gate.mu.Lock()
		defer p.db.gate.mu.Unlock()
		return p.db.gate.n == 0
	})
	g := p.db.svc.guard
	eventually(t, "all turns to be free", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.order) == 0 && g.free == NewGuard(GuardConfig{}).free
	})
}

// reach2 shows no certificate.
func reach2(c net.Conn) (string, error) {
	b := make([]byte, 1)
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, err := tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Read(b)
	return string(b), err
}

// TestP34Descriptors: callers beyond what the mesh may have are refused, and the rest
// is there for others; those that are served are not disturbed.
func TestP34Descriptors(t *testing.T) {
	ca := newTestCA(t, testDomain)
	guard := NewGuard(GuardConfig{})
	guard.limit = 5 // a stream has one, and another connection must find two
	app := serve(t, echo)
	db := startSidecarWith(t, ca, "db", ProxyConfig{Guard: guard}, func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", app, allow("web")
	})
	web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", db.inbound())} })
	addr := web.upstream("db")
	held := dialTCP(t, addr)
	must(t, roundTrip(held, "one"))

	var open []net.Conn
	refused := 0
	for range 10 {
		c, err := net.Dial("tcp", addr) // which may hear of the reset already
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			err = roundTrip(c, "x")
		}
		if err != nil {
			refused++
			continue
		}
		open = append(open, c)
	}
	if refused == 0 || len(open) > 3 {
		t.Errorf("%d more are open and %d were refused", len(open), refused)
	}
	db.log.find(t, "reason=limit", "descriptors")
	must(t, roundTrip(held, "undisturbed"))
	for _, c := range open {
		c.Close()
	}
	eventually(t, "room again", func() bool { return tryOnce(addr) == nil })

	low := NewGuard(GuardConfig{})
	low.ceiling = 1 // every descriptor is too high
	kept := startSidecarWith(t, ca, "kept", ProxyConfig{Guard: low}, func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", app, allow("web")
	})
	if heard, _ := reach(kept.inbound(), "", ca.leaf(t, "web", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))); heard != "" {
		t.Error("a connection with a descriptor that is kept for others was served")
	}
	kept.log.find(t, "reason=limit", "descriptors")
	must(t, roundTrip(held, "still"))
	if g := NewGuard(GuardConfig{Descriptors: 1024}); g.ceiling != 896 || g.full() {
		t.Errorf("of 1024 descriptors the mesh may have %d", g.ceiling)
	}
	if g := NewGuard(GuardConfig{Descriptors: 40}); g.ceiling != 20 {
		t.Errorf("of 40 descriptors the mesh may have %d", g.ceiling)
	}
}

// What a stranger shows is refused before all of it is read, and named.
func TestLargeHandshakes(t *testing.T) {
	ca, portLog := newTestCA(t, testDomain), &logBook{}
	port := startPort(t, portLog)
	now := time.Now()
	good := ca.leaf(t, "web", now.Add(-time.Hour), now.Add(time.Hour))
	long := *good
	for len(long.Certificate) < 250 {
		long.Certificate = append(long.Certificate, ca.cert.Raw)
	}
	fat := *good
	leaf, err := x509.ParseCertificate(good.Certificate[0])
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), URIs: leaf.URIs,
		Subject: pkix.Name{Organization: []string{strings.Repeat("x", 100<<10)}},
	}, ca.cert, leaf.PublicKey, ca.key)
	must(t, err)
	fat.Certificate = [][]byte{der}
	ask := identity.ServiceID{TrustDomain: testDomain, Datacenter: testDC, Service: "db"}.SNI()
	for _, shared := range []bool{false, true} {
		reg := prometheus.NewRegistry()
		cfg := ProxyConfig{Metrics: NewMetrics(reg)}
		if shared {
			cfg.Port = port
		}
		db := startSidecarWith(t, ca, "db", cfg, func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, greeter("db")), allow("web")
			if shared {
				s.Inbound = port.cfg.Addr
			}
		})
		for name, cert := range map[string]*tls.Certificate{"100 kB of chain": &long, "100 kB of leaf": &fat} {
			if got, _ := reach(db.inbound(), ask, cert); got != "" {
				t.Errorf("shared %v: %s: heard %q", shared, name, got)
			}
		}
		db.log.find(t, "tls_failed", "too_large", "more than 65536 bytes")
		if n := sample(t, reg, "weft_proxy_handshake_failures_total", "inbound", string(identity.ReasonTooLarge)); n != 2 {
			t.Errorf("shared %v: %v refusals were counted, want 2", shared, n)
		}
		if got, _ := reach(db.inbound(), ask, good); got != "db" {
			t.Errorf("shared %v: a usual certificate is refused", shared)
		}
		db.close()
	}
	c := dialTCP(t, port.Addr())
	hello := "\x01\x00\x80\x00" + strings.Repeat("\x00", 32<<10) // a byte in each record
	_, _ = io.WriteString(c, "\x16\x03\x01\x00\x01"+strings.Join(strings.Split(hello, ""), "\x16\x03\x01\x00\x01"))
	portLog.find(t, "tls_failed", "too_large")
}
