package tunnel

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// loopStream is an application's socket and its stream. Only the loop touches it.
type loopStream struct {
	t    *loopTunnel
	p    *stream // nil until the loop has opened it
	flow *Flow
	end  EndFunc
	in   queue // what the application has not taken

	nextRead, nextWrite *loopStream
	before, after       *loopStream        // in the tunnel's set
	cancel              context.CancelFunc // of the dial

	meta []byte // of the OPEN that is due
	kept *kept  // nil where nothing can be said again

	fd         int // -1 while dialling and after the end
	slot       int32
	turn       uint32 // of the vigil, when it was opened
	registered bool
	openDue    bool
	connecting bool
	near       bool // connecting on this host, which is over at once

	inRead, inWrite bool
	among           bool // in the set
	readable        bool // the kernel may have more
	hup             bool // its end is behind what it has
	shutDone        bool // the application has got our end
	deaf            bool // the application reads no more, but may still speak
	discarding      bool // the peer has left: what the application sends is thrown away
	ended           bool
	resetEnd        *End  // with discarding: how it will be reported
	broken          error // deaf by a reset: what it said before that is still to be read
}

// ready implements handler.
func (s *loopStream) ready(events uint32) {
	if s.connecting {
		s.connected(events)
		return
	}
	if events&(hasMore|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.readable = true
		if events&^(unix.EPOLLIN|unix.EPOLLOUT) != 0 {
			s.hup = true
		}
		s.wantRead()
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 && s.in.n > 0 {
		s.t.toWrite.push(s)
		s.t.enqueue()
	}
}

// wantRead queues the stream if its application may be read now. Credit, or the
// socket, will do so otherwise.
func (s *loopStream) wantRead() {
	if s.readable && (s.discarding || s.p != nil && s.t.m.sendable(s.p) > 0) {
		s.t.toRead.push(s)
		s.t.enqueue()
	}
}

// start takes over an application; its OPEN is due in the tunnel's turn, with what
// the application has said by then.
func (s *loopStream) start(meta []byte) {
	s.openDue, s.meta = true, meta
	s.t.streams.add(s)
	switch err := s.t.lost(); {
	case err != nil:
		s.giveBack(End{Cause: CauseUnprocessed, Err: err})
	case s.t.m.draining():
		s.giveBack(End{Cause: CauseUnprocessed, Err: ErrDraining})
	case s.register():
		s.readable = true // perhaps; asking costs less than a record for OPEN alone
		if s.t.unsure() {
			s.t.waiting.push(s)
			return
		}
		s.t.toRead.push(s)
		s.t.enqueue()
	}
}

func (s *loopStream) register() bool {
	slot, err := s.t.l.register(s.fd, s)
	if err != nil {
		s.appFailed(err)
		return false
	}
	s.slot, s.registered = slot, true
	resetOnClose(s.fd, true)
	return true
}

// fill appends what the application has to say, once, as far as credit, room and
// fairness let it.
func (s *loopStream) fill(out []byte, room int) []byte {
	if s.ended { // since it was queued; it may never have been opened
		return out
	}
	if s.discarding {
		s.discard()
		return out
	}
	m := &s.t.m
	if s.openDue {
		var err error
		if out, s.p, err = m.openStream(out, s.meta); err != nil {
			s.giveBack(End{Cause: CauseUnprocessed, Err: err})
			return out
		}
		s.p.owner, s.turn = s, s.t.turn
		s.opened()
	}
	n := min(m.sendable(s.p), readChunk, room-len(out)-headerSize)
	if n <= 0 || !s.readable || s.fd < 0 {
		return out
	}
	if s.kept != nil && len(s.kept.rest()) > 0 {
		p := s.kept.rest()
		p = p[:min(len(p), n)]
		s.kept.sent += len(p)
		s.flow.sent.Add(int64(len(p)))
		if s.kept.over && len(s.kept.rest()) == 0 {
			s.kept = nil
		}
		out = m.data(out, s.p, p)
		s.wantRead()
		return out
	}
	frame := out[len(out) : len(out)+headerSize+n]
	k, again, err := readSome(s.fd, frame[headerSize:])
	switch {
	case err != nil:
		s.appFailed(os.NewSyscallError("read", err))
	case s.broken != nil && (again || k == 0):
		s.appFailed(s.broken)
	case again:
		s.readable, s.hup = false, false
	case k == 0:
		s.readable = false
		out = m.fin(out, s.p)
		s.saidAll()
	default:
		s.flow.sent.Add(int64(k))
		if s.kept != nil && !s.kept.keep(frame[headerSize:headerSize+k]) {
			s.kept = nil
		}
		m.sealData(s.p, frame[:headerSize+k])
		out = m.along(out[:len(out)+headerSize+k], s.p)
		// A short read means drained, unless the end is right behind it.
		s.readable = k == n || s.hup
		s.wantRead()
	}
	return out
}

func (s *loopStream) opened() {
	s.openDue, s.meta = false, nil
	s.t.open.Store(int32(s.t.m.open()))
	s.t.pending.Add(-1)
}

// saidAll follows the end of what the application had to say.
func (s *loopStream) saidAll() {
	switch {
	case s.deaf:
		// It answered in full and took not all it was sent: the peer gets both facts.
		s.t.m.reset(s.p, CodeCancelled)
		s.finish(End{Cause: CauseApp, Code: CodeCancelled, Err: os.NewSyscallError("write", unix.EPIPE)}, false)
	case s.p.state&gotFin != 0 && s.in.n == 0:
		s.finish(End{}, false)
	}
}

// complete tells whether nothing is left but to hand over what has come.
func (s *loopStream) complete() bool {
	return s.p != nil && s.p.state&gotFin != 0 && s.p.state&(sentFin|gone) != 0
}

// handle acts on what the peer said.
func (s *loopStream) handle(ev event) {
	if ev.kind != evReset && s.kept != nil { // it is heard
		if s.kept.over = true; len(s.kept.rest()) == 0 {
			s.kept = nil
		}
	}
	switch ev.kind {
	case evData:
		s.deliver(ev.data)
	case evFin:
		if s.in.n == 0 {
			s.passEnd()
		}
	case evCredit:
		s.wantRead()
	case evReset:
		e := End{Cause: CausePeer, Code: ev.code, Err: &ResetError{Code: ev.code, Remote: true, Unseen: ev.unseen}}
		if s.untouched() || ev.unseen && s.unheard() {
			s.giveBack(e)
			return
		}
		if s.p.state&gotFin == 0 || s.fd < 0 || s.connecting {
			s.finish(e, true)
			return
		}
		s.leave(e)
	}
}

// deliver writes to the application; only what it does not take now is queued.
func (s *loopStream) deliver(b []byte) {
	if s.ended {
		return
	}
	if s.deaf {
		s.t.m.consumed(s.p, len(b))
		return
	}
	if s.fd >= 0 && s.in.n == 0 && (!s.connecting || s.near) {
		n, err := writeSome(s.fd, b)
		switch {
		case err != nil && s.connecting:
			s.dialFailed(err)
			return
		case err != nil:
			s.writeFailed(err, len(b))
			return
		case n > 0 && s.connecting:
			s.connecting = false
			s.begin()
		}
		s.flow.received.Add(int64(n))
		s.t.m.consumed(s.p, n)
		b = b[n:]
	}
	if len(b) == 0 {
		return
	}
	if s.in.push(b); s.t.held.over() {
		s.t.m.reset(s.p, CodeLimit)
		s.finish(End{Cause: CauseOwner, Code: CodeLimit, Err: errMemory}, true)
	}
}

// drainQueue writes what is queued, once.
func (s *loopStream) drainQueue() {
	for s.in.n > 0 && s.fd >= 0 {
		b := s.in.front()
		n, err := writeSome(s.fd, b)
		if err != nil {
			s.writeFailed(err, s.in.n)
			return
		}
		s.flow.received.Add(int64(n))
		s.in.drop(n)
		s.t.m.consumed(s.p, n)
		if n < len(b) {
			return // the socket will say when it takes more
		}
	}
	if s.in.n == 0 && s.p.state&gotFin != 0 && s.fd >= 0 {
		s.passEnd()
	}
}

// passEnd tells the application that the peer has said all.
func (s *loopStream) passEnd() {
	switch {
	case s.fd < 0 || s.deaf || s.shutDone || s.connecting:
	case s.p.state&sentFin != 0:
		s.finish(End{}, false)
	default:
		s.shutDone = true
		_ = rawShutdown(s.fd, unix.SHUT_WR) // fails when the application is gone, which reading tells
	}
}

// writeFailed: the application reads no more. It may have answered before, and is read
// to its end, be that in order or the reset that the write met. What it did not take, undelivered
// bytes and all that follow, is credited: the application at the other end may be in
// the same state, and two that wait for each other's credit would wait for ever.
func (s *loopStream) writeFailed(err error, undelivered int) {
	if s.discarding || s.p.state&sentFin != 0 && !errors.Is(err, unix.EPIPE) {
		s.appFailed(err)
		return
	}
	if !errors.Is(err, unix.EPIPE) {
		s.broken = err
	}
	s.deaf = true
	s.in.clear()
	s.t.m.consumed(s.p, undelivered)
	if s.p.state&sentFin != 0 {
		s.saidAll()
		return
	}
	s.readable, s.hup = true, true
	s.wantRead()
}

func (s *loopStream) appFailed(err error) {
	if s.discarding {
		s.finish(*s.resetEnd, true)
		return
	}
	if s.p != nil {
		s.t.m.reset(s.p, CodeCancelled)
	}
	s.finish(End{Cause: CauseApp, Code: CodeCancelled, Err: err}, true)
}

// leave: the peer has said all and left. The application gets what is queued and
// some time to take it; closing at once, with unread bytes of it here, would reset
// it under its last read.
func (s *loopStream) leave(e End) {
	s.discarding, s.resetEnd = true, &e
	if s.in.n == 0 {
		s.passEnd()
	}
	s.readable = true
	s.wantRead()
	time.AfterFunc(lingerTimeout, func() {
		s.t.l.post(func() { s.finish(e, true) })
	})
}

// discard throws away what the application still sends to a peer that has left.
func (s *loopStream) discard() {
	if s.fd < 0 {
		return
	}
	n, again, err := readSome(s.fd, s.t.l.plain)
	switch {
	case err != nil:
		s.finish(*s.resetEnd, true)
	case again:
		s.readable = false
	case n == 0 && s.in.n > 0: // its end; what is queued comes first
		s.readable = false
	case n == 0:
		s.finish(*s.resetEnd, false)
	default:
		s.wantRead()
	}
}

// untouched tells whether the application has neither been read nor written to.
func (s *loopStream) untouched() bool {
	return !s.t.m.server && s.fd >= 0 && s.flow.sent.Load() == 0 && s.flow.received.Load() == 0 &&
		s.p.state&(sentFin|gotFin) == 0 && s.in.n == 0
}

// unheard tells whether all that the application has said is kept, and nothing was
// said to it.
func (s *loopStream) unheard() bool {
	return s.kept != nil && !s.kept.over && s.fd >= 0 && !s.deaf && s.flow.received.Load() == 0 && s.p.state&gotFin == 0 && s.in.n == 0
}

// giveBack returns an application that nobody has heard to the owner of its flow.
func (s *loopStream) giveBack(e End) {
	if s.registered {
		s.t.l.release(s.slot)
		s.registered = false
		_ = rawEpollCtl(s.t.l.epfd, unix.EPOLL_CTL_DEL, s.fd, nil) // it was added
		resetOnClose(s.fd, false)
	}
	if s.end != nil {
		e.App = &app{fd: s.fd, addr: localAddr(s.fd)}
		if s.kept != nil {
			e.App = again(e.App, s.kept.b)
		}
		s.fd = -1
	}
	s.finish(e, true)
}

// finish ends the flow and tells its owner, once.
func (s *loopStream) finish(e End, cut bool) {
	if s.ended {
		return
	}
	s.ended = true
	if s.openDue {
		s.opened()
	}
	if s.cancel != nil {
		s.cancel()
	}
	if s.connecting {
		s.t.l.dials.done(s)
	}
	if s.fd >= 0 {
		if s.registered {
			s.t.l.release(s.slot)
			endFD(s.fd, cut)
		} else {
			closeFD(s.fd, cut)
		}
		s.fd = -1
	}
	s.in.clear()
	s.t.streams.remove(s)
	delete(s.t.l.lingering, s)
	if !s.t.dead {
		s.t.publish()
		if s.t.m.controlPending() || s.t.m.draining() {
			s.t.enqueue()
		}
	}
	if s.end != nil {
		s.end(s.flow, e)
	}
}

// reset implements resetter, from any goroutine.
func (s *loopStream) reset(code Code) {
	s.t.l.post(func() {
		if s.ended {
			return
		}
		e := End{Cause: CauseOwner, Code: code, Err: &ResetError{Code: code}}
		if s.p != nil && !s.t.dead {
			s.t.m.reset(s.p, code)
		}
		s.finish(e, true)
	})
}
