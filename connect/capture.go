package connect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/tunnel"
)

// Capture is the listener for connections of the application that were on their way
// elsewhere, and that rules of the host redirected here. Where they were going says
// which upstream they are for.
type Capture struct {
	// Port is that of the listener, on the loopback addresses.
	Port int
	// MeshOnly refuses destinations that are no upstream.
	MeshOnly bool
	// Denied are services that Service may not reach, so that a refusal can name them.
	Denied []DeniedUpstream `json:",omitempty"`
}

// DeniedUpstream is a service that intentions keep from being an upstream.
type DeniedUpstream struct {
	Name    catalog.Name
	Virtual []netip.Addr
	Rule    catalog.Ref
}

// outside is, in metrics and sums, where connections go that leave the mesh.
const outside = "outside"

// outsideTimeout bounds the time that a destination outside may take to answer.
const outsideTimeout = 10 * time.Second

// captured says what captured connections are for. It never changes.
type captured struct {
	virtual  map[netip.Addr]catalog.Name     // keys of upstreams
	direct   map[netip.AddrPort]catalog.Name // keys of upstreams, of which it is one instance
	denied   map[netip.Addr]*DeniedUpstream
	meshOnly bool
}

func newCaptured(w *world) *captured {
	if w.snap.Capture == nil {
		return nil
	}
	c := &captured{
		virtual: map[netip.Addr]catalog.Name{}, direct: map[netip.AddrPort]catalog.Name{},
		denied: map[netip.Addr]*DeniedUpstream{}, meshOnly: w.snap.Capture.MeshOnly,
	}
	for _, key := range w.names() {
		up := w.upstreams[key]
		if key != up.base {
			continue // who comes here did not choose by its listener
		}
		for _, a := range up.Virtual {
			c.virtual[a] = key
		}
		for i := range up.Instances {
			for _, at := range up.Instances[i].Direct {
				c.direct[at] = key
			}
		}
	}
	for i := range w.snap.Capture.Denied {
		d := &w.snap.Capture.Denied[i]
		for _, a := range d.Virtual {
			c.denied[a] = d
		}
	}
	return c
}

// captures are the listeners of a proxy for what is captured; it is guarded by the
// proxy's mu, but for loops.
type captures struct {
	listeners map[string]*listener // by address
	loops     loopGuard
	// origin is where a connection was going; tests have no rules that redirect.
	origin func(net.Conn) (netip.AddrPort, error)
}

// reconcileCapture opens and closes the listeners. The caller holds p.mu.
func (p *Proxy) reconcileCapture(live context.Context, snap *Snapshot) {
	want := map[string]bool{}
	if snap.Capture != nil {
		for _, host := range loopbacks() {
			want[net.JoinHostPort(host, strconv.Itoa(snap.Capture.Port))] = true
		}
	}
	for addr, l := range p.capture.listeners {
		if !want[addr] {
			l.stop()
			delete(p.capture.listeners, addr)
		}
	}
	for addr := range want {
		if p.capture.listeners[addr] != nil {
			continue
		}
		l := &listener{spec: spec{addr: addr}, owner: "redirected connections of " + snap.Service, log: p.log, driver: p.driver, sockets: p.sockets}
		l.serve = func(c net.Conn) { p.serveCaptured(live, c) }
		if p.capture.listeners == nil {
			p.capture.listeners = map[string]*listener{}
		}
		p.capture.listeners[addr] = l
		l.start(live)
	}
}

// loopbacks are the addresses to which the host redirects: that of each family it has.
func loopbacks() []string {
	out := []string{"127.0.0.1"}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(net.IPv6loopback) {
				return append(out, "::1")
			}
		}
	}
	return out
}

// errLoop is a connection of the proxy's own that came back to it.
var errLoop = errors.New("it is a connection of the proxy's own that the host redirects to the proxy again: " +
	"weft connect redirect-traffic must be given, as -proxy-uid, the user that the proxy runs as")

var errMeshOnly = errors.New("it is outside of the mesh, and TransparentProxy.MeshDestinationsOnly of the mesh lets nobody go there")

// serveCaptured finds out where a connection was going. It runs on an event loop.
func (p *Proxy) serveCaptured(ctx context.Context, app net.Conn) {
	defer func() {
		if v := recover(); v != nil { // costs this connection and no other
			abort(app)
			p.svc.journal.panicked(outside, v, debug.Stack())
		}
	}()
	w := p.svc.world.Load()
	from := addrPort(app.RemoteAddr())
	to, err := p.capture.origin(app)
	switch {
	case err != nil:
	case to == addrPort(app.LocalAddr()):
		err = errors.New("no rule of this host redirected it: it was made to this address itself")
	case p.capture.loops.came(from):
		err = errLoop
	case w.problem != "":
		err = errors.New(w.problem)
	case w.captured == nil:
		err = errors.New("the service is in transparent mode no more")
	}
	if err != nil {
		p.refuseCaptured(app, line{reason: ReasonNoInstance, destination: destinationOf(to), err: err})
		return
	}
	c := w.captured
	if key, ok := c.virtual[to.Addr()]; ok {
		p.serveUpstream(ctx, key, netip.AddrPort{}, app)
		return
	}
	if key, ok := c.direct[to]; ok {
		p.serveUpstream(ctx, key, to, app)
		return
	}
	if d := c.denied[to.Addr()]; d != nil {
		verdict := catalog.Decision{Action: catalog.ActionDeny, Rule: d.Rule}
		p.refuseCaptured(app, line{reason: ReasonDenied, destination: d.Name, rule: d.Rule.String(), hint: hintFor(w.service(), d.Name, verdict)})
		return
	}
	switch {
	case catalog.VirtualRange.Contains(to.Addr()):
		err = fmt.Errorf("no service has the virtual address %s", to.Addr())
	case c.meshOnly:
		err = errMeshOnly
	case p.svc.guard.full():
		p.refuseCaptured(app, line{reason: ReasonLimit, destination: destinationOf(to), err: errNoDescriptors})
		return
	default:
		p.passOutside(w, app, from, to)
		return
	}
	p.refuseCaptured(app, line{reason: ReasonNoInstance, destination: destinationOf(to), err: err})
}

// destinationOf names, in a log, where a connection was going.
func destinationOf(to netip.AddrPort) catalog.Name {
	if !to.IsValid() {
		return outside
	}
	return to.String()
}

// refuseCaptured resets a connection, and says why.
func (p *Proxy) refuseCaptured(app net.Conn, l line) {
	s := p.svc
	w := s.world.Load()
	l.outbound, l.source, l.self, l.addr = true, w.service(), w.name, app.RemoteAddr().String()
	counted := l.destination
	if l.reason != ReasonDenied { // addresses must not become labels
		counted = outside
	}
	abort(app)
	s.metrics.pair(true, l.source, counted).count(l.reason)
	s.journal.post(l)
}

// passOutside joins a connection to where it was going, as it is: nobody is
// authenticated there, and the application speaks for itself.
func (p *Proxy) passOutside(w *world, app net.Conn, from, to netip.AddrPort) {
	s := p.svc
	r := &row{ends: &ends{
		svc: s, outbound: true, outside: true, source: w.service(), self: w.name, destination: to.String(), addr: to.String(),
		pair: s.metrics.pair(true, w.service(), outside),
	}, started: s.now()}
	p.live.add()
	p.capture.loops.takes(from)
	s.table.reserve(r.upstream, 0)
	s.table.add(r)
	if now := s.world.Load(); now != w && !now.lets() || !r.admit("") {
		r.kill(ending{reason: ReasonPolicyChanged})
		abort(app)
		p.capture.loops.gone(from)
		p.live.done()
		return
	}
	t := &outsider{p: p, row: r, from: from, to: to}
	f, err := p.driver.Splice(app, t.accept, t.ended)
	if err != nil {
		abort(app)
		p.capture.loops.gone(from)
		r.kill(ending{reason: ReasonDialFailed, err: fmt.Errorf("this host cannot pass connections on: %w", err)})
		p.live.done()
		return
	}
	r.carried(f)
}

// lets tells whether connections may leave the mesh.
func (w *world) lets() bool { return w.captured != nil && !w.captured.meshOnly && w.problem == "" }

// outsider is one connection that leaves the mesh.
type outsider struct {
	p        *Proxy
	row      *row
	from, to netip.AddrPort

	mu    sync.Mutex
	local netip.AddrPort // of the connection that was made for it
	err   error          // why there is none
}

func (t *outsider) accept(*tunnel.Flow, []byte) tunnel.Verdict {
	return tunnel.Verdict{Dial: t.dial, Timeout: outsideTimeout, End: func(*tunnel.Flow, tunnel.End) {}}
}

func (t *outsider) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{}
	c, err := d.DialContext(ctx, "tcp", t.to.String())
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.local = addrPort(c.LocalAddr())
		if t.p.capture.loops.made(t.local) {
			_ = c.Close() // the loop is the error to tell
			err = errLoop
		}
	}
	if t.err = err; err != nil {
		return nil, err
	}
	return c, nil
}

func (t *outsider) ended(f *tunnel.Flow, end tunnel.End) {
	defer t.p.live.done()
	t.row.flow.Store(f)
	if end.App != nil {
		abort(end.App)
	}
	t.mu.Lock()
	local, err := t.local, t.err
	t.mu.Unlock()
	t.p.capture.loops.gone(t.from)
	t.p.capture.loops.ended(local)
	to := endingOf(true, end)
	if err != nil && to.reason == ReasonDialFailed {
		to.err = err
	}
	t.row.finish(to, false)
}

// loopGuard knows the connections that the proxy makes to the outside, and those that
// it takes to pass on. One that is both would be passed on for ever. Each side says
// what it has before it looks, so that whichever comes later sees the other.
type loopGuard struct {
	mu    sync.Mutex
	makes map[netip.AddrPort]bool // by the near end
	taken map[netip.AddrPort]bool // by the far end
}

// came tells whether a connection from an address is one of ours.
func (g *loopGuard) came(from netip.AddrPort) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.makes[from]
}

func (g *loopGuard) takes(from netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.taken == nil {
		g.makes, g.taken = map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	}
	g.taken[from] = true
}

// made tells whether a connection of ours was taken by us.
func (g *loopGuard) made(local netip.AddrPort) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.makes[local] = true
	return g.taken[local]
}

func (g *loopGuard) gone(from netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.taken, from)
}

func (g *loopGuard) ended(local netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.makes, local)
}

// addrPort is a TCP address, not valid where it is none.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := t.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}
