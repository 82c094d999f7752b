package tunnel

import (
	"crypto/tls"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// secure is crypto/tls on a non-blocking socket of a loop: reads come from the
// loop's buffer, writes go to its stage, and both are emptied before another
// connection is served. Between turns only a partial record, inside crypto/tls, and
// what the socket did not take remain.
type secure struct {
	l    *loop
	tc   *tls.Conn
	fd   int
	slot int32

	readable bool // the kernel may have more
	hup      bool // its end, or an error, is behind what it has
	blocked  bool // unsent waits for the socket

	limit   int // bytes still to be read from the kernel in this turn
	drained bool

	unsent    *[]byte
	sentOff   int
	wrote     uint64 // counts sends that moved something, for the keepalive
	lastWrote uint64
}

var unsentBuffers = sync.Pool{New: func() any { b := make([]byte, 0, outBuffer+32<<10); return &b }}

// unsentBuffer is a buffer for n bytes and more. Little, of peers that take nothing,
// costs little: there may be many of them.
func unsentBuffer(n int) *[]byte {
	if n > scarceOutput {
		return unsentBuffers.Get().(*[]byte)
	}
	b := make([]byte, 0, n)
	return &b
}

// attach takes the socket out of the Wire below tc and registers it.
func (s *secure) attach(w *Wire, h handler) error {
	fd, err := takeFD(w.Conn)
	if err != nil {
		return err
	}
	if s.slot, err = s.l.register(fd, h); err != nil {
		unix.Close(fd)
		return err
	}
	s.fd = fd
	w.Conn = handedOver{}
	s.readable = true // crypto/tls may hold what came with the greeting
	return nil
}

// mark remembers events; the tunnel's turn acts on them.
func (s *secure) mark(events uint32) {
	if events&(hasMore|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.readable = true
	}
	if events&^(unix.EPOLLIN|unix.EPOLLOUT) != 0 {
		s.hup = true
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.blocked = false
	}
}

// readTLS implements transport.
func (s *secure) readTLS(p []byte) (int, error) {
	l := s.l
	if len(l.ahead) == 0 {
		if s.drained || s.limit <= 0 {
			return 0, wouldBlock{}
		}
		n, again, err := readSome(s.fd, l.in[:min(len(l.in), s.limit)])
		switch {
		case again:
			s.drained = true
			return 0, wouldBlock{}
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, ErrTruncated
		}
		// A short read means drained, unless the end is right behind it.
		s.drained = n < len(l.in) && n < s.limit && !s.hup
		s.limit -= n
		l.ahead = l.in[:n]
	}
	n := copy(p, l.ahead)
	l.ahead = l.ahead[n:]
	return n, nil
}

// writeTLS implements transport.
func (s *secure) writeTLS(p []byte) (int, error) {
	s.l.stage = append(s.l.stage, p...)
	return len(p), nil
}

// receive decrypts what is there, at most limit bytes of it, and gives it to f in
// as large pieces as the buffer takes. When it returns, the loop's read-ahead is
// empty.
func (s *secure) receive(limit int, f func([]byte) error) error {
	l := s.l
	s.limit, s.drained, s.readable = limit, false, false
	for {
		n := 0
		var err error
		for err == nil && len(l.plain)-n >= maxRecord {
			var k int
			k, err = s.tc.Read(l.plain[n:])
			n += k
		}
		if n > 0 {
			if ferr := f(l.plain[:n]); ferr != nil {
				l.ahead = nil
				return ferr
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, wouldBlock{}):
			// Data left in the kernel raises no new event.
			s.readable = s.readable || !s.drained
			return nil
		default:
			l.ahead = nil
			return err
		}
	}
}

// send encrypts p onto the stage.
func (s *secure) send(p []byte) error {
	_, err := s.tc.Write(p)
	return err
}

// flush moves the stage to the socket; what it does not take is kept.
func (s *secure) flush() error {
	l := s.l
	if s.unsent != nil && !s.blocked {
		b := *s.unsent
		n, err := writeSome(s.fd, b[s.sentOff:])
		if err != nil {
			l.stage = l.stage[:0]
			return err
		}
		if n > 0 {
			s.wrote++
		}
		if s.sentOff += n; s.sentOff == len(b) {
			s.dropUnsent()
		} else {
			s.blocked = true
		}
	}
	p := l.stage
	if len(p) == 0 {
		return nil
	}
	if s.unsent == nil {
		n, err := writeSome(s.fd, p)
		if err != nil {
			l.stage = l.stage[:0]
			return err
		}
		if n > 0 {
			s.wrote++
		}
		p = p[n:]
		s.blocked = len(p) > 0
	}
	if len(p) > 0 {
		if s.unsent == nil {
			s.unsent = unsentBuffer(len(p))
		}
		*s.unsent = append(*s.unsent, p...)
	}
	l.stage = l.stage[:0]
	if s.unsent != nil && len(*s.unsent)-s.sentOff > maxUnsent {
		return errors.New("the peer provokes output and takes none")
	}
	return nil
}

func (s *secure) dropUnsent() {
	if s.unsent == nil {
		return
	}
	if c := cap(*s.unsent); c >= outBuffer && c <= 2*outBuffer {
		*s.unsent = (*s.unsent)[:0]
		unsentBuffers.Put(s.unsent)
	}
	s.unsent, s.sentOff, s.blocked = nil, 0, false
}

// shut closes the connection; with notify the peer is told that this is its end.
func (s *secure) shut(notify, cut bool) {
	if s.fd < 0 {
		return
	}
	s.l.ahead, s.l.stage = nil, s.l.stage[:0]
	if notify && s.unsent == nil {
		if err := s.tc.CloseWrite(); err == nil {
			_ = s.flush() // as far as it goes; nothing depends on it
		}
	}
	s.l.stage = s.l.stage[:0]
	s.dropUnsent()
	s.l.release(s.slot)
	closeFD(s.fd, cut)
	s.fd = -1
}

// inOrder tells whether a failed receive was the peer's orderly end.
func inOrder(err error) bool { return err == io.EOF } //nolint:errorlint // crypto/tls returns it bare on close_notify
