package connect

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
	"github.com/weftmesh/weft/connect/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testDomain = "11111111-2222-3333-4444-555555555555.consul"
	testDC     = "dc1"
)

// testCA is a certificate authority of a few lines.
type testCA struct {
	domain string
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	pem    string

	mu   sync.Mutex
	ttl  time.Duration
	now  func() time.Time // time.Now when nil
	fail error
	n    int64
}

func newTestCA(t testing.TB, domain string) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "test root " + serial.String()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: domain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &testCA{
		domain: domain, key: key, cert: cert, ttl: time.Hour,
		pem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
	}
}

// Sign implements Signer.
func (ca *testCA) Sign(_ context.Context, der []byte) (identity.Chain, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.n++
	if ca.fail != nil {
		return identity.Chain{}, ca.fail
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return identity.Chain{}, err
	}
	now := time.Now()
	if ca.now != nil {
		now = ca.now()
	}
	return ca.issue(csr.PublicKey, csr.URIs[0], now.Add(-time.Minute), now.Add(ca.ttl))
}

func (ca *testCA) issue(pub crypto.PublicKey, id *url.URL, from, to time.Time) (identity.Chain, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		return identity.Chain{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, NotBefore: from, NotAfter: to, URIs: []*url.URL{id},
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	leaf, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, pub, ca.key)
	if err != nil {
		return identity.Chain{}, err
	}
	return identity.ParseChain(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}))
}

func (ca *testCA) set(f func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	f()
}

// leaf makes a key and certificate for service, for clients that are no Service.
func (ca *testCA) leaf(t testing.TB, service string, from, to time.Time) *tls.Certificate {
	t.Helper()
	key, err := identity.NewKey()
	must(t, err)
	id := identity.ServiceID{TrustDomain: ca.domain, Datacenter: testDC, Service: service}
	chain, err := ca.issue(key.Public(), id.URI(), from, to)
	must(t, err)
	return &tls.Certificate{Certificate: chain.DER, PrivateKey: key}
}

var logNothing = slog.New(slog.DiscardHandler)

// tlsState is that of a connection whose details do not matter.
var tlsState tls.ConnectionState

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok, for what no channel tells.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// logBook keeps log lines for tests to look at.
type logBook struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// find waits for a line that has all parts.
func (b *logBook) find(t testing.TB, parts ...string) string {
	t.Helper()
	var found string
	deadline := time.Now().Add(10 * time.Second)
	for found == "" {
		for line := range strings.Lines(b.String()) {
			ok := true
			for _, p := range parts {
				ok = ok && strings.Contains(line, p)
			}
			if ok {
				found = line
			}
		}
		if found == "" {
			if time.Now().After(deadline) {
				t.Fatalf("no log line with %q in:\n%s", parts, b)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	return found
}

func (b *logBook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// sidecar is a running Proxy whose snapshot the test changes.
type sidecar struct {
	*Proxy
	t    testing.TB
	src  catalog.Latest[*Snapshot]
	snap Snapshot
	log  *logBook
	stop context.CancelFunc
	done chan struct{}
}

func allow(sources ...string) catalog.Intentions {
	var in catalog.Intentions
	for _, s := range sources {
		in = append(in, &catalog.Intention{SourceName: s, DestinationName: catalog.Wildcard, Action: catalog.ActionAllow})
	}
	return in
}

// testDriver, where it is not nil, carries the connections of all sidecars.
var testDriver tunnel.Driver

// testShortCut, where it is not nil, is that of all sidecars.
var testShortCut *ShortCut

// startSidecar runs a proxy of service and waits until it serves.
func startSidecar(t testing.TB, ca *testCA, service string, change func(*Snapshot)) *sidecar {
	t.Helper()
	return startSidecarWith(t, ca, service, ProxyConfig{}, change)
}

func startSidecarWith(t testing.TB, ca *testCA, service string, cfg ProxyConfig, change func(*Snapshot)) *sidecar {
	t.Helper()
	s := &sidecar{t: t, log: &logBook{}, done: make(chan struct{}), snap: Snapshot{
		Service: service, Datacenter: testDC, TrustDomain: testDomain,
		Roots: []string{ca.pem}, Default: catalog.ActionDeny,
		Limits: Limits{DrainTimeout: 100 * time.Millisecond},
	}}
	cfg.ID, cfg.Logger = service+"-sidecar-proxy", s.log.logger()
	if cfg.Signer == nil {
		cfg.Signer = ca
	}
	if cfg.ShortCut == nil {
		cfg.ShortCut = testShortCut
	}
	p, err := NewProxy(cfg)
	must(t, err)
	s.Proxy = p
	p.driver = testDriver
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() {
		defer close(s.done)
		if err := p.Run(ctx, &s.src); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	t.Cleanup(s.close)
	s.update(change)
	eventually(t, service+" ready", func() bool { return p.Status().Ready })
	return s
}

func (s *sidecar) close() {
	s.stop()
	<-s.done
}

// end begins the end of the proxy, and waits until it takes nothing more.
func (s *sidecar) end() {
	s.t.Helper()
	s.stop()
	eventually(s.t, "the listeners closed", func() bool {
		st := s.Status()
		return st.Inbound == nil && !slices.ContainsFunc(st.Upstreams, func(u UpstreamStatus) bool { return u.Listener != nil })
	})
}

// update publishes a changed snapshot and waits until it is enforced.
func (s *sidecar) update(change func(*Snapshot)) {
	s.t.Helper()
	s.snap.Index++
	if change != nil {
		change(&s.snap)
	}
	snap := s.snap
	s.src.Set(snap.Index, &snap)
	eventually(s.t, "snapshot applied", func() bool { return s.Applied() == snap.Index })
}

// inbound is the address of the mTLS listener.
func (s *sidecar) inbound() string {
	s.t.Helper()
	var addr string
	eventually(s.t, "inbound listener", func() bool {
		in := s.Status().Inbound
		if in == nil || !in.Listening {
			return false
		}
		addr = in.Addr
		return true
	})
	return addr
}

// upstream is the address of the listener of an upstream.
func (s *sidecar) upstream(name string) string {
	s.t.Helper()
	var addr string
	eventually(s.t, "listener of upstream "+name, func() bool {
		for _, u := range s.Status().Upstreams {
			if u.Name == name && u.Listener != nil && u.Listener.Listening {
				addr = u.Listener.Addr
				return true
			}
		}
		return false
	})
	return addr
}

// serve runs handle for every connection to a loopback address until the test ends.
func serve(t testing.TB, handle func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

func echo(c *net.TCPConn) {
	// The small buffer keeps measurements of memory about the proxies.
	if _, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4<<10)); err == nil {
		c.CloseWrite()
	}
}

// pair is web → db: an echo application behind db, and web's loopback listener.
type pair struct {
	ca      *testCA
	web, db *sidecar
	addr    string
}

func newPair(t testing.TB, handle func(*net.TCPConn)) *pair {
	t.Helper()
	ca := newTestCA(t, testDomain)
	app := serve(t, handle)
	db := startSidecar(t, ca, "db", func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", app, allow("web")
	})
	web := startSidecar(t, ca, "web", func(s *Snapshot) {
		s.Upstreams = []Upstream{upstreamOf("db", db.inbound())}
	})
	return &pair{ca: ca, web: web, db: db, addr: web.upstream("db")}
}

func upstreamOf(name string, addrs ...string) Upstream {
	u := Upstream{Name: name, Listen: "127.0.0.1:0"}
	for _, a := range addrs {
		u.Instances = append(u.Instances, Endpoint{ID: name + "@" + a, Addr: a, Status: catalog.StatusPassing})
	}
	return u
}

func dialTCP(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return c.(*net.TCPConn)
}

// roundTrip sends text and wants it back.
func roundTrip(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != text {
		return errors.New("other bytes came back")
	}
	return nil
}

// tryOnce makes a connection for one round trip; refusals may come at any step.
func tryOnce(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	return roundTrip(c, "x")
}

// times is how often a randomised test repeats: seldom in make test, often when
// a promise is tried at its full count.
func times(short, long int) int {
	if os.Getenv("WEFT_PROMISE") == "full" {
		return long
	}
	return short
}

func cancelled(t testing.TB) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// isReset tells whether err says that the far end reset the connection or had gone.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF)
}
