package mux

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// Config is what New needs.
type Config struct {
	Listener net.Listener
	// TLS is the config of the next connection. It chooses among the protocols that
	// have listeners.
	TLS func() *tls.Config
	// Admit may refuse a connection after its handshake; nil admits all. A connection
	// that it is asked about is one that CloseIf sees already.
	Admit func(tls.ConnectionState) error

	HandshakeTimeout time.Duration // 5 s when 0
	MaxHandshakes    int           // in progress at a time; 512 when 0
	MaxConns         int           // open at a time; 16,384 when 0
	MaxPerSource     int           // open at a time from one address; 1,024 when 0
	RatePerSource    float64       // connections a second from one address, four times as many at once; 100 when 0

	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil registers nowhere
}

// Mux is one port of many protocols.
type Mux struct {
	cfg     Config
	table   *table
	metrics *metrics
	noise   Noise
	// handshake is the HandshakeTimeout of now.
	handshake atomic.Int64

	mu     sync.Mutex
	queues map[string]*queue
	ended  bool
}

// New checks the configuration.
func New(cfg Config) (*Mux, error) {
	if cfg.Listener == nil || cfg.TLS == nil {
		return nil, errors.New("mux: a listener and a TLS config are needed")
	}
	if cfg.HandshakeTimeout < 0 || cfg.MaxHandshakes < 0 || cfg.MaxConns < 0 || cfg.MaxPerSource < 0 || cfg.RatePerSource < 0 {
		return nil, errors.New("mux: a limit is negative")
	}
	orElse(&cfg.HandshakeTimeout, 5*time.Second)
	orElse(&cfg.MaxHandshakes, 512)
	orElse(&cfg.MaxConns, 16<<10)
	orElse(&cfg.MaxPerSource, 1<<10)
	orElse(&cfg.RatePerSource, 100)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Mux{cfg: cfg, table: newTable(&cfg), queues: map[string]*queue{}}
	m.handshake.Store(int64(cfg.HandshakeTimeout))
	var err error
	m.metrics, err = newMetrics(cfg.Registerer, m.table)
	return m, err
}

func orElse[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

// SetLimits changes HandshakeTimeout and MaxPerSource, for what connects from now on;
// 0 is the default.
func (m *Mux) SetLimits(handshake time.Duration, perSource int) {
	orElse(&handshake, 5*time.Second)
	orElse(&perSource, 1<<10)
	m.handshake.Store(int64(handshake))
	m.table.setPerSource(perSource)
}

// Listen gives the listener of an application protocol, of *tls.Conn whose handshake
// is done. Connections of protocols that nobody listens to are closed. A protocol
// has one listener; closing it ends the protocol, not the port.
func (m *Mux) Listen(proto string) net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.queues[proto]
	if q == nil {
		q = &queue{addr: m.Addr(), conns: make(chan net.Conn), closed: make(chan struct{})}
		m.queues[proto] = q
		if m.ended {
			_ = q.Close()
		}
	}
	return q
}

// Addr is where the port is.
func (m *Mux) Addr() net.Addr { return m.cfg.Listener.Addr() }

// Run accepts until ctx ends. Then it closes the port, all listeners and all
// connections.
func (m *Mux) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, m.end)
	var pause time.Duration
	for {
		raw, err := m.cfg.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			if raw != nil {
				_ = raw.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("mux: %w", err)
		case err != nil: // out of file descriptors, most likely: it passes
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			m.cfg.Logger.Error("the servers' port cannot accept; it tries again", "err", err)
			if !sleep(ctx, pause) {
				return nil
			}
			continue
		}
		pause = 0
		c, reason := m.table.add(raw)
		if reason != "" {
			m.refused(raw, reason, nil)
			_ = raw.Close()
			continue
		}
		wg.Go(func() { m.serve(ctx, c) })
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (m *Mux) end() {
	_ = m.cfg.Listener.Close()
	m.mu.Lock()
	m.ended = true
	for _, q := range m.queues {
		_ = q.Close()
	}
	m.mu.Unlock()
	m.table.closeAll()
}

// serve shakes hands and passes the connection on.
func (m *Mux) serve(ctx context.Context, c *conn) {
	patience := time.Duration(m.handshake.Load())
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	begin := time.Now()
	_ = c.SetDeadline(begin.Add(patience))
	t := tls.Server(c, m.cfg.TLS())
	if err := t.HandshakeContext(ctx); err != nil {
		m.refused(c, reasonOf(err, c.evicted.Load()), err)
		_ = c.Close()
		return
	}
	m.metrics.handshakes.Observe(time.Since(begin).Seconds())
	// Known to CloseIf first, admitted then: whatever the order in which a peer is
	// revoked and let in, one of the two sees it.
	cs := t.ConnectionState()
	m.table.opened(c, cs)
	if m.cfg.Admit != nil {
		if err := m.cfg.Admit(cs); err != nil {
			m.refused(c, "not_admitted", err)
			_ = c.Close()
			return
		}
	}
	_ = c.SetDeadline(time.Time{})
	m.mu.Lock()
	q := m.queues[cs.NegotiatedProtocol]
	m.mu.Unlock()
	if q == nil || !q.put(ctx, t) {
		m.refused(c, "no_listener", fmt.Errorf("nobody takes connections of protocol %q", cs.NegotiatedProtocol))
		_ = c.Close()
	}
}

// refused counts and logs. A flood writes a few lines a second.
func (m *Mux) refused(c net.Conn, reason string, err error) {
	m.metrics.refused.WithLabelValues(reason).Inc()
	if reason == "closed" { // a port check: they come and go
		m.cfg.Logger.Debug("a connection to the servers' port ended before its handshake", "peer", c.RemoteAddr().String(), "reason", reason)
		return
	}
	m.noise.Say(func(untold int) {
		attrs := []any{"peer", c.RemoteAddr().String(), "reason", reason}
		if err != nil {
			attrs = append(attrs, "err", err)
		}
		if untold > 0 {
			attrs = append(attrs, "untold", untold)
		}
		m.cfg.Logger.Warn("a connection to the servers' port was refused", attrs...)
	})
}

// CloseIf closes the open connections of which gone is true, and tells how many.
// gone must be quick. A connection that is shaking hands meanwhile is asked about by
// Config.Admit.
func (m *Mux) CloseIf(gone func(tls.ConnectionState) bool) int { return m.table.closeIf(gone) }

// Noise lets a few log lines a second through and counts the others.
type Noise struct {
	mu     sync.Mutex
	some   rate.Sometimes
	untold int
}

// Say calls f, with the number of those left out before, or leaves it out.
func (n *Noise) Say(f func(untold int)) (said bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.some.Interval == 0 {
		n.some.First, n.some.Interval = 8, time.Second
	}
	n.some.Do(func() {
		f(n.untold)
		said = true
	})
	if said {
		n.untold = 0
	} else {
		n.untold++
	}
	return said
}

// queue is the listener of one protocol.
type queue struct {
	addr   net.Addr
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

// put waits until somebody accepts.
func (q *queue) put(ctx context.Context, c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.closed:
		return false
	case <-ctx.Done():
		return false
	}
}

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

// Addr implements net.Listener.
func (q *queue) Addr() net.Addr { return q.addr }
