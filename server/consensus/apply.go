package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// enqueueTimeout bounds the wait for a place in Raft's queue where ctx has no deadline.
const enqueueTimeout = 10 * time.Second

// errHangsNow ends the wait for what was asked of Raft before the disk hung.
var errHangsNow = errors.New("this server's disk hangs")

// refuseWrite says why this server writes nothing new now, nil when it does.
func (n *Node) refuseWrite() error {
	if n.raft.State() != raft.Leader {
		return nil // Raft says so
	}
	if n.gate.lost.running() {
		return errNoLeader
	}
	return n.disk.dog.refuseWrite()
}

// refuseRead says why this server proves nothing to readers now.
func (n *Node) refuseRead() error {
	if n.gate.lost.running() {
		return errNoLeader
	}
	return n.disk.dog.refuseLead()
}

var errNoLeader = fmt.Errorf("consensus: %w", catalog.ErrNoLeader)

// Apply puts cmd into the log and returns the index of its entry and the result
// of applying it here. An error of the store (a refused command) comes with the
// index of the entry. ErrNoLeader means that nothing happened; ErrUnavailable, or
// the error of ctx, that the outcome is not known: the command may yet be applied.
func (n *Node) Apply(ctx context.Context, cmd catalog.Command) (index uint64, result any, err error) {
	entry, err := wire.EncodeEntry(cmd)
	if err != nil {
		return 0, nil, err
	}
	if err := ctx.Err(); err != nil {
		return 0, nil, context.Cause(ctx)
	}
	if err := n.refuseWrite(); err != nil {
		return 0, nil, err
	}
	wait := enqueueTimeout
	if at, ok := ctx.Deadline(); ok {
		wait = max(time.Until(at), time.Millisecond)
	}
	start := time.Now()
	// Filled by the time that await returns nil, and not looked at otherwise.
	var f raft.ApplyFuture
	err = n.awaitDisk(ctx, func() raft.Future {
		if !n.writes.begin() {
			return doneFuture{raft.ErrLeadershipTransferInProgress}
		}
		f = n.raft.Apply(entry, wait)
		return written{f, &n.writes}
	})
	if err != nil {
		return 0, nil, outcome("write", err)
	}
	n.metrics.applied(time.Since(start))
	answer, ok := f.Response().(answer)
	if !ok {
		return f.Index(), nil, fmt.Errorf("consensus: entry %d was answered with %T", f.Index(), f.Response())
	}
	return f.Index(), answer.result, answer.err
}

// await asks Raft and waits for its answer, for ctx, or for the end of the node:
// Raft's futures know no context, and what is still queued when Raft ends is never
// answered. Nothing new is asked once the node is closing, and Close gives what is
// under way a moment, so that a goroutine is left behind only by a disk that hangs.
func (n *Node) await(ctx context.Context, ask func() raft.Future) error {
	return n.awaitUnless(ctx, nil, ask)
}

// awaitDisk does not wait for a disk that hangs either.
func (n *Node) awaitDisk(ctx context.Context, ask func() raft.Future) error {
	return n.awaitUnless(ctx, n.disk.dog.hangs(), ask)
}

func (n *Node) awaitUnless(ctx context.Context, ended <-chan struct{}, ask func() raft.Future) error {
	if !n.pending.begin() {
		return raft.ErrRaftShutdown
	}
	done := make(chan error, 1)
	go func() {
		defer n.pending.end()
		done <- ask().Error()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the outcome is not known: %w", context.Cause(ctx))
	case <-ended:
		return errHangsNow
	case <-n.ended:
		return raft.ErrRaftShutdown
	}
}

func unavailable(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), catalog.ErrUnavailable)
}

// outcome says in our words what Raft's error means for a caller.
func outcome(what string, err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return errNoLeader
	case errors.Is(err, errHangsNow):
		return unavailable("%s: the outcome is not known: %w", what, err)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return unavailable("%s: the leader's queue is full, nothing was written", what)
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown), errors.Is(err, raft.ErrAbortedByRestore):
		return unavailable("%s: the outcome is not known: %w", what, err)
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

// Rounds let all who wait for an index share one question for it. The zero value
// with Ask is ready.
type Rounds struct {
	// Ask finds an index such that a store which has applied it shows every write that
	// was acknowledged before Ask was called.
	Ask func() (uint64, error)

	mu      sync.Mutex
	running bool
	closed  bool
	next    *round
	wg      sync.WaitGroup
}

// round answers those who asked before it began.
type round struct {
	done  chan struct{}
	index uint64
	err   error
}

// Index is Ask, called once for all who wait, and after each of them came.
func (r *Rounds) Index(ctx context.Context) (uint64, error) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return 0, errNoLeader
	}
	if r.next == nil {
		r.next = &round{done: make(chan struct{})}
	}
	mine := r.next
	if !r.running {
		r.running = true
		r.wg.Go(r.run)
	}
	r.mu.Unlock()
	select {
	case <-mine.done:
		return mine.index, mine.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// Close refuses who asks from now on, and waits for the answers to others.
func (r *Rounds) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.wg.Wait()
}

func (r *Rounds) run() {
	for {
		r.mu.Lock()
		now := r.next
		r.next = nil
		r.running = now != nil
		r.mu.Unlock()
		if now == nil {
			return
		}
		now.index, now.err = r.Ask()
		close(now.done)
	}
}

// ReadIndex returns an index such that a store which has applied it shows every
// write that was acknowledged, by whatever server, before ReadIndex was called. It
// proves that this node leads while it runs; the error wraps ErrNoLeader when not.
func (n *Node) ReadIndex(ctx context.Context) (uint64, error) { return n.reads.Index(ctx) }

// ReadIndexFor is ReadIndex for another server, by its node ID, which says in which
// term it was when it asked. That is a heartbeat answered in advance: who elected a
// newer leader before, and has acknowledged its writes, is in a newer term. Where the
// two are most of the voters, as in a cluster of three, nobody else is asked.
func (n *Node) ReadIndexFor(ctx context.Context, id string, term uint64) (uint64, error) {
	if term == 0 || term != n.readyTerm.Load() || n.refuseRead() != nil {
		return n.ReadIndex(ctx)
	}
	if !n.pending.begin() {
		return 0, errNoLeader
	}
	defer n.pending.end()
	servers, err := n.servers()
	if err != nil || !pair(servers, raft.ServerID(n.cfg.NodeID), raft.ServerID(id)) {
		return n.ReadIndex(ctx)
	}
	index, err := n.committed()
	if err != nil || !n.leads(term) {
		return 0, errNoLeader
	}
	return index, nil
}

// pair tells whether two servers are voters, and a majority.
func pair(servers []raft.Server, a, b raft.ServerID) bool {
	voters, agree := 0, 0
	for _, s := range servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if s.ID == a || s.ID == b {
			agree++
		}
	}
	return agree > voters/2
}

// Term is the one that this server is in.
func (n *Node) Term() uint64 { return n.raft.CurrentTerm() }

// committed is the index of the last command that is committed, as far as a leader
// knows: all that is acknowledged, and all that a follower shows. A follower may have
// applied an entry that this node's store has yet to apply. Entries that are no
// commands never come to the store, so nobody could wait for their index. While a
// restored backup is on its way to the others nobody can say what they show.
func (n *Node) committed() (uint64, error) {
	at := n.cfg.Store.Index()
	if n.restores.Load() > 0 || n.disk.failure() != nil {
		return 0, errNoLeader
	}
	for i := n.raft.CommitIndex(); i > at; i-- {
		var entry raft.Log
		switch err := n.disk.logs.GetLog(i, &entry); {
		case errors.Is(err, raft.ErrLogNotFound): // a backup has taken its place
		case err != nil:
			return 0, err
		case entry.Type == raft.LogCommand:
			return i, nil
		}
	}
	return at, nil
}

// readIndex: what this node has committed in this term is committed; what was in
// earlier ones was applied before readyTerm was set. So that is enough, if nobody else
// leads: which is what a majority says when it answers, in this term, questions that
// were sent after now.
func (n *Node) readIndex() (uint64, error) {
	term, err := n.waitReady()
	if err != nil {
		return 0, err
	}
	index, err := n.committed()
	if err != nil {
		return 0, errNoLeader
	}
	asked := time.Now()
	look := time.NewTicker(askAgain)
	defer look.Stop()
	for late := false; ; {
		if err := n.refuseRead(); err != nil {
			return 0, err
		}
		servers, err := n.servers()
		if err != nil || !n.leads(term) {
			return 0, errNoLeader
		}
		proved, heard := n.witness.majority(servers, raft.ServerID(n.cfg.NodeID), term, asked)
		if proved {
			return index, nil
		}
		n.witness.ask(servers, n.header(), term, late)
		select {
		case <-heard:
		case <-look.C:
			late = true
		case <-n.ended:
			return 0, errNoLeader
		}
	}
}

// waitReady gives the term in which this node may serve reads. A node that was
// just elected is waited for, as its barrier is on its way.
func (n *Node) waitReady() (uint64, error) {
	_, seen := n.leadership.Get()
	for {
		if term := n.readyTerm.Load(); term != 0 {
			return term, nil
		}
		if n.raft.State() != raft.Leader {
			return 0, errNoLeader
		}
		ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Timers.Election)
		_, index, err := n.leadership.Next(ctx, seen)
		cancel()
		if err != nil {
			return 0, errNoLeader
		}
		seen = index
	}
}
