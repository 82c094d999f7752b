package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/agent/remote"
	"github.com/weftmesh/weft/agent/sidecar"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/enroll"
)

func sortDurations(d []time.Duration) { slices.Sort(d) }

// crowd is agents in this process, each with the real connection to the servers, a
// certificate of its own and a proxy of the service db.
type crowd struct {
	agents []*member
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// hands has room for those that shake hands at a time: the hosts that they stand for
	// have processors of their own, and do not slow each other down.
	hands chan struct{}

	mu      sync.Mutex
	waiting map[int]bool // who does not enforce what is expected yet
	indexes []uint64     // what each enforces
	last    time.Time
	all     chan struct{}
}

// member is one agent.
type member struct {
	crowd  *crowd
	i      int
	remote *remote.Remote
	ready  chan struct{}
	once   sync.Once
}

// Report implements sidecar.Reporter: it notes what this agent enforces, and says so to
// the servers as every agent does.
func (m *member) Report(ctx context.Context, req *wire.ReportRequest) (*wire.ReportReply, error) {
	for _, p := range req.Proxies {
		m.crowd.enforces(m.i, p.Intentions)
		if p.Intentions > 0 {
			m.once.Do(func() { close(m.ready) })
		}
	}
	return m.remote.Report(ctx, req)
}

func (c *crowd) enforces(i int, index uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if index <= c.indexes[i] {
		return
	}
	c.indexes[i] = index
	if c.waiting[i] {
		delete(c.waiting, i)
		if len(c.waiting) == 0 {
			c.last = time.Now()
			close(c.all)
		}
	}
}

// expect begins to wait until each agent enforces something newer than now.
func (c *crowd) expect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting, c.all = map[int]bool{}, make(chan struct{})
	for i := range c.agents {
		c.waiting[i] = true
	}
}

func (c *crowd) wait(ctx context.Context, most time.Duration) (time.Time, error) {
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return time.Time{}, context.Cause(ctx)
	case <-t.C:
		c.mu.Lock()
		defer c.mu.Unlock()
		return time.Time{}, fmt.Errorf("after %s %d of %d agents do not enforce the policy", most, len(c.waiting), len(c.agents))
	case <-c.all:
		return c.last, nil
	}
}

func (c *crowd) stop() {
	c.cancel()
	c.wg.Wait()
}

// comeUp is how long an agent may take for a step of its start, on processors that it
// shares with all others.
const comeUp = 5 * time.Minute

// insist repeats a step once a second until it succeeds.
func insist(ctx context.Context, step func() error) (err error) {
	for end := time.Now().Add(comeUp); ; time.Sleep(time.Second) {
		if err = step(); err == nil || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
	}
}

func startCrowd(ctx context.Context, f *fleet, n int) (*crowd, error) {
	token, err := os.ReadFile(f.token)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &crowd{cancel: cancel, hands: make(chan struct{}, 32), indexes: make([]uint64, n), agents: make([]*member, n)}
	for i := range c.agents {
		c.agents[i] = &member{crowd: c, i: i, ready: make(chan struct{})}
	}
	turns := make(chan struct{}, 16) // who joins at a time
	err = parallel(n, func(i int) error {
		turns <- struct{}{}
		defer func() { <-turns }()
		return c.agents[i].start(ctx, f, strings.TrimSpace(string(token)), n)
	})
	end := time.After(comeUp)
	for _, a := range c.agents {
		if err != nil {
			break
		}
		select {
		case <-a.ready:
		case <-end:
			err = fmt.Errorf("agent %d enforces nothing", a.i)
		}
	}
	if err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

// start joins the cluster, states the host and runs its proxy.
func (m *member) start(ctx context.Context, f *fleet, token string, n int) error {
	name := fmt.Sprintf("bench-%d-%d", n, m.i)
	id := fmt.Sprintf("%08x-0000-4000-8000-%012x", n, m.i)
	var seeds []string
	for _, a := range f.addrs {
		seeds = append(seeds, net.JoinHostPort(a, "8300"))
	}
	// As hosts have: servers bound what comes from one address.
	addr := fmt.Sprintf("127.140.%d.%d", m.i/250, m.i%250+1)
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	creds, err := enroll.NewAgent(enroll.AgentConfig{
		Node: name, NodeID: id, Datacenter: "dc1", Logger: quiet, Dial: from.DialContext,
		Token: func() (string, error) { return token, nil }, Servers: func() []string { return seeds },
	})
	if err != nil {
		return err
	}
	if err := insist(ctx, func() error { _, err := creds.Enroll(ctx); return err }); err != nil {
		return err
	}
	pool, err := remote.NewPool(remote.PoolConfig{
		Seeds: seeds, Logger: quiet, Every: time.Hour,
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			select {
			case m.crowd.hands <- struct{}{}:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			c, err := from.DialContext(ctx, "tcp", addr)
			if err != nil {
				<-m.crowd.hands
			}
			return c, err
		},
		Secure: func(ctx context.Context, c net.Conn) (net.Conn, error) {
			defer func() { <-m.crowd.hands }()
			return creds.Secure(ctx, enroll.ProtoRPC, enroll.Peer{Role: enroll.RoleServer, Datacenter: "dc1"}, c)
		},
	})
	if err != nil {
		return err
	}
	if m.remote, err = remote.New(remote.Config{Pool: pool, Logger: quiet}); err != nil {
		return err
	}
	node := &catalog.Node{Node: name, ID: id, Address: addr, Datacenter: "dc1"}
	db := &catalog.Service{ID: "db", Service: "db", Port: 1, Address: addr}
	proxy := &catalog.Service{ID: "db-sidecar-proxy", Service: "db-sidecar-proxy", Kind: catalog.KindConnectProxy, Port: 20000 + n%97, Address: addr, Proxy: catalog.ConnectProxy{
		DestinationServiceName: "db", DestinationServiceID: "db", LocalServiceAddress: "127.0.0.1", LocalServicePort: 1,
	}}
	err = insist(ctx, func() error {
		_, err := m.remote.Sync(ctx, catalog.NodeState{Node: node, Services: []*catalog.Service{db, proxy}})
		return err
	})
	if err != nil {
		return errors.Join(fmt.Errorf("agent %d: %w", m.i, err), m.remote.Close())
	}
	host := &catalog.Latest[*local.Host]{}
	host.Set(1, &local.Host{Node: node, Services: map[string]*catalog.Service{db.ID: db, proxy.ID: proxy}})
	manager, err := sidecar.New(sidecar.Config{
		Host: host, Views: m.remote.Watch, Signer: sidecar.NewSigner(m.remote), Reporter: m, Node: name,
		Datacenter: "dc1", BindAddr: addr, DrainTimeout: time.Millisecond, Logger: quiet,
	})
	if err != nil {
		return errors.Join(err, m.remote.Close())
	}
	linked, unlink := context.WithCancel(context.WithoutCancel(ctx)) // while the proxy ends
	m.crowd.wg.Go(func() { _ = m.remote.Run(linked) })
	m.crowd.wg.Go(func() {
		defer unlink()
		_ = manager.Run(ctx)
	})
	return nil
}

// sizesOf reads a list of numbers.
func sizesOf(list string) (out []int, err error) {
	for _, s := range strings.Split(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 1 {
			return nil, fmt.Errorf("-agents: %q is no number above 0", s)
		}
		out = append(out, n)
	}
	return out, nil
}
