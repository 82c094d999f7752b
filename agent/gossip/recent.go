package gossip

import (
	"encoding/binary"
	"time"
)

// When two members exchange their states they also exchange the messages of the last
// minutes, so that who joins late, or lost a packet, hears of them.

const (
	// maxRecent and recentAge bound the messages that are handed on so.
	maxRecent = 64
	recentAge = 5 * time.Minute
	// recentVersion begins the encoding; others are of a later version.
	recentVersion = 1
	// maxState bounds what is taken from another member.
	maxState = 2 * maxRecent * (maxMessage + 2*binary.MaxVarintLen64)
)

// recent is a message and when it was first heard, anywhere.
type recent struct {
	at  time.Time
	msg []byte
}

// keep remembers a message to hand on; r.mu is held.
func (r *relayed) keep(m recent) {
	r.recent = append(r.recent, m)
	if len(r.recent) > maxRecent {
		r.recent = append([]recent(nil), r.recent[1:]...)
	}
}

// encode gives the messages that are young enough, each with its age.
func (r *relayed) encode(now time.Time) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []byte{recentVersion}
	for _, m := range r.recent {
		age := now.Sub(m.at)
		if age > recentAge {
			continue
		}
		out = binary.AppendUvarint(out, uint64(max(age, 0)/time.Millisecond))
		out = binary.AppendUvarint(out, uint64(len(m.msg)))
		out = append(out, m.msg...)
	}
	if len(out) == 1 {
		return nil
	}
	return out
}

// decodeRecent reads what another member gave, which may hold anything: it takes as
// much as is well-formed.
func decodeRecent(b []byte, now time.Time) []recent {
	if len(b) == 0 || len(b) > maxState || b[0] != recentVersion {
		return nil
	}
	var out []recent
	for b = b[1:]; len(b) > 0 && len(out) < maxRecent; {
		age, n := binary.Uvarint(b)
		if n <= 0 {
			return out
		}
		b = b[n:]
		size, n := binary.Uvarint(b)
		if n <= 0 || size == 0 || size > maxMessage || size > uint64(len(b)-n) {
			return out
		}
		msg := b[n : n+int(size)]
		b = b[n+int(size):]
		if msg[0] == msgUser && age <= uint64(recentAge/time.Millisecond) {
			out = append(out, recent{now.Add(-time.Duration(age) * time.Millisecond), msg})
		}
	}
	return out
}
