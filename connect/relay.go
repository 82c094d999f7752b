package connect

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"
)

// lingerTimeout bounds how long the rest of a sender is read and dropped after
// its receiver has gone, so that a reset does not overtake the receiver's answer.
const lingerTimeout = 2 * time.Second

// leg is one end of a relayed connection: the application, or the mesh.
type leg interface {
	aborter
	readInto(one []byte, big bool) (buf *[]byte, n int, err error)
	writeAll(p []byte) error
	CloseWrite() error
	closeAfterEnd()
	discard(until time.Time) error
}

var (
	_ leg = (*Conn)(nil)
	_ leg = (*app)(nil)
)

// app is a plain connection of the application.
type app struct {
	net.Conn
	raw   syscall.RawConn // nil: no reading without a buffer
	probe func(fd uintptr) bool
	big   bool
	buf   *[]byte
	n     int
	err   error

	finished atomic.Bool // CloseWrite was called
}

func newApp(c net.Conn) *app {
	a := &app{Conn: c}
	// Should this process be killed, the kernel closes for us: as a reset, since
	// what the application has so far must not look complete.
	a.linger(0)
	if sc, ok := c.(syscall.Conn); ok && canProbe {
		if raw, err := sc.SyscallConn(); err == nil {
			a.raw, a.probe = raw, a.probeOnce
		}
	}
	return a
}

// readInto waits for data holding no buffer, then reads once into one from the pool.
func (a *app) readInto(_ []byte, big bool) (*[]byte, int, error) {
	if a.raw == nil {
		buf := pool(big).Get().(*[]byte)
		n, err := a.Conn.Read(*buf)
		return buf, n, err
	}
	a.big = big
	if err := a.raw.Read(a.probe); err != nil {
		return nil, 0, err
	}
	buf := a.buf
	a.buf = nil
	return buf, a.n, a.err
}

func (a *app) probeOnce(fd uintptr) bool {
	p := pool(a.big)
	buf := p.Get().(*[]byte)
	a.n, a.err = readFD(fd, *buf)
	if _, ok := a.err.(wouldBlock); ok { //nolint:errorlint // readFD returns it bare
		p.Put(buf)
		return false
	}
	if a.n == 0 && a.err == nil {
		a.err = io.EOF
		// A reset that a write has met first reads as an end. But only a socket whose
		// write side was closed in order can be closed; look at that second.
		if isClosedFD(fd) && !a.finished.Load() {
			a.err = os.NewSyscallError("read", syscall.ECONNRESET)
		}
	}
	a.buf = buf
	return true
}

func (a *app) writeAll(p []byte) error {
	_, err := a.Conn.Write(p)
	return err
}

// CloseWrite passes on the end of a stream.
func (a *app) CloseWrite() error {
	a.finished.Store(true)
	if h, ok := a.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

func (a *app) abort() { abort(a.Conn) }

func (a *app) closeAfterEnd() {
	a.linger(-1) // what is queued still arrives
	_ = a.Conn.Close()
}

func (a *app) linger(seconds int) {
	if t, ok := a.Conn.(*net.TCPConn); ok {
		_ = t.SetLinger(seconds) // only fails on a closed connection
	}
}

func (a *app) discard(until time.Time) error {
	_ = a.Conn.SetReadDeadline(until) // fails only when closed, and then so does Read
	_, err := io.Copy(io.Discard, struct{ io.Reader }{a.Conn})
	return err
}

// pumped is how one direction of a relay ended; with neither error its end was
// passed on.
type pumped struct{ readErr, writeErr error }

// relay carries bytes both ways between the source and the destination of r, until
// both directions have ended or one end is gone. It returns how the connection
// ended; both legs are closed by then.
func relay(r *row, source, destination leg) ending {
	back := make(chan pumped, 1)
	go func() { back <- pump(r, destination, source, true) }()
	there := pump(r, source, destination, false)
	return conclude(source, destination, there, <-back)
}

// pump copies one direction. A failed read cuts both legs at once: what the
// receiver has must not look complete. After a failed write the other direction
// goes on until it ends, as the receiver's last words may still be on their way.
func pump(r *row, from, to leg, back bool) (end pumped) {
	defer func() {
		if v := recover(); v != nil { // costs this connection and no other
			r.svc.log.Error("panic while copying", "peer", r.peer, "err", v, "stack", string(debug.Stack()))
			from.abort()
			to.abort()
			end = pumped{readErr: fmt.Errorf("panic: %v", v)}
		}
	}()
	var one [1]byte
	big := false
	for {
		buf, n, err := from.readInto(one[:], big)
		if n > 0 {
			r.count(int64(n), back)
			if werr := to.writeAll((*buf)[:n]); werr != nil {
				release(buf)
				return pumped{writeErr: werr}
			}
			// A full buffer means bulk, and bulk pays for larger ones.
			big = n >= smallBuffer
		}
		release(buf)
		switch {
		case err == nil:
		case err == io.EOF: //nolint:errorlint // both kinds of leg return it bare
			// When this fails, the receiver is gone, and reading from it tells how.
			_ = to.CloseWrite()
			return pumped{}
		default:
			from.abort()
			to.abort()
			return pumped{readErr: err}
		}
	}
}

func release(buf *[]byte) {
	if buf != nil {
		pool(len(*buf) > smallBuffer).Put(buf)
	}
}

// conclude closes both legs as the two directions deserve and names the reason.
func conclude(source, destination leg, there, back pumped) ending {
	switch {
	case there == pumped{} && back == pumped{}:
		source.closeAfterEnd()
		destination.closeAfterEnd()
		return ending{reason: ReasonOK}
	case there.writeErr != nil && back == pumped{}:
		// The destination answered in full and left while the source still sent.
		destination.abort()
		linger(source)
		return endedBy(ReasonServerClosed, there.writeErr)
	case back.writeErr != nil && there == pumped{}:
		source.abort()
		linger(destination)
		return endedBy(ReasonClientClosed, back.writeErr)
	}
	source.abort()
	destination.abort()
	switch {
	case there.readErr != nil && !errors.Is(there.readErr, net.ErrClosed):
		return endedBy(ReasonClientClosed, there.readErr)
	case back.readErr != nil && !errors.Is(back.readErr, net.ErrClosed):
		return endedBy(ReasonServerClosed, back.readErr)
	case there.writeErr != nil:
		return endedBy(ReasonServerClosed, there.writeErr)
	default:
		return endedBy(ReasonClientClosed, back.writeErr)
	}
}

// linger lets the far end of l take what was sent to it before l is closed.
func linger(l leg) {
	if err := l.discard(time.Now().Add(lingerTimeout)); err != nil {
		l.abort()
		return
	}
	l.closeAfterEnd()
}

func endedBy(why Reason, err error) ending {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("timed out: %w", err)
	}
	return ending{reason: why, err: err}
}
