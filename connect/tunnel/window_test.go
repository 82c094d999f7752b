package tunnel

import (
	"testing"
	"time"
)

// line joins two machines by a line of some length and speed, in virtual time.
type line struct {
	t      *testing.T
	c, s   *machine
	now    time.Duration
	delay  time.Duration
	rate   float64 // bytes a second the line carries
	free   [2]time.Duration
	lines  [2][]flight // to the server, to the client
	takes  bool        // the application behind the server reads
	unread map[*stream]int
	took   map[uint32]int
}

type flight struct {
	at time.Duration
	b  []byte
}

func newLink(t *testing.T, rtt time.Duration, rate float64, b *budget) *line {
	c, s := machinePair(firstWindow, 1024)
	l := &line{t: t, c: c, s: s, now: time.Hour, delay: rtt / 2, rate: rate, takes: true, unread: map[*stream]int{}, took: map[uint32]int{}}
	g := growth{
		base: baseWindow, top: topWindow, limit: tunnelExtra, budget: b,
		clock: func() time.Duration { return l.now }, rtt: func() time.Duration { return rtt },
	}
	c.grow, s.grow = g, g
	return l
}

func (l *line) send(to int, b []byte) {
	if len(b) == 0 {
		return
	}
	l.free[to] = max(l.free[to], l.now) + time.Duration(float64(len(b))/l.rate*1e9)
	l.lines[to] = append(l.lines[to], flight{l.free[to] + l.delay, b})
}

func (l *line) deliver(to int, m *machine, f func(event)) {
	for q := &l.lines[to]; len(*q) > 0 && (*q)[0].at <= l.now; *q = (*q)[1:] {
		if err := drive(m, (*q)[0].b, whole, f); err != nil {
			l.t.Fatal(err)
		}
	}
}

// run lets the streams send all they may for a while.
func (l *line) run(d time.Duration, streams ...*stream) {
	zeros := make([]byte, MaxData)
	step := max(l.delay/20, 10*time.Microsecond)
	for end := l.now + d; l.now < end; l.now += step {
		for _, st := range streams {
			for l.free[0] < l.now+step && l.c.sendable(st) > 0 {
				l.send(0, l.c.data(nil, st, zeros[:l.c.sendable(st)]))
			}
		}
		l.send(0, l.c.appendControl(nil))
		l.deliver(0, l.s, func(ev event) {
			if ev.kind == evData {
				l.unread[ev.stream] += len(ev.data)
				l.took[ev.stream.id] += len(ev.data)
			}
		})
		if l.takes {
			for st, n := range l.unread {
				l.s.consumed(st, n)
				delete(l.unread, st)
			}
		}
		l.send(1, l.s.appendControl(nil))
		l.deliver(1, l.c, func(event) {})
	}
}

func (l *line) open() (client, server *stream) {
	l.t.Helper()
	out, st, err := l.c.openStream(nil, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	_ = drive(l.s, out, whole, func(event) {})
	return st, l.s.streams[st.id]
}

func TestWindowGrowsWithRateAndDistance(t *testing.T) {
	for _, c := range []struct {
		name     string
		rtt      time.Duration
		rate     float64
		min, max int32
	}{
		{"far and fast", 50 * time.Millisecond, 100e6, 5 << 20, topWindow},
		{"far and slow", 50 * time.Millisecond, 1e6, baseWindow, baseWindow},
		{"a rack away", 200 * time.Microsecond, 1e9, baseWindow, 512 << 10},
		{"one host", 20 * time.Microsecond, 2e9, baseWindow, baseWindow},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLink(t, c.rtt, c.rate, &budget{limit: memoryBudget})
			st, far := l.open()
			l.run(20*c.rtt+50*time.Millisecond, st)
			if far.window < c.min || far.window > c.max {
				t.Fatalf("window %d, want %d to %d", far.window, c.min, c.max)
			}
			before, began := l.took[st.id], l.now
			l.run(20*c.rtt+10*time.Millisecond, st)
			rate := float64(l.took[st.id]-before) / (l.now - began).Seconds()
			t.Logf("window %d, %.0f of %.0f MB/s", far.window, rate/1e6, c.rate/1e6)
			if rate < 0.8*c.rate && c.min > baseWindow {
				t.Errorf("%.0f bytes a second where the line carries %.0f", rate, c.rate)
			}
		})
	}
}

// What trickles needs no window, however much it is in the end.
func TestWindowOfATrickleStays(t *testing.T) {
	l := newLink(t, time.Millisecond, 1e9, &budget{limit: memoryBudget})
	st, far := l.open()
	for range 2000 {
		l.send(0, l.c.data(nil, st, make([]byte, 500)))
		l.run(2 * time.Millisecond)
	}
	if far.window != firstWindow || l.took[st.id] != 1_000_000 {
		t.Fatalf("window %d after %d bytes", far.window, l.took[st.id])
	}
}

func TestWindowOfASlowReaderStays(t *testing.T) {
	l := newLink(t, 50*time.Millisecond, 100e6, &budget{limit: memoryBudget})
	l.takes = false
	st, far := l.open()
	l.run(time.Second, st)
	if far.window != firstWindow || l.unread[far] != firstWindow {
		t.Fatalf("window %d, %d unread", far.window, l.unread[far])
	}
}

// Windows of streams that rest are recalled for those that need them, and their credit
// is what it was at first.
func TestWindowsAreRecalled(t *testing.T) {
	b := &budget{limit: memoryBudget}
	l := newLink(t, 50*time.Millisecond, 1e9, b)
	l.c.grow.limit, l.s.grow.limit = 9<<20, 9<<20
	first, far := l.open()
	l.run(2*time.Second, first)
	if far.window != topWindow {
		t.Fatalf("window %d", far.window)
	}
	l.run(2*recallRest, nil...)
	second, other := l.open()
	l.run(2*time.Second, second)
	if far.window != firstWindow || first.send != firstWindow || other.window != topWindow {
		t.Fatalf("windows %d (credit %d) and %d", far.window, first.send, other.window)
	}
	l.run(2*recallRest, nil...)
	l.s.rest()
	l.run(time.Second, nil...)
	if other.window != firstWindow || l.s.grow.extra != 0 || b.extra.Load() != 0 {
		t.Fatalf("at rest: window %d, extra %d", other.window, l.s.grow.extra)
	}
	l.run(2*time.Second, first)
	if far.window != topWindow {
		t.Fatalf("after its rest: window %d", far.window)
	}
}

// A peer that knows nothing of recalls keeps what it has, and is not asked again.
func TestRecallThatIsIgnored(t *testing.T) {
	l := newLink(t, 50*time.Millisecond, 1e9, &budget{limit: memoryBudget})
	st, far := l.open()
	l.run(2*time.Second, st)
	l.now += time.Minute
	l.s.rest()
	_ = l.s.appendControl(nil) // lost on it
	l.s.rest()
	if l.s.controlPending() || far.window != topWindow {
		t.Fatalf("asked again; window %d", far.window)
	}
	before := l.took[st.id]
	l.run(time.Second, st)
	if l.took[st.id]-before < 100<<20 {
		t.Fatalf("%d bytes in a second", l.took[st.id]-before)
	}
}

// One tunnel cannot take all that windows may grow by.
func TestWindowsGrowWithinTheBudget(t *testing.T) {
	b := &budget{limit: 8 << 20}
	greedy := newLink(t, 50*time.Millisecond, 10e9, b)
	var all []*stream
	for range 20 {
		st, _ := greedy.open()
		all = append(all, st)
	}
	greedy.run(2*time.Second, all...)
	if got := b.extra.Load(); got > b.limit*3/4 || got < b.limit/2 {
		t.Fatalf("%d granted of %d", got, b.limit)
	}
	modest := newLink(t, 50*time.Millisecond, 1e9, b)
	st, far := modest.open()
	modest.run(2*time.Second, st)
	if far.window < 512<<10 {
		t.Fatalf("beside a greedy tunnel: window %d", far.window)
	}
	greedy.s.abandon()
	if got := b.extra.Load(); got != modest.s.grow.extra {
		t.Fatalf("%d left, the other has %d", got, modest.s.grow.extra)
	}
}

// The tunnel that holds most pays when memory is short.
func TestWhoIsOverTheBudget(t *testing.T) {
	b := &budget{limit: 1 << 20}
	hog, other := &account{limit: 1 << 30, budget: b}, &account{limit: 1 << 30, budget: b}
	other.add(200 << 10)
	hog.add(800 << 10)
	if hog.over() || other.over() {
		t.Fatal("within the budget")
	}
	hog.add(100 << 10)
	other.add(10 << 10)
	if !hog.over() || other.over() {
		t.Fatalf("over: hog %v, other %v", hog.over(), other.over())
	}
	hog.add(-900 << 10)
	other.add(-210 << 10)
	if b.held.Load() != 0 || b.holders.Load() != 0 {
		t.Fatalf("%d held by %d", b.held.Load(), b.holders.Load())
	}
}

func TestChunksFit(t *testing.T) {
	for _, n := range []int{1, 1024, 1025, 2048, 2049, 5000, 32 << 10, 64 << 10} {
		c := newChunk(n)
		if want := min(n, bigChunk); len(c.buf) < want || len(c.buf) > max(smallChunk, 2*want) {
			t.Errorf("%d bytes for %d", len(c.buf), n)
		}
		c.free()
	}
}
