package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
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
	w, _, err := s.fit(ctx)
	refuse := func(why Reason, err error) error {
		e := &RefusedError{Reason: why, Source: w.service(), Destination: name, Err: err}
		s.metrics.pair(true, e.Source, e.Destination).count(why)
		s.journal.write(&line{
			reason: why, outbound: true, source: e.Source, destination: name, upstream: name, addr: from, err: err,
		})
		return e
	}
	if err != nil {
		return nil, refuse(s.unfit(err).Reason, err)
	}
	up := w.upstreams[name]
	if up == nil {
		return nil, refuse(ReasonNoInstance, fmt.Errorf("%s is no upstream of %s; it has %s", name, w.service(), listNames(w.names())))
	}
	if len(up.Instances) == 0 {
		return nil, refuse(ReasonNoInstance, fmt.Errorf("%s has no healthy instance", name))
	}
	if !s.table.reserve(up.key, up.MaxConnections) {
		return nil, refuse(ReasonLimit, fmt.Errorf("%d connections to %s are open, which is the limit", up.MaxConnections, name))
	}
	tried := make([]bool, len(up.Instances))
	var failures []string
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
			failures = append(failures, "given up: "+context.Cause(ctx).Error())
			break
		}
		s.balancer.failed(e.state, err)
		failures = append(failures, fmt.Sprintf("%s at %s: %v", e.ID, e.Addr, err))
	}
	s.table.release(up.key)
	return nil, refuse(ReasonDialFailed, tellTried(len(up.Instances), failures))
}

func tellTried(instances int, failures []string) error {
	text := strings.Join(failures[:min(len(failures), maxListed)], "; ")
	if more := len(failures) - maxListed; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return fmt.Errorf("tried %d of %d instances: %s", len(failures), instances, text)
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
	limit := up.ConnectTimeout
	if limit <= 0 {
		limit = 5 * time.Second
	}
	d := net.Dialer{Timeout: limit}
	raw, err := d.DialContext(ctx, "tcp", e.Addr)
	if err != nil {
		return nil, err
	}
	id := up.peer(e.Endpoint)
	c := &Conn{wire: newWire(raw), peer: id}
	c.tls = tls.Client(c.wire, w.peers[id])
	if err := s.limitedHandshake(ctx, c, up, limit); err != nil {
		_ = raw.Close() // in order, so that the TLS alert arrives
		return nil, err
	}
	r := &row{
		svc: s, outbound: true, source: w.service(), destination: id.Service, peer: id.String(),
		addr: e.Addr, upstream: up.key, instance: e.ID, endpoint: e.state,
		chain: c.tls.ConnectionState().PeerCertificates, started: s.now(), legs: []aborter{c},
	}
	r.pair = s.metrics.pair(true, r.source, r.destination)
	c.row = r
	s.table.add(r)
	s.balancer.worked(e.state)
	if now := s.world.Load(); now.bundle != w.bundle {
		if err := now.trusts(r.chain, true, s.now()); err != nil {
			r.kill(ending{reason: ReasonTLSFailed, err: err})
		}
	}
	if !r.admit("") {
		// Its counts went with the row; the caller takes one back of each.
		s.balancer.again(e.state)
		s.table.reserve(up.key, 0)
		return nil, errors.New("trust changed during the handshake")
	}
	return c, nil
}

// limitedHandshake waits for one of the places that bound handshakes in flight.
func (s *Service) limitedHandshake(ctx context.Context, c *Conn, up *upstream, limit time.Duration) error {
	select {
	case up.handshakes <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-up.handshakes }()
	return s.handshake(ctx, c.tls, c.wire, limit, true)
}
