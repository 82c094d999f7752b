package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/connect/identity"
)

// startPort serves a shared port until the test ends.
func startPort(t *testing.T, log *logBook) *Port {
	t.Helper()
	return startPortWith(t, log, AccessLog{})
}

func startPortWith(t *testing.T, log *logBook, access AccessLog) *Port {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := ln.Addr().String()
	must(t, ln.Close())
	p, err := NewPort(PortConfig{Addr: addr, Logger: log.logger(), AccessLog: access})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, "the mesh port to listen", func() bool { return p.Addr() != "" })
	return p
}

// Without an access log the mesh port writes none of its refusals, and shows them still.
func TestMeshPortWithoutAccessLog(t *testing.T) {
	for _, off := range []bool{false, true} {
		log := &logBook{}
		port := startPortWith(t, log, AccessLog{Off: off})
		c := dialTCP(t, port.Addr())
		_, err := io.WriteString(c, "no TLS")
		must(t, err)
		eventually(t, "the refusal to be known", func() bool {
			port.journal.queue.mu.Lock()
			defer port.journal.queue.mu.Unlock()
			return len(port.journal.failures()) > 0 && !port.journal.queue.writing
		})
		if wrote := strings.Contains(log.String(), "connection refused"); wrote == off {
			t.Errorf("off is %v, and the refusal is written: %v", off, wrote)
		}
	}
}

func greeter(name string) func(*net.TCPConn) {
	return func(c *net.TCPConn) { _, _ = io.WriteString(c, name); echo(c) }
}

func heard(addr string) (string, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 2)
	_, err = io.ReadFull(c, b)
	return string(b), err
}

// Services of a host share one port: each caller reaches the one it asks for, tunnels
// included, and intentions are those of each.
func TestMeshPort(t *testing.T) {
	ca, log := newTestCA(t, testDomain), &logBook{}
	port := startPort(t, log)
	names := []string{"s0", "s1", "s2"}
	for i, n := range names {
		startSidecarWith(t, ca, n, ProxyConfig{Port: port}, func(s *Snapshot) {
			s.Inbound, s.Local = port.cfg.Addr, serve(t, greeter(n))
			s.Intentions = allow("web")
			if i == 2 {
				s.Intentions = allow("nobody")
			}
		})
	}
	web := startSidecar(t, ca, "web", func(s *Snapshot) {
		for _, n := range names {
			s.Upstreams = append(s.Upstreams, upstreamOf(n, port.Addr()))
		}
	})
	for range 5 {
		for i, n := range names {
			got, err := heard(web.upstream(n))
			if i == 2 && err == nil {
				t.Fatalf("%s let web in", n)
			}
			if i != 2 && (err != nil || got != n) {
				t.Fatalf("asked for %s and heard %q, %v", n, got, err)
			}
		}
	}
}

// TestP27Matrix: whatever server name is asked for, with whatever certificate, only a
// caller that is allowed reaches only the service that it asks for: on a port of the
// service and on a shared one.
func TestP27Matrix(t *testing.T) {
	ca, foreign, log := newTestCA(t, testDomain), newTestCA(t, "99999999-2222-3333-4444-555555555555.consul"), &logBook{}
	liar := newTestCA(t, testDomain) // another authority that claims this trust domain
	port := startPort(t, log)
	own := map[string]string{}
	for _, n := range []string{"aa", "bb"} {
		for _, shared := range []bool{true, false} {
			cfg := ProxyConfig{}
			if shared {
				cfg.Port = port
			}
			s := startSidecarWith(t, ca, n, cfg, func(s *Snapshot) {
				s.Inbound, s.Local = "127.0.0.1:0", serve(t, greeter(n))
				if shared {
					s.Inbound = port.cfg.Addr
				}
				s.Intentions = allow("web")
			})
			if !shared {
				own[n] = s.inbound()
			}
		}
	}
	sni := func(n string) string {
		return identity.ServiceID{TrustDomain: testDomain, Datacenter: testDC, Service: n}.SNI()
	}
	now := time.Now()
	early, late := now.Add(-time.Hour), now.Add(time.Hour)
	certs := map[string]struct {
		cert *tls.Certificate
		ok   bool
	}{
		"web":     {ca.leaf(t, "web", early, late), true},
		"evil":    {ca.leaf(t, "evil", early, late), false},
		"expired": {ca.leaf(t, "web", early, now.Add(-time.Minute)), false},
		"foreign": {foreign.leaf(t, "web", early, late), false},
		"liar":    {liar.leaf(t, "web", early, late), false},
		"the CA":  {&tls.Certificate{Certificate: [][]byte{ca.cert.Raw}, PrivateKey: ca.key}, false},
		"none":    {nil, false},
	}
	asks := map[string]string{ // server name: who may answer on the shared port
		sni("aa"): "aa", sni("bb"): "bb", strings.ToUpper(sni("aa")): "aa", "v1." + sni("bb"): "bb", "a.b." + sni("bb"): "",
		"": "", "aa": "", "localhost": "", sni("web"): "", sni("nobody"): "", "x" + sni("aa"): "", sni("aa") + ".evil.com": "",
		strings.Replace(sni("aa"), testDomain, foreign.domain, 1): "",
	}
	for name, c := range certs {
		for ask, who := range asks {
			for where, addr := range map[string]string{"shared": port.Addr(), "aa": own["aa"], "bb": own["bb"]} {
				got, shown := reach(addr, ask, c.cert)
				want := who
				if where != "shared" {
					want = where
					// Names of the mesh's own form that mean another service are refused.
					if strings.HasSuffix(strings.ToLower(ask), ".internal."+testDomain) && who != where && !strings.HasSuffix(strings.ToLower(ask), "."+sni(where)) {
						want = ""
					}
				}
				if !c.ok {
					want = ""
				}
				if got != want {
					t.Errorf("certificate %s asks %s for %q: heard %q, want %q", name, where, ask, got, want)
				}
				if got != "" && shown != got {
					t.Errorf("certificate %s asks %s for %q: %s answered with the certificate of %s", name, where, ask, got, shown)
				}
			}
		}
	}
}

// TestP27SplitHello: a first message that comes byte by byte, or in many records, asks
// for the same service as one that comes whole, and opens nothing else.
func TestP27SplitHello(t *testing.T) {
	ca, log := newTestCA(t, testDomain), &logBook{}
	port := startPort(t, log)
	for _, n := range []string{"aa", "bb"} {
		startSidecarWith(t, ca, n, ProxyConfig{Port: port}, func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions = port.cfg.Addr, serve(t, greeter(n)), allow("web")
		})
	}
	sni := func(n string) string {
		return identity.ServiceID{TrustDomain: testDomain, Datacenter: testDC, Service: n}.SNI()
	}
	web := ca.leaf(t, "web", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	evil := ca.leaf(t, "evil", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	for _, s := range []split{{segment: 1}, {segment: 7}, {record: 1}, {record: 50}, {record: 3, segment: 2}} {
		for _, n := range []string{"aa", "bb"} {
			if got, shown := reachBy(s.over, port.Addr(), sni(n), web); got != n || shown != n {
				t.Errorf("%+v: asked for %s, heard %q from %q", s, n, got, shown)
			}
		}
		if got, _ := reachBy(s.over, port.Addr(), sni("aa"), evil); got != "" {
			t.Errorf("%+v: a caller that is not allowed heard %q", s, got)
		}
		if got, _ := reachBy(s.over, port.Addr(), sni("nobody"), web); got != "" {
			t.Errorf("%+v: an unknown name was answered: %q", s, got)
		}
	}
}

// split sends what is written in pieces: the first message in records of so many bytes
// each, all of it in segments of so many.
type split struct {
	record, segment int

	net.Conn
	begun bool
}

func (s split) over(c net.Conn) net.Conn {
	return &split{record: s.record, segment: s.segment, Conn: c}
}

// Write implements net.Conn.
func (s *split) Write(b []byte) (int, error) {
	out := b
	if !s.begun && s.record > 0 {
		out = nil
		for body := range slices.Chunk(b[5:], s.record) {
			out = append(append(out, b[0], b[1], b[2], byte(len(body)>>8), byte(len(body))), body...)
		}
	}
	if s.begun = true; s.segment == 0 {
		s.segment = len(out)
	}
	for piece := range slices.Chunk(out, s.segment) {
		if _, err := s.Conn.Write(piece); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// reach speaks TLS as a stranger would, and gives what it heard and from whom.
func reach(addr, ask string, cert *tls.Certificate) (heard, shown string) {
	return reachBy(func(c net.Conn) net.Conn { return c }, addr, ask, cert)
}

func reachBy(over func(net.Conn) net.Conn, addr, ask string, cert *tls.Certificate) (heard, shown string) {
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		return "", ""
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	cfg := &tls.Config{
		ServerName: ask, InsecureSkipVerify: true,
		VerifyPeerCertificate: func(der [][]byte, _ [][]*x509.Certificate) error {
			c, err := x509.ParseCertificate(der[0])
			if err == nil {
				shown = c.URIs[0].Path[strings.LastIndex(c.URIs[0].Path, "/")+1:]
			}
			return err
		},
	}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	b := make([]byte, 2)
	if _, err := io.ReadFull(tls.Client(over(raw), cfg), b); err != nil {
		return "", shown
	}
	return string(b), shown
}

// What is no handshake gets no answer, and disturbs nobody.
func TestMeshPortRefuses(t *testing.T) {
	ca, log := newTestCA(t, testDomain), &logBook{}
	port := startPort(t, log)
	db := startSidecarWith(t, ca, "db", ProxyConfig{Port: port}, func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = port.cfg.Addr, serve(t, echo), allow("web")
	})
	web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", port.Addr())} })
	must(t, tryOnce(web.upstream("db")))
	for name, say := range map[string]string{
		"plaintext": "GET / HTTP/1.1\r\nHost: db\r\n\r\n", "zeros": strings.Repeat("\x00", 4096),
		"a huge record": "\x16\x03\x01\xff\xff" + strings.Repeat("a", 70000),
		"many records":  strings.Repeat("\x16\x03\x01\x00\x01\x01", 40000), "an alert": "\x15\x03\x03\x00\x02\x02\x28",
	} {
		c, err := net.Dial("tcp", port.Addr())
		must(t, err)
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, say)
		if b, err := io.ReadAll(c); len(b) > 0 || (err != nil && !isReset(err)) {
			t.Errorf("%s: answered %q, %v", name, b, err)
		}
		c.Close()
	}
	if got, _ := reach(port.Addr(), "db", nil); got != "" {
		t.Errorf("an unknown name was answered: %q", got)
	}
	log.find(t, "tls_failed", `asks for \"db\"`)
	if in := db.Status().Inbound; in == nil || !slices.ContainsFunc(in.Refused, func(e ErrorStatus) bool { return strings.Contains(e.Error, `asks for "db"`) }) {
		t.Errorf("the status of a service that shares the port does not know: %+v", in)
	}
	must(t, tryOnce(web.upstream("db")))
}

// A proxy leaves the port when it gets one of its own, and when it ends.
func TestMeshPortIsLeft(t *testing.T) {
	ca, log := newTestCA(t, testDomain), &logBook{}
	port := startPort(t, log)
	db := startSidecarWith(t, ca, "db", ProxyConfig{Port: port}, func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = port.cfg.Addr, serve(t, echo), allow("web")
	})
	if in := db.Status().Inbound; in == nil || !in.Listening || !strings.Contains(in.Shared, "db.default") {
		t.Fatalf("status: %+v", in)
	}
	db.update(func(s *Snapshot) { s.Inbound = "127.0.0.1:0" })
	if db.inbound() == port.Addr() || len(port.takers) != 0 {
		t.Error("it is on the shared port still")
	}
	db.update(func(s *Snapshot) { s.Inbound = port.cfg.Addr })
	db.close()
	port.mu.Lock()
	defer port.mu.Unlock()
	if n := len(port.takers) + len(port.proxies); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}
