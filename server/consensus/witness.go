package consensus

import (
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Transport carries Raft between servers. Raft looks for the two optional parts
// by type, so a transport that is wrapped must have them.
type Transport interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// witness is a transport that remembers which followers have acknowledged this
// leader in which term, and when the question that they answered was sent; and that
// asks them when somebody wants to know now.
//
// Raft's VerifyLeader is no proof for a read: it counts any reply that arrives
// after it was asked, so also one to a heartbeat that was sent, and judged by the
// follower, before. Under a slow network a new leader may be elected, and may
// acknowledge writes, between that judgement and the read.
type witness struct {
	Transport
	mu    sync.Mutex
	acks  map[raft.ServerID]ack
	asked map[raft.ServerID]time.Time // who is not asked before then
	heard chan struct{}               // closed when one answers, or failed to
	wg    sync.WaitGroup
}

type ack struct {
	term uint64
	sent time.Time
}

// askAgain is how long a server that could not be asked is left alone.
const askAgain = 20 * time.Millisecond

func newWitness(t Transport) *witness {
	return &witness{Transport: t, acks: map[raft.ServerID]ack{}, asked: map[raft.ServerID]time.Time{}, heard: make(chan struct{})}
}

// AppendEntries implements raft.Transport. Heartbeats come this way always.
func (w *witness) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	sent := time.Now()
	if err := w.Transport.AppendEntries(id, target, args, resp); err != nil {
		return err
	}
	// A follower whose log does not match yet acknowledges the term all the same.
	if resp.Term == args.Term {
		w.mu.Lock()
		if old := w.acks[id]; args.Term > old.term || (args.Term == old.term && sent.After(old.sent)) {
			w.acks[id] = ack{args.Term, sent}
			w.stir()
		}
		w.mu.Unlock()
	}
	return nil
}

// stir wakes those who wait for word of the others.
func (w *witness) stir() {
	close(w.heard)
	w.heard = make(chan struct{})
}

// majority tells whether most voters, self included, have acknowledged term in
// answer to a question that was sent after since; when not, the channel is closed at
// the next word of one of them.
func (w *witness) majority(voters []raft.Server, self raft.ServerID, term uint64, since time.Time) (bool, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	total, agree := 0, 0
	for _, s := range voters {
		if s.Suffrage != raft.Voter {
			continue
		}
		total++
		if a := w.acks[s.ID]; s.ID == self || (a.term == term && a.sent.After(since)) {
			agree++
		}
	}
	return agree > total/2, w.heard
}

// ask sends a heartbeat to voters to which none of ours is under way: to all of them,
// or to as many as make a majority with this node, those that answered last.
func (w *witness) ask(voters []raft.Server, header raft.RPCHeader, term uint64, all bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	idle := make([]raft.Server, 0, len(voters))
	total := 0
	for _, s := range voters {
		if s.Suffrage != raft.Voter {
			continue
		}
		total++
		if string(s.ID) != string(header.ID) && !now.Before(w.asked[s.ID]) {
			idle = append(idle, s)
		}
	}
	if !all && len(idle) > total/2 {
		slices.SortFunc(idle, func(a, b raft.Server) int { return w.acks[b.ID].sent.Compare(w.acks[a.ID].sent) })
		idle = idle[:total/2]
	}
	for _, s := range idle {
		w.asked[s.ID] = now.Add(networkTimeout)
		w.wg.Go(func() {
			args := &raft.AppendEntriesRequest{RPCHeader: header, Term: term, Leader: header.Addr} //nolint:staticcheck // older members read it
			err := w.AppendEntries(s.ID, s.Address, args, &raft.AppendEntriesResponse{})
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.asked, s.ID)
			if err != nil {
				w.asked[s.ID] = time.Now().Add(askAgain)
			}
			w.stir()
		})
	}
}
