package tunnel

import (
	"runtime"
	"time"
)

// lingerFor is how long a loop looks for the next event before it rests. To be woken
// takes about as long, where idle processors halt.
const lingerFor = 50 * time.Microsecond

// maxDoubt bounds how seldom that is tried: once in 2^maxDoubt rests.
const maxDoubt = 8

// lingers: with one processor a loop would keep it from who is to answer.
var lingers = runtime.NumCPU() > 1

// hope decides whether to look for the next event, by what came of it before. Where
// requests follow each other at once it mostly pays; where they are seldom, hardly ever
// is it tried.
type hope struct {
	doubt int // looks in vain, one after the other
	rests int // that are still to come at once
}

// try tells whether to look.
func (h *hope) try() bool {
	if h.rests > 0 {
		h.rests--
		return false
	}
	return true
}

// looked takes what came of it.
func (h *hope) looked(found bool) {
	if found {
		h.doubt = 0
		return
	}
	h.doubt = min(h.doubt+1, maxDoubt)
	h.rests = 1 << h.doubt
}

// alone tells whether one application waits for one answer after the other: the last
// turns had one event each, of the same two descriptors in turns. It is called
// after each turn after which the loop may rest.
func (l *loop) alone() bool {
	slot := int32(-1)
	if l.nready == 1 {
		slot = l.events[0].Fd
	}
	is := slot >= 0 && slot == l.turned[1] && l.turned[0] >= 0 && l.turned[0] == l.turned[2]
	l.turned = [...]int32{slot, l.turned[0], l.turned[1]}
	return is
}

// linger looks for the next events for a moment, which is for one application alone:
// most of what it waits for is the time in which sleepers are woken. A loop with more to
// do rests at once, so that what comes meanwhile shares a turn. True: there are events.
func (l *loop) linger() bool {
	if !lingers || !l.hope.try() {
		return false
	}
	for until := time.Now().Add(lingerFor); ; {
		if l.poll(false); l.nready > 0 || time.Now().After(until) {
			break
		}
	}
	l.hope.looked(l.nready > 0)
	return l.nready > 0
}
