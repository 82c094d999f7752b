package consensus

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// promptAfter is how long a leader sends nothing to a follower before it is told what
// was committed meanwhile.
const promptAfter = 2 * time.Millisecond

// prompter tells followers of a commit at once. By itself Raft tells them with the
// next entries or, when there are none, 50 to 100 ms later: so late would a read on a
// follower be answered that must show the write before it, and so late would a policy
// reach the agents of that follower. What is sent is an AppendEntries without entries,
// as Raft would send it: it repeats the last place at which the follower's log was
// found to be the leader's, and says how far that is committed.
type prompter struct {
	send  func(raft.ServerID, raft.ServerAddress, *raft.AppendEntriesRequest, *raft.AppendEntriesResponse) error
	leads func(term uint64) bool

	committed atomic.Uint64
	wake      chan struct{}

	mu        sync.Mutex
	followers map[raft.ServerID]*followed
}

// followed is what a leader knows of a follower.
type followed struct {
	addr  raft.ServerAddress
	last  raft.AppendEntriesRequest // the header and the leader of it are used
	match uint64                    // its log is the leader's up to here
	term  uint64                    // of the entry there
	told  uint64                    // what it knows to be committed
	sent  time.Time
	busy  bool // a prompt is under way
}

func newPrompter(leads func(term uint64) bool) *prompter {
	return &prompter{leads: leads, wake: make(chan struct{}, 1), followers: map[raft.ServerID]*followed{}}
}

// commit says that everything up to an index is committed.
func (p *prompter) commit(index uint64) {
	p.committed.Store(index)
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// sending notes that Raft itself speaks to a follower.
func (p *prompter) sending(id raft.ServerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.followers[id]; f != nil {
		f.sent = time.Now()
	}
}

// sent notes that a follower took what Raft sent it.
func (p *prompter) sent(id raft.ServerID, addr raft.ServerAddress, args *raft.AppendEntriesRequest) {
	p.mu.Lock()
	f := p.followers[id]
	if f == nil || f.last.Term != args.Term {
		f = &followed{}
		p.followers[id] = f
	}
	f.addr, f.sent = addr, time.Now()
	f.last = raft.AppendEntriesRequest{RPCHeader: args.RPCHeader, Term: args.Term, Leader: args.Leader} //nolint:staticcheck // older members read it
	f.match, f.term = args.PrevLogEntry, args.PrevLogTerm
	if n := len(args.Entries); n > 0 {
		f.match, f.term = args.Entries[n-1].Index, args.Entries[n-1].Term
	}
	f.told = max(f.told, min(args.LeaderCommitIndex, f.match))
	late := f.told < min(f.match, p.committed.Load())
	p.mu.Unlock()
	if late {
		p.commit(p.committed.Load())
	}
}

// run prompts until ctx ends.
func (p *prompter) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		for again := true; again; {
			t.Reset(promptAfter)
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			again = p.prompt(&wg)
		}
	}
}

// prompt speaks to those who have to be told, and tells whether there are some to
// whom Raft speaks in this moment and who are looked at again.
func (p *prompter) prompt(wg *sync.WaitGroup) (again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	committed := p.committed.Load()
	for id, f := range p.followers {
		upTo := min(committed, f.match)
		switch {
		case f.busy || f.told >= upTo:
			continue
		case !p.leads(f.last.Term):
			delete(p.followers, id)
			continue
		case time.Since(f.sent) < promptAfter:
			again = true
			continue
		}
		args, addr := f.last, f.addr
		args.PrevLogEntry, args.PrevLogTerm, args.LeaderCommitIndex = f.match, f.term, upTo
		f.busy, f.told = true, upTo
		wg.Go(func() {
			// Raft says it once more when this fails.
			_ = p.send(id, addr, &args, &raft.AppendEntriesResponse{})
			p.mu.Lock()
			f.busy = false
			late := f.told < min(f.match, p.committed.Load())
			p.mu.Unlock()
			if late {
				p.commit(p.committed.Load())
			}
		})
	}
	return again
}
