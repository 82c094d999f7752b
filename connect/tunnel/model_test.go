package tunnel

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The model: each stream is two independent queues of bytes with an end. Two
// machines, joined by two pipes of little room, must show the applications exactly
// that, whatever the order of turns and wherever the pipes cut.

type modelStream struct {
	label byte
	sides [2]*modelEnd // client, server
}

// modelEnd is one application's view of a stream.
type modelEnd struct {
	st               *stream
	wrote            int // bytes sent, all of them position-coded
	ended            bool
	queue            []byte // received, not yet taken by the application
	read             int
	fin, reset, dead bool // dead: reset here
}

type modelSide struct {
	m       *machine
	streams map[*stream]*modelEnd
	out     []byte // encoded, waiting for room in the pipe
	pipe    []byte // on its way to the other side
}

type model struct {
	t       *rapid.T
	window  int
	room    int
	sides   [2]*modelSide
	streams []*modelStream
	byLabel map[byte]*modelStream
	now     time.Duration
	budget  *budget
}

func newModel(t *rapid.T) *model {
	window := rapid.SampledFrom([]int{1, 3, 50, 5000}).Draw(t, "window")
	limit := rapid.IntRange(1, 6).Draw(t, "streams")
	room := rapid.SampledFrom([]int{1, 20, 700}).Draw(t, "room")
	c, s := machinePair(uint32(window), uint32(limit))
	md := &model{t: t, window: window, room: room, byLabel: map[byte]*modelStream{}}
	if rapid.Bool().Draw(t, "grows") {
		md.now = time.Hour
		md.budget = &budget{limit: 1 << 20}
		top := int32(window) * int32(rapid.IntRange(1, 64).Draw(t, "top"))
		md.grows(c, s, growth{
			base: min(top, int32(window)*int32(rapid.IntRange(1, 8).Draw(t, "base"))), top: top,
			limit: int64(window) * int64(rapid.SampledFrom([]int{0, 1, 2, 5, 20, 100}).Draw(t, "extra")),
		})
	}
	for i, m := range []*machine{c, s} {
		md.sides[i] = &modelSide{m: m, streams: map[*stream]*modelEnd{}}
	}
	return md
}

// grows lets windows grow, by the model's clock.
func (md *model) grows(c, s *machine, g growth) {
	g.budget = md.budget
	g.clock = func() time.Duration { return md.now }
	g.rtt = func() time.Duration { return 10 * time.Millisecond }
	c.grow, s.grow = g, g
	for i, m := range []*machine{c, s} {
		md.sides[i] = &modelSide{m: m, streams: map[*stream]*modelEnd{}}
	}
}

// coded is the byte at a position of a direction of a stream.
func coded(label byte, side, pos int) byte { return byte(pos*7) ^ label*31 ^ byte(side*101) }

func (md *model) open() {
	if len(md.streams) >= 200 {
		return
	}
	label := byte(len(md.streams))
	c := md.sides[0]
	out, st, err := c.m.openStream(c.out, []byte{label})
	if err != nil {
		return
	}
	c.out = out
	ms := &modelStream{label: label, sides: [2]*modelEnd{{st: st}, nil}}
	c.streams[st] = ms.sides[0]
	md.streams = append(md.streams, ms)
	md.byLabel[label] = ms
}

// write sends up to n bytes where the window and the pipe allow; the driver writes
// only when the output is not congested.
func (md *model) write(ms *modelStream, side, n int) {
	e, s := ms.sides[side], md.sides[side]
	if e == nil || e.ended || e.reset || e.dead || len(s.out) > md.room {
		return
	}
	n = min(n, s.m.sendable(e.st))
	if n <= 0 {
		return
	}
	p := make([]byte, n)
	for i := range p {
		p[i] = coded(ms.label, side, e.wrote+i)
	}
	e.wrote += n
	s.out = s.m.along(s.m.data(s.out, e.st, p), e.st)
}

func (md *model) fin(ms *modelStream, side int) {
	e, s := ms.sides[side], md.sides[side]
	if e == nil || e.ended || e.reset || e.dead {
		return
	}
	e.ended = true
	s.out = s.m.fin(s.out, e.st)
}

func (md *model) kill(ms *modelStream, side int) {
	if e := ms.sides[side]; e != nil && !e.reset && e.st.state&gone == 0 {
		e.dead = true
		md.sides[side].m.reset(e.st, CodeCancelled)
	}
}

func (md *model) take(ms *modelStream, side, n int) {
	e := ms.sides[side]
	if e == nil {
		return
	}
	n = min(n, len(e.queue))
	for i := range n {
		if want := coded(ms.label, 1-side, e.read+i); e.queue[i] != want {
			md.t.Fatalf("stream %d side %d byte %d: got %d, want %d", ms.label, side, e.read+i, e.queue[i], want)
		}
	}
	e.queue = e.queue[n:]
	e.read += n
	md.sides[side].m.consumed(e.st, n)
	md.balance(side, e)
}

// balance holds the sum of a window, and of what a tunnel has granted.
func (md *model) balance(side int, e *modelEnd) {
	m, s := md.sides[side].m, e.st
	if s.receiving() && int(s.recv)+len(e.queue)+int(s.owed) != int(s.window) {
		md.t.Fatalf("window of %d: %d to come, %d queued, %d owed", s.window, s.recv, len(e.queue), s.owed)
	}
	extra := int64(0)
	for _, s := range m.streams {
		extra += int64(s.window) - int64(m.mine.window)
	}
	if extra != m.grow.extra || extra > m.grow.limit {
		md.t.Fatalf("windows are %d above the first ones, counted %d, allowed %d", extra, m.grow.extra, m.grow.limit)
	}
}

// pump moves control and encoded bytes into the pipe, as far as there is room.
func (md *model) pump(side int) {
	s := md.sides[side]
	if len(s.out) == 0 {
		s.out = s.m.appendControl(s.out)
	}
	n := min(len(s.out), md.room-len(s.pipe))
	if n > 0 {
		s.pipe = append(s.pipe, s.out[:n]...)
		s.out = s.out[n:]
	}
}

// deliver gives n bytes of the pipe to the side at its end.
func (md *model) deliver(from, n int) {
	src, dst := md.sides[from], md.sides[1-from]
	n = min(n, len(src.pipe))
	p := src.pipe[:n]
	src.pipe = src.pipe[n:]
	if err := drive(dst.m, p, whole, func(ev event) { md.event(1-from, ev) }); err != nil {
		md.t.Fatalf("side %d: %v", 1-from, err)
	}
}

func (md *model) event(side int, ev event) {
	s := md.sides[side]
	if ev.kind == evOpen {
		e := &modelEnd{st: ev.stream}
		md.byLabel[ev.data[0]].sides[1] = e
		s.streams[ev.stream] = e
		return
	}
	e := s.streams[ev.stream]
	switch {
	case e == nil:
		md.t.Fatalf("event %d of an unknown stream", ev.kind)
	case e.dead:
		md.t.Fatalf("event %d after a local reset", ev.kind)
	case ev.kind == evData:
		e.queue = append(e.queue, ev.data...)
		if len(e.queue) > int(e.st.window) {
			md.t.Fatalf("%d bytes queued, window is %d", len(e.queue), e.st.window)
		}
		md.balance(side, e)
	case ev.kind == evFin:
		e.fin = true
	case ev.kind == evReset:
		e.reset = true
	}
}

// settleAll ends every stream and runs both sides until nothing moves.
func (md *model) settleAll() {
	for turn, still := 0, 0; ; turn++ {
		if turn > 1_000_000 {
			md.t.Fatal("does not come to rest")
		}
		before := md.progress()
		for _, ms := range md.streams {
			for side := range 2 {
				md.take(ms, side, 1<<20)
				md.fin(ms, side)
			}
		}
		for side := range 2 {
			md.pump(side)
			md.deliver(side, 1<<20)
		}
		if still++; before != md.progress() {
			still = 0
		}
		if still > 1 { // a first turn may have passed on ends alone
			return
		}
	}
}

func (md *model) progress() string {
	a, b := md.sides[0], md.sides[1]
	read := 0
	for _, ms := range md.streams {
		for _, e := range ms.sides {
			if e != nil {
				read += e.read
			}
		}
	}
	return fmt.Sprint(read, len(a.out), len(b.out), len(a.pipe), len(b.pipe), a.m.open(), b.m.open(),
		a.m.controlPending(), b.m.controlPending(), a.m.got, a.m.left, b.m.got, b.m.left)
}

func (md *model) verify() {
	for i, s := range md.sides {
		if s.m.open() != 0 || s.m.controlPending() || len(s.out)+len(s.pipe) != 0 {
			md.t.Fatalf("side %d: %d streams left, control %v, %d bytes not sent", i, s.m.open(), s.m.controlPending(), len(s.out)+len(s.pipe))
		}
		if s.m.grown != 0 {
			md.t.Fatalf("side %d: %d windows have grown, of no stream", i, s.m.grown)
		}
		if g := &s.m.grow; g.extra != 0 || g.oldest != nil || g.newest != nil || md.budget != nil && md.budget.extra.Load() != 0 {
			md.t.Fatalf("side %d: windows of streams that are gone: %+v", i, g)
		}
	}
	for _, ms := range md.streams {
		for side := range 2 {
			from, to := ms.sides[side], ms.sides[1-side]
			if to == nil || from == nil {
				continue
			}
			if to.fin && to.read+len(to.queue) != from.wrote && !to.dead {
				md.t.Fatalf("stream %d: ended after %d of %d bytes", ms.label, to.read, from.wrote)
			}
			if !to.fin && !to.reset && !to.dead {
				md.t.Fatalf("stream %d side %d never heard the end", ms.label, 1-side)
			}
			if to.fin && !from.ended {
				md.t.Fatalf("stream %d: an end that nobody sent", ms.label)
			}
			if to.reset && !from.dead {
				md.t.Fatalf("stream %d: a reset that nobody sent", ms.label)
			}
		}
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		md := newModel(t)
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			action := rapid.IntRange(0, 13).Draw(t, "action")
			side := rapid.IntRange(0, 1).Draw(t, "side")
			n := rapid.IntRange(1, 3000).Draw(t, "n")
			var ms *modelStream
			if len(md.streams) > 0 {
				// Mostly young streams: the old ones have ended.
				ms = md.streams[max(0, len(md.streams)-1-rapid.IntRange(0, 6).Draw(t, "stream"))]
			}
			switch {
			case action == 0 || ms == nil:
				md.open()
			case action <= 3:
				md.write(ms, side, n)
			case action == 4:
				md.fin(ms, side)
			case action == 5 && n < 700:
				md.kill(ms, side)
			case action <= 7:
				md.take(ms, side, n)
			case action <= 9:
				md.pump(side)
			case action == 10:
				md.now += time.Duration(n) * rapid.SampledFrom([]time.Duration{100, 10_000, 1_000_000}).Draw(t, "clock")
			case action == 11 && n < 1000:
				md.sides[side].m.rest()
			default:
				md.deliver(side, n)
			}
		}
		md.settleAll()
		md.verify()
	})
}

// TestSmallWindowsComeThrough moves much through windows of few bytes, both ways at
// once on all streams: credit alone keeps it going.
func TestSmallWindowsComeThrough(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		md := newModel(t)
		for range 6 {
			md.open()
		}
		chunk := rapid.IntRange(1, 999).Draw(t, "chunk")
		total := 20 * min(md.room, md.window)
		for turn, left := 0, true; left; turn++ {
			left = false
			for _, ms := range md.streams {
				for side := range 2 {
					e := ms.sides[side]
					if e == nil || e.wrote < total {
						left = true
					}
					if e != nil && e.wrote < total {
						md.write(ms, side, min(total-e.wrote, chunk))
					}
					md.take(ms, side, 1<<20)
				}
			}
			for side := range 2 {
				md.pump(side)
				md.deliver(side, 1<<20)
			}
			if turn > 100_000 {
				t.Fatal("no progress")
			}
		}
		md.settleAll()
		md.verify()
	})
}

// TestModelOfWindows is about streams that use their windows up and rest in turns, with
// less to grow by than all would like.
func TestModelOfWindows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, s := machinePair(64, 6)
		md := &model{t: t, window: 64, room: 700, byLabel: map[byte]*modelStream{}, now: time.Hour, budget: &budget{limit: 1 << 20}}
		md.grows(c, s, growth{base: 128, top: 1024, limit: int64(rapid.IntRange(64, 2000).Draw(t, "extra"))})
		grown := false
		for range 4 {
			md.open()
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			ms := md.streams[rapid.IntRange(0, 3).Draw(t, "stream")]
			side := rapid.IntRange(0, 1).Draw(t, "side")
			deaf := rapid.IntRange(0, 9).Draw(t, "deaf") == 0
			for range rapid.IntRange(1, 30).Draw(t, "turns") {
				md.write(ms, side, 1<<20)
				for side := range 2 {
					md.pump(side)
					md.deliver(side, rapid.SampledFrom([]int{1, 100, 1 << 20}).Draw(t, "deliver"))
				}
				if !deaf {
					md.take(ms, 1-side, 1<<20)
				}
				md.now += time.Duration(rapid.IntRange(0, 5).Draw(t, "ms")) * time.Millisecond
			}
			grown = grown || c.grow.extra+s.grow.extra > 128
			md.now += rapid.SampledFrom([]time.Duration{0, 2 * recallRest}).Draw(t, "rest")
		}
		for range 1000 { // what waits for nothing but the line
			for side := range 2 {
				md.pump(side)
				md.deliver(side, 1<<20)
			}
		}
		for _, ms := range md.streams {
			for side, e := range ms.sides {
				if e == nil {
					continue
				}
				md.take(ms, side, 1<<20)
				if far := ms.sides[1-side]; far != nil && len(far.queue) == 0 && e.st.send == 0 && !md.sides[1-side].m.controlPending() {
					t.Fatalf("stream %d side %d may send nothing, and nothing is queued or owed at the other end: %+v", ms.label, side, far.st)
				}
			}
		}
		md.settleAll()
		md.verify()
	})
}
