package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const acceptTurn = 64 // connections accepted in one turn

// followAfter is the number of connections in a row that another loop carried, after
// which the listener moves there: each of them woke two loops where one would do.
const followAfter = 32

// loopListener accepts on a loop, the one that carries what it accepts if there is one.
type loopListener struct {
	at     atomic.Pointer[loop] // nobody else touches the rest, but for away
	away   atomic.Int32         // carried by another loop, in a row
	fd     int
	slot   int32
	addr   net.Addr
	accept func(net.Conn)
	failed func(error)
	done   chan struct{} // closed when the address is free
	queued bool
	closed bool

	mu      sync.Mutex // of a move
	moving  atomic.Bool
	stopped bool
}

// Listen implements Driver. The connections that a loop accepts are real ones, but as
// long as nobody uses one it costs nothing but its descriptor, and Carry then takes it
// as it is; half a dozen system calls less than a connection that net accepted.
func (d *Loops) Listen(ln net.Listener, accept func(net.Conn), failed func(error)) (stop func(), err error) {
	addr := ln.Addr()
	fd, err := takeFD(ln)
	if err != nil {
		ln.Close()
		return nil, err
	}
	if tcp, ok := addr.(*net.TCPAddr); ok {
		// Inherited by what it accepts.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		dontPace(fd, tcp.AddrPort().Addr())
	}
	a := &loopListener{fd: fd, addr: addr, accept: accept, failed: failed, done: make(chan struct{})}
	l := d.pick()
	a.at.Store(l)
	started := make(chan error, 1)
	if !l.post(func() { started <- a.start(l) }) {
		unix.Close(fd)
		return nil, net.ErrClosed
	}
	if err := <-started; err != nil {
		unix.Close(fd)
		return nil, err
	}
	return a.stop, nil
}

// stop returns when the address is free.
func (a *loopListener) stop() {
	a.mu.Lock()
	a.stopped = true // it moves no more
	l, moving := a.at.Load(), a.moving.Load()
	a.mu.Unlock()
	if moving || l.post(a.close) {
		<-a.done
	}
}

// start makes the listener one of l, on which it runs.
func (a *loopListener) start(l *loop) error {
	slot, err := l.register(a.fd, a)
	if err == nil && l.stopping {
		l.release(slot)
		err = net.ErrClosed
	}
	if err != nil {
		return err
	}
	a.slot = slot
	l.listeners[a] = struct{}{}
	a.enqueue(l)
	return nil
}

func (a *loopListener) close() {
	if a.closed {
		return
	}
	a.leave(a.at.Load())
	a.free()
}

// free closes the address, on whichever loop.
func (a *loopListener) free() {
	a.closed = true
	unix.Close(a.fd)
	close(a.done)
}

// leave takes the listener off its loop.
func (a *loopListener) leave(l *loop) {
	if _, ok := l.listeners[a]; !ok {
		return
	}
	delete(l.listeners, a)
	// To close it is not enough where another process has the socket, too.
	_ = rawEpollCtl(l.epfd, unix.EPOLL_CTL_DEL, a.fd, nil) // it was added
	l.release(a.slot)
	l.accepting = slices.DeleteFunc(l.accepting, func(o *loopListener) bool { return o == a })
	a.queued = false
}

// carriedBy notes, from any goroutine, which loop carries what was accepted.
func (a *loopListener) carriedBy(l *loop) {
	switch at := a.at.Load(); {
	case at != l:
		if a.away.Add(1) == followAfter {
			at.post(func() { a.follow(at, l) })
		}
	case a.away.Load() != 0:
		a.away.Store(0)
	}
}

// noteCarrier tells the listener of an accepted connection who carries it.
func noteCarrier(c net.Conn, l *loop) {
	if a, ok := c.(*app); ok && a.by != nil {
		a.by.carriedBy(l)
	}
}

// follow moves the listener from one loop, on which it runs, to another.
func (a *loopListener) follow(from, to *loop) {
	a.away.Store(0)
	a.mu.Lock()
	stays := a.stopped || a.closed || a.moving.Load() || a.at.Load() != from || from.stopping
	if !stays {
		a.moving.Store(true)
	}
	a.mu.Unlock()
	if stays {
		return
	}
	a.leave(from)
	if !to.post(func() { a.arrive(to) }) {
		a.free()
	}
}

// arrive is the other end of follow.
func (a *loopListener) arrive(l *loop) {
	a.mu.Lock()
	a.at.Store(l)
	a.moving.Store(false)
	stopped := a.stopped
	a.mu.Unlock()
	if stopped {
		a.free()
		return
	}
	a.restart(l)
}

// restart starts the listener on l, now or a little later.
func (a *loopListener) restart(l *loop) {
	if a.closed {
		return
	}
	err := a.start(l)
	switch {
	case err == nil:
	case errors.Is(err, net.ErrClosed):
		a.free()
	default:
		a.failed(err)
		time.AfterFunc(acceptPause, func() { l.post(func() { a.restart(l) }) })
	}
}

func (a *loopListener) ready(uint32) { a.enqueue(a.at.Load()) }

// enqueue runs on l, which the listener may have left: where it comes it looks by itself.
func (a *loopListener) enqueue(l *loop) {
	if a.moving.Load() || a.at.Load() != l || a.queued || a.closed {
		return
	}
	a.queued = true
	l.accepting = append(l.accepting, a)
}

// serve accepts what waits, a bounded number of it.
func (a *loopListener) serve() {
	a.queued = false
	l := a.at.Load()
	for n := 0; n < acceptTurn; n++ {
		if a.closed {
			return
		}
		fd, e := rawAccept(a.fd)
		switch e {
		case 0:
			if l.tooHigh(fd) {
				closeFD(fd, true)
				a.failed(errTooHigh)
				continue
			}
			a.accept(&app{fd: fd, addr: a.addr, by: a})
		case unix.EAGAIN:
			return
		case unix.EINTR, unix.ECONNABORTED, unix.EPROTO:
		default:
			// Out of descriptors or memory: the backlog keeps them for a while.
			a.failed(os.NewSyscallError("accept", e))
			time.AfterFunc(acceptPause, func() { l.post(func() { a.enqueue(l) }) })
			return
		}
	}
	a.enqueue(l)
}

// app is an accepted connection that enters Go's poller only when it is used.
type app struct {
	mu   sync.Mutex
	fd   int // -1: taken, closed, or conn
	addr net.Addr
	by   *loopListener // that accepted it; nil: it was carried before
	conn net.Conn
}

// take gives the descriptor away, or the connection if it was used.
func (a *app) take() (int, net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fd := a.fd
	a.fd = -1
	return fd, a.conn
}

// used makes it an ordinary connection.
func (a *app) used() (net.Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn != nil {
		return a.conn, nil
	}
	if a.fd < 0 {
		return nil, net.ErrClosed
	}
	f := os.NewFile(uintptr(a.fd), "application")
	a.fd = -1
	defer f.Close() // FileConn duplicates
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	a.conn = c
	return c, nil
}

// Close closes it.
func (a *app) Close() error {
	fd, conn := a.take()
	switch {
	case fd >= 0:
		return os.NewSyscallError("close", unix.Close(fd))
	case conn != nil:
		return conn.Close()
	}
	return net.ErrClosed
}

// CloseWrite ends its sending side.
func (a *app) CloseWrite() error {
	c, err := a.used()
	if err != nil {
		return err
	}
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SetLinger is that of a TCP connection.
func (a *app) SetLinger(sec int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t, ok := a.conn.(*net.TCPConn); ok {
		return t.SetLinger(sec)
	}
	if a.fd >= 0 {
		l := unix.Linger{Onoff: 1, Linger: int32(sec)}
		if sec < 0 {
			l = unix.Linger{}
		}
		return os.NewSyscallError("setsockopt", unix.SetsockoptLinger(a.fd, unix.SOL_SOCKET, unix.SO_LINGER, &l))
	}
	return nil
}

// Control gives the descriptor to those who ask something of it and no more: the
// connection stays as it is.
func (a *app) Control(f func(fd uintptr)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 {
		return net.ErrClosed
	}
	f(uintptr(a.fd))
	return nil
}

// Read implements net.Conn.
func (a *app) Read(p []byte) (int, error) {
	c, err := a.used()
	if err != nil {
		return 0, err
	}
	return c.Read(p)
}

// Write implements net.Conn.
func (a *app) Write(p []byte) (int, error) {
	c, err := a.used()
	if err != nil {
		return 0, err
	}
	return c.Write(p)
}

// ReadFrom lets io.Copy do its best.
func (a *app) ReadFrom(r io.Reader) (int64, error) {
	c, err := a.used()
	if err != nil {
		return 0, err
	}
	return io.Copy(c, r)
}

// LocalAddr is that of the listener.
func (a *app) LocalAddr() net.Addr { return a.addr }

// RemoteAddr asks the kernel, until the connection is carried or closed.
func (a *app) RemoteAddr() net.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn != nil {
		return a.conn.RemoteAddr()
	}
	if a.fd >= 0 {
		if sa, err := unix.Getpeername(a.fd); err == nil {
			return netAddr(sa)
		}
	}
	return &net.TCPAddr{}
}

func localAddr(fd int) net.Addr {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return &net.TCPAddr{}
	}
	return netAddr(sa)
}

func netAddr(sa unix.Sockaddr) net.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
	case *unix.SockaddrInet6:
		return &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
	case *unix.SockaddrUnix:
		return &net.UnixAddr{Name: sa.Name, Net: "unix"}
	}
	return &net.TCPAddr{}
}

// SetDeadline implements net.Conn.
func (a *app) SetDeadline(at time.Time) error {
	c, err := a.used()
	if err != nil {
		return err
	}
	return c.SetDeadline(at)
}

// SetReadDeadline implements net.Conn.
func (a *app) SetReadDeadline(at time.Time) error {
	c, err := a.used()
	if err != nil {
		return err
	}
	return c.SetReadDeadline(at)
}

// SetWriteDeadline implements net.Conn.
func (a *app) SetWriteDeadline(at time.Time) error {
	c, err := a.used()
	if err != nil {
		return err
	}
	return c.SetWriteDeadline(at)
}

var _ net.Conn = (*app)(nil)
