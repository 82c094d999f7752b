package consensus

import (
	"context"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// inlet is what comes from other servers, before Raft sees it.
type inlet struct {
	Transport
	refuses func(raft.RPC) bool    // it has answered what Raft must not see
	steady  func(term uint64) bool // this node follows, in that term

	incoming chan raft.RPC
	ctx      context.Context
	end      context.CancelFunc
	wg       sync.WaitGroup
}

func newInlet(t Transport, refuses func(raft.RPC) bool, steady func(term uint64) bool) *inlet {
	i := &inlet{Transport: t, refuses: refuses, steady: steady, incoming: make(chan raft.RPC)}
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
				if !i.refuses(rpc) {
					i.hand(rpc)
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

// refuses answers what Raft must not see.
func (n *Node) refuses(rpc raft.RPC) bool {
	if n.network != nil && n.network.refuses(rpc) {
		return true
	}
	install, ok := rpc.Command.(*raft.InstallSnapshotRequest)
	return ok && n.refusesBackup(rpc, install)
}

// refusesBackup answers a leader that sends a backup of what this node has applied
// already. Raft would go back to it, and panic where its log begins later. Such a leader
// is one that was deposed, whose log the next one cut while it still sent it, or one that
// did not hear that its backup had arrived.
func (n *Node) refusesBackup(rpc raft.RPC, install *raft.InstallSnapshotRequest) bool {
	if install.LastLogIndex > n.raft.AppliedIndex() {
		return false
	}
	var own raft.Log
	known := n.disk.logs.GetLog(install.LastLogIndex, &own) == nil
	if known && own.Term != install.LastLogTerm {
		return false // of another history
	}
	_, _ = io.Copy(io.Discard, rpc.Reader) // what follows comes on the same connection
	n.log.Warn("a leader sends a backup that is older than what this server has, which is kept",
		"leader", string(install.ID), "term", install.Term, "index", install.LastLogIndex, "applied", n.raft.AppliedIndex())
	rpc.Respond(&raft.InstallSnapshotResponse{
		RPCHeader: n.header(), Term: n.raft.CurrentTerm(), Success: known && install.Term == n.raft.CurrentTerm(),
	}, nil)
	return true
}

// follows tells whether this node follows, in a term.
func (n *Node) follows(term uint64) bool {
	return n.started.Load() && n.raft.State() == raft.Follower && n.raft.CurrentTerm() == term
}
