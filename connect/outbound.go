package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
	"github.com/weftmesh/weft/connect/tunnel"
)

// attempt is an application's connection on its way to an instance.
type attempt struct {
	journey
	w     *world
	up    *upstream
	app   net.Conn // nil once it is given away
	tried []bool
}

// journey is what stays of an attempt while its connection is carried, which may be for
// days: should it come back, it goes on in the world of that day.
type journey struct {
	p        *Proxy
	ctx      context.Context // of the proxy's connections
	direct   netip.AddrPort  // valid: that of the one instance meant
	tries    int
	failures []failure
}

// serveUpstream brings the application to an instance of an upstream. It runs on an
// event loop: where a tunnel stands, the connection goes there at once; all that may
// wait does so on a goroutine. A valid direct address is that of the one instance meant.
func (p *Proxy) serveUpstream(ctx context.Context, key catalog.Name, direct netip.AddrPort, app net.Conn) {
	defer func() {
		if v := recover(); v != nil { // costs this connection and no other
			abort(app)
			p.svc.journal.panicked(key, v, debug.Stack())
		}
	}()
	p.live.add()
	a := &attempt{journey: journey{p: p, ctx: ctx, direct: direct}, app: app}
	var first *candidate
	w := p.svc.world.Load()
	if w.problem == "" && p.svc.keys.usable(w) == nil {
		if up := w.upstreams[key]; up != nil && !p.svc.guard.full() && p.svc.table.reserve(up.key, up.MaxConnections) {
			a.begin(w, up)
			if first = a.next(); first == nil {
				p.svc.table.release(up.key)
			} else if a.quick(first) {
				return
			}
		}
	}
	p.opening.Add(1)
	go func() {
		defer p.opening.Add(-1)
		a.run(key, first)
	}()
}

func (a *attempt) begin(w *world, up *upstream) {
	a.w, a.up = w, up
	a.tried = make([]bool, len(up.Instances))
	for i := range up.Instances {
		e := &up.Instances[i]
		a.tried[i] = a.direct.IsValid() && !slices.Contains(e.Direct, a.direct) ||
			slices.ContainsFunc(a.failures, func(f failure) bool { return f.addr == e.Addr })
	}
}

// next chooses the next instance to try, and counts a connection to it.
func (a *attempt) next() *candidate {
	if a.tries++; a.tries > maxAttempts {
		return nil
	}
	return a.p.svc.balancer.pick(a.up, a.tried)
}

// quick uses a short cut or a tunnel that stands.
func (a *attempt) quick(e *candidate) bool {
	if a.short(e, false) {
		return true
	}
	cred := a.p.svc.keys.held.Load()
	key := instanceKey{e.Addr, a.up.peer(e.Endpoint)}
	c := a.p.tunnels.ready(key, cred, a.w, a.p.svc.now())
	if c.more {
		a.p.another(a, key, cred)
	}
	return c.outboundTunnel != nil && !c.wait && a.carry(c.outboundTunnel, e) == nil
}

// run goes from instance to instance; e is one that is chosen already, with its
// reservation, or nil. It ends what serveUpstream has begun.
func (a *attempt) run(key catalog.Name, e *candidate) {
	ctx := a.ctx
	defer func() {
		if v := recover(); v != nil {
			if a.app != nil {
				abort(a.app)
			}
			a.p.svc.journal.panicked(key, v, debug.Stack())
			a.p.live.done()
		}
	}()
	if e == nil {
		w, up, err := a.p.svc.upstream(ctx, key, a.source())
		if err != nil {
			abort(a.app) // logged there
			a.p.live.done()
			return
		}
		a.begin(w, up)
		e = a.next()
	}
	for ; e != nil; e = a.next() {
		err := a.reach(ctx, e)
		if err == nil {
			return // whoever carries it is to say when it ends
		}
		if ctx.Err() != nil {
			a.p.svc.balancer.done(e.state)
			a.failures = append(a.failures, givenUp(ctx))
			break
		}
		a.p.svc.balancer.failed(e.state, e.at, false, err)
		a.failures = append(a.failures, failure{e.ID, e.Addr, err})
	}
	a.p.svc.table.release(a.up.key)
	_ = a.p.svc.refuseDial(a.w, key, a.source(), ReasonDialFailed, tellTried(len(a.up.Instances), a.failures))
	abort(a.app)
	a.p.live.done()
}

// source is the application, for the log.
func (a *attempt) source() string { return a.app.RemoteAddr().String() }

// reach carries the application to one instance, over a tunnel that may have to be
// made, or one to one.
func (a *attempt) reach(ctx context.Context, e *candidate) error {
	if a.short(e, true) {
		return nil
	}
	ctx, cancel := a.up.limited(ctx)
	defer cancel()
	for tries := 1; ; tries++ {
		t, c, err := a.p.tunnel(ctx, a, e)
		switch {
		case err != nil:
			return err
		case c != nil:
			return a.pair(c, e)
		}
		a.p.svc.balancer.reached(e.state)
		if err = a.carry(t, e); !wantsAnother(err) {
			return err
		}
		// One whose tunnels are of no use, each as it is made, must not keep both ends busy.
		if ctx.Err() != nil || !pause(ctx, time.Duration(max(0, tries-patience))*tunnelPause) {
			return err
		}
	}
}

// An instance gets so many more tunnels at once for a stream that none of them took,
// then ever longer pauses between them.
const (
	patience    = 4
	tunnelPause = 10 * time.Millisecond
)

// leastPatience is with a tunnel whose peer has fallen silent, however little time this
// upstream has to connect: one packet that is lost must not drain what others use too.
const leastPatience = 2 * time.Second

// wantsAnother tells whether another tunnel may take the stream that one did not.
func wantsAnother(err error) bool {
	return errors.Is(err, tunnel.ErrFull) || errors.Is(err, tunnel.ErrDraining) || errors.Is(err, tunnel.ErrLost)
}

// carry makes the application a stream of t. On error the counts of the instance and
// the upstream are the caller's again.
func (a *attempt) carry(t *outboundTunnel, e *candidate) error {
	return a.hand(e, a.endsOf(e, t.key.id, t.chain, &t.last), func(app net.Conn, end tunnel.EndFunc) (*tunnel.Flow, error) {
		return t.link.Carry(app, nil, end)
	})
}

// endsOf are those of a connection to an instance, which is a peer of this identity;
// last are those of another one over the same tunnel, mostly the same.
func (a *attempt) endsOf(e *candidate, id identity.ServiceID, chain []*x509.Certificate, last *atomic.Pointer[ends]) *ends {
	if x := last.Load(); x != nil && x.endpoint == e.state && x.instance == e.ID && x.self == a.w.name {
		return x
	}
	x := a.p.svc.outboundEnds(a.w, a.up, e, id, chain)
	last.Store(x)
	return x
}

// hand makes the application a row and gives it away.
func (a *attempt) hand(e *candidate, between *ends, give func(net.Conn, tunnel.EndFunc) (*tunnel.Flow, error)) error {
	s := a.p.svc
	r := &row{ends: between, started: s.now(), stream: true}
	if err := s.enter(r, a.w); err != nil {
		return err
	}
	app, on, at := a.app, a.journey, e.at // and not the attempt, nor the candidate
	a.app = nil                           // before: it may end, and come back, at once
	f, err := give(app, func(f *tunnel.Flow, end tunnel.End) { on.ended(r, at, f, end) })
	if err != nil {
		a.app = app
		if !r.withdraw() { // killed meanwhile: its counts were given back with it
			s.balancer.again(r.endpoint)
			err = errors.New("trust changed")
		}
		s.table.reserve(r.upstream, 0)
		return err
	}
	r.carried(f)
	return nil
}

// ended is the end of a stream, to an instance picked at a time. One that the far end did
// not take, and whose application is untouched, goes to another instance.
func (j journey) ended(r *row, at time.Time, f *tunnel.Flow, end tunnel.End) {
	s := j.p.svc
	r.flow.Store(f)
	if end.App != nil {
		if end.Cause != tunnel.CauseOwner && elsewhere(end) && r.withdraw() {
			s.table.reserve(r.upstream, 0)
			a := &attempt{journey: j, app: end.App}
			go a.again(r, at, end)
			return
		}
		abort(end.App)
	}
	defer j.p.live.done()
	if end.Cause == tunnel.CausePeer && elsewhere(end) {
		s.balancer.suspect(r.endpoint, at, end.Err)
	}
	to := endingOf(true, end)
	if to.reason == ReasonDenied {
		to.hint = refusedHint(r)
	}
	r.finish(to, false)
}

// elsewhere tells whether another instance may take what this one did not.
func elsewhere(end tunnel.End) bool {
	switch end.Cause {
	case tunnel.CauseUnprocessed:
		return true
	case tunnel.CausePeer:
		switch end.Code {
		case tunnel.CodeDialFailed, tunnel.CodeLimit, tunnel.CodeDraining, tunnel.CodeInternal, tunnel.CodeUnauthenticated:
			return true // with the last, it may be the certificate of the instance that has expired
		}
	}
	return false
}

// again goes on with the next instance after that of r did not take the stream. An
// instance that never saw it is not to blame, and may have its turn again, unless it
// answers nothing at all.
func (a *attempt) again(r *row, at time.Time, end tunnel.End) {
	s := a.p.svc
	key := r.upstream
	w := s.world.Load()
	up := w.upstreams[key]
	if w.problem != "" {
		up = nil
	}
	a.tries++
	blameless := end.Cause == tunnel.CauseUnprocessed && !errors.Is(end.Err, tunnel.ErrSilent) && a.tries <= maxAttempts
	if blameless && up != nil {
		if i := slices.IndexFunc(up.Instances, func(e Endpoint) bool { return e.Addr == r.addr }); i >= 0 {
			a.begin(w, up)
			a.tried[i] = true
			a.run(key, &candidate{Endpoint: &up.Instances[i], state: r.endpoint, at: at})
			return
		}
	}
	if blameless { // and gone
		s.balancer.done(r.endpoint)
	} else {
		s.balancer.failed(r.endpoint, at, !errors.Is(end.Err, tunnel.ErrSilent), end.Err)
	}
	a.failures = append(a.failures, failure{r.instance, r.addr, end.Err})
	if up == nil { // it is gone, or nothing passes: run says which
		s.table.release(key)
		a.run(key, nil)
		return
	}
	a.begin(w, up)
	next := a.next()
	if next == nil {
		s.table.release(key)
		_ = s.refuseDial(w, key, a.source(), told(end.Code, ReasonDialFailed), tellTried(len(up.Instances), a.failures))
		abort(a.app)
		a.p.live.done()
		return
	}
	a.run(key, next)
}

// pair carries the application over a connection of its own.
func (a *attempt) pair(c *Conn, e *candidate) error {
	s := a.p.svc
	r := &row{ends: s.outboundEnds(a.w, a.up, e, c.peer, c.tls.ConnectionState().PeerCertificates), started: s.now(), leg: c}
	c.row = r
	if err := s.enter(r, a.w); err != nil {
		return err
	}
	s.balancer.reached(e.state)
	a.p.join(c, a.app)
	a.p.live.done() // join counts for itself
	return nil
}

// tunnel gives a tunnel to the instance, or, when it speaks none, a connection for
// this application alone. Who comes while one is being made waits for it; where an
// instance is known for bulk several are made, and those who come take turns.
func (p *Proxy) tunnel(ctx context.Context, a *attempt, e *candidate) (*outboundTunnel, *Conn, error) {
	key := instanceKey{e.Addr, a.up.peer(e.Endpoint)}
	for wait := true; ; {
		if now := p.svc.world.Load(); now.bundle != a.w.bundle && now.peers[key.id] != nil {
			a.w = now // else it would look for a tunnel of the past
		}
		cred := p.svc.keys.held.Load()
		found, mine, under := p.tunnels.take(key, cred, a.w, p.svc.now(), wait)
		switch {
		case found != nil:
			return found, nil, nil
		case mine != nil:
			select {
			case r := <-p.lead(ctx, a, key, cred, mine):
				if r.err != nil && mine.beside && a.ctx.Err() == nil {
					wait = false // one that stands will do
					continue
				}
				return r.t, r.c, r.err
			case <-ctx.Done():
				return nil, nil, context.Cause(ctx)
			}
		case under == nil:
			return p.handshakeWith(ctx, a, key, cred)
		}
		select {
		case <-under.done:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
		switch {
		case under.err != nil && under.beside:
			wait = false
		case under.err != nil:
			return nil, nil, under.err
		case under.t != nil && p.tunnels.serves(under.t, cred, a.w):
			return under.t, nil, nil
		}
	}
}

// another makes one more tunnel to an instance in the background, for those who come
// while the others carry bulk. The tunnels that stand serve meanwhile.
func (p *Proxy) another(a *attempt, key instanceKey, cred *credential) {
	mine := p.tunnels.begin(key)
	if mine == nil {
		return
	}
	nobody, cancel := context.WithCancel(a.ctx)
	cancel()
	p.lead(nobody, a, key, cred, mine) // the next who needs one is told how it went
}

// led is what a handshake came to.
type led struct {
	t   *outboundTunnel
	c   *Conn
	err error
}

// lead makes a tunnel for those who wait at mine, in the time that a handshake has: the one
// who leads may have less left. Its result is for him until his ctx ends.
func (p *Proxy) lead(ctx context.Context, a *attempt, key instanceKey, cred *credential, mine *dialing) <-chan led {
	own := &attempt{journey: journey{p: p, ctx: a.ctx}, w: a.w, up: a.up}
	out := make(chan led)
	p.live.add()
	go func() {
		defer p.live.done()
		r := led{err: errUnfinished}
		defer func() {
			if v := recover(); v != nil { // costs this tunnel and no other
				p.svc.journal.panicked(own.up.key, v, debug.Stack())
			}
			select {
			case out <- r:
			case <-ctx.Done():
				if r.c != nil {
					r.c.abort() // it speaks tunnels no more: the next connection finds that out
				}
			}
		}()
		limited, cancel := own.up.limited(own.ctx)
		defer cancel()
		r.t, r.c, r.err = p.handshakeFor(limited, own, key, cred, mine)
	}()
	return out
}

// errUnfinished is what those are told who waited for a handshake that panicked.
var errUnfinished = errors.New("the handshake ended without a result")

// handshakeFor is handshakeWith for those who wait at mine, whatever becomes of it.
func (p *Proxy) handshakeFor(ctx context.Context, a *attempt, key instanceKey, cred *credential, mine *dialing) (t *outboundTunnel, c *Conn, err error) {
	err = errUnfinished
	defer func() { p.tunnels.made(key, mine, t, err) }()
	return p.handshakeWith(ctx, a, key, cred)
}

// handshakeWith reaches an instance and finds out whether it speaks tunnels.
func (p *Proxy) handshakeWith(ctx context.Context, a *attempt, key instanceKey, cred *credential) (*outboundTunnel, *Conn, error) {
	c, err := p.offer(ctx, a, key)
	if err != nil {
		return nil, nil, err
	}
	state := c.tls.ConnectionState()
	if state.NegotiatedProtocol != tunnel.ALPN {
		p.tunnels.mu.Lock()
		p.tunnels.instance(key).plain = true
		p.tunnels.mu.Unlock()
		return nil, c, nil
	}
	link, err := p.driver.Client(ctx, c.tls, max(a.up.connectTimeout(), leastPatience))
	if err != nil {
		if identity.ReasonOf(err) == identity.ReasonByPeer {
			p.svc.metrics.handshakeFailed(true, identity.ReasonByPeer)
			return nil, nil, fmt.Errorf("the far end refused our certificate: %w", err)
		}
		return nil, nil, err
	}
	t := &outboundTunnel{link: link, key: key, cred: cred, chain: state.PeerCertificates, since: p.svc.now(), bundle: a.w.bundle}
	p.tunnels.put(t)
	if err := p.tunnels.recheck(t, p.svc.world.Load(), p.svc.now()); err != nil {
		return nil, nil, fmt.Errorf("trust changed during the handshake: %w", err)
	}
	return t, nil, nil
}

// offer does the handshake with the tunnels' protocol offered, and without it towards
// those that take no offer which they do not know.
func (p *Proxy) offer(ctx context.Context, a *attempt, key instanceKey) (*Conn, error) {
	now := p.svc.now() // nothing may panic under the lock
	p.tunnels.mu.Lock()
	silent := now.Before(p.tunnels.instance(key).noALPN)
	p.tunnels.mu.Unlock()
	to := a.w.peers[key.id]
	if !silent && !p.oneToOne {
		c, err := p.svc.reach(ctx, a.up, key.addr, key.id, to.tunnels)
		if err == nil || !noProtocol(err) {
			return c, err
		}
		now = p.svc.now()
		p.tunnels.mu.Lock()
		p.tunnels.instance(key).noALPN = now.Add(askAgain)
		p.tunnels.mu.Unlock()
	}
	return p.svc.reach(ctx, a.up, key.addr, key.id, to.alone)
}

// noProtocol tells whether the far end ended the handshake as it knows no protocol
// that was offered.
func noProtocol(err error) bool {
	const noApplicationProtocol tls.AlertError = 120
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" && op.Err.Error() == noApplicationProtocol.Error()
}
