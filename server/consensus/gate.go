package consensus

import (
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// When a follower counts as stuck: it answers heartbeats, and takes no entries.
const (
	beatFresh  = 2 * time.Second
	stuckAfter = 10 * time.Second
)

// gate is what a server sends through to the others. It is closed while the disk
// hangs; it sees how the others get on; and during a recovery it answers for those
// that are lost.
type gate struct {
	Transport
	refuse    func() error        // why nothing may be sent, nil when it may
	installed func(time.Duration) // told how long sending a backup took
	lost      lostServers

	mu    sync.Mutex
	term  uint64
	peers map[raft.ServerID]*progress
}

// progress is what the leader knows of a follower, in this term.
type progress struct {
	since      time.Time // when the first question was sent
	beat       time.Time // when it last answered a heartbeat
	took       time.Time // when it last agreed to the log
	last       uint64    // where its log ends
	installing int
	told       bool // that it is stuck
}

func newGate(t Transport, refuse func() error) *gate {
	return &gate{Transport: t, refuse: refuse, installed: func(time.Duration) {}, peers: map[raft.ServerID]*progress{}}
}

func (g *gate) peer(id raft.ServerID, term uint64) *progress {
	if term > g.term {
		g.term = term
		clear(g.peers)
	}
	p := g.peers[id]
	if p == nil {
		p = &progress{since: time.Now()}
		g.peers[id] = p
	}
	return p
}

// AppendEntries implements raft.Transport.
func (g *gate) AppendEntries(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := g.refuse(); err != nil {
		return err
	}
	if g.lost.appended(id, args, resp) {
		return nil
	}
	g.mu.Lock()
	g.peer(id, args.Term)
	g.mu.Unlock()
	if err := g.Transport.AppendEntries(id, to, args, resp); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if args.Term < g.term {
		return nil
	}
	p, now := g.peer(id, args.Term), time.Now()
	switch {
	case args.PrevLogEntry == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0:
		p.beat = now
	case resp.Success:
		p.took, p.last = now, resp.LastLog
		if n := len(args.Entries); n > 0 {
			p.last = max(p.last, args.Entries[n-1].Index)
		}
	}
	return nil
}

// InstallSnapshot implements raft.Transport.
func (g *gate) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := g.refuse(); err != nil {
		return err
	}
	g.mu.Lock()
	p := g.peer(id, args.Term)
	p.installing++
	g.mu.Unlock()
	start := time.Now()
	err := g.Transport.InstallSnapshot(id, to, args, resp, data)
	g.mu.Lock()
	p.installing--
	if err == nil && resp.Success {
		p.took, p.last = time.Now(), args.LastLogIndex
	}
	g.mu.Unlock()
	if err == nil && resp.Success {
		g.installed(time.Since(start))
	}
	return err
}

// RequestVote implements raft.Transport.
func (g *gate) RequestVote(id raft.ServerID, to raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := g.refuse(); err != nil {
		return err
	}
	v := vote{id, args.Term, false}
	if done, err := g.lost.voted(v, &resp.Term, &resp.Granted); done {
		return err
	}
	err := g.Transport.RequestVote(id, to, args, resp)
	if err == nil {
		g.lost.saw(v, resp.Granted)
	}
	return err
}

// RequestPreVote implements raft.WithPreVote.
func (g *gate) RequestPreVote(id raft.ServerID, to raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := g.refuse(); err != nil {
		return err
	}
	v := vote{id, args.Term, true}
	if done, err := g.lost.voted(v, &resp.Term, &resp.Granted); done {
		return err
	}
	err := g.Transport.RequestPreVote(id, to, args, resp)
	if err == nil {
		g.lost.saw(v, resp.Granted)
	}
	return err
}

// ahead gives the voter, other than self, whose log reaches furthest; "" when none is heard.
func (g *gate) ahead(servers []raft.Server, self raft.ServerID) (id raft.ServerID, addr raft.ServerAddress) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var most uint64
	for _, s := range servers {
		p := g.peers[s.ID]
		if s.ID == self || s.Suffrage != raft.Voter || p == nil || time.Since(later(p.beat, p.took)) > beatFresh {
			continue
		}
		if id == "" || p.last > most {
			id, addr, most = s.ID, s.Address, p.last
		}
	}
	return id, addr
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// stuck gives those of term that answer heartbeats and have not agreed to the log
// for long; fresh are those that were not given before.
func (g *gate) stuck(term uint64) (all int, fresh []raft.ServerID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.term != term {
		return 0, nil
	}
	now := time.Now()
	for id, p := range g.peers {
		last := p.took
		if last.Before(p.since) {
			last = p.since
		}
		if now.Sub(p.beat) > beatFresh || now.Sub(last) < stuckAfter || p.installing > 0 {
			p.told = p.told && now.Sub(last) >= stuckAfter
			continue
		}
		all++
		if !p.told {
			p.told = true
			fresh = append(fresh, id)
		}
	}
	return all, fresh
}

// Progress is how far a follower has come, as its leader sees it.
type Progress struct {
	LastIndex   uint64        // where its log ends
	LastContact time.Duration // since it last answered; negative: never
}

// Progress tells how far each of the others has come. It knows something where
// this node leads.
func (n *Node) Progress() map[string]Progress {
	g := n.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make(map[string]Progress, len(g.peers))
	for id, p := range g.peers {
		at := p.beat
		if p.took.After(at) {
			at = p.took
		}
		contact := time.Duration(-1)
		if !at.IsZero() {
			contact = time.Since(at)
		}
		out[string(id)] = Progress{LastIndex: p.last, LastContact: contact}
	}
	return out
}
