package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/connect/identity"
	"github.com/weftmesh/weft/connect/tunnel"
)

// maxTunnelsPerLeaf bounds the tunnels that the holder of one certificate keeps open
// here; each may carry as many streams as the driver allows.
const maxTunnelsPerLeaf = 16

// inboundTunnel is a tunnel that a source opened. What its handshake proved holds for
// each of its streams, as long as the world of now still accepts the certificate.
type inboundTunnel struct {
	*ends
	p     *Proxy
	since time.Time
	link  atomic.Pointer[tunnel.Link] // nil until the greeting is done

	proof    proof  // only accept uses it
	unjudged uint64 // streams that were, and are counted; the pool's
}

// tunnelConfig is the server's tls.Config that speaks tunnels to those who ask for
// them. To others it offers no protocol at all, as Go refuses a client that offers
// only unknown ones.
func tunnelConfig(base *tls.Config) *tls.Config {
	with := base.Clone()
	with.NextProtos = []string{tunnel.ALPN}
	c := base.Clone()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, tunnel.ALPN) {
			return with, nil
		}
		return nil, nil
	}
	return c
}

// serveInbound serves a peer. Without a place it is refused.
func (p *Proxy) serveInbound(ctx context.Context, w *wire, place *ticket) {
	if place == nil {
		_ = p.svc.refuse(w, &RefusedError{
			Reason: ReasonLimit, Destination: p.svc.world.Load().service(),
			Err: fmt.Errorf("%d handshakes of this address are under way", p.gate.perSource),
		}, "")
		return
	}
	defer place.leave() // does nothing the second time
	c, before, err := p.svc.meet(ctx, w, p.serverTLS)
	if err != nil {
		return // logged where it was refused
	}
	place.leave()
	state := c.tls.ConnectionState()
	if state.NegotiatedProtocol == tunnel.ALPN {
		p.serveTunnel(ctx, c, state, before)
		return
	}
	if c, err = p.svc.authorize(c, state, before); err != nil {
		return
	}
	local, err := dialLocal(ctx, p.svc.world.Load())
	if err != nil {
		c.row.kill(ending{reason: ReasonDialFailed, err: fmt.Errorf("the application does not answer: %w", err)})
		return
	}
	p.join(c, local)
}

// join has the driver carry a connection of the mesh that is one to one.
func (p *Proxy) join(c *Conn, app net.Conn) {
	r := c.row
	p.live.add()
	f, err := p.driver.Pair(c.tls, app, func(f *tunnel.Flow, e tunnel.End) {
		defer p.live.done()
		r.flow.Store(f)
		r.finish(p.pairEnding(r, e), false)
	})
	if err != nil {
		p.live.done()
		abort(app)
		r.kill(ending{reason: ReasonServerClosed, err: err})
		return
	}
	r.carried(f)
}

// pairEnding adds what is known of a refusal: TLS 1.3 tells a client only after its
// handshake that the far end did not accept it.
func (p *Proxy) pairEnding(r *row, e tunnel.End) ending {
	end := endingOf(r.outbound, e)
	if _, out := r.bytes(); r.outbound && end.reason == ReasonServerClosed && out == 0 {
		if identity.ReasonOf(e.Err) == identity.ReasonByPeer {
			end.reason = ReasonTLSFailed
		}
		end.hint = refusedHint(r)
	}
	return end
}

func refusedHint(r *row) string {
	return fmt.Sprintf("the far end may have refused it: weft intention check %s %s", shellWord(r.source), shellWord(r.destination))
}

func dialLocal(ctx context.Context, w *world) (net.Conn, error) {
	if w.snap == nil || w.snap.Local == "" {
		return nil, errors.New("no address of it is configured")
	}
	d := net.Dialer{Timeout: w.limits().LocalConnectTimeout}
	return d.DialContext(ctx, networkOf(w.snap.Local), w.snap.Local)
}

// serveTunnel makes a tunnel of an authenticated connection. Nobody is authorised by
// that: each stream is.
func (p *Proxy) serveTunnel(ctx context.Context, c *Conn, state tls.ConnectionState, before *world) {
	sharedCerts.share(state.PeerCertificates)
	t := &inboundTunnel{
		ends: p.svc.inboundEnds(c.peer, before, c.wire.RemoteAddr().String(), state.PeerCertificates),
		p:    p, since: p.svc.now(), proof: before.proof(),
	}
	if !p.tunnels.enter(t) {
		_ = p.svc.refuse(c.wire, &RefusedError{
			Reason: ReasonLimit, Source: t.source, Destination: t.destination,
			Err: fmt.Errorf("too many tunnels are open: %d of one certificate are allowed, and this one is %s", maxTunnelsPerLeaf, identity.Serial(t.chain[0].SerialNumber)),
		}, t.peer)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, before.limits().HandshakeTimeout)
	defer cancel()
	link, err := p.driver.Server(ctx, c.tls, t.accept)
	if err != nil {
		p.tunnels.leave(t)
		p.log.Debug("no tunnel", "source", t.source, "addr", t.addr, "err", err)
		if errors.Is(err, tunnel.ErrProtocol) {
			p.svc.tunnelOver(t.line(), err)
		}
		return
	}
	if !p.tunnels.join(t, link) {
		return
	}
	if w := p.svc.world.Load(); w.bundle != nil && w.trusts(t.chain, false, p.svc.now()) != nil {
		_ = link.Close() // it was withdrawn meanwhile; who walked the tunnels did not see this one
		return
	}
	if p.refusing() {
		link.Drain(tunnel.CodeDraining)
	}
}

// line is what the log says of the tunnel.
func (t *inboundTunnel) line() line {
	return line{source: t.source, destination: t.destination, self: t.self, peer: t.peer, addr: t.addr}
}

// tellUnjudged counts the streams that the tunnel refused by itself, of which there are so
// many by now, and logs of whom they were.
func (t *inboundTunnel) tellUnjudged(now uint64) {
	n := now - t.unjudged
	if n == 0 {
		return
	}
	t.unjudged = now
	t.pair.ended.WithLabelValues(string(ReasonLimit)).Add(float64(n))
	of := t.line()
	of.reason = ReasonLimit
	of.err = fmt.Errorf("%d connections refused unjudged: the source gave up too many within a second, each before it was answered; see whether the application stalls", n)
	t.svc.journal.post(of)
}

// tunnelOver counts a tunnel that ended, and logs of whom it was where a peer broke the
// protocol: its streams, if it had any, say only that they were lost.
func (s *Service) tunnelOver(of line, err error) {
	s.metrics.tunnelEnded(err)
	if errors.Is(err, tunnel.ErrProtocol) {
		of.reason, of.err = ReasonViolation, err
		s.journal.post(of)
	}
}

// accept judges a stream. It runs on an event loop.
func (t *inboundTunnel) accept(f *tunnel.Flow, _ []byte) (v tunnel.Verdict) {
	s := t.p.svc
	defer func() {
		if e := recover(); e != nil { // costs this connection and no other
			s.journal.panicked(t.peer, e, debug.Stack())
			v = tunnel.Verdict{Refuse: tunnel.CodeInternal}
		}
	}()
	r := &row{ends: t.ends, started: s.now(), stream: true}
	r.flow.Store(f)
	w := s.world.Load()
	if e := s.judgeStream(r, t, w); e != nil {
		return tunnel.Verdict{Refuse: codeOf(e.Reason)}
	}
	t.p.live.add()
	v.End = func(f *tunnel.Flow, e tunnel.End) {
		defer t.p.live.done()
		r.finish(endingOf(false, e), false)
	}
	v.Timeout = w.limits().LocalConnectTimeout
	if v.Addr = w.local; !v.Addr.IsValid() {
		v.Dial = func(ctx context.Context) (net.Conn, error) { return dialLocal(ctx, w) }
	}
	return v
}

// judgeStream is the authorisation of a stream: what is asked of a fresh connection,
// and whether the certificates behind the tunnel, which may be old, are still good.
func (s *Service) judgeStream(r *row, t *inboundTunnel, w *world) *RefusedError {
	err := s.keys.usable(w)
	if w.problem != "" {
		err = errors.New(w.problem)
	}
	var e *RefusedError
	switch expires := t.chain[0].NotAfter; {
	case err != nil:
		e = s.unfit(err)
	case r.started.After(expires):
		e = &RefusedError{Reason: ReasonTLSFailed, Err: fmt.Errorf("the certificate behind the tunnel expired at %s", expires.Format(time.RFC3339))}
	}
	if e != nil {
		s.table.add(r)
		return r.refused(e)
	}
	judged, e := s.judgeRow(r, t.proof)
	if e == nil {
		t.proof.bundle = judged.bundle
	}
	return e
}
