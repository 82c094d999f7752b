package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	stuckEvery = time.Second
	// A server with a full disk hands over at once, and then ever more rarely.
	handOverFirst, handOverLast = time.Second, time.Minute
)

// watch begins to look at the disk, the clock and the followers.
func (n *Node) watch() {
	dog := n.disk.dog
	n.tuner = &tuner{
		base: n.cfg.Timers, trailing: n.cfg.Log.Trailing, beat: n.cfg.Timers.Heartbeat, keep: n.cfg.Log.Trailing,
		applied: n.raft.AppliedIndex, log: n.log, metrics: dog.metrics, reload: n.reload,
	}
	dog.metrics.heartbeat.Set(n.cfg.Timers.Heartbeat.Seconds())
	dog.metrics.trailing.Set(float64(n.cfg.Log.Trailing))
	n.gate.installed = n.tuner.tookInstall
	dog.alone = func() bool {
		servers, err := n.servers()
		return err == nil && voters(servers) < 2
	}
	h := handOver{node: n, pause: handOverFirst}
	dog.onLow = h.look
	dog.stays = func() bool { return !h.busy.Load() }
	dog.onLook = n.tuner.look
	dog.onHang = func() { n.wg.Go(n.abdicate) }
	n.wg.Go(func() { dog.run(n.closing) })
	n.wg.Go(n.watchFollowers)
}

// abdicate has another server elected at once, where the others would wait until they
// miss the heartbeats of this one. Raft itself is stuck in the write that hangs.
func (n *Node) abdicate() {
	servers, err := n.servers()
	if n.readyTerm.Load() == 0 || err != nil {
		return
	}
	id, addr := n.gate.ahead(servers, raft.ServerID(n.cfg.NodeID))
	if id == "" {
		return
	}
	if err := n.witness.TimeoutNow(id, addr, &raft.TimeoutNowRequest{RPCHeader: n.header()}, &raft.TimeoutNowResponse{}); err != nil {
		n.log.Debug("another server was not asked to lead; they will miss this one", "id", string(id), "err", err)
	}
}

// reload changes what of Raft's configuration may change while it runs.
func (n *Node) reload(change func(*raft.ReloadableConfig)) error {
	c := n.raft.ReloadableConfig()
	change(&c)
	return n.raft.ReloadConfig(c)
}

// watchFollowers says when one answers heartbeats and takes nothing else.
func (n *Node) watchFollowers() {
	t := time.NewTicker(stuckEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-n.closing:
			return
		}
		term := n.readyTerm.Load()
		if term == 0 {
			n.disk.dog.metrics.stuckFollower.Set(0)
			continue
		}
		all, fresh := n.gate.stuck(term)
		n.disk.dog.metrics.stuckFollower.Set(float64(all))
		for _, id := range fresh {
			n.log.Error("a server answers heartbeats and takes no log entries; look at its disk and its log, "+
				"or hand leadership over with `weft operator raft transfer-leader`", "id", string(id), "dur", stuckAfter)
		}
	}
}

// handOver gives leadership away while there is little room on the disk.
type handOver struct {
	node  *Node
	busy  atomic.Bool
	pause time.Duration
	next  time.Time
	last  time.Time // of look
}

// look is called while there is little room.
func (h *handOver) look() {
	n, now := h.node, time.Now()
	if now.Sub(h.last) > 2*handOverLast { // it is another time
		h.pause, h.next = handOverFirst, time.Time{}
	}
	h.last = now
	if n.raft.State() != raft.Leader || n.disk.dog.alone() || now.Before(h.next) || !h.busy.CompareAndSwap(false, true) {
		return
	}
	h.next = now.Add(h.pause)
	h.pause = min(2*h.pause, handOverLast)
	n.wg.Go(func() {
		defer h.busy.Store(false)
		ctx, cancel := context.WithTimeout(context.Background(), 2*n.cfg.Timers.Election+time.Second)
		defer cancel()
		if err := n.cede(ctx, n.raft.LeadershipTransfer); err != nil {
			n.log.Warn("leadership could not be handed over", "err", err)
		}
	})
}

// errLeftBehind is the end of a node whose disk hangs.
var errLeftBehind = errors.New("consensus: a write has not ended; it is left behind")

// endRaft stops Raft. Where the disk failed it may never end: then only the end of
// the process does.
func (n *Node) endRaft() error {
	done := make(chan error, 1)
	go func() { done <- n.raft.Shutdown().Error() }()
	select {
	case err := <-done:
		return err
	case <-n.disk.failed:
	}
	t := time.NewTimer(closeGrace)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return fmt.Errorf("%w: %w", errLeftBehind, n.disk.failure())
	}
}
