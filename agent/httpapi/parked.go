package httpapi

import (
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// parked is one client that waits.
type parked struct {
	lot     *parking
	crowd   *crowd
	conn    net.Conn
	raw     syscall.RawConn
	timer   *time.Timer
	begin   time.Time
	route   string
	request string // for the log, when it wants it

	mu    sync.Mutex
	state parkedState
	heard heard
}

type parkedState uint8

const (
	waiting   parkedState = iota // for its answer
	answering                    // by whoever moved it here
	idle                         // until its next request
	gone
)

// heard is what came from a client that was not asked anything.
type heard uint8

const (
	heardNothing heard = iota
	heardMore          // a next request
	heardEnd           // it left
)

// claim moves p from one state to the next; only one of several succeeds.
func (p *parked) claim(from, to parkedState) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != from {
		return false
	}
	p.state = to
	if from == waiting {
		p.lot.handler.metrics.waiting.Dec()
	}
	return true
}

// listen notices that the client leaves, or sends its next request. It reads
// nothing, so the connection goes back to net/http as it is.
func (p *parked) listen() {
	h := heardEnd
	if readable(p.raw) {
		h = heardMore
	}
	p.mu.Lock()
	was := p.state
	p.heard = h
	if was == idle || was == waiting && h == heardEnd {
		p.state = gone
	}
	p.mu.Unlock()
	switch {
	case was == waiting && h == heardEnd:
		p.lot.handler.metrics.waiting.Dec()
		p.timer.Stop()
		p.lot.leave(p)
		_ = p.conn.Close() // nobody is there any more
		p.lot.forget(p)
	case was == idle:
		p.next(h)
	}
}

// next ends the stay of a client that was answered.
func (p *parked) next(h heard) {
	p.lot.forget(p)
	if h == heardMore {
		p.lot.takeBack(p.conn)
		return
	}
	_ = p.conn.Close() // nobody is there any more
}

// expire answers a client whose wait has run out with what there is.
func (p *parked) expire() {
	if !p.claim(waiting, answering) {
		return
	}
	// Not in the context of the crowd, which may be told, and so end, just now.
	a := p.lot.handler.answerAgain(p.crowd.request.WithContext(p.lot.ctx), p.crowd, overdue)
	p.lot.leave(p)
	p.send(a)
}

// answer tells p what its crowd waited for, unless somebody else does.
func (p *parked) answer(a *page) {
	if !p.claim(waiting, answering) {
		return
	}
	p.timer.Stop()
	p.send(a)
}

// send writes what the connection takes without waiting, and leaves the rest, of a
// client that is slow, to a goroutine of its own.
func (p *parked) send(a *page) {
	_ = p.conn.SetReadDeadline(time.Now().Add(idleTimeout)) // of a closed connection: the write tells
	n, err := writeSome(p.raw, a.wire)
	if err == nil && n < len(a.wire) {
		go func() {
			_ = p.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) // as above
			_, err := p.conn.Write(a.wire[n:])
			_ = p.conn.SetWriteDeadline(time.Time{}) // as above
			p.sent(a, err)
		}()
		return
	}
	p.sent(a, err)
}

func (p *parked) sent(a *page, err error) {
	p.lot.handler.observeParked(p, a.status)
	last := err != nil || a.last
	p.mu.Lock()
	h := p.heard
	p.state = gone
	if h == heardNothing && !last {
		p.state = idle
	}
	p.mu.Unlock()
	switch {
	case last:
		_ = p.conn.Close() // what could be said was said
		p.lot.forget(p)
	case h != heardNothing:
		go p.next(h)
	case p.lot.ctx.Err() != nil:
		p.closeIdle()
	}
}

// closeIdle closes a connection between two requests.
func (p *parked) closeIdle() {
	if p.claim(idle, gone) {
		_ = p.conn.Close() // as any server may
		p.lot.forget(p)
	}
}

// refuse answers a client that came as the agent was stopping.
func (p *parked) refuse() {
	status, text := answerTo(errShuttingDown, 0)
	a := &page{header: http.Header{}, last: true}
	protect(a.header, p.lot.handler.cfg.ResponseHeaders)
	writeError(a, status, text)
	a.finish()
	_ = p.conn.SetWriteDeadline(time.Now().Add(time.Second)) // a courtesy only
	_, _ = p.conn.Write(a.wire)
	_ = p.conn.Close()
	p.lot.handler.observeParked(p, status)
}

// readAhead is a connection of which some was read already.
type readAhead struct {
	net.Conn
	ahead []byte
}

// withAhead is c with what was read of it. One that was parked before gets no second
// layer: a client that always asks ahead would pile them up.
func withAhead(c net.Conn, ahead []byte) net.Conn {
	if was, ok := c.(*readAhead); ok {
		c, ahead = was.Conn, append(ahead, was.ahead...)
	}
	if len(ahead) == 0 {
		return c
	}
	return &readAhead{Conn: c, ahead: ahead}
}

// Read implements net.Conn.
func (c *readAhead) Read(b []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(b, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// rawOf gives the descriptor under a connection of our listeners.
func rawOf(c net.Conn) syscall.RawConn {
	switch t := c.(type) {
	case *countedConn:
		return rawOf(t.Conn)
	case *readAhead:
		return rawOf(t.Conn)
	case syscall.Conn:
		raw, err := t.SyscallConn()
		if err == nil {
			return raw
		}
	}
	return nil
}
