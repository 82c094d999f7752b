package tunnel

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// pair is one application joined to one TLS connection, by two goroutines.
type pair struct {
	tc   *tls.Conn
	app  net.Conn
	flow *Flow

	mu    sync.Mutex
	owner *Code

	from  *appReader
	toApp appWriter
	said  []byte // by the application in a stream that nobody heard
}

// Pair implements Driver.
func (d *Goroutines) Pair(conn *tls.Conn, app net.Conn, end EndFunc) (*Flow, error) {
	app, said := heard(app)
	p := &pair{tc: conn, app: app, flow: &Flow{}, said: said}
	p.toApp.Conn, p.toApp.flow = app, p.flow
	p.flow.target = p
	if !d.add(p) {
		return nil, net.ErrClosed
	}
	go func() {
		e := p.run()
		d.remove(p)
		if end != nil {
			end(p.flow, e)
		}
	}()
	return p.flow, nil
}

// Close cuts the pair.
func (p *pair) Close() error {
	p.reset(CodeDraining)
	return nil
}

func (p *pair) reset(code Code) {
	p.mu.Lock()
	if p.owner == nil {
		p.owner = &code
	}
	p.mu.Unlock()
	p.cut()
}

func (p *pair) cut() {
	abort(p.tc.NetConn())
	abort(p.app)
}

// SetLinger lets abort reset a wrapped connection.
func (w *Wire) SetLinger(sec int) error {
	if t, ok := w.Conn.(interface{ SetLinger(int) error }); ok {
		return t.SetLinger(sec)
	}
	return nil
}

func (p *pair) run() End {
	carries(p.app)
	p.from = newAppReader(p.app, &p.toApp)
	up := make(chan pairEnds, 1)
	go func() { up <- p.up() }()
	down := p.down()
	e := p.conclude(<-up, down)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.owner != nil && e.Cause != CauseDone {
		e = End{Cause: CauseOwner, Code: *p.owner, Err: e.Err}
	}
	return e
}

// pairEnds is how one direction ended: by a failed read, a failed write, or in
// order.
type pairEnds struct{ read, write error }

func (p *pair) up() pairEnds {
	r := p.from
	if len(p.said) > 0 {
		p.flow.sent.Add(int64(len(p.said)))
		if _, err := p.tc.Write(p.said); err != nil {
			return pairEnds{write: err}
		}
		p.said = nil
	}
	for {
		buf, n, err := r.read()
		if n > 0 {
			p.flow.sent.Add(int64(n))
			_, werr := p.tc.Write((*buf)[:n])
			bulkOrSmall(buf)
			if werr != nil {
				return pairEnds{write: werr}
			}
		} else {
			bulkOrSmall(buf)
		}
		switch {
		case err == nil:
		case err == io.EOF: //nolint:errorlint // ours, bare
			if err := p.tc.CloseWrite(); err != nil {
				return pairEnds{write: err}
			}
			return pairEnds{}
		default:
			p.cut()
			return pairEnds{read: err}
		}
	}
}

func (p *pair) down() pairEnds {
	small := make([]byte, readScratch)
	big := false
	for {
		buf, bulk := small, (*[]byte)(nil)
		if big {
			bulk = bulkBuffers.Get().(*[]byte)
			buf = *bulk
		}
		n, err := p.tc.Read(buf)
		var werr error
		if n > 0 {
			_, werr = p.toApp.Write(buf[:n])
		}
		big = n >= len(small)
		if bulk != nil {
			bulkBuffers.Put(bulk)
		}
		switch {
		case werr != nil && (p.toApp.probed || errors.Is(werr, syscall.EPIPE)):
			// It may have answered before: up goes on, to the end or to the reset that the
			// write met. The rest is read, as the far end
			// may be in the same state, and two that wait for each other would for ever.
			_ = p.tc.SetReadDeadline(time.Now().Add(lingerTimeout))
			_, _ = io.Copy(io.Discard, p.tc)
			return pairEnds{write: werr}
		case werr != nil:
			p.cut()
			return pairEnds{write: werr}
		case err == io.EOF: //nolint:errorlint // crypto/tls returns it bare on close_notify
			if h, ok := p.app.(interface{ CloseWrite() error }); ok {
				_ = h.CloseWrite() // fails when the application is gone, which up sees
			}
			return pairEnds{}
		case err != nil:
			p.cut()
			return pairEnds{read: err}
		}
	}
}

func (p *pair) conclude(up, down pairEnds) End {
	switch {
	case up == pairEnds{} && down == pairEnds{}:
		finish(p.app)
		p.tc.Close()
		return End{}
	case down == pairEnds{} && up.write != nil:
		lingerClose(p.app)
		abort(p.tc.NetConn())
		return End{Cause: CausePeer, Err: up.write}
	case up == pairEnds{} && down.write != nil:
		finish(p.app)
		lingerClose(p.tc)
		return End{Cause: CauseApp, Err: down.write}
	}
	p.cut()
	switch {
	case up.read != nil && !errors.Is(up.read, net.ErrClosed):
		return End{Cause: CauseApp, Err: up.read}
	case down.write != nil && !errors.Is(down.write, net.ErrClosed):
		return End{Cause: CauseApp, Err: down.write}
	case down.read != nil:
		return End{Cause: CauseLost, Err: down.read}
	default:
		return End{Cause: CauseLost, Err: up.write}
	}
}

// lingerClose lets the far end take what it was sent before c is closed.
func lingerClose(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(lingerTimeout))
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{c}); err != nil {
		abort(c)
		return
	}
	finish(c)
}
