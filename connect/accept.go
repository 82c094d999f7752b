package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

// Accept makes raw, a connection from the mesh, into one of a verified and
// authorised peer. The handshake has a deadline; the connection is in the table
// before it is judged; nothing is read from it before it is allowed. On error raw
// is closed, the refusal is logged, and the error is a *RefusedError.
func (s *Service) Accept(ctx context.Context, raw net.Conn) (*Conn, error) {
	c, before, err := s.meet(ctx, newWire(raw), s.serverTLS)
	if err != nil {
		return nil, err
	}
	return s.authorize(c, c.tls.ConnectionState(), before)
}

// meet does the handshake of the accepting end. What it returns is authenticated and
// not yet judged; the world is the one in which the handshake began.
func (s *Service) meet(ctx context.Context, w *wire, config *tls.Config) (*Conn, *world, error) {
	before, lim, err := s.fit(ctx, w.gone)
	if err != nil {
		return nil, nil, s.refuse(w, s.unfit(err), "")
	}
	if lim.MaxInboundConnections > 0 && s.table.inboundCount() >= lim.MaxInboundConnections {
		return nil, nil, s.refuse(w, s.full(lim), "")
	}
	t := secureServer(w, config)
	w.turns = &turnstile{g: s.guard, src: sourceOf(w.RemoteAddr()), until: time.Now().Add(lim.HandshakeTimeout), gone: w.gone}
	err = s.handshake(ctx, t, w, lim.HandshakeTimeout, false)
	w.end()
	w.turns = nil
	if err != nil {
		if errors.Is(err, errNothingSaid) {
			return nil, nil, s.knocked(w, before, err)
		}
		r := &RefusedError{Reason: ReasonTLSFailed, Destination: before.service(), Err: err}
		return nil, nil, s.refuse(w, r, claimed(err))
	}
	peer, err := identity.PeerID(t.ConnectionState())
	if err != nil {
		return nil, nil, s.refuse(w, &RefusedError{Reason: ReasonTLSFailed, Destination: before.service(), Err: err}, "")
	}
	return &Conn{tls: t, wire: w, peer: peer}, before, nil
}

// authorize makes the peer's connection a row, and judges it.
func (s *Service) authorize(c *Conn, state tls.ConnectionState, before *world) (*Conn, error) {
	r := &row{
		ends:    s.inboundEnds(c.peer, before, c.wire.RemoteAddr().String(), state.PeerCertificates),
		started: s.now(), leg: c,
	}
	c.row = r
	if _, e := s.judgeRow(r, before.proof()); e != nil {
		return nil, e
	}
	return c, nil
}

// inboundEnds are those of what a peer opens to this service.
func (s *Service) inboundEnds(peer identity.ServiceID, at *world, addr string, chain []*x509.Certificate) *ends {
	return &ends{
		svc: s, source: peer.Service, destination: at.service(), self: at.name, peer: peer.String(), addr: addr, chain: chain,
		pair: s.metrics.pair(false, peer.Service, at.service()),
	}
}

// proof is what the handshake behind a connection rests on: who we were, and the
// bundle that accepted the peer's chain.
type proof struct {
	id     identity.ServiceID
	bundle *identity.Bundle
}

func (w *world) proof() proof { return proof{w.id, w.bundle} }

// judgeRow puts an inbound row in the table, then loads the world, then judges: an
// Update that comes between finds the row, one that came before is what is loaded.
// A row that is refused has ended, and its connection is cut.
func (s *Service) judgeRow(r *row, before proof) (*world, *RefusedError) {
	inbound := s.table.add(r)
	w := s.world.Load()
	if w.bundle != before.bundle {
		if err := w.trusts(r.chain, false, s.now()); err != nil {
			return w, r.refused(&RefusedError{Reason: ReasonTLSFailed, Err: err})
		}
	}
	if w.id != before.id {
		return w, r.refused(&RefusedError{Reason: ReasonTLSFailed, Err: fmt.Errorf("this service became %s after the handshake", w.id)})
	}
	if s.guard.full() {
		return w, r.refused(&RefusedError{Reason: ReasonLimit, Err: errNoDescriptors})
	}
	if lim := w.limits(); lim.MaxInboundConnections > 0 && inbound > lim.MaxInboundConnections {
		return w, r.refused(s.full(lim))
	}
	d := w.decide(r.source)
	if !d.Action.Allowed() {
		return w, r.refused(&RefusedError{
			Reason: ReasonDenied, Rule: d.Rule.String(), Hint: hintFor(r.source, r.destination, d), Err: catalog.ErrDenied,
		})
	}
	rule := d.Rule.String()
	if d.Action == catalog.ActionAudit {
		rule = "audit: " + rule
	}
	if !r.admit(rule) {
		return w, &RefusedError{Reason: ReasonPolicyChanged, Source: r.source, Destination: r.destination, Err: catalog.ErrDenied}
	}
	return w, nil
}

// refused ends a registered connection that is not let in.
func (r *row) refused(e *RefusedError) *RefusedError {
	e.Source, e.Destination = r.source, r.destination
	r.kill(ending{reason: e.Reason, rule: e.Rule, hint: e.Hint, err: e.Err})
	return e
}

// fit waits, at most as long as a handshake may take, until the service has a
// certificate, or the connection that asks is gone, and tells why it can serve nobody.
func (s *Service) fit(ctx context.Context, gone <-chan struct{}) (*world, Limits, error) {
	w := s.world.Load()
	lim := w.limits()
	if w.problem != "" {
		return w, lim, errors.New(w.problem)
	}
	if s.keys.held.Load() == nil {
		t := time.NewTimer(lim.HandshakeTimeout)
		defer t.Stop()
		select {
		case <-s.keys.ready:
		case <-ctx.Done():
			return w, lim, context.Cause(ctx)
		case <-gone:
			return w, lim, errMadeRoom
		case <-t.C:
		}
	}
	return w, lim, s.keys.usable(w)
}

func (s *Service) unfit(err error) *RefusedError {
	w := s.world.Load()
	r := &RefusedError{Reason: ReasonCertExpired, Destination: w.service(), Err: err}
	if w.problem != "" || errors.Is(err, errMadeRoom) {
		r.Reason = ReasonTLSFailed
	}
	return r
}

func (s *Service) full(lim Limits) *RefusedError {
	return &RefusedError{
		Reason: ReasonLimit, Destination: s.world.Load().service(),
		Err: fmt.Errorf("%d inbound connections are open, which is the limit", lim.MaxInboundConnections),
	}
}

// errNothingSaid is the end of a connection whose peer opened and closed it, as TCP
// health checks, port scanners and browsers that think ahead do.
var errNothingSaid = errors.New("closed by the peer before it sent a byte")

// knocked ends such a connection. Nobody was refused, so nobody is warned.
func (s *Service) knocked(w *wire, at *world, err error) error {
	addr := w.RemoteAddr().String()
	_ = w.Close() // the peer is gone already
	s.metrics.pair(false, "", at.service()).count(ReasonClientClosed)
	s.log.Debug("connection closed before it said anything", "destination", at.service(), "addr", addr, "reason", string(ReasonClientClosed))
	return &RefusedError{Reason: ReasonClientClosed, Destination: at.service(), Err: err}
}

// errMadeRoom is the end of a connection that the gate gave up.
var errMadeRoom = errors.New("made room for a newer connection: too many handshakes of its address were under way")

// handshake runs under a deadline and a bound of its own and leaves none behind.
func (s *Service) handshake(ctx context.Context, t *tls.Conn, w *wire, limit time.Duration, outbound bool) error {
	start := time.Now()
	w.most, w.got = maxHandshake, 0
	err := w.SetDeadline(start.Add(limit)) // fails when the gate was quicker
	if err == nil {
		err = t.HandshakeContext(ctx)
	}
	w.most = 0
	if err == nil {
		err = w.SetDeadline(time.Time{})
	}
	if err != nil && !outbound && !w.spoke.Load() && !w.evicted() && identity.ReasonOf(err) == identity.ReasonClosed {
		return errNothingSaid
	}
	if err != nil {
		s.metrics.handshakeFailed(outbound, identity.ReasonOf(err))
		switch {
		case w.evicted():
			err = errMadeRoom
		case identity.ReasonOf(err) == identity.ReasonTimeout:
			err = fmt.Errorf("no TLS handshake within %s: %w", limit, err)
		}
		return err
	}
	s.metrics.handshake(outbound, time.Since(start))
	return nil
}

// claimed is the identity that a refused peer has shown, for the log alone.
func claimed(err error) string {
	var v *identity.VerifyError
	if errors.As(err, &v) {
		return v.Peer
	}
	return ""
}

// refuse closes a connection that never had a row, and says so.
func (s *Service) refuse(w *wire, e *RefusedError, peer string) error {
	addr := w.RemoteAddr().String()
	if e.Reason == ReasonTLSFailed {
		_ = w.Close() // in order, so that the TLS alert arrives
	} else {
		w.abort()
	}
	s.metrics.pair(false, e.Source, e.Destination).count(e.Reason)
	s.journal.post(line{
		reason: e.Reason, source: e.Source, destination: e.Destination, self: s.world.Load().name, peer: peer, addr: addr,
		rule: e.Rule, hint: e.Hint, err: e.Err,
	})
	return e
}

// ended is called once for each row: out of the table, into counters and log.
func (s *Service) ended(r *row, e ending, admitted bool) {
	s.table.remove(r)
	dur := max(s.now().Sub(r.started), 1)
	if admitted {
		r.pair.open.Dec()
		r.pair.lasted(dur)
	}
	r.settle()
	r.pair.count(e.reason)
	in, out := r.bytes()
	if r.endpoint != nil {
		s.balancer.spoke(r.endpoint, r.started, e.reason, out)
		s.balancer.done(r.endpoint)
	}
	s.journal.post(line{
		reason: e.reason, outbound: r.outbound, source: r.source, destination: r.destination,
		self: r.self, peer: r.peer, addr: r.addr, upstream: r.upstream, instance: r.instance, rule: e.rule, hint: e.hint, err: e.err,
		in: in, out: out, dur: dur,
	})
}

// hostOf is the address without its port.
func hostOf(addr string) string {
	if h, _, err := net.SplitHostPort(addr); err == nil {
		return h
	}
	return addr
}
