package server

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/consensus"
)

// autopilotEvery is how often the leader looks at how the servers are.
const autopilotEvery = 2 * time.Second

// autopilot knows how healthy the servers are, and since when.
//
// hashicorp/raft-autopilot would do this too, but it carries a test framework into
// the binary.
type autopilot struct {
	raft    *consensus.Node
	store   *store.Store
	members func() []catalog.Member
	cluster *cluster // nil: there are no others
	self    string   // ID of this server
	first   catalog.Autopilot
	now     func() time.Time
	log     *slog.Logger
	tempo   tempo

	mu     sync.Mutex
	began  time.Time // leading
	since  map[string]standing
	barred map[string]time.Time // servers that an operator removed, until when they stay out
	told   map[string]time.Time // what was logged of a server, and when
	absent map[string]time.Time // servers that gossip does not hold for alive, since when
}

// standing is since when a server is as healthy as it is.
type standing struct {
	healthy bool
	since   time.Time
}

// settings are those in the catalog, or those that a new cluster begins with.
func (a *autopilot) settings() catalog.Autopilot {
	v, err := a.store.Read(catalog.Query{Kind: catalog.QueryAutopilot})
	if err == nil && v.Autopilot != nil {
		return *v.Autopilot
	}
	return a.first
}

// ensure gives a new cluster its settings, and looks once at all servers.
func (a *autopilot) ensure(ctx context.Context) error {
	v, err := a.store.Read(catalog.Query{Kind: catalog.QueryAutopilot})
	if err != nil {
		return err
	}
	if v.Autopilot == nil {
		if _, _, err := a.raft.Apply(ctx, &catalog.SetAutopilot{Config: a.first, CAS: true}); err != nil {
			return err
		}
	}
	state, err := a.state(ctx)
	if err != nil || a.cluster == nil {
		return err
	}
	return a.tend(ctx, state)
}

// state is how the servers are now. It is asked for where this server leads.
func (a *autopilot) state(ctx context.Context) (*wire.AutopilotReply, error) {
	peers, err := a.raft.Servers()
	if err != nil {
		return nil, err
	}
	cfg := a.settings()
	look := a.look(ctx, peers, cfg)
	members := map[string]catalog.Member{}
	for _, m := range a.members() {
		if have, ok := members[m.ID]; !ok || have.Status != catalog.MemberAlive {
			members[m.ID] = m
		}
	}
	out := &wire.AutopilotReply{Healthy: true}
	voters, sound := 0, 0
	for _, p := range peers {
		s := a.health(p, members[p.ID], cfg, look)
		out.Servers = append(out.Servers, s)
		out.Healthy = out.Healthy && s.Healthy
		if p.Leader {
			out.Leader = p.ID
		}
		if p.Voter {
			out.Voters = append(out.Voters, p.ID)
			voters++
			if s.Healthy {
				sound++
			}
		}
	}
	out.Healthy = out.Healthy && len(peers) > 0
	out.FailureTolerance = max(0, sound-(voters/2+1))
	out.OptimisticFailureTolerance = out.FailureTolerance
	slices.Sort(out.Voters)
	slices.SortFunc(out.Servers, func(x, y wire.ServerHealth) int { return strings.Compare(x.ID, y.ID) })
	return out, nil
}

// look is what the servers say of themselves, and how far this one was when it asked.
type look struct {
	term, last uint64
	standings  map[string]*wire.StandingReply
}

// secondLook is the pause before a server that seems out of touch is asked again:
// one moment without a heartbeat proves nothing.
const secondLook = 100 * time.Millisecond

// look asks all the servers.
func (a *autopilot) look(ctx context.Context, peers []wire.RaftPeer, cfg catalog.Autopilot) look {
	var l look
	l.term, l.last = a.raft.Log()
	if a.cluster == nil {
		return l
	}
	whom := map[string]string{}
	for _, p := range peers {
		whom[p.ID] = p.Address
	}
	l.standings = a.cluster.standings(ctx, whom)
	again := map[string]string{}
	for id, s := range l.standings {
		if s.LastContact < 0 || s.LastContact > cfg.LastContactThreshold {
			again[id] = whom[id]
		}
	}
	if len(again) == 0 {
		return l
	}
	t := time.NewTimer(secondLook)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
		maps.Copy(l.standings, a.cluster.standings(ctx, again))
	}
	return l
}

// health judges one server by what this one, the leader, knows of it.
func (a *autopilot) health(p wire.RaftPeer, m catalog.Member, cfg catalog.Autopilot, seen look) wire.ServerHealth {
	s := wire.ServerHealth{
		ID: p.ID, Name: m.Name, Address: p.Address, NodeStatus: "unknown", Version: m.Tags[tagBuild],
		Status: "non-voter", NodeType: "voter", LastContact: -1, LastIndex: p.LastIndex,
		Meta: map[string]string{"consul-network-segment": "", "consul-version": m.Tags[tagBuild]},
	}
	if m.Name != "" {
		s.NodeStatus = m.Status.String()
	}
	switch {
	case p.Leader:
		s.Status = "leader"
	case p.Voter:
		s.Status = "voter"
	}
	if p.ID == a.self {
		s.LastContact, s.LastTerm = max(0, a.raft.LastContact()), seen.term
	} else if at := seen.standings[p.ID]; at != nil && !at.Dismissed {
		s.LastContact, s.LastTerm, s.LastIndex = at.LastContact, at.LastTerm, at.LastIndex
	}
	s.Healthy = seen.term > 0 && seen.last > 0 && m.Status == catalog.MemberAlive &&
		s.LastContact >= 0 && s.LastContact <= cfg.LastContactThreshold &&
		s.LastTerm == seen.term && s.LastIndex+cfg.MaxTrailingLogs >= seen.last
	s.StableSince = a.stand(p.ID, s.Healthy)
	return s
}

func (a *autopilot) stand(id string, healthy bool) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	was, ok := a.since[id]
	if !ok || was.healthy != healthy {
		was = standing{healthy, a.now().UTC()}
		a.since[id] = was
	}
	return was.since
}

// name is the node name of a server, "" where gossip does not know it.
func (a *autopilot) name(id string) string {
	for _, m := range a.members() {
		if m.ID == id {
			return m.Name
		}
	}
	return ""
}
