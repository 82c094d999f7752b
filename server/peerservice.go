package server

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/consensus"
	"github.com/weftmesh/weft/server/rpc"
)

// peerService answers other servers.
type peerService struct {
	self      catalog.Member
	raft      *consensus.Node
	founding  *founding
	dismissed *dismissal
	lost      func(node, id string) bool
}

var _ wire.Peers = (*peerService)(nil)

// Standing implements wire.Peers.
func (s *peerService) Standing(_ context.Context, req *wire.StandingRequest) (*wire.StandingReply, error) {
	at := s.raft.Position()
	peers, err := s.raft.Servers()
	if err != nil {
		return nil, err
	}
	leader, _ := s.raft.LeaderID()
	var marks []wire.LogMark
	if req.Marks {
		marks = s.raft.Marks()
	}
	return &wire.StandingReply{
		NodeID: s.self.ID, Node: s.self.Name, Version: s.self.Tags[tagBuild],
		Fresh: s.raft.Fresh(), Dismissed: s.dismissed.is(),
		LastTerm: at.LastTerm, LastIndex: at.LastIndex, Applied: at.Applied, ConfigIndex: at.ConfigIndex,
		Peers: peers, Marks: marks, LeaderID: leader, LastContact: s.raft.LastContact(),
	}, nil
}

// Promise implements wire.Peers.
func (s *peerService) Promise(_ context.Context, req *wire.PromiseRequest) (*wire.PromiseReply, error) {
	if err := s.founding.promise(req); err != nil {
		return nil, err
	}
	return &wire.PromiseReply{}, nil
}

// ReadIndex implements wire.Peers.
func (s *peerService) ReadIndex(ctx context.Context, req *wire.ReadIndexRequest) (*wire.ReadIndexReply, error) {
	index, err := s.raft.ReadIndexFor(ctx, rpc.CallerOf(ctx).NodeID, req.Term)
	if err != nil {
		return nil, err
	}
	return &wire.ReadIndexReply{Index: index}, nil
}

// Lost implements wire.Peers.
func (s *peerService) Lost(_ context.Context, req *wire.LostRequest) (*wire.LostReply, error) {
	if !s.lost(req.Node, req.NodeID) {
		return nil, catalog.ErrNoLeader
	}
	return &wire.LostReply{}, nil
}

const lonely = 3 * time.Second

// dismissal finds out that this server was removed from the cluster: Raft does not
// tell it. It then says so and, where an operator did it, is not taken in again before
// it is restarted.
type dismissal struct {
	self    string
	raft    *consensus.Node
	cluster founders
	tempo   tempo
	log     *slog.Logger

	mu     sync.Mutex
	yes    bool
	said   bool
	looked time.Time // last
	since  time.Time // a leader is heard, without long silence; zero: none is
}

func (d *dismissal) is() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.yes
}

// run looks until ctx ends.
func (d *dismissal) run(ctx context.Context) {
	tick := time.NewTicker(d.tempo.lonely / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.look(ctx)
		}
	}
}

func (d *dismissal) look(ctx context.Context) {
	member, _ := d.raft.Member(d.self)
	heard := d.raft.LastContact()
	took := d.tookPart(heard, time.Now())
	d.mu.Lock()
	if member && heard >= 0 && heard < d.tempo.lonely {
		d.yes, d.said = false, false
	}
	quiet := d.raft.Fresh() || d.yes || (member && heard >= 0 && heard < d.tempo.lonely)
	d.mu.Unlock()
	if quiet {
		return
	}
	others := map[string]string{}
	for id, m := range d.cluster.servers() {
		if id != d.self {
			others[id] = serverAddr(m)
		}
	}
	own := d.raft.Position().ConfigIndex
	for _, s := range d.cluster.standings(ctx, others) {
		if s.Fresh || s.LeaderID == "" || s.ConfigIndex < own {
			continue
		}
		for _, p := range s.Peers {
			if p.ID == d.self {
				return
			}
		}
		d.tell(s, took)
		return
	}
}

// tookPart tells whether this server took part until it heard a leader last. Autopilot
// removes only who was silent for long. A last word to such a one may arrive when it is
// back, so that a moment does not count.
func (d *dismissal) tookPart(heard time.Duration, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	stopped := !d.looked.IsZero() && now.Sub(d.looked) >= d.tempo.dead
	d.looked = now
	if heard < 0 || heard >= d.tempo.dead || stopped {
		d.since = time.Time{}
		return false
	}
	last := now.Add(-heard)
	if d.since.IsZero() {
		d.since = last
	}
	return last.Sub(d.since) >= d.tempo.lonely
}

func (d *dismissal) tell(s *wire.StandingReply, took bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.yes = took
	if d.said {
		return
	}
	d.said = true
	if took {
		d.log.Error("this server was removed from the cluster: it votes and serves no more", "told_by", s.Node, "config_index", s.ConfigIndex,
			"hint", "restart it to let it join again; to take it away for good, stop it")
		return
	}
	d.log.Warn("this server was removed from the cluster while it was away; the leader takes it in again, at first without a vote",
		"told_by", s.Node, "config_index", s.ConfigIndex)
}
