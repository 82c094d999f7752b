package server

import (
	"context"
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
// the binary, and its part that moves votes has nothing to do with one server.
type autopilot struct {
	raft    *consensus.Node
	store   *store.Store
	members func() []catalog.Member
	self    string // ID of this server
	first   catalog.Autopilot
	now     func() time.Time

	mu    sync.Mutex
	since map[string]standing
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
	_, err = a.state()
	return err
}

// state is how the servers are now. It is asked for where this server leads.
func (a *autopilot) state() (*wire.AutopilotReply, error) {
	peers, err := a.raft.Servers()
	if err != nil {
		return nil, err
	}
	cfg := a.settings()
	term, last := a.raft.Log()
	members := map[string]catalog.Member{}
	for _, m := range a.members() {
		members[m.ID] = m
	}
	out := &wire.AutopilotReply{Healthy: true}
	voters, sound := 0, 0
	for _, p := range peers {
		s := a.health(p, members[p.ID], cfg, term, last)
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

// health judges one server by what this one, the leader, knows of it.
func (a *autopilot) health(p wire.RaftPeer, m catalog.Member, cfg catalog.Autopilot, term, last uint64) wire.ServerHealth {
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
		s.LastContact, s.LastTerm = max(0, a.raft.LastContact()), term
	}
	s.Healthy = term > 0 && last > 0 && m.Status == catalog.MemberAlive &&
		s.LastContact >= 0 && s.LastContact <= cfg.LastContactThreshold &&
		s.LastTerm == term && s.LastIndex+cfg.MaxTrailingLogs >= last
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
