package server

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

const (
	foundingEvery = 500 * time.Millisecond
	// promiseLife is how long a server that promised to begin a cluster with a founder
	// promises that to no other.
	promiseLife = 10 * time.Second
)

// founding brings servers without a past together to begin a cluster. The one with
// the lowest node ID proposes, and all of those it means to begin with must promise
// themselves to it, so that two proposals that share a server cannot both come true.
// A server that finds another with a past begins nothing: it waits to be taken in.
type founding struct {
	self    string // node ID
	expect  int
	cluster founders
	fresh   func() bool
	begin   func(ctx context.Context, voters map[string]string) error
	now     func() time.Time
	log     *slog.Logger

	mu      sync.Mutex
	founder string // promised to
	until   time.Time
	said    string // last word to the log
}

// founders are the other servers, for founding.
type founders interface {
	servers() map[string]catalog.Member
	standings(ctx context.Context, whom map[string]string) map[string]*wire.StandingReply
	ask(id, addr string) (wire.Peers, error)
}

// run returns when this server is in a cluster, or ctx ends.
func (f *founding) run(ctx context.Context) {
	tick := time.NewTicker(foundingEvery)
	defer tick.Stop()
	for f.fresh() {
		if f.expect > 0 {
			f.step(ctx)
		} else {
			f.say("this server waits until the leader of a cluster takes it in", "hint", "is it joined to the other servers (retry_join)?")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// say logs what is waited for, when that changed.
func (f *founding) say(what string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.said != what {
		f.said = what
		f.log.Info("no cluster yet", append([]any{"reason", what}, args...)...)
	}
}

// waitsFor is what was said last.
func (f *founding) waitsFor() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.said
}

func (f *founding) step(ctx context.Context) {
	servers := f.cluster.servers()
	voters, others := map[string]string{}, map[string]string{}
	for id, m := range servers {
		addr := serverAddr(m)
		if id != f.self {
			others[id] = addr
		}
		switch want := m.Tags[tagExpect]; {
		case addr == "" || want == "":
		case want != strconv.Itoa(f.expect):
			f.say("another server expects another number of servers: no cluster begins until bootstrap_expect is the same on all",
				"node", m.Name, "its", want, "ours", f.expect)
			return
		default:
			voters[id] = addr
		}
	}
	standings := f.cluster.standings(ctx, others)
	for id, s := range standings {
		if !s.Fresh {
			f.say("there is a cluster already: this server begins none and waits to be taken in", "known_by", servers[id].Name)
			return
		}
	}
	if _, ok := voters[f.self]; !ok || len(voters) < f.expect {
		f.say("this server waits for others to begin a cluster with", "expected", f.expect, "seen", len(voters))
		return
	}
	ids := make([]string, 0, len(voters))
	for id := range voters {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if ids[0] != f.self {
		f.say("the servers that were waited for are here; one of them begins the cluster", "founder", servers[ids[0]].Name)
		return
	}
	for _, id := range ids {
		if id != f.self && standings[id] == nil {
			f.say("a server is seen but does not answer: no cluster begins yet", "node", servers[id].Name, "addr", voters[id])
			return
		}
	}
	f.found(ctx, ids, voters)
}

func (f *founding) found(ctx context.Context, ids []string, voters map[string]string) {
	plan := &wire.PromiseRequest{Founder: f.self, Voters: ids}
	if err := f.promise(plan); err != nil {
		return // to another founder; that one, or the end of the promise, comes
	}
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for _, id := range ids[1:] {
		at, err := f.cluster.ask(id, voters[id])
		if err == nil {
			_, err = at.Promise(asking, plan)
		}
		if err != nil {
			f.log.Warn("a server did not promise to begin the cluster; it is tried again", "id", id, "err", err)
			return
		}
	}
	if !f.stands(f.self) {
		f.log.Warn("asking the others took so long that their promises may be over; they are asked again", "founder", f.self)
		return
	}
	if err := f.begin(ctx, voters); err != nil {
		f.log.Error("the cluster could not begin", "err", err)
		return
	}
	f.log.Info("this server began a cluster", "servers", len(voters), "voters", strings.Join(ids, " "))
}

// stands tells whether this server's promise to a founder still holds. A founder gives
// its own before it asks for any other, so that the others' hold at least as long.
func (f *founding) stands(founder string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.founder == founder && f.now().Before(f.until)
}

// promise gives or keeps a promise.
func (f *founding) promise(plan *wire.PromiseRequest) error {
	if !slices.Contains(plan.Voters, f.self) || !slices.Contains(plan.Voters, plan.Founder) {
		return catalog.Invalidf("promise: this server or the founder is not among those who shall begin the cluster")
	}
	if !f.fresh() {
		return catalog.Conflictf("promise: this server has a past: it is in a cluster already")
	}
	if len(plan.Voters) < f.expect || f.expect == 0 {
		return catalog.Conflictf("promise: this server expects %d servers, %d shall begin the cluster", f.expect, len(plan.Voters))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.founder != "" && f.founder != plan.Founder && f.now().Before(f.until) {
		return catalog.Conflictf("promise: this server has promised itself to %s", f.founder)
	}
	f.founder, f.until = plan.Founder, f.now().Add(promiseLife)
	return nil
}

// votesFor tells whether a server without a past votes for a candidate: for the one
// that it promised itself to, and, should it have forgotten that in a restart, for one
// whose cluster has nothing in its log yet but the list of servers.
func (f *founding) votesFor(candidate string, lastIndex uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.expect > 0 && (f.founder == candidate || lastIndex <= 1)
}
