package consensus

import (
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
// leader in which term, and when the question that they answered was sent.
//
// VerifyLeader alone is no proof for a read: it counts any reply that arrives
// after it was asked, so also one to a heartbeat that was sent, and judged by the
// follower, before. Under a slow network a new leader may be elected, and may
// acknowledge writes, between that judgement and the read.
type witness struct {
	Transport
	mu   sync.Mutex
	acks map[raft.ServerID]ack
}

type ack struct {
	term uint64
	sent time.Time
}

func newWitness(t Transport) *witness { return &witness{Transport: t, acks: map[raft.ServerID]ack{}} }

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
		}
		w.mu.Unlock()
	}
	return nil
}

// majority tells whether most voters, self included, have acknowledged term in
// answer to a question that was sent after since.
func (w *witness) majority(voters []raft.Server, self raft.ServerID, term uint64, since time.Time) bool {
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
	return agree > total/2
}
