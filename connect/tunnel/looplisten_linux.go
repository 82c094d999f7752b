package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const acceptTurn = 64 // connections accepted in one turn

// loopListener accepts on a loop.
type loopListener struct {
	l      *loop
	fd     int
	slot   int32
	addr   net.Addr
	accept func(net.Conn)
	failed func(error)
	done   chan struct{} // closed when the address is free
	queued bool
	closed bool
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
	a := &loopListener{l: d.pick(), fd: fd, addr: addr, accept: accept, failed: failed, done: make(chan struct{})}
	started := make(chan error, 1)
	if !a.l.post(func() { started <- a.start() }) {
		unix.Close(fd)
		return nil, net.ErrClosed
	}
	if err := <-started; err != nil {
		return nil, err
	}
	return func() {
		if a.l.post(a.close) {
			<-a.done
		}
	}, nil
}

func (a *loopListener) start() error {
	slot, err := a.l.register(a.fd, a)
	if err == nil && a.l.stopping {
		a.l.release(slot)
		err = net.ErrClosed
	}
	if err != nil {
		unix.Close(a.fd)
		return err
	}
	a.slot = slot
	a.l.listeners[a] = struct{}{}
	a.enqueue()
	return nil
}

func (a *loopListener) close() {
	if a.closed {
		return
	}
	a.closed = true
	delete(a.l.listeners, a)
	a.l.release(a.slot)
	unix.Close(a.fd)
	close(a.done)
}

func (a *loopListener) ready(uint32) { a.enqueue() }

func (a *loopListener) enqueue() {
	if !a.queued && !a.closed {
		a.queued = true
		a.l.activate(a)
	}
}

func (a *loopListener) serve() {
	a.queued = false
	for n := 0; n < acceptTurn; n++ {
		if a.closed {
			return
		}
		fd, _, err := unix.Accept4(a.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err { //nolint:errorlint // a bare errno
		case nil:
			if a.l.tooHigh(fd) {
				closeFD(fd, true)
				a.failed(errTooHigh)
				continue
			}
			a.accept(&app{fd: fd, addr: a.addr})
		case unix.EAGAIN:
			return
		case unix.EINTR, unix.ECONNABORTED, unix.EPROTO:
		default:
			// Out of descriptors or memory: the backlog keeps them for a while.
			a.failed(os.NewSyscallError("accept", err))
			time.AfterFunc(acceptPause, func() { a.l.post(a.enqueue) })
			return
		}
	}
	a.enqueue()
}

// app is an accepted connection that enters Go's poller only when it is used.
type app struct {
	mu   sync.Mutex
	fd   int // -1: taken, closed, or conn
	addr net.Addr
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
