//go:build linux

package tunnel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTLS gives configurations of both ends, each verified by the other.
var testTLS = sync.OnceValues(func() (client, server *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"test"},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	base := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}},
		MinVersion:   tls.VersionTLS13, NextProtos: []string{ALPN}, SessionTicketsDisabled: true,
		RootCAs: pool, ClientCAs: pool, ServerName: "test", ClientAuth: tls.RequireAndVerifyClientCert,
		DynamicRecordSizingDisabled: true, CurvePreferences: []tls.CurveID{tls.X25519},
	}
	return base, base
})

// tcpPair is a loopback connection.
func tcpPair(t testing.TB) (dialled, accepted *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for {
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if a.RemoteAddr().String() != c.LocalAddr().String() { // somebody who looks for who had the port before
			a.Close()
			continue
		}
		t.Cleanup(func() { c.Close(); a.Close() })
		return c.(*net.TCPConn), a.(*net.TCPConn)
	}
}

// tlsPair is a connection after the handshake, over Wires.
func tlsPair(t testing.TB) (client, server *tls.Conn) {
	t.Helper()
	c, s := tcpPair(t)
	return tlsOver(t, c, s)
}

// tlsPairCut is the same; cut ends the transport with a bare FIN towards both
// sides. It holds the client's socket open, so that closing it tells nobody.
func tlsPairCut(t testing.TB) (client, server *tls.Conn, cut func()) {
	t.Helper()
	c, s := tcpPair(t)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	_ = raw.Control(func(p uintptr) { fd, err = syscall.Dup(int(p)) })
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	cut = func() {
		once.Do(func() { _ = syscall.Shutdown(fd, syscall.SHUT_RDWR); _ = syscall.Close(fd) })
	}
	t.Cleanup(cut)
	client, server = tlsOver(t, c, s)
	return client, server, cut
}

func tlsOver(t testing.TB, c, s net.Conn) (client, server *tls.Conn) {
	t.Helper()
	cc, sc := testTLS()
	client, server = tls.Client(NewWire(c), cc), tls.Server(NewWire(s), sc)
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	go func() { done <- server.HandshakeContext(ctx) }()
	if err := client.HandshakeContext(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return client, server
}

// ended collects the ends of flows.
type ended struct {
	flow *Flow
	end  End
}

// rig is a client driver and a server driver, joined by one tunnel, with an
// application behind the server.
type rig struct {
	t              testing.TB
	client, server Link
	clientEnds     chan ended
	serverEnds     chan ended
	flows          chan *Flow // of the server, as accepted
}

type rigOptions struct {
	cfg     Config
	backend func(net.Conn) // one connection of the application behind the server; closes it
	accept  Accept         // instead of backend
	metas   chan string
}

type driverPair struct {
	name           string
	client, server func(Config) (Driver, error)
}

func goroutines(c Config) (Driver, error) { return NewGoroutines(c) }

// eachDriver runs f for every combination of drivers.
func eachDriver(t *testing.T, f func(t *testing.T, d driverPair)) {
	for _, d := range driverPairs {
		t.Run(d.name, func(t *testing.T) { f(t, d) })
	}
}

func (d driverPair) start(t testing.TB, cfg Config) (client, server Driver) {
	t.Helper()
	client, err := d.client(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server, err = d.server(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func newRig(t testing.TB, d driverPair, o rigOptions) *rig {
	t.Helper()
	cd, sd := d.start(t, o.cfg)
	return newRigOn(t, cd, sd, o)
}

func newRigOn(t testing.TB, cd, sd Driver, o rigOptions) *rig {
	t.Helper()
	ct, st := tlsPair(t)
	return newRigOver(t, cd, sd, o, ct, st)
}

func newRigOver(t testing.TB, cd, sd Driver, o rigOptions, ct, st *tls.Conn) *rig {
	t.Helper()
	r := &rig{t: t, clientEnds: make(chan ended, 4096), serverEnds: make(chan ended, 4096), flows: make(chan *Flow, 4096)}
	accept := o.accept
	if accept == nil {
		addr := listen(t, o.backend)
		var nth atomic.Uint32
		accept = func(_ *Flow, meta []byte) Verdict {
			if o.metas != nil {
				o.metas <- string(meta)
			}
			if nth.Add(1)%2 == 0 {
				return Verdict{Dial: dialTo(addr)}
			}
			return Verdict{Addr: netip.MustParseAddrPort(addr)}
		}
	}
	inner := accept
	accept = func(f *Flow, meta []byte) Verdict {
		v := inner(f, meta)
		if v.Refuse == 0 {
			v.End = func(f *Flow, e End) { offer(r.serverEnds, ended{f, e}) }
			offer(r.flows, f)
		}
		return v
	}
	type made struct {
		l   Link
		err error
	}
	served := make(chan made, 1)
	go func() {
		l, err := sd.Server(context.Background(), st, accept)
		served <- made{l, err}
	}()
	l, err := cd.Client(context.Background(), ct, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := <-served
	if s.err != nil {
		t.Fatal(s.err)
	}
	r.client, r.server = l, s.l
	return r
}

// offer sends unless nobody will take it: benchmarks do not look at ends.
func offer[T any](c chan T, v T) {
	select {
	case c <- v:
	default:
	}
}

// listen serves each connection with f until the test ends.
func listen(t testing.TB, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			wg.Go(func() { f(c) })
		}
	})
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func dialTo(addr string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

// app opens a stream and gives the application's end of it.
func (r *rig) app(meta string) (*net.TCPConn, *Flow) {
	r.t.Helper()
	mine, theirs := tcpPair(r.t)
	f, err := r.client.Carry(theirs, []byte(meta), func(f *Flow, e End) {
		if e.App != nil {
			abort(e.App)
		}
		offer(r.clientEnds, ended{f, e})
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return mine, f
}

// wait takes one value, or fails after a while.
func wait[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// eventually polls until f holds.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// expectReset reads until the error, which must be a reset.
func expectReset(t testing.TB, c net.Conn, what string) int {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := io.Copy(io.Discard, c)
	if !isReset(err) {
		t.Fatalf("%s: %v after %d bytes, want a reset", what, err, n)
	}
	return int(n)
}

// echo sends back what comes, and ends when it ends.
func echo(c net.Conn) {
	_, _ = io.Copy(c, struct{ io.Reader }{c})
	c.Close()
}

// child runs one test of this binary as a process of its own, which ends when its input
// does.
func child(t testing.TB, test, env string) (in io.WriteCloser, out io.Reader, pid int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.timeout=0") //nolint:gosec // this program
	cmd.Env = append(os.Environ(), env)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if out, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	return in, out, cmd.Process.Pid
}
