package connect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

// ProxyConfig configures a Proxy.
type ProxyConfig struct {
	// ID is the proxy's ID in logs and metrics, for example "web-sidecar-proxy".
	ID string
	// Signer issues certificates. Required.
	Signer Signer
	// KeyFile holds the key and its leaf across restarts, with mode 0600. Its
	// directory is made when missing. Empty: both live in memory only.
	KeyFile string
	Logger  *slog.Logger     // nil: slog.Default
	Metrics *Metrics         // shared by the proxies of a process; nil: none
	Now     func() time.Time // nil: time.Now
}

// Proxy runs a Service for an application that knows nothing of it: a mutual-TLS
// listener before it, and a plain loopback listener for each of its upstreams.
type Proxy struct {
	id      string
	svc     *Service
	log     *slog.Logger
	gate    *gate
	applied atomic.Uint64

	mu        sync.Mutex
	inbound   *listener
	upstreams map[string]*outlet // by listenKey
	clashes   map[catalog.Name]string
	drains    map[drainKey]context.CancelFunc
	resting   *resting

	conns sync.WaitGroup // connections being served, and pending drains
}

// outlet is the listener of an upstream. Which one may change while it listens.
type outlet struct {
	*listener
	key atomic.Pointer[catalog.Name]
}

type drainKey struct {
	outbound bool
	upstream catalog.Name
}

// NewProxy checks the configuration. Nothing is bound before Run has a snapshot.
func NewProxy(cfg ProxyConfig) (*Proxy, error) {
	if cfg.ID == "" {
		return nil, errors.New("proxy: no ID")
	}
	svc, err := NewService(ServiceConfig(cfg))
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", cfg.ID, err)
	}
	return &Proxy{
		id:        cfg.ID,
		svc:       svc,
		log:       svc.log,
		gate:      newGate(maxHandshakes, maxHandshakesPerSource),
		upstreams: map[string]*outlet{},
		drains:    map[drainKey]context.CancelFunc{},
	}, nil
}

// Service is the identity that the proxy runs.
func (p *Proxy) Service() *Service { return p.svc }

// Applied is the index of the snapshot enforced now: connections that it forbids
// are closed. 0 before the first.
func (p *Proxy) Applied() uint64 { return p.applied.Load() }

// Run enforces every snapshot of src until ctx ends. It then stops accepting, lets
// running connections finish for the drain timeout, and cuts the rest; what src
// says by then is enforced on those too. When src fails, the last snapshot stays in
// force and src is asked again.
func (p *Proxy) Run(ctx context.Context, src catalog.Watch[*Snapshot]) error {
	// The connections outlive ctx by the drain timeout.
	live, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	var background sync.WaitGroup
	background.Go(func() { _ = p.svc.Run(live) }) // it only ends with live
	var after uint64
	p.follow(ctx, src, &after, func(snap *Snapshot) { p.apply(live, snap) })
	background.Go(func() { p.follow(live, src, &after, p.enforce) }) // listeners are gone, policy is not
	p.drain(kill)
	background.Wait()
	p.svc.metrics.forget(p.id)
	return nil
}

// follow hands one snapshot after another to take until ctx ends.
func (p *Proxy) follow(ctx context.Context, src catalog.Watch[*Snapshot], after *uint64, take func(*Snapshot)) {
	var retry time.Duration
	for {
		snap, index, err := src.Next(ctx, *after)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			switch {
			case retry > 0:
			case *after == 0: // the agent may be about to make it
				p.log.Info("waiting for the first snapshot", "err", err)
			default:
				p.log.Warn("no new snapshots, the last one stays in force", "index", p.Applied(), "err", err)
			}
			retry = min(max(2*retry, retryMin), bindRetryMax)
			if !pause(ctx, retry) {
				return
			}
			continue
		}
		retry = 0
		*after = index
		take(snap)
	}
}

// apply puts a snapshot in force: policy first, then listeners.
func (p *Proxy) apply(live context.Context, snap *Snapshot) {
	p.svc.Update(snap)
	if snap == nil {
		return // everything is refused; the listeners stay to say so
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reconcileInbound(live, snap)
	p.reconcileUpstreams(live, snap)
	p.reconcileRest(live, snap)
	p.isApplied(snap)
}

// enforce puts the policy of a snapshot in force, and no more.
func (p *Proxy) enforce(snap *Snapshot) {
	p.svc.Update(snap)
	p.isApplied(snap)
}

func (p *Proxy) isApplied(snap *Snapshot) {
	if snap != nil {
		p.applied.Store(snap.Index)
		p.svc.metrics.appliedIndex(p.id, snap.Index)
	}
}

func (p *Proxy) reconcileInbound(live context.Context, snap *Snapshot) {
	want := spec{addr: snap.Inbound}
	if p.inbound != nil && p.inbound.spec != want {
		p.inbound.stop()
		p.inbound = nil
	}
	if want.addr == "" {
		p.drainLater(live, drainKey{})
		return
	}
	p.cancelDrain(drainKey{})
	if p.inbound == nil {
		l := &listener{spec: want, owner: "inbound listener of " + snap.Service, log: p.log, admit: p.gate.wait}
		l.serve = func(c net.Conn) {
			w := newWire(c)
			place := p.gate.enter(w) // here, so that the order is that of arrival
			p.spawn(c, func() { p.serveInbound(live, w, place) })
		}
		p.inbound = l
		l.start(live)
	}
}

func (p *Proxy) reconcileUpstreams(live context.Context, snap *Snapshot) {
	type wanted struct {
		spec
		key catalog.Name
	}
	want, listed := map[string]wanted{}, map[catalog.Name]bool{}
	p.clashes = map[catalog.Name]string{}
	for i := range snap.Upstreams {
		u := &snap.Upstreams[i]
		key := snap.upstreamKey(u)
		listed[key] = true
		p.cancelDrain(drainKey{true, key})
		if u.Listen == "" {
			continue
		}
		at := listenKey(u.Listen, key)
		if first, taken := want[at]; taken {
			p.clashes[key] = fmt.Sprintf("upstream %s: %s is the address of upstream %s already", key, u.Listen, first.key)
			p.log.Error("cannot listen", "upstream", key, "addr", u.Listen, "err", p.clashes[key])
			continue
		}
		want[at] = wanted{spec{u.Listen, u.SocketMode}, key}
	}
	// Addresses that are given up come first, as another upstream may want them.
	for at, o := range p.upstreams {
		if w, ok := want[at]; !ok || w.spec != o.spec {
			o.stop()
			delete(p.upstreams, at)
		}
	}
	for at, w := range want {
		o := p.upstreams[at]
		if o == nil {
			o = &outlet{listener: &listener{spec: w.spec, owner: "upstream " + w.key, log: p.log}}
			o.serve = func(c net.Conn) { p.spawn(c, func() { p.serveUpstream(live, *o.key.Load(), c) }) }
			o.key.Store(&w.key)
			o.start(live)
			p.upstreams[at] = o
			continue
		}
		o.key.Store(&w.key)
	}
	for _, r := range p.svc.table.all(func(r *row) bool { return r.outbound && !listed[r.upstream] }) {
		p.drainLater(live, drainKey{true, r.upstream})
	}
}

// drainLater cuts the connections of a listener or upstream that is gone once the
// grace period is over, unless it comes back. The caller holds p.mu.
func (p *Proxy) drainLater(live context.Context, key drainKey) {
	if _, pending := p.drains[key]; pending {
		return
	}
	match := func(r *row) bool { return r.outbound == key.outbound && r.upstream == key.upstream }
	if len(p.svc.table.all(match)) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(live)
	p.drains[key] = cancel
	grace := p.svc.world.Load().limits().DrainTimeout
	p.conns.Go(func() {
		defer cancel()
		if !pause(ctx, grace) {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		delete(p.drains, key)
		for _, r := range p.svc.table.all(match) {
			r.kill(ending{reason: ReasonDraining})
		}
	})
}

func (p *Proxy) cancelDrain(key drainKey) {
	if cancel, ok := p.drains[key]; ok {
		cancel()
		delete(p.drains, key)
	}
}

// drain ends Run: no new connections, a grace period for those that run.
func (p *Proxy) drain(kill context.CancelFunc) {
	p.mu.Lock()
	if p.inbound != nil {
		p.inbound.stop()
	}
	for _, o := range p.upstreams {
		o.stop()
	}
	p.inbound, p.upstreams = nil, map[string]*outlet{}
	for key := range p.drains {
		p.cancelDrain(key)
	}
	p.endRest()
	p.mu.Unlock()
	finished := make(chan struct{})
	go func() {
		p.conns.Wait()
		close(finished)
	}()
	t := time.NewTimer(p.svc.world.Load().limits().DrainTimeout)
	defer t.Stop()
	select {
	case <-finished:
	case <-t.C:
	}
	kill() // dials and handshakes under way
	for {
		p.svc.Close(ReasonDraining)
		select {
		case <-finished:
			return
		case <-time.After(closeAgain): // one that stood just then came into the table after the others had gone
		}
	}
}

// closeAgain is how often a proxy at its end looks for connections that are left.
const closeAgain = 10 * time.Millisecond

// spawn serves a connection on a goroutine of its own. A panic costs that
// connection and nothing else.
func (p *Proxy) spawn(c net.Conn, serve func()) {
	p.conns.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				abort(c)
				p.log.Error("panic while serving a connection", "addr", c.RemoteAddr().String(), "err", v, "stack", string(debug.Stack()))
			}
		}()
		serve()
	})
}

// serveInbound brings a peer to the application. Without a place it is refused.
func (p *Proxy) serveInbound(ctx context.Context, w *wire, place *ticket) {
	if place == nil {
		_ = p.svc.refuse(w, &RefusedError{
			Reason: ReasonLimit, Destination: p.svc.world.Load().service(),
			Err: fmt.Errorf("%d handshakes of this address are under way", p.gate.perSource),
		}, "")
		return
	}
	c, err := p.accept(ctx, w, place)
	if err != nil {
		return // logged where it was refused
	}
	world := p.svc.world.Load()
	local, err := dialLocal(ctx, world)
	if err != nil {
		c.row.kill(ending{reason: ReasonDialFailed, err: err})
		return
	}
	if a := newApp(local); c.row.attach(a) {
		c.row.finish(relay(c.row, c, a), false)
	}
}

func (p *Proxy) accept(ctx context.Context, w *wire, place *ticket) (*Conn, error) {
	defer place.leave()
	return p.svc.accept(ctx, w)
}

func dialLocal(ctx context.Context, w *world) (net.Conn, error) {
	if w.snap == nil || w.snap.Local == "" {
		return nil, errors.New("no address of the application is configured")
	}
	d := net.Dialer{Timeout: w.limits().LocalConnectTimeout}
	c, err := d.DialContext(ctx, networkOf(w.snap.Local), w.snap.Local)
	if err != nil {
		return nil, fmt.Errorf("the application does not answer: %w", err)
	}
	return c, nil
}

// serveUpstream brings the application to an instance of an upstream.
func (p *Proxy) serveUpstream(ctx context.Context, key catalog.Name, raw net.Conn) {
	c, err := p.svc.dial(ctx, key, raw.RemoteAddr().String())
	if err != nil {
		abort(raw) // logged by dial
		return
	}
	a := newApp(raw)
	if !c.row.attach(a) {
		return
	}
	e := relay(c.row, a, c)
	if e.reason == ReasonServerClosed && c.row.out.Load() == 0 {
		// TLS 1.3 tells a client only after its handshake that it was refused.
		if identity.ReasonOf(e.err) == identity.ReasonByPeer {
			e.reason = ReasonTLSFailed
		}
		e.hint = fmt.Sprintf("the far end may have refused it: weft intention check %s %s", shellWord(c.row.source), shellWord(c.row.destination))
	}
	c.row.finish(e, false)
}

// listenKey tells listeners apart: by address, those on any free port by upstream.
func listenKey(addr string, key catalog.Name) string {
	if _, port, err := net.SplitHostPort(addr); err == nil && port == "0" {
		return addr + " " + key
	}
	return addr
}
