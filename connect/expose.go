package connect

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Exposed is an HTTP path of the application that anybody may ask for, past the mesh
// and in plaintext: for health checks and scrapers that have no identity.
type Exposed struct {
	// Listen is the address for those who ask, "host:port". Paths may share one.
	Listen string
	// Path is the one that is let through, exactly as it is written.
	Path string
	// Local is where the application answers it, "host:port".
	Local string
	// HTTP2 speaks HTTP/2 without TLS to the application.
	HTTP2 bool `json:",omitempty"`
	// From are the addresses that may ask, as is loopback whenever one is named; others are
	// not served. Empty: anybody.
	From []string `json:",omitempty"`
}

// admits tells whether who asks from an address is served.
func (e Exposed) admits(from netip.Addr) bool {
	return len(e.From) == 0 || from.IsLoopback() || slices.Contains(e.From, from.String())
}

// What strangers may cost where paths are exposed.
const (
	maxExposedConns   = 256
	exposedHeader     = 16 << 10
	exposedHeaderTime = 5 * time.Second
	exposedIdle       = 30 * time.Second
	exposedAnswer     = time.Minute
)

// exposure serves the exposed paths of one address.
type exposure struct {
	*listener
	paths  atomic.Pointer[map[string]Exposed]
	conns  chan net.Conn
	closed chan struct{}
	open   atomic.Int64
	server *http.Server
	count  func(status int)
	once   sync.Once
}

// reconcileExposed opens and closes what is exposed. The caller holds p.mu.
func (p *Proxy) reconcileExposed(live context.Context, snap *Snapshot) {
	want := map[string]map[string]Exposed{}
	for _, e := range snap.Expose {
		if want[e.Listen] == nil {
			want[e.Listen] = map[string]Exposed{}
		}
		want[e.Listen][e.Path] = e
	}
	for addr, x := range p.exposed {
		if want[addr] == nil {
			p.unexpose(live, x)
			delete(p.exposed, addr)
		}
	}
	for addr, paths := range want {
		x := p.exposed[addr]
		if x == nil {
			x = p.newExposure(live, addr, snap.Service)
			p.exposed[addr] = x
		}
		x.paths.Store(&paths)
	}
}

func (p *Proxy) newExposure(live context.Context, addr string, service catalog.Name) *exposure {
	x := &exposure{conns: make(chan net.Conn), closed: make(chan struct{})}
	x.paths.Store(&map[string]Exposed{})
	x.count = func(status int) { p.svc.metrics.exposed.WithLabelValues(service, strconv.Itoa(status/100)+"xx").Inc() }
	x.listener = &listener{spec: spec{addr: addr}, owner: "exposed paths of " + service, log: p.log, sockets: p.sockets}
	x.serve = func(c net.Conn) { x.take(live, p.svc.guard, c) }
	x.server = &http.Server{
		Handler: x.handler(p.log), Protocols: new(http.Protocols), BaseContext: func(net.Listener) context.Context { return live },
		ReadHeaderTimeout: exposedHeaderTime, IdleTimeout: exposedIdle, WriteTimeout: exposedAnswer, ReadTimeout: exposedAnswer, MaxHeaderBytes: exposedHeader,
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	x.server.Protocols.SetHTTP1(true)
	x.server.Protocols.SetUnencryptedHTTP2(true)
	x.start(live)
	p.live.add()
	go func() {
		defer p.live.done()
		_ = x.server.Serve(x) // it ends when it is closed
	}()
	return x
}

// unexpose stops listening, and lets requests that run end within the drain timeout.
func (p *Proxy) unexpose(live context.Context, x *exposure) {
	x.stop()
	grace := p.grace()
	p.live.add()
	go func() {
		defer p.live.done()
		ctx, cancel := context.WithTimeout(live, grace)
		defer cancel()
		if x.server.Shutdown(ctx) != nil {
			_ = x.server.Close() // whoever is left has had the time
		}
	}()
}

// take hands a connection to the server, unless there are too many.
func (x *exposure) take(live context.Context, guard *Guard, c net.Conn) {
	w := newWire(c)
	counted := &exposedConn{Conn: c, x: x}
	if n := x.open.Add(1); n > maxExposedConns || guard.tooHigh(w) || !x.admits(c.RemoteAddr().String()) {
		x.open.Add(-1)
		w.abort()
		return
	}
	select {
	case x.conns <- counted:
	case <-x.closed:
		_ = counted.Close()
	case <-live.Done():
		_ = counted.Close()
	}
}

// admits tells whether an address may ask for anything here: others cannot take the
// places of those who may.
func (x *exposure) admits(remote string) bool {
	from := addrOf(remote)
	for _, e := range *x.paths.Load() {
		if e.admits(from) {
			return true
		}
	}
	return false
}

// addrOf is the address in "host:port"; the zero one is that of nobody.
func addrOf(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// exposedConn is counted until it is closed.
type exposedConn struct {
	net.Conn
	x    *exposure
	once sync.Once
}

// Close implements net.Conn.
func (c *exposedConn) Close() error {
	c.once.Do(func() { c.x.open.Add(-1) })
	return c.Conn.Close()
}

// Accept implements net.Listener for the server.
func (x *exposure) Accept() (net.Conn, error) {
	select {
	case c := <-x.conns:
		return c, nil
	case <-x.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener; the address is closed by stop.
func (x *exposure) Close() error {
	x.once.Do(func() { close(x.closed) })
	return nil
}

// Addr implements net.Listener.
func (x *exposure) Addr() net.Addr { return exposedAddr(x.addr) }

type exposedAddr string

// Network implements net.Addr.
func (exposedAddr) Network() string { return "tcp" }

// String implements net.Addr.
func (a exposedAddr) String() string { return string(a) }

// handler lets the exposed paths through, exactly as they are written, and nothing else.
func (x *exposure) handler(log *slog.Logger) http.Handler {
	target := func(r *http.Request) (Exposed, bool) {
		e, ok := (*x.paths.Load())[r.URL.EscapedPath()]
		return e, ok && e.admits(addrOf(r.RemoteAddr))
	}
	through := &httputil.ReverseProxy{
		Transport: newExposedTransport(), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Rewrite: func(r *httputil.ProxyRequest) {
			e, _ := target(r.In)
			r.Out.URL = &url.URL{Scheme: "http", Host: e.Local, Path: r.In.URL.Path, RawPath: r.In.URL.RawPath, RawQuery: r.In.URL.RawQuery}
			if e.HTTP2 {
				r.Out.URL.Scheme = schemeHTTP2
			}
			r.Out.Header.Del("X-Forwarded-Client-Cert") // nobody has shown one here
			r.SetXForwarded()
		},
		ModifyResponse: func(r *http.Response) error {
			x.count(r.StatusCode)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			log.Debug("the application did not answer at an exposed path", "path", r.URL.Path, "err", err)
			x.count(http.StatusBadGateway)
			http.Error(w, "the application does not answer", http.StatusBadGateway)
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := target(r); !ok || r.Method == http.MethodConnect || r.Header.Get("Upgrade") != "" {
			x.count(http.StatusNotFound)
			http.Error(w, "this path is not exposed", http.StatusNotFound)
			return
		}
		through.ServeHTTP(w, r)
	})
}

// schemeHTTP2 stands, between handler and transport, for http by HTTP/2.
const schemeHTTP2 = "h2c"

// exposedTransport asks the application, on a connection for each request: who checks
// is to learn whether a new one is taken.
type exposedTransport struct{ http1, http2 *http.Transport }

func newExposedTransport() *exposedTransport {
	dial := (&net.Dialer{Timeout: exposedHeaderTime}).DialContext
	t := &exposedTransport{
		http1: &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: exposedAnswer, DialContext: dial},
		http2: &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: exposedAnswer, DialContext: dial, Protocols: new(http.Protocols)},
	}
	t.http2.Protocols.SetUnencryptedHTTP2(true)
	return t
}

// RoundTrip implements http.RoundTripper.
func (t *exposedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != schemeHTTP2 {
		return t.http1.RoundTrip(r)
	}
	r = r.Clone(r.Context())
	r.URL.Scheme = "http"
	return t.http2.RoundTrip(r)
}
