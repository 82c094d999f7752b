package tunnel

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"
)

// stream is the protocol's state of one stream.
type stream struct {
	owner any // the driver's
	id    uint32
	code  Code  // of the reset that is due
	send  int32 // bytes that the peer still takes
	recv  int32 // bytes that the peer may still send
	owed  int32 // bytes consumed here and not yet granted again
	state flags

	// See window.go.
	window       int32  // recv, what is queued here, and owed
	recalled     int32  // of recv; the peer was asked to return it
	giving       int32  // of send, returned to the peer
	opened       uint32 // when, in milliseconds of the machine's clock
	taken        int64  // consumed since
	since, last  time.Duration
	older, newer *stream
}

type flags uint16

const (
	gotFin    flags = 1 << iota // the peer's direction is complete
	sentFin                     // ours is
	gone                        // over for this side: it gets no events and sends no more
	dirty                       // in the list of those that owe a control frame
	resetDue                    // a RESET is to be written
	unseen                      // that says that the application saw nothing of the stream
	recallDue                   // a RECALL is to be written
	returnDue                   // a RETURN is
	bigSend                     // the peer has granted more than its first window
	answered                    // the peer was sent data, an end or credit
)

// receiving tells whether the peer's direction is still open.
func (s *stream) receiving() bool { return s.state&(gotFin|gone) == 0 }

// sending tells whether our direction is still open.
func (s *stream) sending() bool { return s.state&(sentFin|gone) == 0 }

// machine is the protocol's state of one tunnel, without I/O, clocks or locks.
//
// Input: next takes the bytes of the peer, cut anywhere, and gives one event at a
// time. Output: open, data and fin append a frame for which the driver has room.
// What answers the peer (credit, reset, pong, goaway) is kept as state, so that it
// can never pile up, and is written by appendControl when there is room.
//
// A reset stream stays in the table until its RESET is written, or the peer has
// ended it too. So the acceptor never counts more streams than the opener, and one
// above the limit is a violation.
type machine struct {
	streams map[uint32]*stream // nil where there is none, or was none for long
	grown   int                // windows that have grown, either way
	debts   []*stream          // that owe a control frame, each once
	mine    hello
	peer    hello
	server  bool
	lastID  uint32               // the highest id opened
	inVain  int                  // streams that the peer reset soon and before they were answered, since vainAt
	vainAt  uint32               // of the machine's clock
	clock   func() time.Duration // nil: it stands still

	goawayDue, goawaySent bool
	goawayGot             bool
	goawayCode            Code
	goawayLast            uint32 // of the peer: the last id that it serves

	grow growth

	pingDue, pongDue bool
	pinging, ponging [8]byte

	// The frame being read.
	head    [headerSize]byte
	got     int // bytes of head, or of the payload gathered
	typ     byte
	payload bool // head is complete
	left    int  // bytes of the payload not seen yet
	current *stream
	scratch [scratchSize]byte
	meta    []byte // of an OPEN that came in pieces
}

func newMachine(server bool, mine, peer hello) machine {
	return machine{server: server, mine: mine, peer: peer}
}

type kind uint8

const (
	evNone   kind = iota
	evOpen        // stream, data: metadata
	evData        // stream, data: a part of what the peer sent
	evFin         // stream
	evReset       // stream, code: it is out of the table; a direction that was complete stays so
	evCredit      // stream: it may send more
	evGoaway      // code; see unprocessed
	evPong
)

// event is what the bytes of the peer meant. data is valid until the next call.
type event struct {
	stream *stream
	data   []byte
	code   Code
	kind   kind
	unseen bool // evReset: the far application saw nothing of the stream
}

// open counts the streams that a limit applies to.
func (m *machine) open() int { return len(m.streams) }

// limit is how many streams there may be.
func (m *machine) limit() int {
	if m.server {
		return int(m.mine.streams)
	}
	return int(m.peer.streams)
}

// draining tells whether either side has said that it takes or opens no more.
func (m *machine) draining() bool { return m.goawayDue || m.goawaySent || m.goawayGot }

// ahead is the number of bytes known to follow in the current frame.
func (m *machine) ahead() int { return m.left }

// next takes the first n bytes of b, at least one unless b is empty, and tells what
// they mean. After an error the machine must not be used again.
func (m *machine) next(b []byte) (ev event, n int, err error) {
	if len(b) == 0 {
		return ev, 0, nil
	}
	if !m.payload {
		n = copy(m.head[m.got:], b)
		if m.got += n; m.got < headerSize {
			return ev, n, nil
		}
		m.got = 0
		word := binary.BigEndian.Uint32(m.head[:])
		m.typ, m.left = byte(word>>24), int(word&0xffffff)
		if err := m.begin(binary.BigEndian.Uint32(m.head[4:])); err != nil {
			return ev, n, err
		}
		if m.left > 0 {
			m.payload = true
			return ev, n, nil
		}
		ev, err = m.finish(nil)
		return ev, n, err
	}
	ev, n, err = m.body(b)
	return ev, n, err
}

// body takes a part of the payload.
func (m *machine) body(b []byte) (ev event, n int, err error) {
	n = min(len(b), m.left)
	part := b[:n]
	m.left -= n
	m.payload = m.left > 0
	switch {
	case m.typ == typeData:
		if s := m.current; s != nil && s.receiving() {
			s.recv -= int32(n)
			ev = event{kind: evData, stream: s, data: part}
		}
		if !m.payload {
			m.current = nil
		}
		return ev, n, nil
	case m.typ >= typeIgnorable && !isCredit(m.typ):
		return ev, n, nil
	case m.got == 0 && !m.payload:
		ev, err = m.finish(part)
		return ev, n, err
	case m.typ == typeOpen:
		if m.meta == nil {
			m.meta = make([]byte, 0, n+m.left)
		}
		m.meta = append(m.meta, part...)
		part = m.meta
	default:
		copy(m.scratch[m.got:], part)
		part = m.scratch[:m.got+n]
	}
	m.got += n
	if m.payload {
		return ev, n, nil
	}
	m.got, m.meta = 0, nil
	ev, err = m.finish(part)
	return ev, n, err
}

func (m *machine) violation(id uint32, what string, args ...any) error {
	return &ProtocolError{What: fmt.Sprintf(what, args...), Type: m.typ, ID: id}
}

// begin judges a header before a byte of its payload is looked at.
func (m *machine) begin(id uint32) error {
	if isCredit(m.typ) {
		return m.beginCredit(id)
	}
	if m.typ >= typeIgnorable {
		if m.left > maxIgnored {
			return m.violation(id, "%d bytes in a frame of unknown type", m.left)
		}
		return nil
	}
	lo, hi := -1, -1
	switch m.typ {
	case typeOpen:
		lo, hi = 0, MaxMeta
	case typeData:
		lo, hi = 1, MaxData
	case typeFin:
		lo, hi = 0, 0
	case typeReset, typeCredit:
		lo, hi = 4, 4
	case typeGoaway, typePing, typePong:
		lo, hi = 8, 8
	}
	if hi < 0 {
		return m.violation(id, "unexpected frame")
	}
	if m.left < lo || m.left > hi {
		return m.violation(id, "length %d, allowed is %d to %d", m.left, lo, hi)
	}
	if m.typ >= typeGoaway {
		if id != 0 {
			return m.violation(id, "stream id in a frame of the tunnel")
		}
		return nil
	}
	return m.beginStream(id)
}

func (m *machine) beginStream(id uint32) error {
	if m.typ == typeOpen {
		switch {
		case !m.server:
			return m.violation(id, "a stream opened by the accepting side")
		case id <= m.lastID:
			return m.violation(id, "stream id used again, last was %d", m.lastID)
		case m.open() >= int(m.mine.streams):
			return m.violation(id, "more than %d open streams", m.mine.streams)
		}
		m.lastID = id
		return nil
	}
	if id == 0 || id > m.lastID {
		return m.violation(id, "stream was never opened")
	}
	s := m.streams[id] // nil: finished here, and what still comes is ignored
	m.current = s
	if s == nil {
		return nil
	}
	switch m.typ {
	case typeData, typeFin:
		if s.state&gotFin != 0 {
			return m.violation(id, "data after the end of the stream")
		}
		if s.state&gone != 0 {
			return nil
		}
		if m.left > int(s.recv) {
			return m.violation(id, "%d bytes where %d were granted", m.left, s.recv)
		}
	}
	return nil
}

// finish acts on a complete frame. DATA and ignorable frames never come here with
// a payload.
func (m *machine) finish(p []byte) (ev event, err error) {
	s := m.current
	m.current = nil
	switch m.typ {
	case typeOpen:
		s = m.add(m.lastID)
		return event{kind: evOpen, stream: s, data: p}, nil
	case typeGoaway:
		return m.goaway(binary.BigEndian.Uint32(p), Code(binary.BigEndian.Uint32(p[4:])))
	case typePing:
		m.pongDue = true
		copy(m.ponging[:], p)
		return ev, nil
	case typePong:
		return event{kind: evPong}, nil
	}
	if s == nil {
		return ev, nil
	}
	over := s.state&gone != 0
	switch m.typ {
	case typeFin:
		s.state |= gotFin
		m.grow.unlink(s) // it has no use for more
		m.settle(s)
		ev = event{kind: evFin, stream: s}
	case typeReset:
		if m.server && s.state&answered == 0 && m.now()-s.opened < outlived {
			m.forgive()
			if m.inVain++; m.inVain > vainViolation*m.mayVain() {
				return ev, m.violation(s.id, "%d streams opened within a second and reset before they were answered", m.inVain)
			}
		}
		m.remove(s)
		word := binary.BigEndian.Uint32(p)
		ev = event{kind: evReset, stream: s, code: Code(word &^ unseenBit), unseen: word&unseenBit != 0}
	case typeCredit:
		n := binary.BigEndian.Uint32(p)
		if n == 0 || n > maxWindow || int64(s.send)+int64(n) > maxWindow {
			return ev, m.violation(s.id, "credit of %d beside %d", n, s.send)
		}
		s.send += int32(n)
		if !over && s.state&bigSend == 0 && s.send > int32(m.peer.window) {
			s.state |= bigSend
			m.grown++
		}
		ev = event{kind: evCredit, stream: s}
	case typeRecall:
		m.recalledBy(s, p)
	case typeReturn:
		if over {
			break // it gave all back when it was over, which may have been in the midst of this frame
		}
		if err := m.returned(s, p); err != nil {
			return ev, err
		}
	}
	if over {
		return event{}, nil
	}
	return ev, nil
}

func (m *machine) goaway(last uint32, code Code) (event, error) {
	if m.server {
		last = 0 // a client opens all ids itself
	} else if m.goawayGot && last > m.goawayLast {
		return event{}, m.violation(0, "goaway goes back from %d to %d", last, m.goawayLast)
	}
	m.goawayGot = true
	if !m.server {
		m.goawayLast = last
	}
	return event{kind: evGoaway, code: code}, nil
}

// unprocessed takes one stream that the peer has not looked at out of the table,
// after evGoaway, until there is none.
func (m *machine) unprocessed() *stream {
	if m.server || !m.goawayGot {
		return nil
	}
	for id, s := range m.streams {
		if id > m.goawayLast {
			over := s.state&gone != 0
			m.remove(s)
			if !over {
				return s
			}
		}
	}
	return nil
}

func (m *machine) add(id uint32) *stream {
	first := int32(m.mine.window)
	s := &stream{id: id, send: int32(m.peer.window), recv: first, window: first}
	if m.server {
		s.opened = m.now()
	}
	if m.streams == nil {
		m.streams = map[uint32]*stream{}
	}
	m.streams[id] = s
	return s
}

func (m *machine) remove(s *stream) {
	s.state = s.state&^resetDue | gone
	m.shrink(s)
	m.noBigSend(s)
	delete(m.streams, s.id)
}

// settle removes a stream that is complete both ways.
func (m *machine) settle(s *stream) {
	if s.state&(gotFin|sentFin) == gotFin|sentFin {
		m.remove(s)
	}
}

// openStream appends an OPEN for a fresh id.
func (m *machine) openStream(dst, meta []byte) ([]byte, *stream, error) {
	switch {
	case len(meta) > MaxMeta:
		return dst, nil, ErrMeta
	case m.server || m.draining() || m.lastID == 1<<32-1:
		return dst, nil, ErrDraining
	case m.open() >= int(m.peer.streams):
		return dst, nil, ErrFull
	}
	m.lastID++
	dst = append(appendHeader(dst, typeOpen, len(meta), m.lastID), meta...)
	return dst, m.add(m.lastID), nil
}

// sendable is how many bytes one DATA frame may carry now.
func (m *machine) sendable(s *stream) int {
	if !s.sending() {
		return 0
	}
	return min(int(s.send), MaxData)
}

const (
	// outlived is the age, in milliseconds, at which a stream is not opened in vain,
	// whatever becomes of it: the limit of streams holds up those that live so long.
	outlived = 1000
	// vainViolation is how many times mayVain nobody reaches who means well: what he opens
	// beyond mayVain is refused already.
	vainViolation = 16
	// vainFor is for how long, in milliseconds, those opened in vain are counted together:
	// an application that stalls under requests that time out soon is no attack.
	vainFor = 1000
)

// mayVain is how many streams the peer may reset soon and unanswered in a second: all
// that it can have open, twice. Each costs it 20 bytes, and us a judgement, a connection to
// the application and a line in the log, and the limit of streams does not hold them up.
func (m *machine) mayVain() int { return max(1000, 2*int(m.mine.streams)) }

// weary tells whether the peer has opened so many in vain that more are refused unjudged.
func (m *machine) weary() bool {
	if m.inVain < m.mayVain() {
		return false
	}
	m.forgive()
	return m.inVain > 0
}

// forgive begins to count those opened in vain anew once their second is over.
func (m *machine) forgive() {
	if now := m.now(); now-m.vainAt >= vainFor {
		m.inVain, m.vainAt = 0, now
	}
}

func (m *machine) now() uint32 {
	if m.clock == nil {
		return 0
	}
	return uint32(m.clock().Milliseconds())
}

// sealData makes b, headerSize bytes of room and then at most sendable bytes of the
// stream, into a frame.
func (m *machine) sealData(s *stream, b []byte) {
	n := len(b) - headerSize
	putHeader(b, typeData, n, s.id)
	s.send -= int32(n)
	s.state |= answered
}

// data appends at most sendable bytes.
func (m *machine) data(dst []byte, s *stream, p []byte) []byte {
	s.send -= int32(len(p))
	s.state |= answered
	return append(appendHeader(dst, typeData, len(p), s.id), p...)
}

// fin appends the end of our direction.
func (m *machine) fin(dst []byte, s *stream) []byte {
	if !s.sending() {
		return dst
	}
	s.state |= sentFin | answered
	m.settle(s)
	return appendHeader(dst, typeFin, 0, s.id)
}

// refuse is a reset before the application saw anything of the stream.
func (m *machine) refuse(s *stream, code Code) {
	if s.state&gone == 0 {
		s.state |= unseen
	}
	m.reset(s, code)
}

func (s *stream) resetWord() uint32 {
	if s.state&unseen != 0 {
		return uint32(s.code) | unseenBit
	}
	return uint32(s.code)
}

// reset ends a stream. What the peer has not got completely it never will.
func (m *machine) reset(s *stream, code Code) {
	if s.state&gone != 0 {
		return
	}
	s.state |= gone | resetDue
	s.code = code
	m.owe(s)
}

func (m *machine) owe(s *stream) {
	if s.state&dirty != 0 {
		return
	}
	s.state |= dirty
	if len(m.debts) >= 16+2*m.open() {
		// A peer that reads nothing but opens and resets leaves streams here that
		// owe nothing any more.
		m.debts = slices.DeleteFunc(m.debts, func(s *stream) bool { return s.state&(gone|resetDue) == gone })
	}
	m.debts = append(m.debts, s)
}

// drain asks the peer to open no more (server), or says that we will not (client).
// What a client opens before it hears of it is served: it cannot be asked again, as
// its application's bytes are gone.
func (m *machine) drain(code Code) {
	if !m.goawaySent {
		m.goawayDue, m.goawayCode = true, code
	}
}

func (m *machine) ping(payload uint64) {
	m.pingDue = true
	binary.BigEndian.PutUint64(m.pinging[:], payload)
}

// controlPending tells whether appendControl would write anything.
func (m *machine) controlPending() bool {
	return len(m.debts) > 0 || m.pongDue || m.pingDue || m.goawayDue
}

// appendControl writes all that is owed to the peer. Its size is bounded by the
// number of streams.
func (m *machine) appendControl(dst []byte) []byte {
	for i, s := range m.debts {
		m.debts[i] = nil
		dst = m.appendDebt(dst, s)
	}
	m.debts = m.debts[:0]
	if v := m.grow.victim; v != nil {
		m.grow.victim = nil
		m.recall(v)
	}
	if cap(m.debts) > 64 && len(m.debts) == 0 {
		m.debts = nil
	}
	if m.pongDue {
		m.pongDue = false
		dst = append(appendHeader(dst, typePong, 8, 0), m.ponging[:]...)
	}
	if m.pingDue {
		m.pingDue = false
		dst = append(appendHeader(dst, typePing, 8, 0), m.pinging[:]...)
	}
	if m.goawayDue {
		m.goawayDue, m.goawaySent = false, true
		dst = appendHeader(dst, typeGoaway, 8, 0)
		dst = binary.BigEndian.AppendUint32(dst, math.MaxUint32)
		dst = binary.BigEndian.AppendUint32(dst, uint32(m.goawayCode))
	}
	return dst
}
