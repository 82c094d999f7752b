package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"

	"github.com/weftmesh/weft/agent/central"
	"github.com/weftmesh/weft/agent/dns"
	"github.com/weftmesh/weft/agent/events"
	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/agent/remote"
	"github.com/weftmesh/weft/agent/sidecar"
	"github.com/weftmesh/weft/agent/watches"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// Agent is one host.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	gossip   Gossip // may be nil
	remote   *remote.Remote
	local    *local.State
	central  *central.Merger // nil: registrations stay as they are
	sidecars *sidecar.Manager
	leaves   *sidecar.Leaves
	dns      *dns.Server // nil when off
	places   *coordinates
	events   *events.Events
	api      *httpapi.Server
	watches  *watches.Runner

	joiner   *joiner
	requests requests
}

// requests are what others may ask of an agent as a whole.
type requests struct {
	reloading sync.Mutex
	leave     chan struct{} // closed when the host is to leave for good
	once      sync.Once
	giveUp    chan struct{} // closed when another process is to take over
	giveOnce  sync.Once
	proxies   stage // what goes on then
}

// New validates cfg, reads what is on disk, takes the registrations of the
// configuration files and binds the addresses of the API and of DNS. Run serves; Close is for an
// Agent that is never run.
func New(cfg Config) (*Agent, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, log: cfg.Logger, gossip: cfg.Gossip, requests: requests{leave: make(chan struct{}), giveUp: make(chan struct{})}}
	a.joiner = newJoiner(cfg)
	if err := a.build(); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// viewsDir keeps what the servers said, "" for nowhere.
func viewsDir(dataDir string) string {
	if dataDir == "" {
		return ""
	}
	return filepath.Join(dataDir, "views")
}

// build makes the components, each from those before it.
func (a *Agent) build() error {
	cfg := a.cfg
	var err error
	if a.remote, err = remote.New(remote.Config{
		Dial: cfg.Dial, Pool: cfg.Pool, HoldTimeout: cfg.HoldTimeout, KeepDir: viewsDir(cfg.DataDir),
		CallTimeout: cfg.Limits.CallTimeout, Rate: cfg.Limits.Rate, Burst: cfg.Limits.Burst,
		Logger: cfg.Logger, Registerer: cfg.Registerer,
	}); err != nil {
		return err
	}
	var syncer local.Syncer
	if a.central, syncer, err = newCentral(cfg, a.joiner.guard(a.remote), a.remote.Watch); err != nil {
		return err
	}
	if a.local, err = local.New(local.Config{
		Node: cfg.node(cfg.Files.NodeMeta), DataDir: cfg.DataDir, Syncer: syncer, Reached: a.remote.Reached, Logger: cfg.Logger,
		MeshPort: cfg.MeshPort, SidecarMinPort: cfg.SidecarMinPort, SidecarMaxPort: cfg.SidecarMaxPort,
		ExposeMinPort: cfg.ExposeMinPort, ExposeMaxPort: cfg.ExposeMaxPort, CheckTLS: cfg.Checks.TLS,
		Hosts: hosts(a.gossip), Scripts: cfg.Checks.Scripts, CheckOutputMaxSize: cfg.Checks.OutputMaxSize, DiscardCheckOutput: cfg.Checks.DiscardOutput,
		SidecarDeregisterAfter: cfg.Checks.SidecarDeregisterAfter,
		CheckUpdateInterval:    cfg.CheckUpdateInterval, AliasTarget: aliasTargets(a.remote.Watch),
	}); err != nil {
		return err
	}
	if err := a.applyFiles(context.Background(), cfg.Files); err != nil {
		return err
	}
	if a.sidecars, err = sidecar.New(sidecar.Config{
		Host: merged(a.local, a.central).Watch(), Views: a.remote.Watch, Signer: sidecar.NewSigner(a.remote),
		Sockets: sockets(cfg), Ledger: ledger(cfg), Reporter: a.remote, Node: cfg.NodeName,
		Listening: a.local.SetListening, ExposeChecks: a.local.ExposeChecks, Advertise: cfg.Advertise, Datacenter: cfg.Datacenter, Locality: cfg.Locality, DataDir: cfg.DataDir,
		BindAddr: cfg.BindAddr, DrainTimeout: cfg.DrainTimeout, AccessLog: cfg.AccessLog, MeshPort: cfg.MeshPort, NoShortCut: cfg.NoShortCut, Logger: cfg.Logger, Metrics: connect.NewMetrics(cfg.Registerer),
	}); err != nil {
		return err
	}
	if a.leaves, err = sidecar.NewLeaves(sidecar.LeavesConfig{
		Authority: a.remote, Views: a.remote.Watch, Datacenter: cfg.Datacenter, Logger: cfg.Logger,
	}); err != nil {
		return err
	}
	if a.events, err = events.New(events.Config{
		NodeName: cfg.NodeName, Services: func() map[string]*catalog.Service { return a.local.Host().Services },
		Courier: cfg.Courier, Logger: cfg.Logger, Registerer: cfg.Registerer,
	}); err != nil {
		return err
	}
	if a.dns, err = newNames(a); err != nil {
		return err
	}
	if cfg.Registerer != nil {
		m := hostMetrics{version: cfg.Version}
		if a.gossip != nil {
			m.members = a.gossip.Members
		}
		if err = errors.Join(cfg.Registerer.Register(m), cfg.Registerer.Register(a.sidecars)); err != nil {
			return err
		}
	}
	a.places = &coordinates{cfg: cfg.Coordinates, node: cfg.NodeName, servers: a.remote, log: cfg.Logger}
	if a.gossip != nil {
		a.places.members = a.gossip.Members
	}
	if a.api, err = httpapi.New(httpConfig(a)); err != nil {
		return err
	}
	a.watches, err = watches.New(watches.Config{
		API: a.api.Handler(), Watches: cfg.Files.Watches, Logger: cfg.Logger, Registerer: cfg.Registerer,
	})
	return err
}

func httpConfig(a *Agent) httpapi.Config {
	h := a.cfg.HTTP
	h.Self.Datacenter, h.Self.NodeName, h.Self.NodeID, h.Self.Version = a.cfg.Datacenter, a.cfg.NodeName, a.cfg.NodeID, a.cfg.Version
	h.Local, h.Servers, h.Proxies, h.Leaves = merged(a.local, a.central), a.remote, a.sidecars, a.leaves
	h.Operators, h.Policies, h.Events = a.remote, a.remote, a.events
	h.Control, h.Sockets = control{a}, sockets(a.cfg)
	h.Self.Stats, h.Self.Coordinate = agentStats{a}.sections, a.cfg.Coordinates.Current
	if a.gossip != nil {
		h.Members = a.gossip
	}
	if h.Logger == nil {
		h.Logger = a.cfg.Logger
	}
	if h.Registerer == nil {
		h.Registerer = a.cfg.Registerer
	}
	return h
}

// Run serves until ctx ends, Leave is called, or a component fails, and then ends
// the components in order. The error is that of the component that failed first, or
// ErrGaveUp: the proxies run on then, until Drain.
func (a *Agent) Run(ctx context.Context) error {
	defer a.Close()
	base := context.WithoutCancel(ctx)
	failed := make(chan error, 16) // more than there are components
	links := start(base, "remote", failed, a.remote.Run)
	members := start(base, "gossip", failed, orIdle(a.gossip != nil, func(ctx context.Context) error { return a.gossip.Run(ctx) }))
	credentials := start(base, "credentials", failed, a.joiner.identify)
	joining := start(base, "joining", failed, a.joiner.run)
	servers := start(base, "list of servers", failed, orIdle(a.cfg.Pool != nil && a.gossip != nil, a.joiner.follow))
	host := start(base, "local", failed, a.local.Run)
	settings := start(base, "central configuration", failed, merging(a.local, a.central))
	proxies := start(base, "sidecar", failed, a.sidecars.Run)
	names := start(base, "dns", failed, orIdle(a.dns != nil, a.dns.Run))
	places := start(base, "coordinates", failed, a.places.run)
	userEvents := start(base, "events", failed, a.events.Run)
	api := start(base, "http api", failed, a.api.Run)
	watching := start(base, "watches", failed, a.watches.Run)
	feeding := start(base, "feed of drainers", failed, orIdle(a.cfg.DataDir != "", feedDrainers(a)))

	var err error
	leaving, givingUp := a.cfg.LeaveOnStop, false
	select {
	case <-ctx.Done():
	case <-a.requests.leave:
		leaving = true
	case <-a.requests.giveUp:
		leaving, givingUp = false, true
	case err = <-failed:
	}
	switch {
	case err != nil:
		a.log.Error("a component failed; the agent stops", "node", a.cfg.NodeName, "err", err)
	case givingUp:
		a.log.Info("the agent gives up all but its proxies to another process", "node", a.cfg.NodeName)
	default:
		a.log.Info("the agent stops", "node", a.cfg.NodeName)
	}
	if !givingUp && a.cfg.Sockets != nil {
		a.cfg.Sockets.Close() // who cannot be served is to go elsewhere
	}
	end(watching)
	end(feeding)
	end(api) // no more writes
	end(joining)
	if leaving {
		sayGoodbye(base, a)
	}
	if givingUp {
		a.sidecars.GiveUp() // Drain ends them
		a.requests.proxies = proxies
	} else {
		end(proxies) // no more connections; those that run may finish
	}
	end(names) // what is served may have names to ask for
	end(places)
	end(host)
	end(settings)
	end(userEvents)
	end(servers)
	end(members)
	end(credentials)
	end(links)
	select {
	case late := <-failed:
		if err == nil && !errors.Is(late, context.Canceled) {
			err = late
		}
	default:
	}
	if givingUp && err == nil {
		err = ErrGaveUp
	}
	return err
}

// Close releases what New bound. Run closes by itself.
func (a *Agent) Close() {
	if a.api != nil {
		a.api.Close()
	}
	if a.dns != nil {
		a.dns.Close()
	}
	if a.remote != nil {
		if err := a.remote.Close(); err != nil {
			a.log.Warn("the connection to the servers did not close well", "err", err)
		}
	}
}

// HTTPAddrs are the addresses of the API, in the order of Config.HTTP.Addrs, and
// those with TLS, in the order of Config.HTTP.TLSAddrs.
func (a *Agent) HTTPAddrs() (plain, secure []net.Addr) { return a.api.Addrs(), a.api.TLSAddrs() }

// Reload reads the configuration files again and applies what may change while
// the agent runs. When they are not valid nothing changes.
func (a *Agent) Reload(ctx context.Context) (err error) {
	a.requests.reloading.Lock()
	defer a.requests.reloading.Unlock()
	defer func() {
		if err != nil {
			a.log.Error("the configuration was not reloaded; the old one stays", "err", err)
		}
	}()
	if a.cfg.Load == nil {
		return nil // an agent without files has nothing to read again
	}
	f, err := a.cfg.Load(ctx)
	if err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	if err := a.applyFiles(ctx, f); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	if err := a.local.SetNode(a.cfg.node(f.NodeMeta)); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	a.watches.Set(f.Watches)
	if f.LogLevel != nil && a.cfg.LogLevel != nil {
		a.cfg.LogLevel.Set(*f.LogLevel)
	}
	if l := f.Limits; l != nil {
		a.remote.SetLimits(l.CallTimeout, l.Rate, l.Burst)
	}
	if f.HTTPConns != nil {
		a.api.SetMaxConnsPerClient(*f.HTTPConns)
	}
	if f.Taken != nil {
		f.Taken()
	}
	a.log.Info("configuration reloaded", "node", a.cfg.NodeName)
	return nil
}

// Leave takes this host out of the cluster and ends Run. It does not wait for that.
func (a *Agent) Leave() { a.requests.once.Do(func() { close(a.requests.leave) }) }

func (a *Agent) applyFiles(ctx context.Context, f Files) error {
	warnings, err := a.local.ApplyFiles(ctx, f.Services, f.Checks)
	for _, w := range warnings {
		a.log.Warn("a registration of the configuration files is odd", "reason", w)
	}
	return err
}
