package consensus

import (
	"context"
	"io"
	"slices"
	"strconv"
	"sync"

	"github.com/hashicorp/raft"
)

// inlet is what comes from other servers, before Raft sees it.
type inlet struct {
	Transport
	judge  func(raft.RPC) (as raft.RPC, ok bool) // as Raft is to see it; else it is answered
	steady func(term uint64) bool                // this node follows, in that term

	incoming chan raft.RPC
	ctx      context.Context
	end      context.CancelFunc
	wg       sync.WaitGroup
}

func newInlet(t Transport, judge func(raft.RPC) (raft.RPC, bool), steady func(term uint64) bool) *inlet {
	i := &inlet{Transport: t, judge: judge, steady: steady, incoming: make(chan raft.RPC)}
	i.ctx, i.end = context.WithCancel(context.Background())
	return i
}

// serve begins to hand on what comes.
func (i *inlet) serve() {
	i.wg.Go(func() {
		for {
			select {
			case <-i.ctx.Done():
				return
			case rpc := <-i.Transport.Consumer():
				if as, ok := i.judge(rpc); ok {
					i.hand(as)
				}
			}
		}
	})
}

func (i *inlet) hand(rpc raft.RPC) {
	select {
	case i.incoming <- rpc:
	case <-i.ctx.Done(): // who asked is told by the transport that ends
	}
}

// Consumer implements raft.Transport.
func (i *inlet) Consumer() <-chan raft.RPC { return i.incoming }

// SetHeartbeatHandler implements raft.Transport. Raft looks at heartbeats beside its main
// loop, so that a slow disk holds them up no longer than they may take. What would change
// the term or the role there would race with that loop (hashicorp/raft #695): a leader
// could write in the term of the next one, and a term could go back. So only those are
// looked at there which change nothing, and the others wait for the loop.
func (i *inlet) SetHeartbeatHandler(look func(raft.RPC)) {
	i.Transport.SetHeartbeatHandler(func(rpc raft.RPC) {
		if beat, ok := rpc.Command.(*raft.AppendEntriesRequest); ok && i.steady(beat.Term) {
			look(rpc)
			return
		}
		i.hand(rpc)
	})
}

// Close implements raft.WithClose.
func (i *inlet) Close() error {
	i.end()
	err := i.Transport.Close()
	i.wg.Wait()
	return err
}

// judge answers what Raft must not see, and gives the rest as Raft is to see it.
func (n *Node) judge(rpc raft.RPC) (as raft.RPC, ok bool) {
	if n.network != nil && n.network.refuses(rpc) {
		return rpc, false
	}
	if ask, ok := rpc.Command.(*raft.InstallSnapshotRequest); ok && n.network != nil {
		n.network.layer.expect(string(ask.ID), ask.Size)
	}
	if n.contradicts(rpc.Command) {
		rpc.Respond(nil, n.disk.disown())
		return rpc, false
	}
	switch ask := rpc.Command.(type) {
	case *raft.InstallSnapshotRequest:
		return rpc, !n.refusesBackup(rpc, ask)
	case *raft.AppendEntriesRequest:
		rpc.Command = n.overBackup(n.pastBackup(ask))
	}
	return rpc, true
}

// contradicts tells whether what a leader sends shows that it leads without the newest
// backup here.
func (n *Node) contradicts(command any) bool {
	switch ask := command.(type) {
	case *raft.InstallSnapshotRequest:
		return ask.Term >= n.Term() && n.disk.contradicted(ask.LastLogIndex, ask.LastLogTerm)
	case *raft.AppendEntriesRequest:
		other := func(e *raft.Log) bool { return n.disk.contradicted(e.Index, e.Term) }
		return (n.disk.contradicted(ask.PrevLogEntry, ask.PrevLogTerm) || slices.ContainsFunc(ask.Entries, other)) && ask.Term >= n.Term()
	}
	return false
}

// refusesBackup answers a leader that sends a backup of what this node has applied
// already. Raft would go back to it, and panic where its log begins later. Such a leader
// is one that was deposed, whose log the next one cut while it still sent it, or one that
// did not hear an answer.
func (n *Node) refusesBackup(rpc raft.RPC, install *raft.InstallSnapshotRequest) bool {
	if install.LastLogIndex > max(n.raft.CommitIndex(), n.backed) {
		return false
	}
	var own raft.Log
	known := n.disk.logs.GetLog(install.LastLogIndex, &own) == nil
	if known && own.Term != install.LastLogTerm {
		return false // of another history
	}
	_, _ = io.Copy(io.Discard, rpc.Reader) // what follows comes on the same connection
	n.log.Info("a leader sends a backup that is older than what this server has, which is kept",
		"leader", string(install.ID), "term", install.Term, "index", install.LastLogIndex, "applied", n.raft.AppliedIndex())
	term := n.raft.CurrentTerm()
	rpc.Respond(&raft.InstallSnapshotResponse{RPCHeader: n.header(), Term: term, Success: known && install.Term == term}, nil)
	return true
}

// pastBackup leaves out what a backup of this node's own has replaced in its log, where
// the entry at which that ends is among those that are sent: so the leader's log is the
// same up to there (Log Matching, section 5.3 of the Raft paper). Raft would look for the
// entry before the first, not find it, and have the leader go back to an older backup.
func (n *Node) pastBackup(a *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	b := n.disk.base.Load()
	if b == nil || a.PrevLogEntry >= b.index {
		return a
	}
	var own raft.Log
	end := func(e *raft.Log) bool { return e.Index == b.index && e.Term == b.term }
	if !slices.ContainsFunc(a.Entries, end) || n.disk.logs.GetLog(a.PrevLogEntry, &own) == nil {
		return a
	}
	rest := *a // the sender's own, where the transport is in memory
	rest.PrevLogEntry, rest.PrevLogTerm = b.index, b.term
	rest.Entries = slices.DeleteFunc(slices.Clone(a.Entries), func(e *raft.Log) bool { return e.Index <= b.index })
	return &rest
}

// overBackup names the entry at which the newest backup ends as Raft does. Where that
// took the place of a last entry of another term, Raft goes on to compare with that one,
// whose term it remembers: the leader would send the backup over and over.
func (n *Node) overBackup(a *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	b := n.disk.base.Load()
	if b == nil || a.PrevLogEntry != b.index || a.PrevLogTerm != b.term || n.raft.LastIndex() != b.index {
		return a
	}
	stats := n.raft.Stats()
	if stats["last_log_index"] != strconv.FormatUint(b.index, 10) {
		return a // it remembers the backup
	}
	term, err := strconv.ParseUint(stats["last_log_term"], 10, 64)
	if err != nil || term == b.term {
		return a
	}
	over := *a
	over.PrevLogTerm = term
	return &over
}

// follows tells whether this node follows, in a term.
func (n *Node) follows(term uint64) bool {
	return n.started.Load() && n.raft.State() == raft.Follower && n.raft.CurrentTerm() == term
}
