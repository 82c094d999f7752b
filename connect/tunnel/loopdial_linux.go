package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// dialSocket starts connecting a fresh socket; pending: its first event tells how that
// went. It is to be registered after that: a fresh one would report a hang-up.
func (l *loop) dialSocket(to netip.AddrPort) (fd int, pending bool, err error) {
	family := unix.AF_INET6
	if to.Addr().Unmap().Is4() {
		family = unix.AF_INET
	}
	fd, e := rawSocket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if e != 0 {
		return -1, false, os.NewSyscallError("socket", e)
	}
	if l.tooHigh(fd) {
		rawClose(fd)
		return -1, false, errTooHigh
	}
	_ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // always there
	dontPace(fd, to.Addr())
	switch e := rawConnect(fd, to, zoneOf(to.Addr())); e {
	case 0:
		return fd, false, nil
	case unix.EINPROGRESS, unix.EINTR:
		return fd, true, nil
	default:
		rawClose(fd)
		return -1, false, os.NewSyscallError("connect", e)
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
	if at.Unmap().IsLoopback() && paces() {
		_ = setReno(fd) // without it all works too
	}
}

// paces tells whether the default of this process's network, when it was asked first, is BBR.
var paces = sync.OnceValue(func() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true // without IPv4 it is not known, and does no harm
	}
	defer unix.Close(fd)
	name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	return err != nil || strings.HasPrefix(name, "bbr")
})

// connectResult tells how connecting went, of which events told.
func connectResult(fd int, events uint32) error {
	if events&(unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return nil
	}
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
	s.fd, s.connecting, s.near = fd, true, to.Addr().Unmap().IsLoopback()
	if s.register() {
		s.t.l.dials.add(s, limit)
	}
}

// timedOut implements dialling.
func (s *loopStream) timedOut() {
	if s.connecting && !s.ended {
		s.dialFailed(os.NewSyscallError("connect", unix.ETIMEDOUT))
	}
}

// dialling is what waits for a socket to connect.
type dialling interface{ timedOut() }

// dials are those of a loop that wait, and until when. One timer serves all: one for
// each would wake a thread for each connection.
type dials struct {
	until map[dialling]time.Time
	timer *time.Timer
	at    time.Time // when it fires; zero: it does not
}

func (d *dials) init(l *loop) {
	d.until = map[dialling]time.Time{}
	d.timer = time.AfterFunc(time.Hour, func() { l.post(d.fire) })
	d.timer.Stop()
}

func (d *dials) add(s dialling, limit time.Duration) {
	until := time.Now().Add(limit)
	d.until[s] = until
	d.arm(until)
}

func (d *dials) arm(until time.Time) {
	if d.at.IsZero() || until.Before(d.at) {
		d.at = until
		d.timer.Reset(time.Until(until))
	}
}

// done forgets one that connected, or gave up.
func (d *dials) done(s dialling) { delete(d.until, s) }

func (d *dials) fire() {
	d.at = time.Time{}
	now := time.Now()
	for s, until := range d.until {
		if now.Before(until) {
			d.arm(until)
			continue
		}
		delete(d.until, s)
		s.timedOut()
	}
}

func (d *dials) stop() { d.timer.Stop() }

// zoneOf is the scope of a link-local address.
func zoneOf(addr netip.Addr) uint32 {
	if zone := addr.Zone(); zone != "" {
		if i, err := net.InterfaceByName(zone); err == nil {
			return uint32(i.Index)
		}
	}
	return 0
}

// connected acts on the first event of a socket that connects.
func (s *loopStream) connected(events uint32) {
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return
	}
	if err := connectResult(s.fd, events); err != nil {
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
	s.t.l.dials.done(s)
	if s.cancel != nil {
		s.cancel()
		s.cancel = nil
	}
	if s.in.n > 0 || s.p.state&gotFin != 0 {
		s.t.toWrite.push(s)
		s.t.enqueue()
	}
}
