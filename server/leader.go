package server

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/server/consensus"
)

const (
	// reconcileEvery is how often the catalog is compared with the members although
	// nothing is said to have changed.
	reconcileEvery = time.Minute
	// authorityEvery is how often the roots are looked at.
	authorityEvery = 10 * time.Minute
	// retryLeast and retryMost bound the pause after a step that failed.
	retryLeast = 100 * time.Millisecond
	retryMost  = 30 * time.Second
)

// leader runs what only the leader does, while this server is it.
type leader struct {
	leadership catalog.Watch[consensus.Leadership]
	authority  *authority
	autopilot  *autopilot
	restored   chan struct{} // has a value when the state was replaced
	members    *reconciler
	gateways   *gateways
	expiry     *expiry
	changed    func() <-chan struct{}
	suspects   chan suspect
	leads      func() bool
	log        *slog.Logger
	pruner     *pruner
}

// maxSuspects bounds the hosts that wait to be checked.
const maxSuspects = 1024

func newLeader(s *Server) (*leader, error) {
	membership := membershipOf(s.cfg)
	expiry, err := newExpiry(s.store, s.raft, s.log, s.cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	l := &leader{
		suspects:   make(chan suspect, maxSuspects),
		leads:      func() bool { _, self, err := s.raft.Leader(); return err == nil && self },
		expiry:     expiry,
		leadership: s.raft.Leadership(), authority: s.authority, changed: membership.Changed, log: s.log,
		gateways: newGateways(s.store, s.raft, time.Now, s.log),
		restored: make(chan struct{}, 1),
		autopilot: &autopilot{
			raft: s.raft, store: s.store, members: membership.Members, cluster: s.cluster, self: s.cfg.NodeID,
			first: s.cfg.Autopilot, now: time.Now, log: s.log, tempo: s.cfg.tempo,
			since: map[string]standing{}, absent: map[string]time.Time{}, barred: map[string]time.Time{},
			told: map[string]time.Time{},
		},
		pruner: &pruner{store: s.store, raft: s.raft, now: time.Now},
		members: &reconciler{
			store: s.store, raft: s.raft, members: membership.Members, self: s.cfg.NodeName,
			datacenter: s.cfg.Datacenter, now: time.Now, log: s.log, reapAfter: cmp.Or(s.cfg.ReapAfter, defaultReapAfter), doubts: newDoubts(membership, s.log),
		},
	}
	l.members.doubts.changed, l.members.suspect = l.members.look, l.suspect
	return l, nil
}

// lost is told of a host that lost its connection. It reports false where this server
// does not lead.
func (l *leader) lost(node, id string) bool {
	if !l.leads() {
		return false
	}
	l.suspect(suspect{node, id}) // if not, gossip will tell
	return true
}

// suspect has a host checked, unless too many wait for that.
func (l *leader) suspect(s suspect) bool {
	select {
	case l.suspects <- s:
		return true
	default:
		return false
	}
}

// doubt checks hosts that lost their connection until ctx ends.
func (l *leader) doubt(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-l.suspects:
			wg.Go(func() { l.members.doubts.check(ctx, s) })
		}
	}
}

// run follows leadership until ctx ends.
func (l *leader) run(ctx context.Context) {
	for at := uint64(0); ; {
		now, index, err := l.leadership.Next(ctx, at)
		if err != nil {
			return // ctx ended, or Raft did
		}
		at = index
		if !now.Leading {
			continue
		}
		term, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { l.leadOn(term) })
		_, _, err = l.leadership.Next(ctx, at) // any news ends this term of ours
		cancel()
		wg.Wait()
		if err != nil {
			return
		}
	}
}

// leadOn leads, and begins anew each time that the state was replaced.
func (l *leader) leadOn(ctx context.Context) {
	for ctx.Err() == nil {
		spell, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { l.lead(spell) })
		select {
		case <-ctx.Done():
		case <-l.restored:
		}
		cancel()
		wg.Wait()
	}
}

// begun says that the state was replaced, by one that knows nothing of what this
// leader has done.
func (l *leader) begun() {
	select {
	case l.restored <- struct{}{}:
	default:
	}
}

// lead runs the loops of one term of leadership.
func (l *leader) lead(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { l.expiry.run(ctx) })
	wg.Go(func() { l.later(ctx) })
	wg.Go(func() { l.repeat(ctx, "certificate authority", authorityEvery, nil, l.authority.Ensure) })
	wg.Go(func() { l.gateways.follow(ctx) })
	wg.Go(func() { l.doubt(ctx) })
	wg.Go(func() { l.repeat(ctx, "gateways", gatewaysEvery, l.gateways.changed, l.gateways.settle) })
	wg.Go(func() { l.repeat(ctx, "revocations", pruneEvery, nil, l.pruner.prune) })
	l.autopilot.begin()
	wg.Go(func() { l.repeat(ctx, "autopilot", l.autopilot.tempo.autopilot, nil, l.autopilot.ensure) })
	l.members.begin()
	l.repeat(ctx, "members", reconcileEvery, l.changed, l.members.reconcile)
	wg.Wait()
}

// repeat does a step now, each time that changed fires, and every so often; after
// a failure it tries again soon.
func (l *leader) repeat(ctx context.Context, what string, every time.Duration, changed func() <-chan struct{}, step func(context.Context) error) {
	pause := retryLeast
	for {
		var fired <-chan struct{}
		if changed != nil {
			fired = changed()
		}
		wait := every
		err := step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			l.log.Warn("a duty of the leader failed and is tried again", "duty", what, "err", err)
			wait, pause = pause, min(2*pause, retryMost)
		default:
			pause = retryLeast
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-fired:
		case <-t.C:
		}
		t.Stop()
	}
}

func membershipOf(cfg Config) Membership {
	if cfg.Membership != nil {
		return cfg.Membership
	}
	return alone(cfg)
}

// lone is the membership of a server that has none: itself.
type lone struct{ self catalog.Member }

func alone(cfg Config) lone {
	host, port, _ := net.SplitHostPort(cfg.Addr)
	return lone{catalog.Member{
		Name: cfg.NodeName, ID: cfg.NodeID, Addr: host, Status: catalog.MemberAlive,
		Tags: map[string]string{"role": roleServer, "port": port, "build": cfg.Version, "dc": cfg.Datacenter},
	}}
}

func (l lone) Members() []catalog.Member { return []catalog.Member{l.self} }
func (lone) Doubles() []catalog.Member   { return nil }
func (lone) Changed() <-chan struct{}    { return nil }

func (lone) Shun(func(id string) bool) {}

// Knock is never called: there is nobody to lose.
func (lone) Knock(context.Context, string) error { return nil }

// Tags of members, as Consul has them.
const (
	roleServer = "consul"
	tagRole    = "role"
	tagPort    = "port"
	tagBuild   = "build"
	tagGRPC    = "grpc_port"
)
