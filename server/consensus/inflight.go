package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// inFlight counts what Raft was asked and has not answered: all questions, until the
// node closes, and the writes alone. While leadership is handed over no more writes are
// begun: of one that Raft has when another server is elected nobody could say whether it
// was carried out, and one that was not begun is asked of the next leader.
type inFlight struct {
	mu   sync.Mutex
	n    int
	held int           // by so many who want it at rest
	idle chan struct{} // while held; closed when n is 0
}

func (w *inFlight) begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held > 0 {
		return false
	}
	w.n++
	return true
}

func (w *inFlight) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n--; w.n == 0 && w.idle != nil {
		close(w.idle)
	}
}

// hold has nothing more begun until release; the channel is closed when all that was
// begun is answered.
func (w *inFlight) hold() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held++; w.held == 1 {
		w.idle = make(chan struct{})
		if w.n == 0 {
			close(w.idle)
		}
	}
	return w.idle
}

func (w *inFlight) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held--; w.held == 0 {
		w.idle = nil
	}
}

// written is an entry on its way. Error ends it.
type written struct {
	raft.ApplyFuture
	in *inFlight
}

// Error implements raft.Future.
func (w written) Error() error {
	defer w.in.end()
	return w.ApplyFuture.Error()
}

// drainWrites is how long a leader that hands over waits for the answers to writes:
// those of a slow disk, or of followers that are gone, may take longer than the
// election of another server.
const drainWrites = 500 * time.Millisecond

// cede has ask hand leadership over when no write is under way any more.
func (n *Node) cede(ctx context.Context, ask func() raft.Future) error {
	idle := n.writes.hold()
	defer n.writes.release()
	timer := time.NewTimer(drainWrites)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return n.await(ctx, ask)
}
