package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// Config configures a Manager.
type Config struct {
	// Host watches what is registered on this host. Required.
	Host catalog.Watch[*local.Host]
	// Views watches what the servers know. Required.
	Views func(q catalog.Query) catalog.Watch[*catalog.View]
	// Signer gives the signer of a service's certificates. Required.
	Signer func(service catalog.Name) connect.Signer
	// Reporter takes to the servers what Node, this host, enforces. Nil: they are not told.
	Reporter Reporter
	Node     string
	// Listening is told whether a proxy takes connections, and why not. It may be nil.
	Listening func(proxyID string, listening bool, output string)

	// ExposeChecks is told, by service ID, where the proxies listen that expose the checks
	// of their services. It may be nil.
	ExposeChecks func(at map[string]string)

	Datacenter string // required
	// Advertise is the address at which others reach this host.
	Advertise string
	// Locality is where this host stands; nil: nobody said.
	Locality *catalog.Locality
	// DataDir keeps, for each proxy, its key, its certificate and the last snapshot.
	// Empty: in memory only.
	DataDir string
	// BindAddr is where inbound listeners are bound whose registration names no
	// address: 0.0.0.0.
	BindAddr string
	// DrainTimeout is how long running connections may finish where a registration does
	// not say: 5 s.
	DrainTimeout time.Duration
	// Grace is how long a new proxy waits for the first answer about its upstreams
	// before it starts without: 1 s.
	Grace time.Duration
	// MaxRetry bounds the pause before a proxy that failed is started again: 30 s.
	MaxRetry time.Duration

	// AccessLog says which connections get a line in the log.
	AccessLog connect.AccessLog
	// MeshPort is the inbound port that sidecars registered with it share; 0: none do.
	MeshPort int
	// NoShortCut has sidecars of this host reach each other by TLS.
	NoShortCut bool

	Logger  *slog.Logger
	Metrics *connect.Metrics // shared by all proxies; nil: none
	// Sockets keeps what the proxies listen on for the next process; nil: nobody does.
	Sockets connect.Sockets
	// Ledger keeps what processes carry that others have followed; nil: none do.
	Ledger Ledger

	// start makes a proxy; tests replace it.
	start func(connect.ProxyConfig) (proxy, error)
	// guard and port are shared by all proxies.
	guard *connect.Guard
	port  *connect.Port
	short *connect.ShortCut
	// news is called when a proxy enforces something else than before.
	news func()
}

// proxy is what the manager needs of a connect.Proxy.
type proxy interface {
	Run(ctx context.Context, src catalog.Watch[*connect.Snapshot]) error
	Status() connect.Status
}

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Host == nil || c.Views == nil || c.Signer == nil:
		return c, errors.New("sidecar: Host, Views and Signer must all be set")
	case c.Datacenter == "":
		return c, errors.New("sidecar: the datacenter has no name")
	case c.Reporter != nil && c.Node == "":
		return c, errors.New("sidecar: a Reporter needs the name of the node")
	}
	c.BindAddr = cmp.Or(c.BindAddr, "0.0.0.0")
	c.Grace = cmp.Or(c.Grace, time.Second)
	c.MaxRetry = cmp.Or(c.MaxRetry, 30*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Listening == nil {
		c.Listening = func(string, bool, string) {}
	}
	if c.ExposeChecks == nil {
		c.ExposeChecks = func(map[string]string) {}
	}
	if c.start == nil {
		c.start = func(pc connect.ProxyConfig) (proxy, error) { return connect.NewProxy(pc) }
	}
	if c.DataDir != "" {
		if err := os.MkdirAll(proxiesDir(c.DataDir), 0o700); err != nil {
			return c, fmt.Errorf("sidecar: %w", err)
		}
	}
	return c, nil
}

// Manager runs the proxies of a host.
type Manager struct {
	cfg Config

	mu      sync.Mutex
	running map[string]*sidecar      // by proxy ID
	ending  map[string]chan struct{} // closed when the last proxy of that ID has drained
	alive   map[*sidecar]struct{}    // those that run, and those that drain
	gaveUp  bool                     // another process takes over
	seen    chan struct{}            // closed once it is known what the host asks for
	news    chan struct{}            // capacity 1: what is enforced changed
	wg      sync.WaitGroup
	booking sync.Mutex // orders what is written to the ledger; taken before mu
	// draining is what earlier processes of this agent still carry, by proxy and process.
	draining map[string]map[int]*drainer
	tallies  map[int]tally // what they have counted
}

// New validates cfg and makes the directory of the proxies.
func New(cfg Config) (*Manager, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	m := &Manager{
		running: map[string]*sidecar{}, ending: map[string]chan struct{}{}, alive: map[*sidecar]struct{}{},
		seen: make(chan struct{}), news: make(chan struct{}, 1), draining: map[string]map[int]*drainer{},
	}
	cfg.news = func() {
		select {
		case m.news <- struct{}{}:
		default:
		}
	}
	cfg.guard = connect.NewGuard(connect.GuardConfig{})
	if !cfg.NoShortCut {
		cfg.short = connect.NewShortCut()
	}
	if cfg.MeshPort > 0 {
		cfg.port, err = connect.NewPort(connect.PortConfig{
			Addr: joinAddr("", cfg.BindAddr, cfg.MeshPort), Logger: cfg.Logger, Metrics: cfg.Metrics, Guard: cfg.guard,
			AccessLog: cfg.AccessLog, Sockets: cfg.Sockets,
		})
		if err != nil {
			return nil, fmt.Errorf("sidecar: %w", err)
		}
	}
	m.cfg = cfg
	return m, nil
}

// Run keeps the proxies in step with the host until ctx ends, then drains all of
// them and returns. What they enforce stays on disk.
func (m *Manager) Run(ctx context.Context) error {
	var telling sync.WaitGroup
	defer telling.Wait()
	told, end := context.WithCancel(context.WithoutCancel(ctx)) // while proxies drain, too
	defer end()
	telling.Go(func() { m.reporting(told) })
	if m.cfg.port != nil {
		telling.Go(func() { _ = m.cfg.port.Run(told) }) // it says itself what is wrong
	}
	var after uint64
	for {
		host, index, err := m.cfg.Host.Next(ctx, after)
		if err != nil {
			m.linger(told)
			m.restUpstreams(told)
			m.restPort(told)
			m.stopAll()
			if ctx.Err() == nil {
				return fmt.Errorf("sidecar: %w", err)
			}
			return nil //nolint:nilerr // told to end
		}
		if after == 0 {
			sweep(m.cfg.DataDir, wanted(host), m.cfg.Logger)
		}
		m.reconcile(ctx, host)
		if after == 0 {
			close(m.seen)
		}
		after = index
	}
}

// wanted lists the proxies that a host asks for.
func wanted(h *local.Host) map[string]*catalog.Service {
	out := map[string]*catalog.Service{}
	for id, s := range h.Services {
		if s.Kind == catalog.KindConnectProxy && s.Proxy.DestinationServiceName != "" {
			out[id] = s
		}
	}
	return out
}

func (m *Manager) reconcile(ctx context.Context, host *local.Host) {
	want := wanted(host)
	exposers, at := checkExposers(want, m.cfg.BindAddr)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gaveUp {
		return
	}
	m.cfg.ExposeChecks(at) // the host that follows has the ports
	for id, s := range m.running {
		switch reg, ok := want[id]; {
		case !ok:
			m.stop(s, errDeregistered)
		case !s.canBecome(reg):
			m.stop(s, errReplaced)
		}
	}
	for id, reg := range want {
		if s := m.running[id]; s != nil {
			s.setProxy(reg, restOf(host, reg), checksOf(host, exposers, reg))
			continue
		}
		s := newSidecar(m.cfg, reg)
		s.in.rest, s.in.checks = restOf(host, reg), checksOf(host, exposers, reg)
		m.running[id] = s
		m.cfg.news()
		before := m.ending[id]
		m.ending[id], m.alive[s] = s.over, struct{}{}
		// Proxies end by being stopped, so that they can drain: their context does
		// not end with that of Run.
		sctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		s.cancel = cancel
		m.wg.Go(func() {
			defer m.ended(s)
			if before != nil {
				<-before // its ports and files
			}
			s.run(sctx)
		})
	}
}

// Why the context of a proxy ends. errDeregistered also removes what is on disk;
// after errStopped the host is said to be as it was, since it comes back.
var (
	errStopped      = errors.New("the agent is stopping")
	errReplaced     = errors.New("the proxy was registered anew for another service")
	errDeregistered = errors.New("the proxy was deregistered")
)

// stop begins the end of s; m.mu is held.
func (m *Manager) stop(s *sidecar, why error) {
	delete(m.running, s.id)
	m.cfg.news()
	s.cancel(why)
}

func (m *Manager) ended(s *sidecar) {
	m.mu.Lock()
	close(s.over)
	delete(m.alive, s)
	m.cfg.news()
	last := m.ending[s.id] == s.over
	if last {
		delete(m.ending, s.id)
	}
	gaveUp := m.gaveUp
	m.mu.Unlock()
	if last && gaveUp && m.cfg.Ledger != nil {
		m.booking.Lock() // until it is written that this process carries it
		defer m.booking.Unlock()
		m.cfg.Ledger.Ended(s.id)
	}
}

// restPort ends the port before the proxies to which it hands its connections: who comes
// while they drain finds nobody there, rather than a port that knows none of them.
func (m *Manager) restPort(ctx context.Context) {
	if m.cfg.port == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lastMoment)
	defer cancel()
	m.cfg.port.Rest(ctx)
}

func (m *Manager) stopAll() {
	m.mu.Lock()
	for _, s := range m.running {
		m.stop(s, errStopped)
	}
	m.mu.Unlock()
	m.wg.Wait()
}

// Status shows every proxy of this host, sorted by ID.
func (m *Manager) Status() []connect.Status {
	m.mu.Lock()
	list := make([]*sidecar, 0, len(m.running))
	for _, s := range m.running {
		list = append(list, s)
	}
	m.mu.Unlock()
	out := make([]connect.Status, 0, len(list))
	for _, s := range list {
		st := s.status()
		m.mu.Lock()
		st.Drainers = m.drained(s.id)
		m.mu.Unlock()
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b connect.Status) int { return cmp.Compare(a.Proxy, b.Proxy) })
	return out
}

// Snapshot watches what a proxy of this host is to enforce, wherever it runs. The
// watch fails with ErrNotFound when no such proxy is registered, or no longer; it waits
// while that is not known yet.
func (m *Manager) Snapshot(proxyID string) catalog.Watch[*connect.Snapshot] {
	select {
	case <-m.seen:
		return m.snapshot(proxyID)
	default:
		return early{m, proxyID}
	}
}

// early is the watch of a proxy that was asked for before the host was seen.
type early struct {
	m  *Manager
	id string
}

// Next implements catalog.Watch.
func (e early) Next(ctx context.Context, after uint64) (*connect.Snapshot, uint64, error) {
	select {
	case <-e.m.seen:
		return e.m.snapshot(e.id).Next(ctx, after)
	case <-ctx.Done():
		return nil, 0, context.Cause(ctx)
	}
}

func (m *Manager) snapshot(proxyID string) catalog.Watch[*connect.Snapshot] {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.running[proxyID]; s != nil {
		if s.external {
			return feed{s}
		}
		return &s.out
	}
	none := &catalog.Latest[*connect.Snapshot]{}
	none.Close(fmt.Errorf("proxy %s: %w", proxyID, catalog.ErrNotFound))
	return none
}
