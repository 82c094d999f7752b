package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// loopTunnel is a tunnel on a loop. Only the loop touches it, but for the part
// marked as shared.
type loopTunnel struct {
	secure
	m       machine
	accept  Accept
	queued  bool // among the loop's active
	dead    bool
	streams streamSet  // all that hold something here
	toRead  streamList // applications that may have something to send
	toWrite streamList // applications that may take what is queued
	waiting streamList // to be opened, when the peer has answered
	held    account    // memory of what is queued
	vigil

	opens   int    // streams that the peer has opened in this turn
	backlog []byte // what it said after as many as a turn allows; at most what is read at once
	over    bool   // there is no other turn

	silent, stuck, empty int

	// Shared.
	pending  atomic.Int32 // carried, but not yet opened by the loop
	open     atomic.Int32
	draining atomic.Bool
	bytes    atomic.Uint64
	bulk     atomic.Bool
	grown    atomic.Int32
	unjudged atomic.Uint64
	done     chan struct{}
	mu       sync.Mutex
	err      error
}

// streamList is a queue of streams, each in it at most once.
type streamList struct {
	head, tail *loopStream
	n          int
	write      bool // linked by the write links
}

func (q *streamList) push(s *loopStream) {
	in, next := q.links(s)
	if *in {
		return
	}
	*in, *next = true, nil
	if q.tail == nil {
		q.head = s
	} else {
		_, tail := q.links(q.tail)
		*tail = s
	}
	q.tail = s
	q.n++
}

func (q *streamList) pop() *loopStream {
	s := q.head
	if s == nil {
		return nil
	}
	in, next := q.links(s)
	if q.head = *next; q.head == nil {
		q.tail = nil
	}
	*in, *next = false, nil
	q.n--
	return s
}

func (q *streamList) links(s *loopStream) (*bool, **loopStream) {
	if q.write {
		return &s.inWrite, &s.nextWrite
	}
	return &s.inRead, &s.nextRead
}

// streamSet links streams, each in one set at most. Where one is empty it takes nothing, of
// which a process with many idle tunnels has as many.
type streamSet struct {
	first *loopStream
	n     int
}

func (x *streamSet) add(s *loopStream) {
	if s.after = x.first; s.after != nil {
		s.after.before = s
	}
	s.among, x.first = true, s
	x.n++
}

func (x *streamSet) remove(s *loopStream) {
	if !s.among {
		return
	}
	if s.after != nil {
		s.after.before = s.before
	}
	if s.before != nil {
		s.before.after = s.after
	} else {
		x.first = s.after
	}
	s.before, s.after, s.among = nil, nil, false
	x.n--
}

// all walks over the streams; the one at hand may be removed.
func (x *streamSet) all(yield func(*loopStream) bool) {
	for s := x.first; s != nil; {
		next := s.after
		if !yield(s) {
			return
		}
		s = next
	}
}

// ready implements handler for the tunnel's own socket.
func (t *loopTunnel) ready(events uint32) {
	t.mark(events)
	t.enqueue()
}

func (t *loopTunnel) enqueue() {
	if !t.queued {
		t.queued = true
		t.l.activate(t)
	}
}

// serve is the tunnel's turn: what came from the peer, what applications can take,
// what applications have, one flush.
func (t *loopTunnel) serve() {
	t.queued = false
	if t.dead {
		t.serveRest()
		return
	}
	if err := t.hear(); err != nil {
		t.hearOut()
		t.fail(t.why(err))
		return
	}
	for n := t.toWrite.n; n > 0; n-- {
		t.toWrite.pop().drainQueue()
	}
	err := t.flush() // what the last turn left, and what crypto/tls itself said
	if err == nil && t.unsent == nil {
		if out := t.fill(); len(out) > 0 {
			t.moved(len(out))
			if err = t.send(out); err == nil {
				err = t.flush()
			}
		}
	}
	if err != nil {
		t.hearOut()
		t.fail(err)
		return
	}
	t.publish()
	if t.readable || len(t.backlog) > 0 || t.toWrite.n > 0 || t.unsent == nil && (t.toRead.n > 0 || t.m.controlPending()) {
		t.enqueue()
		return
	}
	if !t.m.server && t.m.draining() && t.m.open() == 0 && t.pending.Load() == 0 && t.unsent == nil {
		t.fail(t.emptied())
	}
}

// serveRest goes on for streams that were complete when the tunnel ended.
func (t *loopTunnel) serveRest() {
	for n := t.toWrite.n; n > 0; n-- {
		t.toWrite.pop().drainQueue()
	}
	for n := t.toRead.n; n > 0; n-- {
		if s := t.toRead.pop(); s.discarding {
			s.discard()
		}
	}
	if t.toRead.n+t.toWrite.n > 0 {
		t.enqueue()
	}
}

func (t *loopTunnel) moved(n int) {
	t.bytes.Add(uint64(n))
	if n > bulkRecord && !t.bulk.Load() {
		t.bulk.Store(true)
	}
}

func (t *loopTunnel) publish() {
	t.open.Store(int32(t.m.open()))
	t.grown.Store(int32(t.m.grown))
	if t.m.draining() {
		t.draining.Store(true)
	}
}

func (t *loopTunnel) why(err error) error {
	if inOrder(err) || errors.Is(err, ErrTruncated) {
		if t.m.draining() && t.m.open() == 0 {
			return ErrDraining
		}
		return fmt.Errorf("the peer closed the tunnel: %w", err)
	}
	return err
}

// hear takes what the peer has said, or a turn's worth of it.
func (t *loopTunnel) hear() error {
	t.opens = 0
	if len(t.backlog) > 0 {
		rest, err := t.parse(t.backlog)
		if t.backlog = rest; len(rest) == 0 {
			t.backlog = nil
		}
		if err != nil || t.backlog != nil {
			return err
		}
	}
	if !t.readable {
		return nil
	}
	return t.receive(turnRead, t.feed)
}

// hearOut takes what waits for the next turn when there is none, as it may complete streams.
// Those that it opens are not judged any more.
func (t *loopTunnel) hearOut() {
	t.over, t.opens = true, 0
	_, _ = t.parse(t.backlog) // why the tunnel ends is known
	t.backlog = nil
}

// feed takes decrypted bytes.
func (t *loopTunnel) feed(b []byte) error {
	t.silent = 0
	if !t.m.server && t.hears() {
		t.answered()
	}
	t.moved(len(b))
	rest, err := t.parse(b)
	if len(rest) > 0 {
		t.backlog = append(t.backlog, rest...)
		t.limit = 0 // no more is read in this turn
	}
	return err
}

// parse gives bytes to the machine, and back those that are for the next turn: others on
// this loop wait for no more streams of one tunnel than turnOpens.
func (t *loopTunnel) parse(b []byte) (rest []byte, err error) {
	for len(b) > 0 && t.opens < turnOpens {
		ev, n, err := t.m.next(b)
		if err != nil {
			return nil, err
		}
		b = b[n:]
		switch ev.kind {
		case evNone, evPong:
		case evOpen:
			if !t.over {
				t.opens++
			}
			t.opened(ev.stream, ev.data)
		case evGoaway:
			for p := t.m.unprocessed(); p != nil; p = t.m.unprocessed() {
				s, e := p.owner.(*loopStream), End{Cause: CauseUnprocessed, Err: ErrUnprocessed}
				if s.untouched() || s.unheard() {
					s.giveBack(e)
				} else {
					s.finish(e, true)
				}
			}
		default:
			ev.stream.owner.(*loopStream).handle(ev)
		}
	}
	return b, nil
}

// opened has the owner judge a stream of the peer.
func (t *loopTunnel) opened(p *stream, meta []byte) {
	if t.over {
		t.m.refuse(p, CodeDraining)
		return
	}
	if t.streams.n >= 2*t.l.cfg.MaxStreams || t.m.weary() {
		// Streams that ended still hold data that nobody reads, or too many were for nothing.
		t.m.refuse(p, CodeLimit)
		t.unjudged.Add(1)
		return
	}
	s := t.newStream(p)
	v := t.accept(s.flow, meta)
	if v.Refuse != 0 {
		t.m.refuse(p, v.Refuse)
		s.ended = true
		t.streams.remove(s)
		return
	}
	s.end = v.End
	if v.complete(); v.Addr.IsValid() {
		s.connect(v.Addr, v.Timeout)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), v.Timeout)
	s.cancel = cancel
	go s.dial(ctx, v.Dial)
}

func (t *loopTunnel) newStream(p *stream) *loopStream {
	s := &loopStream{t: t, p: p, fd: -1, flow: &Flow{}}
	s.flow.target, s.in.account = s, &t.held
	if p != nil {
		p.owner = s
	}
	t.streams.add(s)
	return s
}

// fill makes the frames of one turn: each application that has something is read
// once, straight into the output, a bounded piece of it.
func (t *loopTunnel) fill() []byte {
	out := t.l.out[:0]
	room := outBuffer
	if t.held.budget.full() {
		room = scarceOutput
	}
	for n := t.toRead.n; n > 0; n-- {
		if room-len(out) < headerSize+MaxMeta+1024 {
			break
		}
		out = t.toRead.pop().fill(out, room)
	}
	out = t.m.appendControl(out)
	t.l.out = out[:0] // it may have grown, by control frames
	return out
}

// unsure tells whether a stream must wait, as the peer is to be asked first.
func (t *loopTunnel) unsure() bool {
	if t.doubts() {
		t.m.ping(t.wrote)
		t.l.dials.add(t, t.patience)
		t.enqueue()
	}
	return t.doubt
}

// answered opens what has waited.
func (t *loopTunnel) answered() {
	t.l.dials.done(t)
	for s := t.waiting.pop(); s != nil; s = t.waiting.pop() {
		t.toRead.push(s)
	}
}

// timedOut implements dialling: the peer has not answered. Nothing more is opened here,
// and what it cannot have answered goes elsewhere, or ends where something of it was said.
func (t *loopTunnel) timedOut() {
	if t.dead || !t.doubt {
		return
	}
	if t.looks() {
		t.l.dials.add(t, lastLook)
		return
	}
	t.draining.Store(true)
	t.m.drain(CodeDraining)
	for s := range t.streams.all {
		switch {
		case s.openDue:
			s.giveBack(End{Cause: CauseUnprocessed, Err: ErrSilent})
		case s.turn != t.turn:
		case s.untouched():
			t.m.reset(s.p, CodeCancelled)
			s.giveBack(End{Cause: CauseUnprocessed, Err: ErrSilent})
		default:
			t.m.reset(s.p, CodeCancelled)
			s.finish(End{Cause: CauseLost, Err: errUnanswered}, true)
		}
	}
	if t.streams.n == 0 {
		t.fail(errUnanswered)
		return
	}
	t.enqueue()
}

// fail ends the tunnel. What was not complete is reset, what was not opened given back.
func (t *loopTunnel) fail(err error) {
	if t.dead {
		return
	}
	t.dead = true
	t.shut(true, false)
	t.tc = nil // its buffers may be large, and the owner finds out only later that the tunnel has ended
	t.l.dials.done(t)
	delete(t.l.tunnels, t)
	t.draining.Store(true)
	t.mu.Lock()
	t.err = err
	t.mu.Unlock()
	lost := t.lost()
	e := End{Cause: CauseLost, Err: lost}
	if errors.Is(err, net.ErrClosed) {
		e.Cause = CauseOwner
	}
	for s := range t.streams.all {
		if s.complete() {
			t.l.lingering[s] = struct{}{}
			continue
		}
		if s.openDue && e.Cause == CauseLost {
			s.giveBack(End{Cause: CauseUnprocessed, Err: lost})
			continue
		}
		if s.p != nil {
			s.p.state |= gone
		}
		s.finish(e, true)
	}
	t.m.abandon()
	t.open.Store(0)
	close(t.done)
	if t.streams.n > 0 {
		t.enqueue()
	}
}

// lost is the error of what can no longer be done.
func (t *loopTunnel) lost() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.err == nil:
		return nil
	case errors.Is(t.err, ErrDraining), errors.Is(t.err, ErrLost):
		return t.err
	default:
		return fmt.Errorf("%w: %w", ErrLost, t.err)
	}
}

// tick is the keepalive: a silent peer is pinged, then given up.
func (t *loopTunnel) tick() {
	moved := t.wrote != t.lastWrote
	t.lastWrote = t.wrote
	t.silent++
	if t.stuck++; t.unsent == nil || moved {
		t.stuck = 0
	}
	if t.empty++; !t.m.draining() || t.m.open() > 0 {
		t.empty = 0
	}
	t.m.rest()
	if t.m.controlPending() {
		t.enqueue()
	}
	if t.pending.Load() > 0 {
		t.unsure() // the output may have stood still before they came
	}
	switch {
	case t.silent > 3 || t.stuck > 2:
		t.fail(errGivenUp(t.l.cfg.Keepalive))
	case t.empty > 2:
		t.fail(ErrDraining) // the client should have closed it
	case t.silent > 1:
		t.m.ping(t.wrote)
		t.enqueue()
	}
}

// Carry implements Link.
func (t *loopTunnel) Carry(app net.Conn, meta []byte, end EndFunc) (*Flow, error) {
	if len(meta) > MaxMeta {
		return nil, ErrMeta
	}
	if err := t.lost(); err != nil {
		return nil, err
	}
	if t.draining.Load() || t.m.server {
		return nil, ErrDraining
	}
	if n := t.pending.Add(1); int(n)+int(t.open.Load()) > int(t.m.peer.streams) {
		t.pending.Add(-1)
		return nil, ErrFull
	}
	app, said := heard(app)
	fd, err := takeFD(app)
	if err != nil {
		t.pending.Add(-1)
		return nil, err
	}
	noteCarrier(app, t.l)
	s := &loopStream{t: t, fd: fd, flow: &Flow{}, end: end}
	if end != nil {
		s.kept = &kept{b: said}
	}
	s.flow.target, s.in.account = s, &t.held
	meta = append([]byte(nil), meta...)
	if !t.l.post(func() { s.start(meta) }) {
		t.pending.Add(-1)
		closeFD(fd, true)
		return nil, fmt.Errorf("%w: %w", ErrLost, net.ErrClosed)
	}
	return s.flow, nil
}

// Drain implements Link.
func (t *loopTunnel) Drain(code Code) {
	t.draining.Store(true)
	t.l.post(func() {
		if !t.dead {
			t.m.drain(code)
			t.enqueue()
		}
	})
}

// Close implements Link.
func (t *loopTunnel) Close() error {
	t.draining.Store(true)
	t.l.post(func() { t.fail(net.ErrClosed) })
	return nil
}

// Done implements Link.
func (t *loopTunnel) Done() <-chan struct{} { return t.done }

// Status implements Link.
func (t *loopTunnel) Status() Status {
	t.mu.Lock()
	err := t.err
	t.mu.Unlock()
	if errors.Is(err, ErrDraining) || errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return Status{
		Streams: int(t.open.Load() + t.pending.Load()), Limit: t.m.limit(), Draining: t.draining.Load(),
		Bytes: t.bytes.Load(), Bulk: t.bulk.Load(), Grown: int(t.grown.Load()), Unjudged: t.unjudged.Load(), Err: err,
	}
}
