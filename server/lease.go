package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/server/rpc"
)

// An agent's connection to its server is the lease of its node check: when it breaks
// and the host does not answer, the leader need not wait for gossip to be sure.
const (
	// leaseGrace is how long an agent may have no connection to this server: it may be
	// changing servers.
	leaseGrace = 200 * time.Millisecond
	// probeTimeout bounds one attempt to reach a host, probes is how many are made.
	probeTimeout = 500 * time.Millisecond
	probes       = 2
	// maxProbes bounds the hosts that are probed at a time.
	maxProbes = 64
)

// leases counts the connections of agents.
type leases struct {
	lost func(node, id string) // the last connection of an agent broke

	mu     sync.Mutex
	conns  map[string]int // by node ID
	closed bool
	wg     sync.WaitGroup
}

// track gives back a connection that is counted until it is closed.
func (l *leases) track(c net.Conn, caller rpc.Caller) net.Conn {
	if l == nil || !caller.Agent {
		return c
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[caller.NodeID]++
	return &leased{Conn: c, closed: sync.OnceFunc(func() { l.end(caller) })}
}

type leased struct {
	net.Conn
	closed func()
}

// Close implements net.Conn.
func (c *leased) Close() error {
	defer c.closed()
	return c.Conn.Close()
}

func (l *leases) end(caller rpc.Caller) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns[caller.NodeID]--; l.conns[caller.NodeID] > 0 || l.closed {
		return
	}
	delete(l.conns, caller.NodeID)
	l.wg.Go(func() {
		time.Sleep(leaseGrace)
		l.mu.Lock()
		back := l.conns[caller.NodeID] > 0 || l.closed
		l.mu.Unlock()
		if !back {
			l.lost(caller.Node, caller.NodeID)
		}
	})
}

// stop ends the leases: connections that close from now on mean nothing.
func (l *leases) stop() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.wg.Wait()
}

// doubts are the hosts that were suspected and do not answer, although gossip
// still holds them for alive. The leader keeps them.
type doubts struct {
	members func() []catalog.Member
	probe   func(ctx context.Context, addr string) error
	changed func(ctx context.Context, node string) error // the reconciler is to look
	log     *slog.Logger

	mu    sync.Mutex
	hosts map[suspect]bool // false while it is not known yet
	clear map[suspect]bool // those that answered, while the reconciler looks; true where it is to look again
}

// suspect is a host that lost its connection.
type suspect struct{ node, id string }

func newDoubts(m Membership, log *slog.Logger) *doubts {
	return &doubts{members: m.Members, probe: m.Knock, log: log, hosts: map[suspect]bool{}, clear: map[suspect]bool{}}
}

// about tells whether a host is doubted.
func (d *doubts) about(m catalog.Member) bool {
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hosts[suspect{m.Name, m.ID}]
}

// cleared tells whether a host was checked now, and answered.
func (d *doubts) cleared(m catalog.Member) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.clear[suspect{m.Name, m.ID}]
	return ok
}

// take reserves the check of a host, for one at a time; full: there are too many.
func (d *doubts) take(s suspect) (taken, full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.hosts[s]; ok || len(d.hosts) >= maxProbes {
		return false, !ok
	}
	d.hosts[s] = false
	return true, false
}

// doubt has the reconciler look at a host that does not answer.
func (d *doubts) doubt(ctx context.Context, s suspect) {
	d.mu.Lock()
	d.hosts[s] = true
	d.mu.Unlock()
	_ = d.changed(ctx, s.node) // which has said so, and gossip will tell
}

// trust has the reconciler look at a host that answered, or is left to gossip, until it
// could write what it found: nothing else would have it look soon.
func (d *doubts) trust(ctx context.Context, s suspect) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, looking := d.clear[s]; looking {
		d.clear[s] = true
		return
	}
	defer delete(d.clear, s)
	for pause := retryLeast; ctx.Err() == nil; {
		d.clear[s] = false
		d.mu.Unlock()
		err := d.changed(ctx, s.node)
		if err != nil {
			wait(ctx, pause)
			pause = min(2*pause, retryMost)
		}
		d.mu.Lock()
		if err == nil && !d.clear[s] {
			return
		}
	}
}

// wait pauses, no longer than ctx lives.
func wait(ctx context.Context, pause time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// release ends the check of a host.
func (d *doubts) release(s suspect) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.hosts, s)
}

// check finds out whether a host is there that lost its connection, or of which an
// earlier leader knew that it was gone, and doubts it until gossip agrees or it answers
// again. Those that are too many at once are left to gossip.
func (d *doubts) check(ctx context.Context, s suspect) {
	m, ok := d.alive(s)
	if !ok {
		return
	}
	taken, full := d.take(s)
	if full {
		d.trust(ctx, s)
	}
	if !taken {
		return
	}
	doubted := false
	err := d.answers(ctx, m)
	for err != nil && ok && ctx.Err() == nil {
		if !doubted {
			d.log.Warn("a host that gossip holds for alive does not answer", "node", s.node, "err", err)
			d.doubt(ctx, s)
			doubted = true
		}
		wait(ctx, probeTimeout)
		if m, ok = d.alive(s); ok {
			err = d.probeOnce(ctx, m)
		}
	}
	d.release(s)
	switch {
	case err == nil:
		d.trust(ctx, s)
	case doubted:
		_ = d.changed(ctx, s.node) // as in doubt
	}
}

func (d *doubts) alive(s suspect) (catalog.Member, bool) {
	for _, m := range d.members() {
		if m.Name == s.node && m.ID == s.id {
			return m, m.Status == catalog.MemberAlive
		}
	}
	return catalog.Member{}, false
}

// answers knocks at a host. That nobody listens is a plain answer; silence is asked twice.
func (d *doubts) answers(ctx context.Context, m catalog.Member) (err error) {
	for range probes {
		if err = d.probeOnce(ctx, m); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
	}
	return err
}

func (d *doubts) probeOnce(ctx context.Context, m catalog.Member) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return d.probe(ctx, net.JoinHostPort(m.Addr, strconv.Itoa(int(m.Port))))
}
