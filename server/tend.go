package server

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/consensus"
)

const deadGrace = 30 * time.Second

// begin starts a term of leadership.
func (a *autopilot) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.began, a.since, a.absent, a.barred = a.now(), map[string]standing{}, map[string]time.Time{}, map[string]time.Time{}
}

// tend makes the servers in Raft those that are alive: it takes newcomers in, gives
// them a vote once they are stable, follows their addresses and removes the dead. It
// does what it can, and returns what failed.
func (a *autopilot) tend(ctx context.Context, state *wire.AutopilotReply) error {
	peers, err := a.raft.Servers()
	if err != nil {
		return err
	}
	alive := a.cluster.servers()
	for id, names := range a.cluster.clones() {
		if !a.silent("cloned", id) {
			a.log.Error("two servers have one node ID: neither is taken in, and nothing is changed for either", "id", id,
				"nodes", strings.Join(names, " "), "hint", "stop one, remove its data directory, and start it again to get an ID of its own")
		}
	}
	var errs []error
	known := map[string]bool{}
	for _, p := range peers {
		known[p.ID] = true
		addr := serverAddr(alive[p.ID])
		if p.ID != a.self && addr != "" && addr != p.Address {
			a.log.Info("a server has another address", "id", p.ID, "was", p.Address, "is", addr)
			errs = append(errs, a.raft.Add(ctx, p.ID, addr, p.Voter))
		}
	}
	maps.DeleteFunc(alive, func(id string, m catalog.Member) bool { return known[id] || serverAddr(m) == "" || a.bars(id) })
	for id, s := range a.strangers(ctx, alive) {
		errs = append(errs, a.admit(ctx, id, alive[id], s))
	}
	errs = append(errs, a.promote(ctx, state), a.bury(ctx, peers))
	return errors.Join(errs...)
}

// operated is Raft as operators change it.
type operated struct {
	*consensus.Node
	autopilot *autopilot
}

// Remove implements rpc.Raft. The server that is removed finds out by itself, and is
// not taken in again before it had the time to: from then on it says that it was
// removed, until it is restarted. A leader hands over first: the next one, which removes
// it, is that which knows of it.
func (o operated) Remove(ctx context.Context, id, address string) error {
	if id == "" {
		id, _ = o.IDOf(address)
	}
	if peers, err := o.Peers(); err == nil && len(peers) > 1 && id == o.autopilot.self {
		return o.autopilot.cluster.leave(ctx)
	}
	o.autopilot.mu.Lock()
	o.autopilot.barred[id] = o.autopilot.now().Add(o.autopilot.tempo.told())
	o.autopilot.mu.Unlock()
	return o.Node.Remove(ctx, id, address)
}

// young tells whether another may have led a moment ago, and have removed a server
// that does not know it yet.
func (a *autopilot) young() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now().Sub(a.began) < a.tempo.told()
}

// bars tells whether a server was removed a moment ago.
func (a *autopilot) bars(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	until, ok := a.barred[id]
	if ok && a.now().After(until) {
		delete(a.barred, id)
		return false
	}
	return ok
}

// sayAgain is how often the same is said of the same server.
const sayAgain = time.Minute

// silent tells whether something was said of a server a moment ago.
func (a *autopilot) silent(what, id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	key, now := what+" "+id, a.now()
	if at, ok := a.told[key]; ok && now.Sub(at) < sayAgain {
		return true
	}
	if len(a.told) > maxPeers {
		clear(a.told)
	}
	a.told[key] = now
	return false
}

// maxStrangers bounds the servers that are asked at a time whether they are to be taken
// in: any host that speaks gossip can invent some.
const maxStrangers = 16

// stranger is what a server that is not in Raft says of itself.
type stranger struct {
	at  *wire.StandingReply
	err error
}

// strangers asks some servers, others each time where there are many.
func (a *autopilot) strangers(ctx context.Context, whom map[string]catalog.Member) map[string]stranger {
	var mu sync.Mutex
	var wg sync.WaitGroup
	out, asked := map[string]stranger{}, 0
	for id, m := range whom {
		if asked++; asked > maxStrangers {
			break
		}
		wg.Go(func() {
			at, err := a.cluster.standing(ctx, id, serverAddr(m), true)
			mu.Lock()
			defer mu.Unlock()
			out[id] = stranger{at, err}
		})
	}
	wg.Wait()
	return out
}

// admit takes a server in, as one that does not vote.
func (a *autopilot) admit(ctx context.Context, id string, m catalog.Member, s stranger) error {
	addr := serverAddr(m)
	at, err := s.at, s.err
	if err != nil {
		if a.silent("unreachable", id) {
			return nil
		}
		a.log.Warn("a server that gossip knows does not answer and is not taken in yet", "node", m.Name, "addr", addr, "err", err)
		return nil
	}
	if at.Dismissed || !at.Fresh && a.young() {
		return nil // it was removed on purpose, or may have been: only its restart ends that
	}
	if a.raft.Foreign(at.Marks, at.Applied) {
		if a.silent("foreign", id) {
			return nil
		}
		a.log.Error("a server has a log that is not of this cluster and is not taken in", "node", m.Name, "id", id, "addr", addr,
			"hint", "did it begin a cluster of its own? What is in it is lost when it joins: "+
				"stop it, move the raft folder and the raft-id file out of its data directory, and start it again")
		return nil
	}
	if free, err := a.replace(ctx, id, m); err != nil || !free {
		return err
	}
	if err := a.raft.Add(ctx, id, addr, false); err != nil {
		return err
	}
	a.log.Info("a server is taken into Raft, at first without a vote", "node", m.Name, "id", id, "addr", addr)
	return nil
}

// replace takes from Raft the server at whose address a newcomer has proved to be, as
// after a disk was lost and the host built anew: Raft has no two servers at one address,
// and nobody answers there for the old one any more. It tells whether the address is free.
// One that is dead counts for nothing, so that without it no fewer may fail than before.
func (a *autopilot) replace(ctx context.Context, id string, m catalog.Member) (free bool, err error) {
	addr := serverAddr(m)
	old, err := a.raft.IDOf(addr)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return true, nil
	case err != nil:
		return false, err
	}
	if other, lives := a.cluster.servers()[old]; lives || old == a.self {
		if !a.silent("crowded", id) {
			a.log.Warn("a server says that it is where another one is, and is not taken in before that one is missed", "node", m.Name, "id", id,
				"addr", addr, "other", other.Name, "hint", "give each server an address of its own (advertise)")
		}
		return false, nil
	}
	a.log.Warn("a server is removed from Raft", "id", old, "addr", addr, "reason", "another one was built in its place", "node", m.Name)
	if err := a.raft.Remove(ctx, old, ""); err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return false, err
	}
	return true, nil
}

// promote gives votes to those who do not vote and have been well long enough. While
// there are fewer voters than the cluster was to begin with, being well is enough.
func (a *autopilot) promote(ctx context.Context, state *wire.AutopilotReply) error {
	voters := len(state.Voters)
	var errs []error
	for _, s := range state.Servers {
		if s.Status != "non-voter" || !s.Healthy {
			continue
		}
		stable := a.now().Sub(s.StableSince)
		if stable < a.settings().ServerStabilizationTime && voters >= a.cluster.cfg.Expect {
			continue
		}
		a.log.Info("a server has been well and is given a vote", "node", s.Name, "id", s.ID, "stable", stable)
		if err := a.raft.Add(ctx, s.ID, s.Address, true); err != nil {
			errs = append(errs, err)
			continue
		}
		voters++
	}
	return errors.Join(errs...)
}

// bury removes servers that left, and those that have been dead for a while as long
// as enough voters remain.
func (a *autopilot) bury(ctx context.Context, peers []wire.RaftPeer) error {
	cfg := a.settings()
	status := map[string]catalog.MemberStatus{}
	for _, m := range a.members() {
		if status[m.ID] != catalog.MemberAlive {
			status[m.ID] = m.Status
		}
	}
	voters := 0
	for _, p := range peers {
		if p.Voter {
			voters++
		}
	}
	var errs []error
	for _, p := range peers {
		if p.ID == a.self {
			continue
		}
		why := a.gone(p.ID, status[p.ID], cfg)
		if why == "" {
			continue
		}
		if p.Voter && voters <= a.quorumFloor(cfg, voters) && why != goneLeft {
			a.log.Debug("a dead server stays in Raft, as too few would remain", "id", p.ID, "voters", voters)
			continue
		}
		a.log.Warn("a server is removed from Raft", "id", p.ID, "addr", p.Address, "reason", why)
		if err := a.raft.Remove(ctx, p.ID, ""); err != nil {
			errs = append(errs, err)
			continue
		}
		if p.Voter {
			voters--
		}
	}
	return errors.Join(errs...)
}

const (
	goneLeft = "it left"
	goneDead = "it is dead"
)

// gone says why a server should not be in Raft any more, "" when it should.
func (a *autopilot) gone(id string, status catalog.MemberStatus, cfg catalog.Autopilot) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if status == catalog.MemberAlive {
		delete(a.absent, id)
		return ""
	}
	since, ok := a.absent[id]
	if !ok {
		since = a.now()
		a.absent[id] = since
	}
	switch grace := a.now().Sub(since); {
	case status == catalog.MemberLeft:
		return goneLeft
	case cfg.CleanupDeadServers && status == catalog.MemberFailed && grace >= a.tempo.dead,
		cfg.CleanupDeadServers && status == catalog.MemberNone && grace >= settle:
		return goneDead
	}
	return ""
}

// quorumFloor is how many voters must remain at least: what was asked for, and more
// than a bare majority of those there are.
func (a *autopilot) quorumFloor(cfg catalog.Autopilot, voters int) int {
	return max(int(min(cfg.MinQuorum, maxPeers)), (voters+1)/2+1)
}
