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

// doubts are the hosts that lost their connection and do not answer, although gossip
// still holds them for alive. The leader keeps them.
type doubts struct {
	members func() []catalog.Member
	probe   func(ctx context.Context, addr string) error
	changed func(ctx context.Context, node string) // the reconciler is to look
	log     *slog.Logger

	mu    sync.Mutex
	hosts map[suspect]bool // false while it is not known yet
}

// suspect is a host that lost its connection.
type suspect struct{ node, id string }

func newDoubts(members func() []catalog.Member, log *slog.Logger) *doubts {
	return &doubts{members: members, probe: knock, log: log, hosts: map[suspect]bool{}}
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

// take reserves the check of a host, for one at a time.
func (d *doubts) take(s suspect) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.hosts[s]; ok || len(d.hosts) >= maxProbes {
		return false
	}
	d.hosts[s] = false
	return true
}

func (d *doubts) settle(ctx context.Context, s suspect, doubted bool) {
	d.mu.Lock()
	was := d.hosts[s]
	if doubted {
		d.hosts[s] = true
	} else {
		delete(d.hosts, s)
	}
	d.mu.Unlock()
	if was != doubted {
		d.changed(ctx, s.node)
	}
}

// check finds out whether a host is there that lost its connection, and doubts it
// until gossip agrees or it answers again. Those that are too many at once are left
// to gossip.
func (d *doubts) check(ctx context.Context, s suspect) {
	m, ok := d.alive(s)
	if !ok || !d.take(s) {
		return
	}
	doubted := false
	defer func() { d.settle(ctx, s, false) }()
	err := d.answers(ctx, m)
	for err != nil && ok && ctx.Err() == nil {
		if !doubted {
			d.log.Warn("a host lost its connection and does not answer", "node", s.node, "err", err)
			d.settle(ctx, s, true)
			doubted = true
		}
		t := time.NewTimer(probeTimeout)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		if m, ok = d.alive(s); ok {
			err = d.probeOnce(ctx, m)
		}
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

// knock opens a connection to where a host's gossip listens.
func knock(ctx context.Context, addr string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}
