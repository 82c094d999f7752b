package tunnel

import (
	"io"
	"net"
)

// maxKept is how much of what an application has said is kept until the far end shows
// that its application has seen some of it. So much can be said again to another one.
const maxKept = 16 << 10

// kept is what a stream can say again; nil where it can not.
type kept struct {
	b    []byte
	sent int  // of b, on this tunnel
	over bool // it was heard: b is only what is still to be said
}

// keep notes what is said now; false: that is more than is kept.
func (k *kept) keep(p []byte) bool {
	if len(k.b)+len(p) > maxKept {
		return false
	}
	k.b = append(k.b, p...)
	k.sent += len(p)
	return true
}

// rest is what is still to be said.
func (k *kept) rest() []byte { return k.b[k.sent:] }

// spoken is an application that has said something in a stream which nobody heard. Its
// next stream begins with that.
type spoken struct {
	net.Conn
	said []byte
}

// again wraps an application that has said something.
func again(app net.Conn, said []byte) net.Conn {
	if len(said) == 0 {
		return app
	}
	return &spoken{Conn: app, said: said}
}

// heard takes apart what again made; other connections have said nothing.
func heard(app net.Conn) (net.Conn, []byte) {
	if s, ok := app.(*spoken); ok {
		return s.Conn, s.said
	}
	return app, nil
}

// Read gives what was said first.
func (s *spoken) Read(p []byte) (int, error) {
	if len(s.said) > 0 {
		n := copy(p, s.said)
		s.said = s.said[n:]
		return n, nil
	}
	return s.Conn.Read(p)
}

// CloseWrite ends its sending side, where it has one.
func (s *spoken) CloseWrite() error {
	if h, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return io.ErrClosedPipe
}

// SetLinger is that of a TCP connection.
func (s *spoken) SetLinger(sec int) error {
	if h, ok := s.Conn.(interface{ SetLinger(int) error }); ok {
		return h.SetLinger(sec)
	}
	return nil
}
