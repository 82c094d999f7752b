package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"time"
)

// Loops is the Driver for Linux: event loops that own raw sockets and many tunnels
// each. A tunnel stays on one loop for life.
type Loops struct {
	cfg    Config
	loops  []*loop
	next   atomic.Uint32
	closed atomic.Bool
}

var _ Driver = (*Loops)(nil)

// NewLoops starts n event loops; 0: one for each processor.
func NewLoops(cfg Config, n int) (*Loops, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	d := &Loops{cfg: cfg.withDefaults()}
	for range n {
		l, err := newLoop(d.cfg)
		if err != nil {
			_ = d.Close()
			return nil, err
		}
		d.loops = append(d.loops, l)
		go l.run()
	}
	return d, nil
}

// New gives the best Driver of the platform.
func New(cfg Config) (Driver, error) { return NewLoops(cfg, 0) }

// Close implements Driver. It waits until the loops have ended, so it must not be
// called on one.
func (d *Loops) Close() error {
	d.closed.Store(true)
	for _, l := range d.loops {
		l.post(func() { l.stop(net.ErrClosed) })
	}
	for _, l := range d.loops {
		<-l.done
	}
	return nil
}

// pick deals tunnels to loops in turn.
func (d *Loops) pick() *loop { return d.loops[int(d.next.Add(1))%len(d.loops)] }

var errNoWire = errors.New("the event loop needs crypto/tls over a Wire: tls.Client(tunnel.NewWire(conn), …)")

func wireOf(tc *tls.Conn) (*Wire, error) {
	w, ok := tc.NetConn().(*Wire)
	if !ok {
		return nil, errNoWire
	}
	return w, nil
}

// Client implements Driver.
func (d *Loops) Client(ctx context.Context, conn *tls.Conn, patience time.Duration) (Link, error) {
	return d.link(ctx, conn, nil, patience)
}

// Server implements Driver.
func (d *Loops) Server(ctx context.Context, conn *tls.Conn, accept Accept) (Link, error) {
	return d.link(ctx, conn, accept, 0)
}

func (d *Loops) link(ctx context.Context, conn *tls.Conn, accept Accept, patience time.Duration) (Link, error) {
	w, err := wireOf(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	m, err := greet(ctx, conn, accept != nil, d.cfg)
	if err != nil {
		conn.Close()
		return nil, err
	}
	t := &loopTunnel{m: m, accept: accept, done: make(chan struct{}), held: d.cfg.account()}
	t.toWrite.write = true
	t.begin(patience)
	t.l, t.tc = d.pick(), conn
	t.m.grow = d.cfg.growth(func() time.Duration { return shortestRTT(uintptr(t.fd)) })
	attached := make(chan error, 1)
	posted := t.l.post(func() {
		if t.l.stopping {
			attached <- net.ErrClosed
			return
		}
		w.taken = &t.secure
		err := t.attach(w, t)
		if err == nil {
			t.l.tunnels[t] = struct{}{}
			t.l.keepTicking()
			t.enqueue()
		}
		attached <- err
	})
	if !posted {
		conn.NetConn().Close()
		return nil, net.ErrClosed
	}
	if err := <-attached; err != nil {
		w.Conn.Close()
		return nil, fmt.Errorf("hand the tunnel to its loop: %w", err)
	}
	return t, nil
}

// Pair implements Driver.
func (d *Loops) Pair(conn *tls.Conn, app net.Conn, end EndFunc) (*Flow, error) {
	w, err := wireOf(conn)
	if err != nil {
		return nil, err
	}
	if d.closed.Load() {
		return nil, net.ErrClosed
	}
	app, said := heard(app)
	fd, err := takeFD(app)
	if err != nil {
		return nil, err
	}
	p := &loopPair{app: fd, flow: &Flow{}, end: end, said: said}
	p.l, p.tc, p.fd = d.pick(), conn, -1
	p.flow.target = p
	if !p.l.post(func() { p.start(w) }) {
		closeFD(fd, true)
		abort(w)
		return nil, net.ErrClosed
	}
	return p.flow, nil
}
