package consensus

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose process died is missed only after its heartbeats were, by all who
// are left: with pre-vote the last of them decides. But its connections end at once,
// and its port refuses new ones, which a leader's never does. Who sees both need not
// wait. A host that fell silent is missed as ever.
const (
	// knocks at the leader's port, knockPause apart: its connections may end a moment
	// before its listener does.
	knocks       = 5
	knockPause   = 20 * time.Millisecond
	knockTimeout = 200 * time.Millisecond
	// orphanPause is how long each waits for a leader that the old one has made: who
	// hands leadership over and ends is gone as well, and its successor must not be deposed.
	orphanPause = 100 * time.Millisecond
	// orphanTurn is how long each server lets those before it try to be elected.
	orphanTurn = 300 * time.Millisecond
	// orphanRest bounds how often this is done, whatever a network pretends.
	orphanRest = time.Second
)

// outlive waits for connections of the leader to end, and has this node elected when
// the leader is gone.
func (n *network) outlive(ctx context.Context, node *Node) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.layer.lost:
		}
		for id := range n.layer.takeLost() {
			if !n.orphaned(ctx, node, id) { // at once, unless it is the leader
				continue
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(orphanRest):
			}
		}
	}
}

// orphaned reports whether it asked for an election.
func (n *network) orphaned(ctx context.Context, node *Node, id string) bool {
	r, seen := node.raft, time.Now()
	addr, leader := r.LeaderWithID()
	if string(leader) != id || r.State() != raft.Follower {
		return false
	}
	turn, votes := n.turn(id)
	if !votes || node.Fresh() || !n.refusesKnocks(ctx, id, addr) {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(orphanPause + time.Duration(turn)*orphanTurn):
	}
	_, leader = r.LeaderWithID()
	if r.State() != raft.Follower || (leader != "" && string(leader) != id) || r.LastContact().After(seen) {
		return false // somebody was elected, or has this node's vote
	}
	if may := n.layer.cfg.MayVote; may != nil && !may(n.layer.self, r.LastIndex()) {
		return false
	}
	node.log.Warn("the leader's process is gone; this server stands for election at once", "leader", id, "addr", string(addr))
	rpc := raft.RPC{RespChan: make(chan raft.RPCResponse, 1), Command: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.layer.self), Addr: []byte(n.layer.addr),
	}}}
	select {
	case node.inlet.incoming <- rpc:
		return true
	case <-ctx.Done():
		return false
	}
}

// turn tells how many of those who vote stand before this node does when the leader
// is gone, and whether this node votes.
func (n *network) turn(leader string) (before int, votes bool) {
	servers, err := n.layer.configuration()
	if err != nil {
		return 0, false
	}
	var ids []string
	for _, s := range servers {
		if s.Suffrage == raft.Voter && string(s.ID) != leader {
			ids = append(ids, string(s.ID))
		}
	}
	slices.Sort(ids)
	before = slices.Index(ids, n.layer.self)
	return before, before >= 0
}

// refusesKnocks tells whether nobody listens at the leader's port any more.
func (n *network) refusesKnocks(ctx context.Context, id string, addr raft.ServerAddress) bool {
	_, at, _ := strings.Cut(string(n.target(raft.ServerID(id), addr)), "@")
	for range knocks {
		d := net.Dialer{Timeout: knockTimeout}
		c, err := d.DialContext(ctx, "tcp", at)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return true
		case err != nil:
			return false // silence proves nothing
		}
		_ = c.Close() // it may be about to end
		select {
		case <-ctx.Done():
			return false
		case <-time.After(knockPause):
		}
	}
	return false
}
