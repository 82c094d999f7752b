package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Stream is one stream of a Tunnel: a net.Conn with half-close and reset. It must
// be closed or reset by who got it, also after it failed.
type Stream struct {
	t    *Tunnel
	p    *stream
	meta []byte

	// All below is guarded by the tunnel's lock.
	readable, writable sync.Cond
	in                 queue
	into               []byte // of a Read that waits
	got                int    // bytes put there
	err                error  // how it ended before its time
	closed, released   bool
	waits              bool // in the tunnel's list of those that want room
	writing            bool // WriteTo is
	readBy, writeBy    deadline
	ending             func(complete bool) // see onEnd
	answered           bool                // the far application has taken or said something
	spoke              bool                // something was written
	turn               uint32              // of the vigil, when it was opened
}

type deadline struct {
	timer  *time.Timer
	passed bool
}

// Meta is what the opener said of the stream.
func (s *Stream) Meta() []byte { return s.meta }

// receive takes data of the peer: straight to a Read that waits, or to the queue.
func (s *Stream) receive(p []byte) {
	if s.closed {
		return
	}
	if s.into != nil && s.in.n == 0 {
		n := copy(s.into, p)
		s.into, s.got = nil, n
		s.t.m.consumed(s.p, n)
		p = p[n:]
	}
	if len(p) > 0 {
		if s.in.push(p); s.t.queued.over() {
			s.t.m.reset(s.p, CodeLimit)
			s.in.clear()
			s.end(&ResetError{Code: CodeLimit})
			return
		}
	}
	s.readable.Broadcast()
}

// end is called once the machine has let go of the stream before its time.
func (s *Stream) end(err error) {
	if s.err == nil {
		s.err = err
		if s.ending != nil {
			s.ending(s.p.state&gotFin != 0)
		}
	}
	s.readable.Broadcast()
	s.writable.Broadcast()
	s.release()
}

// release gives the stream's place back when it holds nothing any more.
func (s *Stream) release() {
	if !s.released && s.p.state&gone != 0 && (s.in.n == 0 || s.closed) {
		s.released = true
		s.t.held--
	}
}

// readErr is why no more can be read; nil: wait.
func (s *Stream) readErr() error {
	switch {
	case s.closed:
		return net.ErrClosed
	case s.p.state&gotFin != 0:
		return io.EOF
	case s.err != nil:
		return s.err
	case s.readBy.passed:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Read implements net.Conn. Only the peer's FIN gives io.EOF.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	t := s.t
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		if s.in.n > 0 && !s.closed && !s.readBy.passed {
			n := 0
			for n < len(p) && s.in.n > 0 {
				k := copy(p[n:], s.in.front())
				s.in.drop(k)
				n += k
			}
			s.consumed(n)
			return n, nil
		}
		if err := s.readErr(); err != nil {
			return 0, err
		}
		if s.into != nil {
			return 0, errors.New("two Reads of one stream at the same time")
		}
		s.into = p
		s.readable.Wait()
		s.into = nil
		if n := s.got; n > 0 {
			s.got = 0
			return n, nil
		}
	}
}

func (s *Stream) consumed(n int) {
	s.t.m.consumed(s.p, n)
	if s.t.m.controlPending() {
		s.t.writable.Signal()
	}
	s.release()
}

// WriteTo writes the stream to w until its end. It holds a buffer only while there
// is data.
func (s *Stream) WriteTo(w io.Writer) (total int64, err error) {
	t := s.t
	t.mu.Lock()
	for {
		c := (*chunk)(nil)
		if !s.closed && !s.readBy.passed {
			c = s.in.take()
		}
		if c == nil {
			if err := s.readErr(); err != nil {
				t.mu.Unlock()
				if err == io.EOF { //nolint:errorlint // our own
					err = nil
				}
				return total, err
			}
			s.readable.Wait()
			continue
		}
		s.writing = true
		t.mu.Unlock()
		left := len(c.bytes())
		n, err := w.Write(c.bytes())
		total += int64(n)
		left -= n
		c.free()
		t.mu.Lock()
		s.writing = false
		s.consumed(n)
		if err != nil {
			s.consumed(left) // it is lost, and must not hold the window
			t.mu.Unlock()
			return total, &WriteError{Err: err}
		}
	}
}

// WriteError says that the error of a WriteTo is the writer's, not the stream's.
type WriteError struct{ Err error }

// Error implements error.
func (e *WriteError) Error() string { return e.Err.Error() }

// Unwrap gives the writer's error.
func (e *WriteError) Unwrap() error { return e.Err }

// Write implements net.Conn. It waits for the peer's credit and for room.
func (s *Stream) Write(p []byte) (total int, err error) {
	t := s.t
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(p) > 0 {
		switch {
		case s.closed:
			return total, net.ErrClosed
		case s.err != nil:
			return total, s.err
		case s.p.state&sentFin != 0:
			return total, errors.New("write after CloseWrite")
		case s.writeBy.passed:
			return total, os.ErrDeadlineExceeded
		case t.doubt && !s.spoke && s.turn == t.turn:
			s.writable.Wait()
			continue
		}
		n := min(len(p), t.m.sendable(s.p))
		if n == 0 {
			s.writable.Wait()
			continue
		}
		if room := t.room(); room < min(n, 1024) {
			if !s.waits {
				s.waits = true
				t.waiting = append(t.waiting, s)
			}
			s.writable.Wait()
			continue
		} else if n > room {
			n = room
		}
		s.spoke = true
		t.out = t.m.along(t.m.data(t.out, s.p, p[:n]), s.p)
		p = p[n:]
		total += n
		t.writable.Signal()
	}
	return total, nil
}

// CloseWrite ends our direction in order; the peer reads io.EOF after the data.
func (s *Stream) CloseWrite() error {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if s.err != nil {
		return s.err
	}
	s.finish()
	s.release()
	return nil
}

func (s *Stream) finish() {
	if s.t.err == nil && s.p.sending() {
		s.spoke = true
		s.t.out = s.t.m.fin(s.t.out, s.p)
		s.t.writable.Signal()
	}
}

// Reset ends both directions at once: the peer gets the code, and what it has not
// got completely will never look complete. What was complete both ways stays so.
func (s *Stream) Reset(code Code) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.shut(code, &ResetError{Code: code})
}

// Close ends the stream as closing a socket does: what was written arrives, with
// its end, and if the peer had not finished it is told that nobody listens.
func (s *Stream) Close() error {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.closed {
		return nil
	}
	s.finish()
	s.shut(CodeCancelled, net.ErrClosed)
	return nil
}

func (s *Stream) shut(code Code, err error) {
	if s.p.state&gone == 0 && s.t.err == nil {
		s.t.m.reset(s.p, code)
		s.t.writable.Signal()
	}
	s.closed = true
	s.in.clear()
	s.readBy.stop()
	s.writeBy.stop()
	s.end(err)
	s.t.writable.Signal() // it may have been the last of a draining tunnel
}

// refuse resets a stream of which nobody has seen anything.
func (s *Stream) refuse(code Code) {
	s.t.mu.Lock()
	if s.p.state&gone == 0 {
		s.p.state |= unseen
	}
	s.t.mu.Unlock()
	s.Reset(code)
}

// LocalAddr is that of the tunnel.
func (s *Stream) LocalAddr() net.Addr { return s.t.conn.LocalAddr() }

// RemoteAddr is that of the tunnel.
func (s *Stream) RemoteAddr() net.Addr { return s.t.conn.RemoteAddr() }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(at time.Time) error {
	if err := s.SetReadDeadline(at); err != nil {
		return err
	}
	return s.SetWriteDeadline(at)
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(at time.Time) error {
	return s.setDeadline(&s.readBy, &s.readable, at)
}

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(at time.Time) error {
	return s.setDeadline(&s.writeBy, &s.writable, at)
}

func (s *Stream) setDeadline(d *deadline, c *sync.Cond, at time.Time) error {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	d.stop()
	if at.IsZero() {
		return nil
	}
	var timer *time.Timer
	timer = time.AfterFunc(time.Until(at), func() {
		s.t.mu.Lock()
		defer s.t.mu.Unlock()
		if d.timer == timer {
			d.passed = true
			c.Broadcast()
		}
	})
	d.timer = timer
	return nil
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer, d.passed = nil, false
}

var _ net.Conn = (*Stream)(nil)

// onEnd has f called, with the tunnel's lock held, when the stream ends before its
// time; complete tells whether the peer's direction had ended in order. A stream
// that has ended already calls it at once.
func (s *Stream) onEnd(f func(complete bool)) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.ending = f
	if s.err != nil {
		f(s.p.state&gotFin != 0)
	}
}

// attach ties the application's connection to the stream: a reset of the stream
// reaches it at once, even if it neither reads nor sends. With again it may be carried
// elsewhere when nobody has heard it.
func (s *Stream) attach(app net.Conn, again bool) {
	s.onEnd(func(complete bool) {
		var r *ResetError
		switch {
		case again && s.unheardLocked():
			_ = app.SetReadDeadline(time.Unix(1, 0)) // fails only when closed; who reads it sees to the rest
		case complete:
			_ = app.SetReadDeadline(time.Now().Add(lingerTimeout)) // fails only when closed
		case errors.As(s.err, &r) && r.Remote && r.Code == CodeCancelled && (s.writing || s.in.n > 0):
			// What came before is still handed over, as a loop has done by now.
			_ = app.SetWriteDeadline(time.Now().Add(lingerTimeout)) // fails only when closed
		default:
			abort(app)
		}
	})
}

// unheardLocked tells whether the stream ended so that what it said may be said again.
// The tunnel's lock is held.
func (s *Stream) unheardLocked() bool {
	var r *ResetError
	return !s.answered && s.p.state&gotFin == 0 &&
		(errors.Is(s.err, ErrUnprocessed) || errors.As(s.err, &r) && r.Remote && (r.Unseen || !s.spoke))
}

// unanswered is err, which ends the stream before the peer has said anything since it was
// opened.
func (s *Stream) unanswered(err error) error {
	if s.spoke {
		return err
	}
	return neverSaid{err}
}

// unheard is the same, and why.
func (s *Stream) unheard() (bool, error) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	return s.unheardLocked(), s.err
}

// failure is how the stream ended before its time, or nil.
func (s *Stream) failure() error {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	return s.err
}
