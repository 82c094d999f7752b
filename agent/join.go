package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/agent/remote"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/enroll"
)

// Join says how a host meets the others.
type Join struct {
	// Start are addresses of gossip of which one must answer at the first attempt.
	Start []string
	// Retry are tried until one answers. Both are host or host:port.
	Retry []string
	// Every is the longest pause between attempts. Default 30 s.
	Every time.Duration
	// Max is how many attempts are made before the agent gives up. 0: no end.
	Max int
	// ServerPort is that of servers of which only the host is known.
	ServerPort int
	// Refresh asks the servers at some addresses, of a host that is one itself, for what
	// changed while it was away. Nil: Credentials do that.
	Refresh func(ctx context.Context, servers []string) error
	// Server tells that this host is one, and Settled that its cluster has it at this
	// address: a server that is not, and is a copy of one that lives, ends the agent.
	Server  bool
	Settled func() bool
}

const (
	joinFirst = 250 * time.Millisecond
	joinTaken = time.Second
	// joinLook is how often it is looked whether this host is alone.
	joinLook = 2 * time.Second
)

// joiner brings a host together with the others: it gets a certificate, with which
// come the keys of gossip, then meets the members, and again whenever all of them
// are gone.
type joiner struct {
	cfg    Join
	log    *slog.Logger
	node   string
	dc     string
	gossip Gossip              // may be nil
	creds  *enroll.Credentials // may be nil
	pool   *remote.Pool        // nil beside a server
	ready  chan struct{}       // closed once there is a certificate
	retry  chan struct{}       // has a value when an operator named an address
	met    chan struct{}       // closed once another member was seen
	turned atomic.Int64        // when it was said that other servers turn this one away
	// turnedAway is why they did when they were asked last.
	turnedAway atomic.Pointer[refused]
}

// refused is a refusal and when it was heard.
type refused struct {
	at  time.Time
	err error
}

func newJoiner(cfg Config) *joiner {
	j := &joiner{
		cfg: cfg.Join, log: cfg.Logger, node: cfg.NodeName, dc: cfg.Datacenter, gossip: cfg.Gossip,
		creds: cfg.Credentials, pool: cfg.Pool, ready: make(chan struct{}), retry: make(chan struct{}, 1),
		met: make(chan struct{}),
	}
	if j.cfg.Every <= 0 {
		j.cfg.Every = 30 * time.Second
	}
	if j.creds == nil || j.creds.Ready() {
		close(j.ready)
	}
	return j
}

// identify gets the certificate of this host, if it has none, and keeps it good.
func (j *joiner) identify(ctx context.Context) error {
	if j.creds == nil {
		<-ctx.Done()
		return nil
	}
	p := pauses{first: joinFirst, most: min(j.cfg.Every, 10*time.Second)}
	for tries := 1; !j.creds.Ready(); tries++ {
		_, err := j.creds.Enroll(ctx)
		if err == nil {
			j.log.Info("this host has joined the cluster and has its certificate", "node", j.node)
			close(j.ready)
			break
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to end
		}
		if j.givesUp(tries) {
			return fmt.Errorf("no server let this host in, tried %d times: %w", tries, err)
		}
		if reason := enroll.ReasonOf(err); reason == enroll.ReasonNameTaken || reason == enroll.ReasonNodeIDInUse {
			p.reset() // until the others miss the host that had the name before
			p.first = joinTaken
		}
		if p.loud() {
			j.log.Warn("this host has not joined a cluster yet, will retry", "node", j.node, "err", err)
		}
		p.wait(ctx, j.retry)
	}
	return j.creds.Run(ctx)
}

func (j *joiner) givesUp(tries int) bool {
	if j.cfg.Max > 0 && tries >= j.cfg.Max {
		return true
	}
	return len(j.cfg.Start) > 0 && len(j.cfg.Retry) == 0 && tries >= 1
}

// run meets the members, at the start and whenever this host is alone.
func (j *joiner) run(ctx context.Context) error {
	select {
	case <-j.ready:
	case <-ctx.Done():
		return nil
	}
	if j.gossip == nil {
		<-ctx.Done()
		return nil
	}
	p := pauses{first: joinFirst, most: j.cfg.Every}
	met, tries, asked := false, 0, time.Now()
	var asking sync.WaitGroup
	defer asking.Wait()
	if j.cfg.Refresh != nil {
		asking.Go(func() { _ = j.refresh(ctx) }) // Credentials ask by themselves at the start
	}
	for ctx.Err() == nil {
		targets := j.targets()
		if !j.gossip.Alone() || len(targets) == 0 {
			if !met && !j.gossip.Alone() {
				met = true
				close(j.met)
				j.log.Info("this host takes part in the gossip of its cluster", "node", j.node, "members", len(j.gossip.Members()))
			}
			if err := j.disown(); err != nil {
				return err
			}
			p.reset()
			sleep(ctx, joinLook)
			if (j.partly() || j.turnedAway.Load() != nil || j.lapsing()) && time.Since(asked) > askAgain {
				asked = time.Now()
				_ = j.refresh(ctx) // logged, and asked again
			}
			continue
		}
		_, err := j.gossip.Join(ctx, targets)
		if !j.gossip.Alone() || ctx.Err() != nil {
			continue
		}
		told := j.refresh(ctx)
		tries++
		if err != nil && !met && j.givesUp(tries) {
			return fmt.Errorf("no host to join answers, tried %d times: %w", tries, err)
		}
		if err != nil && p.loud() {
			// Gossip does not say why it does not answer. Servers do.
			j.log.Warn("no other member answers, will retry", "node", j.node, "err", errors.Join(err, told))
		}
		p.wait(ctx, nil)
	}
	return nil
}

// askAgain is how often servers are asked while gossip misses some, or they turned this one
// away, or the certificate could not be renewed.
const askAgain = 30 * time.Second

// partly tells whether this host may be in touch with a part of its cluster only, as
// hosts are that have old keys of gossip: one that is a server misses another, others
// see none.
func (j *joiner) partly() bool {
	alive, missing := j.gossip.Servers()
	if j.cfg.Server {
		return missing > 0
	}
	return alive == 0
}

// lapsing tells whether the last attempt to renew the certificate failed. Credentials try
// it ever more rarely, minutes apart in the end; where the servers were away for longer than
// it was good, this host cannot speak to them until it is renewed.
func (j *joiner) lapsing() bool { return j.creds != nil && j.creds.Failure() != nil }

// refresh learns the keys of gossip of now, without which nobody hears this host, or why
// no server tells them.
func (j *joiner) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, refreshWait)
	defer cancel()
	if j.cfg.Refresh == nil {
		if j.creds == nil {
			return nil
		}
		_, err := j.creds.Renew(ctx)
		return j.untold(ctx, err)
	}
	var servers []string
	for _, a := range j.targets() {
		if s := j.serverAt(a); !slices.Contains(servers, s) && len(servers) < 8 {
			servers = append(servers, s)
		}
	}
	if len(servers) == 0 {
		return nil
	}
	return j.untold(ctx, j.cfg.Refresh(ctx, servers))
}

// untold logs why nobody told what changed.
func (j *joiner) untold(ctx context.Context, err error) error {
	if err == nil {
		j.turnedAway.Store(nil)
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	var refusal *enroll.Refusal
	if j.cfg.Refresh != nil && errors.As(err, &refusal) && refusal.Lasting() {
		j.turnedAway.Store(&refused{time.Now(), err})
		// Nobody else says so here: gossip may let this server in, and Raft waits for it for ever.
		last, now := j.turned.Load(), time.Now().UnixNano()
		if last != 0 && now-last < int64(time.Minute) || !j.turned.CompareAndSwap(last, now) {
			return err
		}
		j.log.Error("other servers turn this one away", "node", j.node, "reason", string(refusal.Reason), "err", err)
		return err
	}
	j.log.Debug("no other server told what changed meanwhile", "node", j.node, "err", err)
	return err
}

// refreshWait bounds one round of questions to other servers.
const refreshWait = 5 * time.Second

// serverAt is the address of a server on the host of an address of gossip.
func (j *joiner) serverAt(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		addr = host
	}
	return net.JoinHostPort(addr, strconv.Itoa(j.cfg.ServerPort))
}

// targets are where to look for members: those that the configuration names, and
// those that were there before.
func (j *joiner) targets() []string {
	out := slices.Concat(j.cfg.Start, j.cfg.Retry)
	for _, a := range j.gossip.Peers() {
		if !slices.Contains(out, a) && len(out) < 16 {
			out = append(out, a)
		}
	}
	return out
}

// meet joins the member at addr, now, as an operator asks.
func (j *joiner) meet(ctx context.Context, addr string) error {
	if j.pool != nil {
		j.pool.Hint([]string{j.serverAt(addr)})
	}
	if j.creds != nil && !j.creds.Ready() {
		select {
		case j.retry <- struct{}{}:
		default:
		}
		wait, cancel := context.WithTimeout(ctx, enrollWait)
		defer cancel()
		select {
		case <-j.ready:
		case <-wait.Done():
			return fmt.Errorf("join %s: %w: this host has no certificate yet, and no server gave it one; its log says why", addr, catalog.ErrUnavailable)
		}
	}
	_, err := j.gossip.Join(ctx, []string{addr})
	return err
}

// enrollWait is how long an operator waits for a certificate.
const enrollWait = 8 * time.Second

// follow keeps the list of servers as gossip knows them.
func (j *joiner) follow(ctx context.Context) error {
	for {
		members := j.gossip.Members()
		j.pool.Learn(serversOf(members, j.dc), len(members))
		select {
		case <-ctx.Done():
			return nil
		case <-j.gossip.Changed():
		}
	}
}

// serversOf are the servers among the members that are alive.
func serversOf(members []catalog.Member, datacenter string) []remote.Server {
	var out []remote.Server
	for _, m := range members {
		if m.Status != catalog.MemberAlive || m.Tags["role"] != "consul" || m.Tags["dc"] != datacenter || m.Tags["port"] == "" {
			continue
		}
		out = append(out, remote.Server{Node: m.Name, ID: m.ID, Addr: net.JoinHostPort(m.Addr, m.Tags["port"])})
	}
	return out
}

// Admit refuses members of other datacenters, for gossip.
func Admit(datacenter string) func(catalog.Member) error {
	return func(m catalog.Member) error {
		if dc := m.Tags["dc"]; dc != datacenter {
			return fmt.Errorf("it is of datacenter %q, this one is %q", dc, datacenter)
		}
		return nil
	}
}

// pauses double from first to most, with jitter.
type pauses struct {
	first, most, step time.Duration
	spoke             time.Time
}

func (p *pauses) reset() { p.step = 0 }

// loud tells whether it is time for another line in the log.
func (p *pauses) loud() bool {
	if time.Since(p.spoke) < 10*time.Second {
		return false
	}
	p.spoke = time.Now()
	return true
}

// wait waits for the next pause, or until wake has a value.
func (p *pauses) wait(ctx context.Context, wake <-chan struct{}) {
	p.step = max(min(p.step*2, p.most), p.first)
	t := time.NewTimer(p.step/2 + rand.N(p.step/2+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-wake:
	}
}

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
