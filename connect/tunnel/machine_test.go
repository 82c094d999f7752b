package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// pair returns two machines that have greeted each other.
func machinePair(window, streams uint32) (client, server *machine) {
	h := hello{window: window, streams: streams}
	c, s := newMachine(false, h, h), newMachine(true, h, h)
	return &c, &s
}

// drive feeds b to m in pieces that rng cuts and collects the events, data copied.
func drive(m *machine, b []byte, cut func(n int) int, f func(event)) error {
	for len(b) > 0 {
		piece := b[:cut(len(b))]
		b = b[len(piece):]
		for len(piece) > 0 {
			ev, n, err := m.next(piece)
			if err != nil {
				return err
			}
			piece = piece[n:]
			if ev.kind != evNone {
				f(ev)
			}
		}
	}
	return nil
}

func whole(n int) int { return n }

func TestOpenDataFinInOneGo(t *testing.T) {
	c, s := machinePair(1000, 4)
	out, st, err := c.openStream(nil, []byte("meta"))
	if err != nil {
		t.Fatal(err)
	}
	out = c.data(out, st, []byte("hello"))
	out = c.fin(out, st)
	for name, cut := range map[string]func(int) int{"whole": whole, "bytes": func(int) int { return 1 }} {
		t.Run(name, func(t *testing.T) {
			_, s = machinePair(1000, 4)
			var meta, data []byte
			fin := false
			err := drive(s, out, cut, func(ev event) {
				switch ev.kind {
				case evOpen:
					meta = bytes.Clone(ev.data)
				case evData:
					data = append(data, ev.data...)
				case evFin:
					fin = true
				}
			})
			if err != nil || string(meta) != "meta" || string(data) != "hello" || !fin {
				t.Fatalf("meta %q data %q fin %v err %v", meta, data, fin, err)
			}
			if got := s.streams[1].recv; got != 995 {
				t.Fatalf("window left %d, want 995", got)
			}
		})
	}
}

func TestCreditComesByQuarters(t *testing.T) {
	c, s := machinePair(1000, 4)
	out, st, _ := c.openStream(nil, nil)
	out = c.data(out, st, make([]byte, 1000))
	if c.sendable(st) != 0 {
		t.Fatal("window not used up")
	}
	var peer *stream
	_ = drive(s, out, whole, func(ev event) { peer = ev.stream })
	s.consumed(peer, 249)
	if s.controlPending() {
		t.Fatal("credit below a quarter")
	}
	s.consumed(peer, 1)
	if err := drive(c, s.appendControl(nil), whole, func(event) {}); err != nil {
		t.Fatal(err)
	}
	if got := c.sendable(st); got != 250 {
		t.Fatalf("sendable %d, want 250", got)
	}
}

func TestGoawayTellsWhatWasNotLookedAt(t *testing.T) {
	c, s := machinePair(1000, 8)
	first, one, _ := c.openStream(nil, nil)
	_ = drive(s, first, whole, func(event) {})
	goaway := append(appendHeader(nil, typeGoaway, 8, 0), 0, 0, 0, 1, 0, 0, 0, byte(CodeDraining))
	_, two, _ := c.openStream(nil, []byte("late"))
	var code Code
	if err := drive(c, goaway, whole, func(ev event) { code = ev.code }); err != nil || code != CodeDraining {
		t.Fatalf("code %v err %v", code, err)
	}
	if got := c.unprocessed(); got != two {
		t.Fatalf("unprocessed %v, want the second", got)
	}
	if c.unprocessed() != nil || one.state&gone != 0 {
		t.Fatal("the first stream must go on")
	}
	if _, _, err := c.openStream(nil, nil); !errors.Is(err, ErrDraining) {
		t.Fatalf("open after goaway: %v", err)
	}
}

// What a client opens before it hears that the server drains is served.
func TestDrainServesWhatCrosses(t *testing.T) {
	c, s := machinePair(1000, 8)
	s.drain(CodeDraining)
	goaway := s.appendControl(nil)
	late, two, _ := c.openStream(nil, []byte("late"))
	late = c.data(late, two, []byte("read"))
	opened := 0
	if err := drive(s, late, whole, func(event) { opened++ }); err != nil || opened != 2 {
		t.Fatalf("late stream: %d events, %v", opened, err)
	}
	if err := drive(c, goaway, whole, func(event) {}); err != nil || c.unprocessed() != nil || two.state&gone != 0 {
		t.Fatalf("the stream that crossed is gone: %v", err)
	}
	if _, _, err := c.openStream(nil, nil); !errors.Is(err, ErrDraining) {
		t.Fatalf("open after goaway: %v", err)
	}
}

func TestPongAnswersTheLastPingOnce(t *testing.T) {
	c, s := machinePair(1000, 8)
	for i := range uint64(1000) {
		c.ping(i)
		_ = drive(s, c.appendControl(nil), whole, func(event) {})
	}
	out := s.appendControl(nil)
	if len(out) != headerSize+8 || binary.BigEndian.Uint64(out[headerSize:]) != 999 {
		t.Fatalf("answer % x", out)
	}
}

func TestFramesOfFinishedStreamsAreIgnored(t *testing.T) {
	c, s := machinePair(1000, 4)
	out, st, _ := c.openStream(nil, nil)
	_ = drive(s, out, whole, func(event) {})
	s.reset(s.streams[1], CodeRefused)
	late := c.fin(c.data(nil, st, make([]byte, 500)), st)
	if err := drive(s, late, func(n int) int { return min(n, 7) }, func(ev event) { t.Fatalf("event %v", ev.kind) }); err != nil {
		t.Fatal(err)
	}
	// A reset in the middle of a frame makes the rest of it nobody's.
	out, st, _ = c.openStream(nil, nil)
	out = c.data(out, st, make([]byte, 100))
	n := 0
	err := drive(s, out, func(n int) int { return min(n, 30) }, func(ev event) {
		if ev.kind == evData {
			n += len(ev.data)
			s.reset(ev.stream, CodeCancelled)
		}
	})
	if err != nil || n == 0 || n >= 100 {
		t.Fatalf("%d bytes delivered, %v", n, err)
	}
}

func TestLimitCountsResetsNotYetWritten(t *testing.T) {
	c, s := machinePair(1000, 2)
	out, a, _ := c.openStream(nil, nil)
	out, _, _ = c.openStream(out, nil)
	if _, _, err := c.openStream(nil, nil); !errors.Is(err, ErrFull) {
		t.Fatalf("third stream: %v", err)
	}
	c.reset(a, CodeCancelled)
	if _, _, err := c.openStream(nil, nil); !errors.Is(err, ErrFull) {
		t.Fatalf("before the reset is written: %v", err)
	}
	out = c.appendControl(out)
	out, _, err := c.openStream(out, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := drive(s, out, whole, func(event) {}); err != nil {
		t.Fatal(err)
	}
}

// TestDebtsStayBounded plays a peer that makes us owe credit and takes the stream
// back, and reads nothing.
func TestDebtsStayBounded(t *testing.T) {
	c, s := machinePair(100, 4)
	var now time.Duration
	s.clock = func() time.Duration { return now }
	for range 10_000 {
		now += time.Millisecond // many at once are a violation
		out, st, err := c.openStream(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		out = c.data(out, st, make([]byte, 100))
		c.reset(st, CodeCancelled)
		out = c.appendControl(out)
		err = drive(s, out, whole, func(ev event) {
			if ev.kind == evData {
				s.consumed(ev.stream, len(ev.data))
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(s.debts) > 100 {
		t.Fatalf("%d debts kept", len(s.debts))
	}
}

func TestViolations(t *testing.T) {
	frame := func(typ byte, id uint32, payload ...byte) []byte {
		return append(appendHeader(nil, typ, len(payload), id), payload...)
	}
	open := frame(typeOpen, 1)
	cat := func(bs ...[]byte) []byte { return bytes.Join(bs, nil) }
	for _, c := range []struct {
		name, want string
		client     bool
		in         []byte
	}{
		{"greeting again", "unexpected frame", false, hello{1, 1}.append(nil)},
		{"type 0", "unexpected frame", false, frame(0, 1)},
		{"unknown type", "unexpected frame", false, frame(0x7f, 1)},
		{"long unknown", "unknown type", false, appendHeader(nil, 0x80, 1<<20, 1)},
		{"open by server", "accepting side", true, open},
		{"id used again", "used again", false, cat(open, open)},
		{"id 0", "used again", false, frame(typeOpen, 0)},
		{"long meta", "length 1025", false, frame(typeOpen, 1, make([]byte, MaxMeta+1)...)},
		{"too many", "more than 2", false, cat(open, frame(typeOpen, 2), frame(typeOpen, 3))},
		{"data unopened", "never opened", false, frame(typeData, 1, 1)},
		{"reset unopened", "never opened", true, frame(typeReset, 1, 0, 0, 0, 1)},
		{"empty data", "length 0", false, cat(open, frame(typeData, 1))},
		{"long data", "length 65537", false, cat(open, appendHeader(nil, typeData, MaxData+1, 1))},
		{"beyond window", "were granted", false, cat(open, frame(typeData, 1, make([]byte, 1001)...))},
		{"data after fin", "after the end", false, cat(open, frame(typeFin, 1), frame(typeData, 1, 1))},
		{"fin twice", "after the end", false, cat(open, frame(typeFin, 1), frame(typeFin, 1))},
		{"fin with payload", "length 1", false, cat(open, frame(typeFin, 1, 1))},
		{"no credit", "credit of 0", false, cat(open, frame(typeCredit, 1, 0, 0, 0, 0))},
		{"too much credit", "credit of", false, cat(open, frame(typeCredit, 1, 0x40, 0, 0, 0))},
		{"credit overflow", "credit of", false, cat(open, frame(typeCredit, 1, 0xff, 0xff, 0xff, 0xff))},
		{"nothing was recalled", "were recalled", false, cat(open, frame(typeReturn, 1, 0, 0, 0, 1))},
		{"recall unopened", "never opened", false, frame(typeRecall, 1, 0, 0, 0, 1)},
		{"long recall", "length 5", false, cat(open, frame(typeRecall, 1, 0, 0, 0, 1, 1))},
		{"ping of a stream", "stream id", false, cat(open, frame(typePing, 1, make([]byte, 8)...))},
		{"goaway goes back", "goes back", true, cat(frame(typeGoaway, 0, 0, 0, 0, 1, 0, 0, 0, 1), frame(typeGoaway, 0, 0, 0, 0, 2, 0, 0, 0, 1))},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := hello{window: 1000, streams: 2}
			m := newMachine(!c.client, h, h)
			err := drive(&m, c.in, whole, func(event) {})
			if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestIgnorableFramesAreSkipped(t *testing.T) {
	_, s := machinePair(1000, 2)
	in := append(appendHeader(nil, 0x91, 3000, 77), make([]byte, 3000)...)
	in = appendHeader(in, typeIgnorable, 0, 0)
	in = appendHeader(in, typeOpen, 0, 1)
	opened := 0
	if err := drive(s, in, func(n int) int { return min(n, 11) }, func(ev event) { opened++ }); err != nil || opened != 1 {
		t.Fatalf("%d events, %v", opened, err)
	}
}

func TestGreeting(t *testing.T) {
	b := hello{window: 5000, streams: 7}.append(nil)
	n, err := helloLength(b)
	if err != nil || n != len(b)-headerSize {
		t.Fatal(n, err)
	}
	h, err := parseHello(b[headerSize:])
	if err != nil || h.window != 5000 || h.streams != 7 {
		t.Fatal(h, err)
	}
	for _, bad := range [][]byte{
		[]byte("GET / HTTP/1.1\r\n"), appendHeader(nil, typeHello, 4, 0), appendHeader(nil, typeHello, 300, 0),
		appendHeader(nil, typeHello, 12, 1), appendHeader(nil, typeOpen, 12, 0),
	} {
		if _, err := helloLength(bad); !errors.Is(err, ErrProtocol) {
			t.Errorf("% x: %v", bad, err)
		}
	}
	for _, bad := range []hello{{0, 1}, {1, 0}, {maxWindow + 1, 1}} {
		if _, err := parseHello(bad.append(nil)[headerSize:]); !errors.Is(err, ErrProtocol) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// FuzzMachine feeds a machine what a hostile peer may send, lets the local side act
// in between, and holds its bounds.
func FuzzMachine(f *testing.F) {
	c, _ := machinePair(300, 3)
	seed, st, _ := c.openStream(nil, []byte("m"))
	seed = c.data(seed, st, make([]byte, 200))
	c.ping(1)
	c.drain(CodeDraining)
	seed = c.appendControl(c.fin(seed, st))
	f.Add(true, uint64(1), seed)
	f.Add(false, uint64(2), seed)
	f.Add(true, uint64(4), appendWord(appendWord(seed, typeRecall, 1, 100), typeReturn, 1, 7))
	f.Add(true, uint64(3), bytes.Repeat(appendHeader(nil, typeOpen, 0, 1), 3))
	f.Fuzz(func(t *testing.T, server bool, seed uint64, in []byte) {
		const window, streams = 300, 3
		h := hello{window: window, streams: streams}
		m := newMachine(server, h, h)
		now := time.Hour
		m.grow = growth{
			base: 2 * window, top: 4 * window, limit: 5 * window, budget: &budget{limit: 1 << 20},
			clock: func() time.Duration { return now }, rtt: func() time.Duration { return time.Millisecond },
		}
		rng := rand.New(rand.NewPCG(seed, 1))
		queued := map[*stream]int{}
		if !server {
			for range streams {
				_, _, _ = m.openStream(nil, nil)
			}
		}
		cut := func(n int) int { return 1 + rng.IntN(min(n, 40)) }
		err := drive(&m, in, cut, func(ev event) {
			switch ev.kind {
			case evOpen:
				if len(ev.data) > MaxMeta {
					t.Fatal("long metadata")
				}
			case evData:
				if queued[ev.stream] += len(ev.data); queued[ev.stream] > int(ev.stream.window) {
					t.Fatalf("%d bytes queued", queued[ev.stream])
				}
			case evGoaway:
				for m.unprocessed() != nil {
				}
			}
			now += time.Duration(rng.IntN(1500)) * time.Microsecond
			if rng.IntN(50) == 0 {
				now += 2 * recallRest
				m.rest()
			}
			switch s := ev.stream; rng.IntN(6) {
			case 0:
				if s != nil {
					m.consumed(s, queued[s])
					queued[s] = 0
				}
			case 1:
				if s != nil {
					m.reset(s, CodeCancelled)
				}
			case 2:
				if s != nil {
					m.fin(nil, s)
				}
			case 3:
				if out := m.appendControl(nil); len(out) > 36*(16+2*streams)+100 {
					t.Fatalf("%d bytes of control output", len(out))
				}
			}
			if m.grow.extra < 0 || m.grow.extra > m.grow.limit {
				t.Fatalf("%d granted beyond first windows", m.grow.extra)
			}
			if m.open() > streams || len(m.debts) > 17+2*streams {
				t.Fatalf("%d streams, %d debts", m.open(), len(m.debts))
			}
		})
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatalf("untyped error %v", err)
		}
	})
}

// TestStreamsInVain opens and resets: unanswered ones are counted, and forgiven with time.
func TestStreamsInVain(t *testing.T) {
	id := uint32(0)
	open := func(s *machine, answer func(*stream)) error {
		id++
		return drive(s, appendHeader(nil, typeOpen, 0, id), whole, func(ev event) { answer(ev.stream) })
	}
	pairs := func(s *machine, n int, answer func(*stream)) error {
		for range n {
			if err := open(s, answer); err != nil {
				return err
			}
			if err := drive(s, appendWord(nil, typeReset, id, uint32(CodeCancelled)), whole, func(event) {}); err != nil {
				return err
			}
		}
		return nil
	}
	nothing := func(*stream) {}
	for _, streams := range []uint32{4, 1024} {
		_, s := machinePair(1000, streams)
		now := time.Minute
		s.clock = func() time.Duration { return now }
		id = 0
		for range 3 {
			if err := pairs(s, s.mayVain(), nothing); err != nil || !s.weary() {
				t.Fatalf("weary %v: %v", s.weary(), err)
			}
			if err := pairs(s, (vainViolation-1)*s.mayVain(), nothing); err != nil {
				t.Fatal(err)
			}
			if s.rest(); !s.weary() {
				t.Fatal("forgiven at once")
			}
			if now += vainFor * time.Millisecond; s.weary() {
				t.Fatal("weary after a second")
			}
		}
		answers := map[string]func(*stream){
			"data":   func(st *stream) { s.data(nil, st, []byte("x")) },
			"sealed": func(st *stream) { s.sealData(st, make([]byte, headerSize+1)) },
			"end":    func(st *stream) { s.fin(nil, st) },
			"credit": func(st *stream) { s.credit(st) },
		}
		for name, answer := range answers {
			if err := pairs(s, 3*s.mayVain(), answer); err != nil {
				t.Fatalf("answered with %s: %v", name, err)
			}
		}
		if err := pairs(s, 3*s.mayVain(), func(*stream) { now += outlived * time.Millisecond }); err != nil || s.weary() {
			t.Fatalf("streams that lived for a while: weary %v, %v", s.weary(), err)
		}
		if err := pairs(s, vainViolation*s.mayVain(), nothing); err != nil {
			t.Fatal(err)
		}
		if err := pairs(s, 1, nothing); !errors.Is(err, ErrProtocol) {
			t.Fatalf("one more in vain: %v", err)
		}
	}
}
