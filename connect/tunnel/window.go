package tunnel

import (
	"encoding/binary"
	"sync/atomic"
	"time"
)

// Windows grow with the need of their streams, within a budget, and shrink again when
// the stream rests: credit that was granted and not used is recalled.
//
// Each stream begins with the first window, which is guaranteed to it. One that turns
// half of it over within a round trip gets the base; one whose rate × round trip fills
// half of what it has gets twice as much. The round trip is the kernel's smallest, which
// knows no queues of ours: where the processor is the limit windows do not grow, and
// what is small does not wait behind what is bulk.
const (
	firstWindow = 32 << 10
	baseWindow  = 256 << 10 // less costs bulk its large records, also without any distance
	topWindow   = 8 << 20

	tunnelExtra  = 16 << 20  // what the streams of a tunnel are granted beyond their first windows
	ownExtra     = 1 << 20   // of it, what no other tunnel can take away
	memoryBudget = 128 << 20 // what waits for applications, of all tunnels of a driver

	growSoon   = time.Millisecond     // the first step, where the round trip is shorter
	growSample = 4 * time.Millisecond // at least, for a rate
	growRest   = 50 * time.Millisecond
	recallRest = time.Second // since the last credit
	rttEvery   = time.Second
)

// budget is the receive memory of all tunnels of a driver.
type budget struct {
	limit   int64
	held    atomic.Int64 // in queues
	extra   atomic.Int64 // granted beyond first windows
	holders atomic.Int64 // tunnels that hold anything
}

// account is what one tunnel holds in queues. Its owner serialises.
type account struct {
	held   int64
	limit  int64
	budget *budget // may be nil
}

func (a *account) add(n int) {
	before := a.held
	a.held += int64(n)
	b := a.budget
	if b == nil {
		return
	}
	b.held.Add(int64(n))
	switch {
	case before == 0 && a.held > 0:
		b.holders.Add(1)
	case before > 0 && a.held == 0:
		b.holders.Add(-1)
	}
}

// over tells whether the stream that has just queued something must go: its tunnel
// holds more than a tunnel may, or all hold more than the budget, and it more than its
// share: the budget by the tunnels that hold anything.
func (a *account) over() bool {
	b := a.budget
	return b != nil && (a.held > a.limit || b.full() && a.held > b.limit/max(1, b.holders.Load()))
}

// full tells whether the budget is used up.
func (b *budget) full() bool { return b != nil && b.held.Load() > b.limit }

// growth is how windows grow in one tunnel; the zero value lets none grow.
type growth struct {
	base, top int32
	limit     int64                // of extra
	clock     func() time.Duration // since any time
	rtt       func() time.Duration // the shortest round trip; 0: not known
	budget    *budget

	extra   int64 // granted beyond first windows, and not yet returned
	rttSeen time.Duration
	rttAt   time.Duration
	// Streams with more than their first window, those that rest longest first.
	oldest, newest *stream
	// victim is to be recalled once the debts are written: it would become one of them.
	victim *stream
}

func (g *growth) on() bool { return g.clock != nil }

// roundTrip is the shortest, asked for now and then.
func (g *growth) roundTrip(now time.Duration) time.Duration {
	if g.rtt != nil && (g.rttAt == 0 || now-g.rttAt > rttEvery) {
		g.rttSeen, g.rttAt = g.rtt(), now
	}
	return g.rttSeen
}

// take takes n of the budgets.
func (g *growth) take(n int64) bool {
	if g.extra+n > g.limit {
		return false
	}
	if b := g.budget; b != nil {
		if b.full() || b.extra.Add(n) > b.limit*3/4 && g.extra+n > ownExtra {
			b.extra.Add(-n)
			return false
		}
	}
	g.extra += n
	return true
}

// give gives back n.
func (g *growth) give(n int64) {
	g.extra -= n
	if g.budget != nil {
		g.budget.extra.Add(-n)
	}
}

// touch puts a stream at the end of those that rest.
func (g *growth) touch(s *stream) {
	if g.newest == s {
		return
	}
	g.unlink(s)
	if s.older = g.newest; s.older != nil {
		s.older.newer = s
	} else {
		g.oldest = s
	}
	g.newest = s
}

func (g *growth) unlink(s *stream) {
	if s.older == nil && s.newer == nil && g.oldest != s {
		return
	}
	if s.older != nil {
		s.older.newer = s.newer
	} else {
		g.oldest = s.newer
	}
	if s.newer != nil {
		s.newer.older = s.older
	} else {
		g.newest = s.older
	}
	s.older, s.newer = nil, nil
}

// consumed notes that the application took n bytes. The peer is told of half of a first
// window, or a quarter of a larger one, at a time; sooner where something goes its way.
func (m *machine) consumed(s *stream, n int) {
	if !s.receiving() {
		return
	}
	if s.owed == 0 && m.grow.on() && s.window < m.grow.top {
		if now := m.grow.clock(); now-s.last > growRest && now-s.last > 4*m.grow.rttSeen {
			s.since, s.taken, s.last = now, 0, now
		}
	}
	if s.owed += int32(n); s.owed >= m.worthTelling(s) {
		m.owe(s)
	}
}

func (m *machine) worthTelling(s *stream) int32 {
	if m.grow.on() && s.window < m.grow.base {
		return max(1, s.window/2)
	}
	return max(1, s.window/4)
}

// along appends the credit of a stream that has just sent something itself, so that it
// needs no record of its own.
func (m *machine) along(dst []byte, s *stream) []byte {
	if s.owed == 0 || s.owed < s.window/8 || s.state&dirty != 0 || !s.receiving() {
		return dst
	}
	return appendWord(dst, typeCredit, s.id, m.credit(s))
}

// credit is what a stream is granted now.
func (m *machine) credit(s *stream) uint32 {
	n := s.owed
	s.owed = 0
	s.state |= answered
	if m.grow.on() {
		more := m.more(s, n)
		if more > 0 && s.window == int32(m.mine.window) {
			m.grown++
		}
		s.window += more
		n += more
		if s.window > int32(m.mine.window) {
			m.grow.touch(s)
		}
	}
	s.recv += n
	return uint32(n)
}

// more is how much a stream that has taken n bytes gets beyond them.
func (m *machine) more(s *stream, n int32) int32 {
	g := &m.grow
	now := g.clock()
	s.taken += int64(n)
	s.last = now
	elapsed, next := now-s.since, s.window
	switch {
	case s.recalled > 0 || s.window >= g.top:
	case s.window < g.base:
		if s.taken < int64(s.window/2) {
			return 0
		}
		if elapsed <= max(growSoon, 2*g.roundTrip(now)) {
			next = g.base
		}
	default:
		rtt := g.roundTrip(now)
		if elapsed < growSample || elapsed < 2*rtt {
			return 0
		}
		if float64(s.taken)*float64(rtt) >= float64(s.window/2)*float64(elapsed) {
			next = min(2*s.window, g.top)
		}
	}
	s.since, s.taken = now, 0
	if next == s.window {
		return 0
	}
	if !g.take(int64(next - s.window)) {
		if old := g.oldest; old != nil && old != s && now-old.last > recallRest {
			g.victim = old
		}
		return 0
	}
	return next - s.window
}

// recall asks the peer to return the credit of a stream beyond its first window.
func (m *machine) recall(s *stream) {
	if s.recalled == 0 && s.receiving() && s.window > int32(m.mine.window) {
		s.state |= recallDue
		m.owe(s)
	}
}

// rest recalls what streams have that rest. Its caller comes seldom.
func (m *machine) rest() {
	if len(m.streams) == 0 {
		m.streams = nil // a map stays as large as it was
	}
	if !m.grow.on() {
		return
	}
	now := m.grow.clock()
	for s := m.grow.oldest; s != nil && now-s.last > recallRest; s = s.newer {
		m.recall(s)
	}
}

// beginCredit judges the header of a recall or return.
func (m *machine) beginCredit(id uint32) error {
	if m.left != 4 {
		return m.violation(id, "length %d, must be 4", m.left)
	}
	if id == 0 || id > m.lastID {
		return m.violation(id, "stream was never opened")
	}
	m.current = m.streams[id]
	return nil
}

// recalledBy is the peer's recall: what we have not used of it we no longer have.
func (m *machine) recalledBy(s *stream, p []byte) {
	n := min(int64(binary.BigEndian.Uint32(p)), int64(s.send))
	s.send -= int32(n)
	s.giving += int32(n)
	m.noBigSend(s)
	s.state |= returnDue
	m.owe(s)
}

// returned is the peer's answer to a recall.
func (m *machine) returned(s *stream, p []byte) error {
	n := int64(binary.BigEndian.Uint32(p))
	if n > int64(s.recalled) || n > int64(s.recv) {
		return m.violation(s.id, "%d bytes returned where %d were recalled and %d granted", n, s.recalled, s.recv)
	}
	s.recalled = 0
	s.recv -= int32(n)
	owed := max(0, min(s.owed, s.window-int32(n)-int32(m.mine.window))) // is not granted again
	s.owed -= owed
	s.window -= int32(n) + owed
	m.grow.give(n + int64(owed))
	if n+int64(owed) > 0 && s.window <= int32(m.mine.window) {
		m.grow.unlink(s)
		m.grown--
	}
	if s.owed > 0 && s.owed >= m.worthTelling(s) {
		m.owe(s) // much of a smaller window: the peer may have nothing else
	}
	return nil
}

func (m *machine) noBigSend(s *stream) {
	if s.state&bigSend != 0 {
		s.state &^= bigSend
		m.grown--
	}
}

// shrink gives back what a stream had that is over.
func (m *machine) shrink(s *stream) {
	if extra := int64(s.window) - int64(m.mine.window); extra > 0 {
		m.grow.give(extra)
		m.grow.unlink(s)
		m.grown--
		s.window = int32(m.mine.window)
	}
}

// abandon gives back what all streams had, at the end of the tunnel.
func (m *machine) abandon() {
	for _, s := range m.streams {
		m.shrink(s)
	}
	m.grown = 0
	clear(m.streams)
}

// appendDebt writes what is owed for one stream.
func (m *machine) appendDebt(dst []byte, s *stream) []byte {
	s.state &^= dirty
	if s.state&resetDue != 0 {
		m.remove(s)
		return appendWord(dst, typeReset, s.id, s.resetWord())
	}
	if s.state&gone != 0 {
		return dst
	}
	if s.state&returnDue != 0 {
		dst = appendWord(dst, typeReturn, s.id, uint32(s.giving))
		s.giving = 0
	}
	if s.receiving() && s.owed > 0 && s.owed >= m.worthTelling(s) {
		dst = appendWord(dst, typeCredit, s.id, m.credit(s))
	}
	if s.receiving() && s.state&recallDue != 0 {
		s.recalled = s.window - int32(m.mine.window)
		dst = appendWord(dst, typeRecall, s.id, uint32(s.recalled))
	}
	s.state &^= returnDue | recallDue
	return dst
}
