package tunnel

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	smallRead   = 16 << 10  // what fills it is taken for bulk, and spliced
	pipeSize    = 1 << 20   // fewer and larger calls: half of what 64 KiB costs
	pipeSmall   = 256 << 10 // of those beyond pipesLarge, whose readers are slow
	spliceTurn  = 1 << 20   // bytes a direction and turn
	pipesAtHand = 8         // kept by a loop when no data flows
	pipesLarge  = 16        // in use by a loop
	pipesMost   = 128       // in use by a loop; what there is no pipe for is copied
)

// loopSplice is two applications of this host joined on a loop: from is the source's,
// to the destination's. Short messages are copied, bulk moves through a pipe in the
// kernel, held only while there is something in it.
type loopSplice struct {
	l        *loop
	from, to joint
	there    half // from → to
	back     half

	cancel  func()
	joined  bool // to is connected
	queued  bool
	ended   bool
	leaving bool // one side has left, the other gets some time to read
}

// joint is one of the applications, and the flow of its side's owner.
type joint struct {
	s    *loopSplice
	flow *Flow
	end  EndFunc

	fd         int
	slot       int32
	registered bool
	connecting bool
	readable   bool
	hup        bool
	urgent     bool  // it sends urgent data, which splice does not get past
	blocked    bool  // it takes no more now
	said       bool  // it has said all
	told       bool  // it was told that the other has
	deaf       bool  // it reads no more
	lost       error // it was reset, and what it had said before is read to its end
}

// half is one direction.
type half struct {
	queue queue
	pipe  *pipe
	bulk  bool
}

// pipe is one of the kernel's, with n bytes in it.
type pipe struct{ r, w, n, size int }

// ready implements handler.
func (j *joint) ready(events uint32) {
	if j.connecting {
		if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
			return
		}
		if err := connectResult(j.fd, events); err != nil {
			j.s.dialFailed(err)
			return
		}
		j.connecting = false
		j.s.begin()
	}
	if events&(hasMore|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		j.readable = true
		j.hup = j.hup || events&^(unix.EPOLLIN|unix.EPOLLOUT) != 0
		j.urgent = j.urgent || events&unix.EPOLLPRI != 0
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		j.blocked = false
	}
	j.s.enqueue()
}

func (j *joint) register() error {
	slot, err := j.s.l.register(j.fd, j)
	if err != nil {
		return err
	}
	j.slot, j.registered = slot, true
	resetOnClose(j.fd, true)
	return nil
}

// reset implements resetter, from any goroutine.
func (j *joint) reset(code Code) {
	s := j.s
	s.l.post(func() {
		mine := End{Cause: CauseOwner, Code: code, Err: &ResetError{Code: code}}
		theirs := End{Cause: CausePeer, Code: code, Err: &ResetError{Code: code, Remote: true}}
		if j == &s.from {
			s.finish(mine, theirs, true)
		} else {
			s.finish(theirs, mine, true)
		}
	})
}

// Splice implements Driver.
func (d *Loops) Splice(app net.Conn, accept Accept, end EndFunc) (*Flow, error) {
	if d.closed.Load() {
		return nil, net.ErrClosed
	}
	if _, said := heard(app); said != nil {
		return nil, errors.ErrUnsupported // rare, and a tunnel can
	}
	fd, err := takeFD(app)
	if err != nil {
		return nil, err
	}
	s := &loopSplice{l: d.pick()}
	s.from = joint{s: s, fd: fd, flow: &Flow{}, end: end}
	s.to = joint{s: s, fd: -1, flow: &Flow{}}
	s.from.flow.target, s.to.flow.target = &s.from, &s.to
	if !s.l.post(func() { s.start(accept) }) {
		closeFD(fd, true)
		return nil, net.ErrClosed
	}
	return s.from.flow, nil
}

func (s *loopSplice) start(accept Accept) {
	s.l.splices[s] = struct{}{}
	if s.l.stopping {
		s.stop(net.ErrClosed)
		return
	}
	v := accept(s.to.flow, nil)
	if v.Refuse != 0 {
		s.refused(v.Refuse)
		return
	}
	s.to.end = v.End
	if v.complete(); v.Addr.IsValid() {
		s.connect(v)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), v.Timeout)
	s.cancel = cancel
	go s.dial(ctx, v.Dial)
}

func (s *loopSplice) connect(v Verdict) {
	fd, pending, err := s.l.dialSocket(v.Addr)
	if err != nil {
		s.dialFailed(err)
		return
	}
	s.to.fd, s.to.connecting = fd, pending
	if err := s.to.register(); err != nil {
		s.dialFailed(err)
		return
	}
	if !pending {
		s.begin()
		return
	}
	s.l.dials.add(s, v.Timeout)
}

// timedOut implements dialling.
func (s *loopSplice) timedOut() {
	if !s.joined {
		s.dialFailed(os.NewSyscallError("connect", unix.ETIMEDOUT))
	}
}

func (s *loopSplice) dial(ctx context.Context, dial func(context.Context) (net.Conn, error)) {
	conn, err := dial(ctx)
	fd := -1
	if err == nil {
		if fd, err = takeFD(conn); err != nil {
			conn.Close()
		}
	}
	posted := s.l.post(func() {
		switch {
		case s.ended && fd >= 0:
			closeFD(fd, true)
		case s.ended:
		case err != nil:
			s.dialFailed(err)
		default:
			if s.to.fd = fd; s.registered(&s.to) {
				s.begin()
			}
		}
	})
	if !posted && fd >= 0 {
		closeFD(fd, true)
	}
}

func (s *loopSplice) registered(j *joint) bool {
	if err := j.register(); err != nil {
		s.failed(j, err)
		return false
	}
	return true
}

// begin: the destination's application answers, so the source's is looked at.
func (s *loopSplice) begin() {
	s.cancelDial()
	s.joined = true
	if s.registered(&s.from) {
		s.from.readable, s.to.readable = true, true // perhaps
		s.enqueue()
	}
}

func (s *loopSplice) cancelDial() {
	s.l.dials.done(s)
	if s.cancel != nil {
		s.cancel()
		s.cancel = nil
	}
}

func (s *loopSplice) enqueue() {
	if !s.queued && !s.ended && s.joined {
		s.queued = true
		s.l.activate(s)
	}
}

// serve is the turn of both directions.
func (s *loopSplice) serve() {
	s.queued = false
	if s.ended {
		return
	}
	a := s.move(&s.there, &s.from, &s.to)
	if s.ended {
		return
	}
	b := s.move(&s.back, &s.to, &s.from)
	switch {
	case s.ended:
	case s.over(&s.from, &s.to, &s.there) && s.over(&s.to, &s.from, &s.back):
		s.finish(End{}, End{}, false)
	case a || b:
		s.enqueue()
	}
}

// over tells whether the direction is complete.
func (s *loopSplice) over(from, to *joint, h *half) bool {
	return from.said && (to.told || to.deaf) && h.empty()
}

func (h *half) empty() bool { return h.queue.n == 0 && h.pipe == nil }

// move moves what there is of one direction; true: there is more.
func (s *loopSplice) move(h *half, from, to *joint) bool {
	for moved := 0; moved < spliceTurn; {
		if !s.empty(h, to) || s.ended {
			return false
		}
		if from.said && from.lost != nil {
			s.failed(from, from.lost)
			return false
		}
		if from.said {
			if !to.told && !to.deaf {
				to.told = true
				_ = rawShutdown(to.fd, unix.SHUT_WR) // fails when it is gone, which reading tells
			}
			return false
		}
		if !from.readable {
			return false
		}
		n, err := s.take(h, from, to)
		if err != nil {
			s.failed(from, err)
			return false
		}
		moved += n
	}
	return true
}

// take reads from an application, once.
func (s *loopSplice) take(h *half, from, to *joint) (int, error) {
	if h.bulk && !to.deaf && !from.urgent {
		return s.takeBulk(h, from)
	}
	buf := s.l.plain[:smallRead]
	n, again, err := readSome(from.fd, buf)
	switch {
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case again:
		from.readable, from.hup = false, false
	case n == 0:
		from.said, from.readable = true, false
	default:
		from.flow.sent.Add(int64(n))
		from.readable = n == len(buf) || from.hup
		h.bulk = n == len(buf)
		if to.deaf {
			return n, nil
		}
		k, err := writeSome(to.fd, buf[:n])
		if err != nil {
			s.unheard(to, err)
			return n, nil
		}
		to.flow.received.Add(int64(k))
		if k < n {
			to.blocked = true
			h.queue.push(buf[k:n])
		}
	}
	return n, nil
}

// takeBulk fills a pipe.
func (s *loopSplice) takeBulk(h *half, from *joint) (int, error) {
	p, err := s.l.pipe()
	if err != nil { // out of descriptors, or of pipes: it goes without
		h.bulk = false
		return 0, nil //nolint:nilerr // copying needs none
	}
	n, err := spliceSome(from.fd, p.w, p.size)
	switch {
	case err == unix.EAGAIN: //nolint:errorlint // a bare errno
		from.readable, from.hup = false, false
	case err != nil:
		s.l.giveBack(p)
		return 0, os.NewSyscallError("splice", err)
	case n == 0: // its end, or urgent data before it: reading tells
		h.bulk = false
	default:
		from.flow.sent.Add(int64(n))
		p.n, h.pipe = n, p
		h.bulk = n >= smallRead
		return n, nil
	}
	s.l.giveBack(p)
	return 0, nil
}

// empty hands over what was taken before; false: not all of it now.
func (s *loopSplice) empty(h *half, to *joint) bool {
	for !h.empty() {
		if to.deaf {
			s.drop(h)
			return true
		}
		if to.blocked {
			return false
		}
		var n int
		var err error
		if h.pipe != nil {
			if n, err = spliceSome(h.pipe.r, to.fd, h.pipe.n); err == unix.EAGAIN { //nolint:errorlint // a bare errno
				n, err = 0, nil
			}
		} else {
			n, err = writeSome(to.fd, h.queue.front())
		}
		if err != nil {
			s.unheard(to, err)
			continue
		}
		to.flow.received.Add(int64(n))
		switch {
		case n == 0:
			to.blocked = true
		case h.pipe == nil:
			h.queue.drop(n)
		default:
			if h.pipe.n -= n; h.pipe.n == 0 {
				s.l.giveBack(h.pipe)
				h.pipe = nil
			}
		}
	}
	return true
}

func (s *loopSplice) drop(h *half) {
	h.queue.clear()
	if h.pipe != nil {
		s.l.discard(h.pipe)
		h.pipe = nil
	}
}

// unheard: an application reads no more. It may have answered in full before, so it is
// read to its end, and the other side gets some time to read that.
func (s *loopSplice) unheard(j *joint, err error) {
	reset := errors.Is(err, unix.ECONNRESET)
	if !reset && !errors.Is(err, unix.EPIPE) || j.said {
		s.failed(j, os.NewSyscallError("write", err))
		return
	}
	if reset {
		j.lost = os.NewSyscallError("write", err)
	}
	j.deaf, j.readable, j.hup = true, true, true
	if s.leaving {
		return
	}
	s.leaving = true
	time.AfterFunc(lingerTimeout, func() { s.l.post(func() { s.failed(j, os.NewSyscallError("write", err)) }) })
}

// failed ends both for the failure of one.
func (s *loopSplice) failed(j *joint, err error) {
	mine := End{Cause: CauseApp, Code: CodeCancelled, Err: err}
	theirs := End{Cause: CausePeer, Code: CodeCancelled, Err: &ResetError{Code: CodeCancelled, Remote: true}}
	if j == &s.from {
		s.finish(mine, theirs, true)
	} else {
		s.finish(theirs, mine, true)
	}
}

// refused gives the source's application back, as nothing was read of it.
func (s *loopSplice) refused(code Code) {
	s.to.end = nil // nothing was begun
	e := End{Cause: CausePeer, Code: code, Err: &ResetError{Code: code, Remote: true}}
	if code == CodeDraining { // began after it was chosen; the address may have a successor
		e = End{Cause: CauseUnprocessed, Err: ErrUnprocessed}
	}
	s.giveBack(e, End{})
}

func (s *loopSplice) dialFailed(err error) {
	if s.ended {
		return
	}
	s.giveBack(
		End{Cause: CausePeer, Code: dialCode(err), Err: &ResetError{Code: dialCode(err), Remote: true}},
		End{Cause: CauseDial, Code: dialCode(err), Err: err})
}

func (s *loopSplice) giveBack(mine, theirs End) {
	if s.from.end != nil {
		mine.App = &app{fd: s.from.fd, addr: localAddr(s.from.fd)}
		s.from.fd = -1
	}
	s.finish(mine, theirs, true)
}

func (s *loopSplice) stop(err error) {
	e := End{Cause: CauseOwner, Code: CodeDraining, Err: err}
	s.finish(e, e, true)
}

// finish closes both and tells both owners, once.
func (s *loopSplice) finish(mine, theirs End, cut bool) {
	if s.ended {
		return
	}
	s.ended = true
	s.cancelDial()
	delete(s.l.splices, s)
	s.drop(&s.there)
	s.drop(&s.back)
	for _, j := range []*joint{&s.from, &s.to} {
		if j.registered {
			s.l.release(j.slot)
		}
		if j.fd >= 0 {
			closeFD(j.fd, cut)
			j.fd = -1
		}
	}
	if s.to.end != nil {
		s.to.end(s.to.flow, theirs)
	}
	if s.from.end != nil {
		s.from.end(s.from.flow, mine)
	}
}

// spliceSome moves what there is and fits.
func spliceSome(from, to, n int) (int, error) {
	for {
		k, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR { //nolint:errorlint // a bare errno
			return int(max(k, 0)), err
		}
	}
}

var errPipes = errors.New("as many pipes as there may be are in use")

// pipe gives an empty one.
func (l *loop) pipe() (*pipe, error) {
	if n := len(l.pipes); n > 0 {
		p := l.pipes[n-1]
		l.pipes = l.pipes[:n-1]
		l.piping++
		return p, nil
	}
	if l.piping >= pipesMost {
		return nil, errPipes
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	p := &pipe{r: fds[0], w: fds[1], size: pipeSize}
	if l.piping >= pipesLarge {
		p.size = pipeSmall
	}
	_, _ = unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, p.size) // a smaller one serves too
	l.piping++
	return p, nil
}

// giveBack takes an empty pipe.
func (l *loop) giveBack(p *pipe) {
	if len(l.pipes) >= pipesAtHand {
		l.discard(p)
		return
	}
	l.piping--
	l.pipes = append(l.pipes, p)
}

// discard takes one that may hold something.
func (l *loop) discard(p *pipe) {
	l.piping--
	p.close()
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}
