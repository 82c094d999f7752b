package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

const (
	// maxAttempts bounds the instances tried for one connection.
	maxAttempts = 16
	// maxListed bounds the failures that an error spells out.
	maxListed = 4
)

// Dial connects to an upstream of the snapshot, by name ("name@datacenter" for one
// of another datacenter). It tries one instance after another until one answers
// with the identity expected. The error, a *RefusedError, lists what was tried.
func (s *Service) Dial(ctx context.Context, upstream catalog.Name) (net.Conn, error) {
	c, err := s.dial(ctx, upstream, "")
	if err != nil {
		return nil, err
	}
	return c, nil
}

// dial names, as from, the client for which it dials.
func (s *Service) dial(ctx context.Context, name catalog.Name, from string) (*Conn, error) {
	w, up, err := s.upstream(ctx, name, from)
	if err != nil {
		return nil, err
	}
	tried := make([]bool, len(up.Instances))
	var failures []failure
	for range maxAttempts {
		e := s.balancer.pick(up, tried)
		if e == nil {
			break
		}
		c, err := s.connect(ctx, w, up, e)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			s.balancer.done(e.state)
			failures = append(failures, givenUp(ctx))
			break
		}
		s.balancer.failed(e.state, e.at, false, err)
		failures = append(failures, failure{e.ID, e.Addr, err})
	}
	s.table.release(up.key)
	return nil, s.refuseDial(w, name, from, ReasonDialFailed, tellTried(len(up.Instances), failures))
}

// upstream gives a destination with a reservation of one connection to it. Why there
// is none has been logged.
func (s *Service) upstream(ctx context.Context, name catalog.Name, from string) (*world, *upstream, error) {
	w, _, err := s.fit(ctx, nil)
	if err != nil {
		return nil, nil, s.refuseDial(w, name, from, s.unfit(err).Reason, err)
	}
	up := w.upstreams[name]
	switch {
	case up == nil:
		err = fmt.Errorf("%s is no upstream of %s; it has %s", name, w.service(), listNames(w.names()))
		return nil, nil, s.refuseDial(w, name, from, ReasonNoInstance, err)
	case len(up.Instances) == 0:
		return nil, nil, s.refuseDial(w, name, from, ReasonNoInstance, fmt.Errorf("%s has no healthy instance", name))
	case s.guard.full():
		return nil, nil, s.refuseDial(w, name, from, ReasonLimit, errNoDescriptors)
	case !s.table.reserve(up.key, up.MaxConnections):
		err = fmt.Errorf("%d connections to %s are open, which is the limit", up.MaxConnections, name)
		return nil, nil, s.refuseDial(w, name, from, ReasonLimit, err)
	}
	return w, up, nil
}

// refuseDial counts and logs a connection that did not come about.
func (s *Service) refuseDial(w *world, name catalog.Name, from string, why Reason, err error) error {
	to := name
	if up := w.upstreams[name]; up != nil {
		to = up.base
	}
	e := &RefusedError{Reason: why, Source: w.service(), Destination: to, Err: err}
	s.metrics.pair(true, e.Source, e.Destination).count(why)
	l := line{reason: why, outbound: true, source: e.Source, destination: to, self: w.name, upstream: name, addr: from, err: err}
	if up := w.upstreams[name]; up != nil {
		l.peer = up.id.String() // who would have been there
	}
	s.journal.post(l)
	return e
}

// failure is that of an instance to take a connection.
type failure struct {
	id, addr string // empty: of the one who asks
	err      error
}

func givenUp(ctx context.Context) failure {
	return failure{err: fmt.Errorf("given up: %w", context.Cause(ctx))}
}

func (f failure) String() string {
	if f.addr == "" {
		return f.err.Error()
	}
	return fmt.Sprintf("%s at %s: %v", f.id, f.addr, f.err)
}

func tellTried(instances int, failures []failure) error {
	var text strings.Builder
	for i, f := range failures[:min(len(failures), maxListed)] {
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(f.String())
	}
	if more := len(failures) - maxListed; more > 0 {
		fmt.Fprintf(&text, "; and %d more", more)
	}
	// Some that were tried may not be listed any more.
	return fmt.Errorf("tried %d of %d instances: %s", len(failures), max(instances, len(failures)), &text)
}

func listNames(names []catalog.Name) string {
	if len(names) == 0 {
		return "none"
	}
	const few = 8
	if len(names) > few {
		return strings.Join(names[:few], ", ") + fmt.Sprintf(" and %d more", len(names)-few)
	}
	return strings.Join(names, ", ")
}

// connect reaches one instance and registers the connection.
func (s *Service) connect(ctx context.Context, w *world, up *upstream, e *candidate) (*Conn, error) {
	id := up.peer(e.Endpoint)
	ctx, cancel := up.limited(ctx)
	defer cancel()
	c, err := s.reach(ctx, up, e.Addr, id, w.peers[id].alone)
	if err != nil {
		return nil, err
	}
	r := &row{ends: s.outboundEnds(w, up, e, id, c.tls.ConnectionState().PeerCertificates), started: s.now(), leg: c}
	c.row = r
	if err := s.enter(r, w); err != nil {
		return nil, err
	}
	s.balancer.reached(e.state)
	return c, nil
}

// reach dials an instance and does the handshake, while ctx lasts; see limited.
func (s *Service) reach(ctx context.Context, up *upstream, addr string, id identity.ServiceID, config *tls.Config) (*Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &Conn{wire: newWire(raw), peer: id}
	c.tls = secureClient(c.wire, config)
	if err := s.limitedHandshake(ctx, c, up); err != nil {
		_ = raw.Close() // in order, so that the TLS alert arrives
		return nil, err
	}
	return c, nil
}

// limited is for one attempt at an instance: it has so long for all of it, the wait
// for others who are at it, the dial, the handshake and the greeting.
func (u *upstream) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := u.connectTimeout()
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took no connection within %s", limit))
}

func (u *upstream) connectTimeout() time.Duration {
	if u.ConnectTimeout <= 0 {
		return 5 * time.Second
	}
	return u.ConnectTimeout
}

func (s *Service) outboundEnds(w *world, up *upstream, e *candidate, id identity.ServiceID, chain []*x509.Certificate) *ends {
	var name string
	if p := w.peers[id]; p != nil {
		name = p.name
	} else { // up may be of a world before
		name = id.String()
	}
	return &ends{
		svc: s, outbound: true, source: w.service(), destination: id.Service, self: w.name, peer: name,
		addr: e.Addr, upstream: up.key, base: up.base, instance: e.ID, endpoint: e.state, chain: chain,
		pair: s.metrics.pair(true, w.service(), id.Service),
	}
}

// enter puts an outbound row in the table, and then makes sure that the world still
// trusts what the handshake in w rests on. The row takes over the counts of its
// instance and upstream; when it is refused the caller has them again.
func (s *Service) enter(r *row, w *world) error {
	s.table.add(r)
	if now := s.world.Load(); now.bundle != w.bundle {
		if err := now.trusts(r.chain, true, s.now()); err != nil {
			r.kill(ending{reason: ReasonTLSFailed, err: err})
		}
	}
	if !r.admit("") {
		s.balancer.again(r.endpoint)
		s.table.reserve(r.upstream, 0)
		return errors.New("trust changed during the handshake")
	}
	return nil
}

// limitedHandshake waits for one of the places that bound handshakes in flight.
func (s *Service) limitedHandshake(ctx context.Context, c *Conn, up *upstream) error {
	select {
	case up.handshakes <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-up.handshakes }()
	return s.handshake(ctx, c.tls, c.wire, up.connectTimeout(), true)
}
