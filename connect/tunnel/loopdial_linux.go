package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// dialSocket starts connecting a fresh socket; pending: its first event tells how that
// went. It is to be registered after that: a fresh one would report a hang-up.
func (l *loop) dialSocket(to netip.AddrPort) (fd int, pending bool, err error) {
	family, sa := sockaddr(to)
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, false, os.NewSyscallError("socket", err)
	}
	if l.tooHigh(fd) {
		_ = unix.Close(fd)
		return -1, false, errTooHigh
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // always there
	dontPace(fd, to.Addr())
	switch err := unix.Connect(fd, sa); err { //nolint:errorlint // a bare errno
	case nil:
		return fd, false, nil
	case unix.EINPROGRESS, unix.EINTR:
		return fd, true, nil
	default:
		_ = unix.Close(fd)
		return -1, false, os.NewSyscallError("connect", err)
	}
}

var errTooHigh = errors.New("this process has no descriptors left for applications: raise LimitNOFILE")

// dialCode is what the source's side hears of it.
func dialCode(err error) Code {
	if errors.Is(err, errTooHigh) {
		return CodeLimit
	}
	return CodeDialFailed
}

// tooHigh tells whether a descriptor is kept for others.
func (l *loop) tooHigh(fd int) bool { return l.cfg.Descriptors > 0 && fd >= l.cfg.Descriptors }

// dontPace keeps a socket of the loopback network, before it connects or accepts, from
// BBR, where that is the host's default: it paces by a timer for each few packets what
// nothing limits, which is half of what bulk costs here. Reno is always there.
func dontPace(fd int, at netip.Addr) {
	if at.Unmap().IsLoopback() {
		_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno") // without it all works too
	}
}

// connectResult tells how connecting went.
func connectResult(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	return os.NewSyscallError("connect", err)
}

// connect starts connecting to the application on the loop.
func (s *loopStream) connect(to netip.AddrPort, limit time.Duration) {
	fd, pending, err := s.t.l.dialSocket(to)
	if err != nil || !pending {
		s.dialled(fd, err)
		return
	}
	s.fd, s.connecting = fd, true
	if !s.register() {
		return
	}
	timer := time.AfterFunc(limit, func() {
		s.t.l.post(func() {
			if s.connecting && !s.ended {
				s.dialFailed(os.NewSyscallError("connect", unix.ETIMEDOUT))
			}
		})
	})
	s.cancel = func() { timer.Stop() }
}

func sockaddr(to netip.AddrPort) (family int, sa unix.Sockaddr) {
	addr := to.Addr().Unmap()
	if addr.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: addr.As4()}
	}
	v6 := &unix.SockaddrInet6{Port: int(to.Port()), Addr: addr.As16()}
	if zone := addr.Zone(); zone != "" {
		if i, err := net.InterfaceByName(zone); err == nil {
			v6.ZoneId = uint32(i.Index)
		}
	}
	return unix.AF_INET6, v6
}

// connected acts on the first event of a socket that connects.
func (s *loopStream) connected(events uint32) {
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return
	}
	if err := connectResult(s.fd); err != nil {
		s.dialFailed(err)
		return
	}
	s.connecting = false
	s.ready(events)
	s.begin()
}

// dial connects to the application off the loop and hands the socket over.
func (s *loopStream) dial(ctx context.Context, dial func(context.Context) (net.Conn, error)) {
	conn, err := dial(ctx)
	fd := -1
	if err == nil {
		if fd, err = takeFD(conn); err != nil {
			conn.Close()
		}
	}
	if !s.t.l.post(func() { s.dialled(fd, err) }) && fd >= 0 {
		closeFD(fd, true)
	}
}

func (s *loopStream) dialled(fd int, err error) {
	switch {
	case s.ended && fd >= 0:
		closeFD(fd, true)
	case s.ended:
	case err != nil:
		s.dialFailed(err)
	default:
		s.fd = fd
		if s.register() {
			s.begin()
		}
	}
}

func (s *loopStream) dialFailed(err error) {
	if !s.t.dead {
		s.t.m.refuse(s.p, dialCode(err))
	}
	s.finish(End{Cause: CauseDial, Code: dialCode(err), Err: err}, true)
}

// begin hands over what has come while the application was dialled.
func (s *loopStream) begin() {
	if s.cancel != nil {
		s.cancel()
		s.cancel = nil
	}
	if s.in.n > 0 || s.p.state&gotFin != 0 {
		s.t.toWrite.push(s)
		s.t.enqueue()
	}
}
