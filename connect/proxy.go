package connect

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/tunnel"
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
	// Sockets keeps what the proxy listens on for the process that comes next; nil: it
	// ends with this one.
	Sockets Sockets
	// AccessLog says which connections get a line when they end.
	AccessLog AccessLog
	// Guard bounds what strangers may cost, for all services of a process. Nil: its own.
	Guard *Guard
	// Port is shared with other proxies: a snapshot whose inbound address is on it opens
	// no listener. May be nil.
	Port *Port
	// OneToOne offers no tunnels: each connection to an instance is a TLS connection of
	// its own, as towards peers without tunnels. For comparisons.
	OneToOne bool
	// ShortCut joins this proxy to others of the process that have the same one, without
	// TLS between them. Nil: always by tunnel.
	ShortCut *ShortCut
}

// Proxy runs a Service for an application that knows nothing of it: a mutual-TLS
// listener before it, and a plain loopback listener for each of its upstreams.
type Proxy struct {
	id       string
	svc      *Service
	log      *slog.Logger
	gate     *gate
	applied  atomic.Uint64
	driver   tunnel.Driver // while it runs
	tunnels  tunnels
	oneToOne bool
	// shortCut is nil where there is none.
	shortCut *ShortCut
	local    localPaths
	// noInbound: there is no inbound listener, so that tunnels drain as they come.
	noInbound atomic.Bool
	live      census         // connections on their way or carried
	opening   atomic.Int64   // connections that were taken for upstreams and look for their way
	cuts      sync.WaitGroup // what waits to cut some of them; ends with their time

	serverTLS *tls.Config
	sockets   Sockets // may be nil

	last      atomic.Int64 // bounds the drain, as a time.Duration; 0: it is not
	mu        sync.Mutex
	inbound   *listener
	port      *Port                // shared; nil: none
	sharing   string               // the server name for which the port is shared; "": it is not
	upstreams map[string]*outlet   // by listenKey
	rested    bool                 // there are none any more
	exposed   map[string]*exposure // by address
	clashes   map[catalog.Name]string
	drains    map[drainKey]context.CancelFunc
	resting   *resting
	capture   captures
}

// outlet is the listener of an upstream. Which one may change while it listens.
type outlet struct {
	*listener
	key atomic.Pointer[catalog.Name]
}

type drainKey struct {
	outbound bool
	base     catalog.Name // of upstreams
}

// NewProxy checks the configuration. Nothing is bound before Run has a snapshot.
func NewProxy(cfg ProxyConfig) (*Proxy, error) {
	if cfg.ID == "" {
		return nil, errors.New("proxy: no ID")
	}
	svc, err := NewService(ServiceConfig{
		ID: cfg.ID, Signer: cfg.Signer, KeyFile: cfg.KeyFile, Logger: cfg.Logger, Metrics: cfg.Metrics, Now: cfg.Now,
		AccessLog: cfg.AccessLog, Guard: cfg.Guard,
	})
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", cfg.ID, err)
	}
	p := &Proxy{
		id:        cfg.ID,
		port:      cfg.Port,
		shortCut:  cfg.ShortCut,
		oneToOne:  cfg.OneToOne,
		svc:       svc,
		log:       svc.log,
		gate:      newGate(maxHandshakes, maxHandshakesPerSource),
		upstreams: map[string]*outlet{},
		exposed:   map[string]*exposure{},
		drains:    map[drainKey]context.CancelFunc{},
		serverTLS: tunnelConfig(svc.serverTLS),
		sockets:   cfg.Sockets,
		capture:   captures{origin: originalDst},
	}
	p.tunnels.init(svc.tunnelOver)
	return p, nil
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
	if p.driver == nil {
		d, release, err := shareDriver(p.log)
		if err != nil {
			return fmt.Errorf("proxy %s: %w", p.id, err)
		}
		p.driver = d
		defer release()
	}
	// The connections outlive ctx by the drain timeout.
	live, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	var background sync.WaitGroup
	background.Go(func() { _ = p.svc.Run(live) }) // it only ends with live
	background.Go(func() { p.tend(live) })
	var after uint64
	p.follow(ctx, src, &after, func(snap *Snapshot) { p.apply(live, snap) })
	// Listeners are gone, policy is not.
	background.Go(func() { p.follow(live, src, &after, func(snap *Snapshot) { p.enforce(live, snap) }) })
	p.drain(live, kill)
	p.tidy() // counts the tunnels that ended last
	background.Wait()
	p.cuts.Wait()
	p.svc.metrics.forget(p.id)
	return nil
}

// sourceRetryMax is how long a source that failed is left alone at most: what it says
// once it is back may be a deny.
const sourceRetryMax = time.Second

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
			retry = min(max(2*retry, retryMin), sourceRetryMax)
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
	p.enforceOnly(snap)
	if snap == nil {
		return // everything is refused; the listeners stay to say so
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reconcileInbound(live, snap)
	if !p.rested {
		p.reconcileUpstreams(live, snap)
	}
	p.drainDropped(live, snap)
	p.reconcileExposed(live, snap)
	if !p.rested {
		p.reconcileCapture(live, snap)
	}
	p.reconcileRest(live, snap)
	p.isApplied(snap)
}

// enforce puts in force what a snapshot says of the connections that are carried, and
// no more.
func (p *Proxy) enforce(live context.Context, snap *Snapshot) {
	p.enforceOnly(snap)
	if snap == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drainDropped(live, snap)
	p.reconcileRest(live, snap)
	p.isApplied(snap)
}

// enforceOnly judges all connections by a snapshot, and then the tunnels below them.
func (p *Proxy) enforceOnly(snap *Snapshot) {
	before := p.svc.world.Load().bundle
	p.svc.Update(snap)
	if w := p.svc.world.Load(); w.bundle != before {
		p.tunnels.trust(w, p.svc.now())
	}
	p.tidy()
}

// tidy drains the tunnels that are of no use any more.
func (p *Proxy) tidy() {
	p.tunnels.tend(p.svc.world.Load(), p.svc.keys.held.Load(), p.svc.now())
	p.local.tidy()
}

// tend tidies from time to time.
func (p *Proxy) tend(ctx context.Context) {
	for pause(ctx, tendEvery) {
		p.tidy()
		p.svc.heard(p.svc.now())
	}
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
	p.sharePort(live, snap)
	if p.sharing != "" && p.inbound != nil {
		p.inbound.stop()
		p.inbound = nil
	}
	p.noInbound.Store(want.addr == "")
	if want.addr == "" {
		p.shortCut.close(p)
		p.tunnels.drainInbound()
		p.drainLater(live, drainKey{})
		return
	}
	p.cancelDrain(drainKey{})
	if p.inbound == nil && p.sharing == "" {
		l := &listener{spec: want, owner: "inbound listener of " + snap.Service, log: p.log, admit: p.gate.wait, sockets: p.sockets}
		l.bounds = func(addr string) { p.shortCut.open(addr, p) }
		l.unbinds = func() { p.shortCut.close(p) }
		l.serve = func(c net.Conn) {
			w := newWire(c)
			if p.svc.guard.tooHigh(w) {
				_ = p.svc.refuse(w, &RefusedError{Reason: ReasonLimit, Destination: p.svc.world.Load().service(), Err: errNoDescriptors}, "")
				return
			}
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
	want := map[string]wanted{}
	p.clashes = map[catalog.Name]string{}
	for i, key := range snap.upstreamKeys() {
		u := &snap.Upstreams[i]
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
			o = &outlet{listener: &listener{spec: w.spec, owner: "upstream " + w.key, log: p.log, driver: p.driver, sockets: p.sockets}}
			o.serve = func(c net.Conn) { p.serveUpstream(live, *o.key.Load(), netip.AddrPort{}, c) }
			o.key.Store(&w.key)
			o.start(live)
			p.upstreams[at] = o
			continue
		}
		o.key.Store(&w.key)
	}
}

// drainDropped drains what goes to upstreams that a snapshot does not list. The caller
// holds p.mu.
func (p *Proxy) drainDropped(live context.Context, snap *Snapshot) {
	listed := map[catalog.Name]bool{}
	for i := range snap.Upstreams {
		base := snap.upstreamKey(&snap.Upstreams[i])
		listed[base] = true
		p.cancelDrain(drainKey{true, base})
	}
	for _, r := range p.svc.table.all(func(r *row) bool { return r.outbound && !r.outside && !listed[r.base] }) {
		p.drainLater(live, drainKey{true, r.base})
	}
}

// drainLater cuts the connections of a listener or upstream that is gone once the
// grace period is over, unless it comes back. The caller holds p.mu.
func (p *Proxy) drainLater(live context.Context, key drainKey) {
	if _, pending := p.drains[key]; pending {
		return
	}
	match := func(r *row) bool { return r.outbound == key.outbound && r.base == key.base }
	if len(p.svc.table.all(match)) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(live)
	p.drains[key] = cancel
	grace := p.svc.world.Load().limits().DrainTimeout
	p.cuts.Go(func() {
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

// Linger is for the time before a stop after which another process takes what still
// comes: the connections that are open now may finish, for the drain timeout, while new
// ones are taken. It returns when they have, or ctx ends; the drain that follows lasts
// no longer than last.
func (p *Proxy) Linger(ctx context.Context, last time.Duration) {
	p.last.Store(int64(last))
	begin := p.svc.now()
	ctx, cancel := context.WithTimeout(ctx, p.svc.world.Load().limits().DrainTimeout)
	defer cancel()
	for len(p.svc.table.all(func(r *row) bool { return r.started.Before(begin) })) > 0 && pause(ctx, lingerPoll) {
	}
}

// RestUpstreams has nobody taken for an upstream any more, and returns when those who
// were have got their way there or been refused, or ctx ends. It comes before the proxies
// at the far ends are stopped, where the same process runs those.
func (p *Proxy) RestUpstreams(ctx context.Context) {
	p.mu.Lock()
	p.rested = true
	p.stopUpstreams()
	p.mu.Unlock()
	for p.opening.Load() > 0 && pause(ctx, closeAgain) {
	}
}

// stopUpstreams closes what takes connections for upstreams. The caller holds p.mu.
func (p *Proxy) stopUpstreams() {
	for _, o := range p.upstreams {
		o.stop()
	}
	for _, l := range p.capture.listeners {
		l.stop()
	}
	p.upstreams, p.capture.listeners = map[string]*outlet{}, nil
}

// lingerPoll is how often a proxy that lingers looks for connections that are left.
const lingerPoll = 50 * time.Millisecond

// grace is how long connections may finish once the proxy ends.
func (p *Proxy) grace() time.Duration {
	limits := p.svc.world.Load().limits()
	grace := cmp.Or(limits.EndTimeout, limits.DrainTimeout)
	if last := time.Duration(p.last.Load()); last > 0 {
		grace = min(grace, last)
	}
	return grace
}

// drain ends Run: no new connections, a grace period for those that run.
func (p *Proxy) drain(live context.Context, kill context.CancelFunc) {
	defer p.svc.journal.flush()
	p.mu.Lock()
	if p.inbound != nil {
		p.inbound.stop()
	}
	p.unshare()
	p.stopUpstreams()
	for _, x := range p.exposed {
		p.unexpose(live, x)
	}
	p.inbound, p.exposed = nil, map[string]*exposure{}
	p.mu.Unlock()
	p.noInbound.Store(true)
	p.shortCut.close(p)
	p.tunnels.drainInbound()
	t := time.NewTimer(p.grace())
	defer t.Stop()
	for over := false; !over; {
		select {
		case <-t.C:
			over = true
		case <-p.live.empty():
			p.tunnels.drainOutbound() // not before: who was taken and waits for a tunnel is to be carried yet
			// A stream may be on its way in a tunnel until the far end has closed it.
			if over = p.tunnels.open() == 0; !over {
				select {
				case <-t.C:
					over = true
				case <-time.After(closeAgain):
				}
			}
		}
	}
	kill() // dials and handshakes under way
	for {
		p.svc.Close(ReasonDraining)
		p.tunnels.close()
		select {
		case <-p.live.empty():
			if p.tunnels.open() == 0 {
				return
			}
		case <-time.After(closeAgain): // one that stood just then came into the table after the others had gone
		}
	}
}

// refusing tells whether tunnels drain as they come.
func (p *Proxy) refusing() bool { return p.noInbound.Load() }

// closeAgain is how often a proxy at its end looks for connections that are left.
const closeAgain = 10 * time.Millisecond

// spawn serves a connection on a goroutine of its own. A panic costs that
// connection and nothing else.
func (p *Proxy) spawn(c net.Conn, serve func()) {
	p.live.add()
	go func() {
		defer p.live.done()
		defer func() {
			if v := recover(); v != nil {
				abort(c)
				p.log.Error("panic while serving a connection", "addr", c.RemoteAddr().String(), "err", v, "stack", string(debug.Stack()))
			}
		}()
		serve()
	}()
}

// listenKey tells listeners apart: by address, those on any free port by upstream.
func listenKey(addr string, key catalog.Name) string {
	if _, port, err := net.SplitHostPort(addr); err == nil && port == "0" {
		return addr + " " + key
	}
	return addr
}
