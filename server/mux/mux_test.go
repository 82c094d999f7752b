package mux

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"server"}, NotAfter: time.Now().Add(time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, c, c, key.Public(), key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

func serverTLS(protos ...string) func() *tls.Config {
	return func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{certificate()}, NextProtos: protos, MinVersion: tls.VersionTLS13}
	}
}

type rig struct {
	*Mux
	log *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a mux whose protocols a and b answer with their name.
func start(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := &rig{log: &lockedBuffer{}}
	cfg := Config{
		Listener: must(net.Listen("tcp", "127.0.0.1:0")), TLS: serverTLS("a", "b", "nobody"), HandshakeTimeout: 10 * time.Second,
		Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Registerer: prometheus.NewRegistry(),
	}
	if change != nil {
		change(&cfg)
	}
	r.Mux = must(New(cfg))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, proto := range []string{"a", "b"} {
		ln := r.Listen(proto)
		if again := r.Listen(proto); again != ln || ln.Addr().String() != r.Addr().String() {
			t.Fatalf("%v, %v", again, ln)
		}
		wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				tc := c.(*tls.Conn)
				if got := tc.ConnectionState().NegotiatedProtocol; got != proto {
					t.Errorf("protocol %q came to %q", got, proto)
				}
				wg.Go(func() {
					defer tc.Close()
					_, _ = io.WriteString(tc, proto)
					_, _ = io.Copy(io.Discard, tc)
				})
			}
		})
	}
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return r
}

func (r *rig) dial(protos ...string) (*tls.Conn, error) {
	c, err := tls.Dial("tcp", r.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: protos})
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		_ = c.Close()
		return nil, err
	}
	if string(b) != c.ConnectionState().NegotiatedProtocol {
		return nil, fmt.Errorf("%q answers for %q", b, c.ConnectionState().NegotiatedProtocol)
	}
	return c, nil
}

func (r *rig) refusals(reason string) int {
	var row dto.Metric
	if err := r.metrics.refused.WithLabelValues(reason).Write(&row); err != nil {
		panic(err)
	}
	return int(row.GetCounter().GetValue())
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestProtocolsGoToTheirListeners(t *testing.T) {
	r := start(t, nil)
	for _, proto := range []string{"a", "b", "a"} {
		c, err := r.dial(proto)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if conns, handshakes := r.table.counts(); conns != 3 || handshakes != 0 {
		t.Errorf("%d connections, %d handshakes", conns, handshakes)
	}
	if c, err := r.dial("nobody"); err == nil {
		c.Close()
		t.Error("a protocol without a listener was served")
	}
	if c, err := r.dial("unknown"); err == nil {
		c.Close()
		t.Error("an unknown protocol was served")
	}
	eventually(t, "both refusals counted", func() bool { return r.refusals("no_listener") == 1 && r.refusals("handshake") == 1 })
}

func TestStrangers(t *testing.T) {
	r := start(t, func(c *Config) { c.HandshakeTimeout = 200 * time.Millisecond })
	silent := must(net.Dial("tcp", r.Addr().String()))
	defer silent.Close()
	plain := must(net.Dial("tcp", r.Addr().String()))
	defer plain.Close()
	_, _ = io.WriteString(plain, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	probe := must(net.Dial("tcp", r.Addr().String()))
	probe.Close()
	if _, err := io.Copy(io.Discard, silent); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	eventually(t, "counts", func() bool {
		return r.refusals("timeout") == 1 && r.refusals("not_tls") == 1 && r.refusals("closed") == 1
	})
	eventually(t, "an empty table", func() bool { n, h := r.table.counts(); return n == 0 && h == 0 })
	eventually(t, "their lines in the log", func() bool {
		out := r.log.String()
		return strings.Contains(out, "reason=timeout") && strings.Contains(out, "level=DEBUG")
	})
}

// Strangers who fill all places for handshakes push each other out, not a member.
func TestFloodOfSilence(t *testing.T) {
	r := start(t, func(c *Config) { c.MaxHandshakes, c.HandshakeTimeout = 4, time.Minute })
	for range 12 {
		c := must(net.Dial("tcp", r.Addr().String()))
		defer c.Close()
	}
	c, err := r.dial("a")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "evictions", func() bool { return r.refusals("evicted") == 9 })
	if conns, handshakes := r.table.counts(); conns != 4 || handshakes != 3 {
		t.Errorf("%d connections, %d handshakes", conns, handshakes)
	}
}

func TestEvictionTakesFromTheBusiest(t *testing.T) {
	tb := newTable(&Config{MaxHandshakes: 3, MaxConns: 100, MaxPerSource: 100, RatePerSource: 100})
	from := func(ip string) *addressed { return &addressed{ip: ip} }
	first := from("10.0.0.1")
	if _, reason := tb.add(first); reason != "" {
		t.Fatal(reason)
	}
	var noisy []*addressed
	for range 6 {
		c := from("10.0.0.2")
		noisy = append(noisy, c)
		if _, reason := tb.add(c); reason != "" {
			t.Fatal(reason)
		}
	}
	if first.closed {
		t.Error("the quiet source lost its place")
	}
	for i, c := range noisy {
		if c.closed != (i < 4) {
			t.Errorf("connection %d: closed %v", i, c.closed)
		}
	}
}

// TestCrowd: more hosts than there are places for handshakes come at once. Those that
// are shaking hands are let finish, unless they take long.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const places = 8
		tb := newTable(&Config{MaxHandshakes: places, MaxConns: 1000, MaxPerSource: 100, RatePerSource: 100})
		host := func(i int) *addressed { return &addressed{ip: fmt.Sprintf("10.0.1.%d", i)} }
		var first []*addressed
		for i := range places {
			c := host(i)
			first = append(first, c)
			if _, reason := tb.add(c); reason != "" {
				t.Fatal(reason)
			}
			time.Sleep(time.Millisecond)
		}
		for i := range 10 * places {
			if _, reason := tb.add(host(places + i)); reason != "too_many_handshakes" {
				t.Fatalf("host %d: %q", places+i, reason)
			}
		}
		for i, c := range first {
			if c.closed {
				t.Errorf("host %d was cut off by the others", i)
			}
		}
		time.Sleep(fairShake)
		if _, reason := tb.add(host(200)); reason != "" || !first[0].closed || first[1].closed {
			t.Errorf("the slowest is to make room: %q", reason)
		}
	})
}

// addressed is a connection of which only the address matters.
type addressed struct {
	net.Conn
	ip     string
	closed bool
}

func (a *addressed) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(a.ip), 1))
}

func (a *addressed) Close() error { a.closed = true; return nil }

func TestLimitsOfOneSource(t *testing.T) {
	tb := newTable(&Config{MaxHandshakes: 100, MaxConns: 5, MaxPerSource: 3, RatePerSource: 1})
	add := func(ip string) (*conn, string) { return tb.add(&addressed{ip: ip}) }
	var open []*conn
	for i, want := range []struct{ ip, reason string }{
		{"2001:db8::1", ""},
		{"2001:db8::2", ""},
		{"2001:db8::3", ""},
		{"2001:db8::4", "too_many_of_source"},
		{"2001:db8:0:1::4", ""},
		{"::ffff:10.0.0.1", ""},
		{"10.0.0.2", "too_many"},
	} {
		c, reason := add(want.ip)
		if reason != want.reason {
			t.Errorf("%d, %s: %q, want %q", i, want.ip, reason, want.reason)
		}
		if c != nil {
			open = append(open, c)
		}
	}
	tb.setPerSource(4)
	if c, reason := add("2001:db8::5"); reason != "too_many" || c != nil {
		t.Errorf("with a higher limit of the source: %q", reason)
	}
	for _, c := range open {
		c.Close()
		c.Close()
	}
	if n, h := tb.counts(); n != 0 || h != 0 || tb.idle != len(tb.sources) || len(tb.shakers) != 0 {
		t.Errorf("%d, %d, %d of %d idle", n, h, tb.idle, len(tb.sources))
	}
	c, reason := add("2001:db8::9")
	if reason != "" {
		t.Error(reason)
	}
	c.Close()
	if _, reason = add("2001:db8::9"); reason != "too_fast" {
		t.Errorf("a fifth at once: %q", reason)
	}
}

func TestIdleSourcesAreBounded(t *testing.T) {
	tb := newTable(&Config{MaxHandshakes: 1 << 20, MaxConns: 1 << 20, MaxPerSource: 1, RatePerSource: 1})
	keep, _ := tb.add(&addressed{ip: "192.0.2.1"})
	for i := range 3 * maxIdleSources {
		c, reason := tb.add(&addressed{ip: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()})
		if reason != "" {
			t.Fatal(reason)
		}
		c.Close()
		if len(tb.sources) > maxIdleSources+1 {
			t.Fatalf("%d sources are remembered", len(tb.sources))
		}
	}
	if tb.sources[keep.source.key] != keep.source {
		t.Error("a source with a connection was forgotten")
	}
}

func TestAdmitAndCloseIf(t *testing.T) {
	var mu sync.Mutex
	gone := map[string]bool{}
	isGone := func(cs tls.ConnectionState) bool {
		mu.Lock()
		defer mu.Unlock()
		return gone[cs.NegotiatedProtocol]
	}
	r := start(t, func(c *Config) {
		c.Admit = func(cs tls.ConnectionState) error {
			if isGone(cs) {
				return errors.New("it was revoked")
			}
			return nil
		}
	})
	a, b := must(r.dial("a")), must(r.dial("b"))
	defer a.Close()
	defer b.Close()
	mu.Lock()
	gone["a"] = true
	mu.Unlock()
	if n := r.CloseIf(isGone); n != 1 {
		t.Errorf("%d were closed", n)
	}
	if _, err := a.Read(make([]byte, 1)); err == nil {
		t.Error("a revoked connection lives")
	}
	if _, err := b.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if c, err := r.dial("a"); err == nil {
		c.Close()
		t.Error("a revoked peer came in")
	}
	eventually(t, "the refusal", func() bool { return r.refusals("not_admitted") == 1 })
}

// Revoked while the hands are shaken: one of the two sees it, always.
func TestCloseIfMissesNobody(t *testing.T) {
	var mu sync.Mutex
	revoked := false
	isGone := func(tls.ConnectionState) bool {
		mu.Lock()
		defer mu.Unlock()
		return revoked
	}
	r := start(t, func(c *Config) {
		c.Admit = func(cs tls.ConnectionState) error {
			if isGone(cs) {
				return errors.New("revoked")
			}
			return nil
		}
	})
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			c, err := r.dial("a")
			if err != nil {
				return
			}
			defer c.Close()
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("read something")
			} else if nt, ok := err.(net.Error); ok && nt.Timeout() {
				t.Error("a connection outlived the revocation")
			}
		})
	}
	eventually(t, "half of them", func() bool { n, _ := r.table.counts(); return n >= 20 })
	mu.Lock()
	revoked = true
	mu.Unlock()
	r.CloseIf(isGone)
	wg.Wait()
}

// A listener that nobody accepts from costs its connections the deadline, no more.
func TestNobodyAccepts(t *testing.T) {
	r := start(t, func(c *Config) { c.HandshakeTimeout = 300 * time.Millisecond })
	_ = r.Listen("nobody")
	if c, err := r.dial("nobody"); err == nil {
		c.Close()
		t.Error("somebody accepted")
	}
	eventually(t, "the refusal", func() bool { return r.refusals("no_listener") == 1 })
}

// flaky fails now and then, as a listener out of file descriptors does.
type flaky struct {
	net.Listener
	mu    sync.Mutex
	fails int
}

func (f *flaky) Accept() (net.Conn, error) {
	f.mu.Lock()
	n := f.fails
	f.fails--
	f.mu.Unlock()
	if n > 0 {
		return nil, errors.New("accept: too many open files")
	}
	return f.Listener.Accept()
}

func TestAcceptErrorsPass(t *testing.T) {
	r := start(t, func(c *Config) { c.Listener = &flaky{Listener: c.Listener, fails: 3} })
	c, err := r.dial("a")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestEndClosesEverything(t *testing.T) {
	cfg := Config{Listener: must(net.Listen("tcp", "127.0.0.1:0")), TLS: serverTLS("a")}
	m := must(New(cfg))
	ln := m.Listen("a")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := ln.Accept()
		accepted <- c
	}()
	c := must(tls.Dial("tcp", m.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"a"}}))
	defer c.Close()
	far := <-accepted
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlived the port")
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := m.Listen("late").Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	defer ln.Close()
	for name, cfg := range map[string]Config{
		"nothing": {}, "no TLS": {Listener: ln}, "negative": {Listener: ln, TLS: serverTLS("a"), MaxConns: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	reg := prometheus.NewRegistry()
	must(New(Config{Listener: ln, TLS: serverTLS("a"), Registerer: reg}))
	if _, err := New(Config{Listener: ln, TLS: serverTLS("a"), Registerer: reg}); err == nil {
		t.Error("metrics were registered twice")
	}
}

func TestNoise(t *testing.T) {
	r := start(t, func(c *Config) { c.RatePerSource = 1 })
	for range 60 {
		c := must(net.Dial("tcp", r.Addr().String()))
		defer c.Close()
	}
	eventually(t, "refusals", func() bool { return r.refusals("too_fast") >= 50 })
	if n := strings.Count(r.log.String(), "reason=too_fast"); n > 20 {
		t.Errorf("%d log lines for a flood", n)
	}
}
