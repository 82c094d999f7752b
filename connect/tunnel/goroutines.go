package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Goroutines is the portable Driver: two goroutines a tunnel, two a stream.
type Goroutines struct {
	cfg Config

	mu     sync.Mutex
	closed bool
	links  map[interface{ Close() error }]struct{}
}

// NewGoroutines makes a Driver.
func NewGoroutines(cfg Config) (*Goroutines, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Goroutines{cfg: cfg.withDefaults(), links: map[interface{ Close() error }]struct{}{}}, nil
}

var _ Driver = (*Goroutines)(nil)

// Close implements Driver.
func (d *Goroutines) Close() error {
	d.mu.Lock()
	d.closed = true
	links := d.links
	d.links = nil
	d.mu.Unlock()
	for l := range links {
		_ = l.Close()
	}
	return nil
}

func (d *Goroutines) add(l interface{ Close() error }) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.links[l] = struct{}{}
	}
	return !d.closed
}

func (d *Goroutines) remove(l interface{ Close() error }) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.links, l)
}

// Client implements Driver.
func (d *Goroutines) Client(ctx context.Context, conn *tls.Conn, patience time.Duration) (Link, error) {
	cfg := d.cfg
	cfg.patience = patience
	return d.link(Client(ctx, conn, cfg))
}

// Server implements Driver.
func (d *Goroutines) Server(ctx context.Context, conn *tls.Conn, accept Accept) (Link, error) {
	t, err := Server(ctx, conn, d.cfg)
	l, err := d.link(t, err)
	if err != nil {
		return nil, err
	}
	go serve(t, accept) //nolint:gosec // it ends with the tunnel, not with the call that made it
	return l, nil
}

// Splice implements Driver: there is no such thing here.
func (d *Goroutines) Splice(net.Conn, Accept, EndFunc) (*Flow, error) {
	return nil, errors.ErrUnsupported
}

// Listen implements Driver.
func (d *Goroutines) Listen(ln net.Listener, accept func(net.Conn), failed func(error)) (stop func(), err error) {
	if !d.add(ln) {
		ln.Close()
		return nil, net.ErrClosed
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer d.remove(ln)
		for {
			c, err := ln.Accept()
			switch {
			case err == nil:
				accept(c)
				continue
			case errors.Is(err, net.ErrClosed):
				return
			}
			failed(err)
			time.Sleep(acceptPause)
		}
	}()
	return func() { ln.Close(); <-done }, nil
}

func (d *Goroutines) link(t *Tunnel, err error) (Link, error) {
	if err != nil {
		return nil, err
	}
	l := &link{t}
	if !d.add(l) {
		_ = t.Close()
		return nil, net.ErrClosed
	}
	go func() { <-t.Done(); d.remove(l) }()
	return l, nil
}

type link struct{ *Tunnel }

// Status implements Link.
func (l *link) Status() Status {
	l.mu.Lock()
	grown := l.m.grown
	l.mu.Unlock()
	return Status{
		Grown: grown, Streams: l.Streams(), Limit: l.m.limit(), Draining: l.Draining(),
		Bytes: l.bytes.Load(), Bulk: l.bulk.Load(), Unjudged: l.unjudged.Load(), Err: l.Err(),
	}
}

// Carry implements Link.
func (l *link) Carry(app net.Conn, meta []byte, end EndFunc) (*Flow, error) {
	s, err := l.Open(meta)
	if err != nil {
		return nil, err
	}
	app, said := heard(app)
	c := &carried{s: s, app: app, flow: &Flow{}}
	if end != nil {
		c.kept = &kept{b: said}
	}
	c.flow.target = c
	s.attach(app, c.kept != nil)
	go c.run(end)
	return c.flow, nil
}

// serve judges streams and joins them to their applications.
func serve(t *Tunnel, accept Accept) {
	for {
		s, err := t.Accept(context.Background())
		if err != nil {
			return
		}
		c := &carried{s: s, flow: &Flow{}}
		c.flow.target = c
		v := accept(c.flow, s.Meta())
		s.meta = nil
		if v.Refuse != 0 {
			s.refuse(v.Refuse)
			continue
		}
		v.complete()
		go c.dial(v)
	}
}

// carried is a flow of this driver.
type carried struct {
	s    *Stream
	app  net.Conn
	flow *Flow

	mu    sync.Mutex
	owner *Code // the owner's reset
	deaf  bool  // the application reads no more
	said  bool  // and it has said all

	from  *appReader
	toApp appWriter
	kept  *kept // of up, and of run when that is over; nil where nothing can be said again
}

// reset is the owner's. Unlike the peer's, it cuts the application also when it
// has all the peer had to say.
func (c *carried) reset(code Code) {
	c.mu.Lock()
	if c.owner == nil {
		c.owner = &code
	}
	app := c.app
	c.mu.Unlock()
	c.s.Reset(code)
	if app != nil {
		abort(app)
	}
}

// attach gives the dialled application to the flow.
func (c *carried) attach(app net.Conn) {
	c.mu.Lock()
	c.app = app
	over := c.owner != nil
	c.mu.Unlock()
	if over {
		abort(app)
	}
	c.s.attach(app, false)
}

func (c *carried) dial(v Verdict) {
	ctx, cancel := context.WithTimeout(context.Background(), v.Timeout)
	c.s.onEnd(func(bool) { cancel() })
	app, err := v.Dial(ctx)
	cancel()
	if err != nil {
		c.s.refuse(CodeDialFailed)
		e := End{Cause: CauseDial, Code: CodeDialFailed, Err: err}
		if serr := c.s.failure(); serr != nil && errors.Is(err, context.Canceled) {
			e = c.blame(serr)
		}
		c.finish(v.End, e)
		return
	}
	c.attach(app)
	c.run(v.End)
}

func (c *carried) finish(end EndFunc, e End) {
	c.mu.Lock()
	if c.owner != nil && e.Cause != CauseDone {
		e = End{Cause: CauseOwner, Code: *c.owner, Err: e.Err}
	}
	c.mu.Unlock()
	if end != nil {
		end(c.flow, e)
	}
}

// blame names the cause of a stream's error.
func (c *carried) blame(err error) End {
	var r *ResetError
	switch {
	case errors.As(err, &r) && r.Remote:
		return End{Cause: CausePeer, Code: r.Code, Err: err}
	case errors.As(err, &r):
		return End{Cause: CauseOwner, Code: r.Code, Err: err}
	case errors.Is(err, net.ErrClosed):
		return End{Cause: CauseOwner, Err: err}
	case errors.Is(err, ErrUnprocessed):
		return End{Cause: CauseUnprocessed, Err: err}
	default:
		return End{Cause: CauseLost, Err: err}
	}
}

// run carries both directions to their ends.
func (c *carried) run(end EndFunc) {
	c.toApp.Conn, c.toApp.flow = c.app, c.flow
	c.from = newAppReader(c.app, &c.toApp)
	carries(c.app)
	up := make(chan ends, 1)
	go func() { up <- c.up() }()
	down := c.down()
	ups := <-up
	if e, ok := c.giveBack(ups); ok {
		end(c.flow, e)
		return
	}
	c.finish(end, c.conclude(ups, down))
}

// giveBack returns an application that nobody has heard to the owner of the flow.
func (c *carried) giveBack(up ends) (End, bool) {
	unheard, why := c.s.unheard()
	c.mu.Lock()
	owned := c.owner != nil
	c.mu.Unlock()
	switch {
	case owned, !unheard, c.kept == nil:
		return End{}, false
	case up.app != nil && !errors.Is(up.app, os.ErrDeadlineExceeded):
		return End{}, false // it has failed itself
	}
	_ = c.s.Close()
	e := c.blame(why)
	e.App = again(c.app, c.kept.b)
	if l, ok := c.app.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(-1) // fails only when closed
	}
	_ = c.app.SetReadDeadline(time.Time{})
	return e, true
}

// ends is how one direction ended: in order, or by the stream's or the
// application's error.
type ends struct{ stream, app error }

// up carries what the application sends.
func (c *carried) up() ends {
	r := c.from
	if c.kept != nil && len(c.kept.rest()) > 0 {
		p := c.kept.rest()
		c.kept.sent += len(p)
		c.flow.sent.Add(int64(len(p)))
		if _, err := c.s.Write(p); err != nil {
			return ends{stream: err}
		}
	}
	for {
		buf, n, err := r.read()
		if n > 0 {
			c.flow.sent.Add(int64(n))
			if c.kept != nil && !c.kept.keep((*buf)[:n]) {
				c.kept = nil
			}
			_, werr := c.s.Write((*buf)[:n])
			bulkOrSmall(buf)
			if werr != nil {
				return ends{stream: werr}
			}
		} else {
			bulkOrSmall(buf)
		}
		switch {
		case err == nil:
		case err == io.EOF: //nolint:errorlint // ours, bare
			_ = c.s.CloseWrite() // a failed stream shows in the other direction
			if c.note(&c.said, &c.deaf) {
				_ = c.s.Close()
			}
			return ends{}
		default:
			c.s.Reset(CodeCancelled)
			return ends{app: err}
		}
	}
}

// note sets one fact and tells whether the other holds.
func (c *carried) note(set, other *bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	*set = true
	return *other
}

// down carries what the peer sends.
func (c *carried) down() ends {
	_, err := c.s.WriteTo(&c.toApp)
	var w *WriteError
	switch {
	case err == nil:
		if h, ok := c.app.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite() // fails when the application is gone, which up sees
		}
		return ends{}
	case !errors.As(err, &w):
		if unheard, _ := c.s.unheard(); !unheard {
			abort(c.app)
		}
		return ends{stream: err}
	case errors.Is(err, syscall.EPIPE), c.toApp.probed:
		// It left, and has perhaps answered before: up goes on, to the end or to the
		// reset that the write met. What it did not take is credited, as the application at the other end may be in the same
		// state, and two that wait for each other's credit would wait for ever.
		if !c.note(&c.deaf, &c.said) {
			_, _ = c.s.WriteTo(io.Discard)
		}
		return ends{app: err}
	default:
		c.s.Reset(CodeCancelled)
		abort(c.app)
		return ends{app: err}
	}
}

// conclude closes what is left and names the cause.
func (c *carried) conclude(up, down ends) End {
	switch {
	case up == ends{} && down == ends{}:
		finish(c.app)
		_ = c.s.Close()
		return End{}
	case down == ends{} && up.stream != nil:
		// The peer answered in full and left while the application still sent.
		lingerClose(c.app)
		_ = c.s.Close()
		return c.blame(up.stream)
	case up == ends{} && errors.Is(down.app, syscall.EPIPE):
		finish(c.app)
		_ = c.s.Close() // FIN and RESET: the answer is complete, the rest unread
		return End{Cause: CauseApp, Code: CodeCancelled, Err: down.app}
	}
	failure := c.s.failure()
	c.s.Reset(CodeCancelled)
	abort(c.app)
	switch {
	case failure != nil && !isLocal(failure):
		return c.blame(failure)
	case up.app != nil:
		return End{Cause: CauseApp, Code: CodeCancelled, Err: up.app}
	case down.app != nil:
		return End{Cause: CauseApp, Code: CodeCancelled, Err: down.app}
	case down.stream != nil:
		return c.blame(down.stream)
	default:
		return c.blame(up.stream)
	}
}

func isLocal(err error) bool {
	var r *ResetError
	return errors.As(err, &r) && !r.Remote
}
