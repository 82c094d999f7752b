package tunnel

import (
	"errors"
	"fmt"
	"time"
)

// ErrSilent says that nothing came from the peer for so long that nobody may be there.
var ErrSilent = errors.New("the tunnel's peer does not answer")

// errUnanswered ends what was said towards a peer that did not answer.
var errUnanswered = fmt.Errorf("%w: %w", ErrLost, ErrSilent)

// errGivenUp is the keepalive's.
func errGivenUp(keepalive time.Duration) error {
	return fmt.Errorf("%w: nothing came, or could be sent, for %s", errUnanswered, 2*keepalive)
}

// neverSaid marks the end of a stream of which no byte was said: it is safe to open
// elsewhere, whatever ended it.
type neverSaid struct{ error }

// Unwrap gives what ended it.
func (e neverSaid) Unwrap() error { return e.error }

// Is says that the peer saw nothing of the stream.
func (neverSaid) Is(target error) bool { return target == ErrUnprocessed }

// vigil is a client's doubt that its peer is there. Who loses its power, or its path,
// says nothing, and streams opened towards it would wait for as long as those that carry
// something may rest. So a peer that has been silent is asked before anything more is
// said in a new stream, which costs a round trip, and the streams that it does not answer
// in time are given back. Those that it has answered once live on until the keepalive
// ends the tunnel.
type vigil struct {
	patience time.Duration // for the answer
	heard    time.Time     // something, last
	turn     uint32        // counts that
	doubt    bool          // it was asked
	looked   bool          // once more, when the time was over
}

// lastLook is for an answer that came in time and was not read: the clock of a process that
// had no processor may be served first.
const lastLook = 10 * time.Millisecond

// quiet is the silence after which the peer is asked.
func (v *vigil) quiet() time.Duration { return min(time.Second, v.patience/5) }

func (v *vigil) begin(patience time.Duration) {
	if patience <= 0 {
		patience = dialTimeout
	}
	v.patience, v.heard = patience, time.Now()
}

// hears notes that something came; true: the doubt is over.
func (v *vigil) hears() bool {
	v.heard = time.Now()
	v.turn++
	doubted := v.doubt
	v.doubt = false
	return doubted
}

// doubts is for a stream that is to be opened; true: the peer is to be asked.
func (v *vigil) doubts() bool {
	if v.doubt || time.Since(v.heard) <= v.quiet() {
		return false
	}
	v.doubt, v.looked = true, false
	return true
}

// looks is for when the time is over; true: the socket is to be read once more.
func (v *vigil) looks() bool {
	before := v.looked
	v.looked = true
	return !before
}

// emptied is how a tunnel ends that takes no more streams and has none left: not in order
// where the peer's time to answer was over.
func (v *vigil) emptied() error {
	if v.doubt && v.looked {
		return errUnanswered
	}
	return ErrDraining
}
