package main

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/agent/dns"
	"github.com/weftmesh/weft/agent/gossip"
	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/agent/remote"
	"github.com/weftmesh/weft/agent/telemetry"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/durable"
	"github.com/weftmesh/weft/cmd/weft/config"
	"github.com/weftmesh/weft/connect"
	"github.com/weftmesh/weft/connect/enroll"
	"github.com/weftmesh/weft/server"
	"github.com/weftmesh/weft/server/consensus"
)

// host is everything that runs on one host: gossip, the agent, and where it is one,
// a server.
type host struct {
	cfg    *config.Config
	begin  time.Time // of the process
	nodeID string
	logs   *logs
	log    *slog.Logger
	trust  trust
	gossip *gossip.Gossip
	pool   *remote.Pool   // the servers on other hosts; nil beside a server
	server *server.Server // nil on an agent
	agent  *agent.Agent
	sender *telemetry.Sender // of metrics
	paths  []string          // of the configuration
	relay  *relay
}

// newHost validates and binds everything, in the order in which the parts need
// each other. load reads the configuration again.
func newHost(cfg *config.Config, l *logs, load func() (*config.Config, error), begin time.Time, r *relay) (h *host, err error) {
	h = &host{cfg: cfg, begin: begin, logs: l, log: l.logger(), relay: r}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	if err := prepareDataDir(cfg.DataDir); err != nil {
		return h, err
	}
	if err := durable.Sweep(cfg.DataDir, begin); err != nil {
		h.log.Warn("what an earlier process left in the middle of writing cannot be removed", "file", cfg.DataDir, "err", err)
	}
	if h.nodeID, err = agent.NodeID(cfg.DataDir, cfg.NodeID); err != nil {
		return h, withCode(exitDataDir, err)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := h.openTrust(); err != nil {
		return h, err
	}
	reg.MustRegister(h.trust.expiry())
	if h.gossip, err = gossip.New(h.gossipConfig()); err != nil {
		return h, startError(cfg, err)
	}
	if cfg.Server {
		err = h.newServer(reg)
	} else {
		err = h.newPool()
	}
	if err != nil {
		return h, startError(cfg, err)
	}
	if h.agent, err = agent.New(h.agentConfig(reg, load)); err != nil {
		return h, startError(cfg, err)
	}
	if h.sender, err = telemetry.New(h.telemetryConfig(reg)); err != nil {
		return h, startError(cfg, err)
	}
	return h, nil
}

// shown are the metrics that there are to see.
func (h *host) shown(reg *prometheus.Registry) prometheus.Gatherer {
	return telemetry.Filter(reg, h.cfg.MetricNames(), h.cfg.MetricRules())
}

func (h *host) telemetryConfig(reg *prometheus.Registry) telemetry.Config {
	t := h.cfg.Telemetry
	out := telemetry.Config{
		Gatherer: h.shown(reg), Names: h.cfg.MetricNames(), Statsd: t.Statsd, DogStatsd: t.DogStatsd, Tags: t.DogStatsdTags,
		Strict: !t.RetryFailed, Logger: h.log, Registerer: reg, Began: h.begin,
	}
	if !t.DisableHostname {
		out.Hostname, _ = os.Hostname() // without a name gauges have none
	}
	return out
}

func (h *host) newServer(reg prometheus.Registerer) error {
	// Before the server takes part in Raft, for which it and a copy of it are one.
	if err := h.gossip.Original(context.Background(), slices.Concat(h.cfg.Cluster.StartJoin, h.cfg.Cluster.RetryJoin)); err != nil {
		return withCode(exitDataDir, err)
	}
	c, err := h.serverConfig(reg)
	if err != nil {
		return err
	}
	h.server, err = server.New(c)
	return err
}

// newPool prepares the way to servers on other hosts.
func (h *host) newPool() error {
	creds := h.trust.creds
	var err error
	h.pool, err = remote.NewPool(remote.PoolConfig{
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			if !creds.Ready() {
				return nil, enroll.ErrNoCertificate
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		},
		Secure: func(ctx context.Context, c net.Conn) (net.Conn, error) {
			return creds.Secure(ctx, enroll.ProtoRPC, enroll.Peer{Role: enroll.RoleServer, Datacenter: h.cfg.Datacenter}, c)
		},
		Seeds: h.cfg.ServerAddrs(), File: h.cfg.ServersFile(), Logger: h.log,
	})
	return err
}

// close releases what newHost bound, when it is never run.
func (h *host) close() {
	if h.agent != nil {
		h.agent.Close()
	}
	if h.server != nil {
		if err := h.server.Close(); err != nil {
			h.log.Warn("the server did not close well", "err", err)
		}
	}
	if h.gossip != nil {
		h.gossip.Close()
	}
}

func (h *host) gossipConfig() gossip.Config {
	c := h.cfg
	b := buildInfo()
	tags := map[string]string{
		"role": "node", "dc": c.Datacenter, "build": b.Version,
		"vsn": "2", "vsn_min": "2", "vsn_max": "3", "segment": "", "acls": "0",
	}
	if c.Server {
		maps.Copy(tags, h.serverTags())
	}
	var warrant gossip.Warrant
	if h.trust.creds != nil {
		warrant = h.trust.creds
	}
	return gossip.Config{
		Warrant: warrant, NodeName: c.NodeName, NodeID: h.nodeID,
		BindAddr: cmp.Or(c.Gossip.BindAddr, c.BindAddr), BindPort: c.Ports.SerfLAN, AdvertiseAddr: c.AdvertiseAddr,
		Tags: tags, Label: h.trust.clusterID, SecretKeys: h.trust.keys, KeyringFile: c.KeyringFile(), AwaitKeys: true,
		PeersFile: c.PeersFile(), HomeFile: c.HomeFile(), RejoinAfterLeave: c.Cluster.RejoinAfterLeave,
		AllowedNets: c.GossipNets(), Admit: agent.Admit(c.Datacenter), ReapAfter: c.Cluster.ReconnectTimeout, Logger: h.log,
		Pace: gossip.Pace{
			Interval: c.Gossip.Interval, Nodes: c.Gossip.Nodes, ProbeInterval: c.Gossip.ProbeInterval, ProbeTimeout: c.Gossip.ProbeTimeout,
			RetransmitMult: c.Gossip.RetransmitMult, SuspicionMult: c.Gossip.SuspicionMult,
		},
	}
}

// serverTags tell others that this host has a server, and where.
func (h *host) serverTags() map[string]string {
	c := h.cfg
	tags := map[string]string{
		"role": "consul", "port": strconv.Itoa(c.Ports.Server), "raft_vsn": "3", "ft_fs": "1", "ft_si": "1",
	}
	if c.BootstrapExpect > 0 {
		tags["expect"] = strconv.Itoa(c.BootstrapExpect)
	}
	// Clients of Consul read these; -1 is off and is not told.
	for tag, port := range map[string]int{
		"grpc_port": c.Ports.GRPC, "grpc_tls_port": c.Ports.GRPCTLS, "wan_join_port": c.Ports.SerfWAN,
	} {
		if port > 0 {
			tags[tag] = strconv.Itoa(port)
		}
	}
	return tags
}

func (h *host) serverConfig(reg prometheus.Registerer) (server.Config, error) {
	c := h.cfg
	out := server.Config{
		NodeName: c.NodeName, NodeID: h.nodeID, Datacenter: c.Datacenter,
		Addr:    joinAddr(c.AdvertiseAddr, c.Ports.Server),
		DataDir: c.DataDir, Dev: c.DataDir == "", Bootstrap: c.Bootstrap,
		DefaultIntention: catalog.Action(c.DefaultIntentionPolicy),
		CA:               caConfig(c),
		Autopilot:        autopilotConfig(c),
		MinSessionTTL:    c.SessionTTLMin,
		Requests:         requestLimits(c), Port: portLimits(c),
		Raft:       consensus.Timers{Snapshot: c.RaftSnapshotInterval}.Times(c.RaftMultiplier),
		RaftLog:    consensus.LogSettings{Threshold: uint64(c.RaftSnapshotThreshold), Trailing: uint64(c.RaftTrailingLogs)}, //nolint:gosec // above 0
		Membership: h.gossip, ReapAfter: c.Cluster.ReconnectTimeout, Version: buildInfo().Version, Logger: h.log, Registerer: reg,
	}
	if c.Dev {
		return out, nil // one host: nobody else has to reach it
	}
	ln, err := h.listen()
	if err != nil {
		return out, err
	}
	out.Cluster = &server.Cluster{
		Listener: ln, Expect: c.BootstrapExpect, Secret: h.trust.secret, Credentials: h.trust.creds, GossipKeys: h.gossip.Export,
	}
	return out, nil
}

func (h *host) agentConfig(reg *prometheus.Registry, load func() (*config.Config, error)) agent.Config {
	c := h.cfg
	out := agent.Config{
		NodeName: c.NodeName, NodeID: h.nodeID, Datacenter: c.Datacenter,
		Advertise: c.AdvertiseAddr, AdvertiseWAN: c.Advertised.WAN, TaggedAddresses: c.TaggedAddresses(), Locality: c.Locality(),
		BindAddr: c.BindAddr, NodeMeta: c.NodeMeta,
		Version: buildInfo().Version, DataDir: c.DataDir, HoldTimeout: c.Cluster.RPCHoldTimeout, Limits: agentLimits(c),
		Gossip: h.gossip, Courier: h.gossip, HTTP: h.httpConfig(reg), Files: filesOf(c), DNS: dnsConfig(c),
		DNSViews:     dns.ViewsConfig{AllowStale: c.DNS.AllowStale, MaxStale: c.DNS.MaxStale, UseCache: c.DNS.UseCache},
		Load:         h.reload(load),
		Coordinates:  h.coordinates(),
		AccessLog:    connect.AccessLog{Off: !c.Connect.AccessLog.Enabled, Skip: 1 - c.Connect.AccessLog.Sample},
		MeshPort:     c.Connect.MeshPort,
		NoShortCut:   !c.Connect.LocalShortCut,
		Sockets:      h.relay.sockets,
		DrainTimeout: c.LeaveDrainTime, NoCentralConfig: !c.CentralServiceConfig,
		SidecarMinPort: c.Ports.SidecarMinPort, SidecarMaxPort: c.Ports.SidecarMaxPort,
		ExposeMinPort: c.Ports.ExposeMinPort, ExposeMaxPort: c.Ports.ExposeMaxPort,
		CheckUpdateInterval: cmp.Or(c.CheckUpdateInterval, -1), // 0 is at once
		Checks:              checkConfig(c),
		Logger:              h.log, LogLevel: h.logs.level, Registerer: reg,
		Join: agent.Join{
			Start: c.Cluster.StartJoin, Retry: c.Cluster.RetryJoin, Every: c.Cluster.RetryInterval, Max: c.Cluster.RetryMax,
			ServerPort: c.Ports.Server,
		},
	}
	if h.server != nil {
		out.Dial = h.server.Dial // which renews the certificate, too
		if !c.Dev {
			out.Join.Refresh, out.Join.Server = h.refresh, true
			out.Join.Settled = func() bool { return server.Settled(h.server) }
		}
	} else {
		out.Pool, out.Credentials = h.pool, h.trust.creds
	}
	return out
}

func checkConfig(c *config.Config) agent.Checks {
	s := c.CheckSettings
	return agent.Checks{
		TLS: c.CheckTLS(), Scripts: c.ScriptGate(), OutputMaxSize: s.OutputMaxSize, DiscardOutput: s.DiscardOutput, SidecarDeregisterAfter: s.SidecarDeregisterAfter,
	}
}

func (h *host) httpConfig(reg *prometheus.Registry) httpapi.Config {
	c, b := h.cfg, buildInfo()
	var addrs, secure []string
	for _, l := range c.HTTP() {
		addrs = append(addrs, l.String())
	}
	for _, l := range c.HTTPSAddrs() {
		secure = append(secure, l.String())
	}
	headers := c.ResponseHeaders
	if c.Advertised.Translate {
		headers = maps.Clone(headers)
		if headers == nil {
			headers = map[string]string{}
		}
		headers["X-Consul-Translate-Addresses"] = "true"
	}
	uid, gid := c.SocketOwner()
	return httpapi.Config{
		Unix: httpapi.UnixSockets{Mode: c.UnixMode(), UID: uid, GID: gid}, NoCache: !c.HTTPUseCache,
		Mint: h.trust.mint(), Addrs: addrs, Domain: c.Domain, Dev: c.Dev, EnableDebug: c.EnableDebug,
		TLSAddrs: secure, TLS: httpapi.TLSFiles(c.HTTPSFiles()), HandshakeTimeout: c.HTTPS.HandshakeTimeout,
		Self: httpapi.Self{
			Server: c.Server, Revision: b.Revision, BuildDate: b.BuildDate,
			GRPCPort: c.Ports.GRPC, GRPCTLSPort: c.Ports.GRPCTLS, Debug: c.Effective,
		},
		Keyring: h.gossip, Monitor: h.logs.tap, DefaultQueryTime: c.DefaultQueryTime, MaxQueryTime: c.MaxQueryTime,
		DiscoveryMaxStale: c.DiscoveryMaxStale, MaxConnsPerClient: httpConns(c),
		KVMaxValueSize: int64(c.Limits.KVMaxValueSize), TxnMaxRequest: int64(c.Limits.TxnMaxRequest),
		MaxHeaderBytes: c.MaxHeaderBytes, ResponseHeaders: headers, Gatherer: h.shown(reg), MetricNames: c.MetricNames(),
		BlockEndpoints: c.BlockEndpoints, AllowWriteFrom: c.Writers(), AllowedHosts: c.AllowedHosts,
	}
}

func dnsConfig(c *config.Config) dns.Config {
	d := c.DNS
	return dns.Config{
		Addrs: c.DNSAddrs(), Domain: c.Domain, AltDomain: c.AltDomain,
		NodeTTL: d.NodeTTL, ServiceTTL: d.ServiceTTL, OnlyPassing: d.OnlyPassing,
		UDPAnswerLimit: d.UDPAnswerLimit, ARecordLimit: d.ARecordLimit, EnableTruncate: d.EnableTruncate,
		DisableCompression: d.DisableCompression, DisableNodeMetaTXT: !d.NodeMetaTXT,
		SOA: dns.SOA{
			Refresh: uint32(d.SOA.Refresh), Retry: uint32(d.SOA.Retry), Expire: uint32(d.SOA.Expire), MinTTL: uint32(d.SOA.MinTTL),
		},
		Recursors: d.Recursors, RecursorStrategy: d.RecursorStrategy, RecursorTimeout: d.RecursorTimeout, RecurseFrom: c.RecurseFrom(),
	}
}

func autopilotConfig(c *config.Config) catalog.Autopilot {
	a := c.Autopilot
	return catalog.Autopilot{
		CleanupDeadServers: a.CleanupDeadServers, LastContactThreshold: a.LastContactThreshold,
		MaxTrailingLogs: uint64(max(0, a.MaxTrailingLogs)), MinQuorum: uint(max(0, a.MinQuorum)),
		ServerStabilizationTime: a.ServerStabilizationTime, RedundancyZoneTag: a.RedundancyZoneTag,
		DisableUpgradeMigration: a.DisableUpgradeMigration, UpgradeVersionTag: a.UpgradeVersionTag,
	}
}

func (h *host) coordinates() agent.Coordinates {
	out := agent.Coordinates{Every: h.cfg.SyncCoordinateIntervalMin, Rate: h.cfg.SyncCoordinateRateTarget}
	if !h.cfg.DisableCoordinates {
		out.Current = h.gossip.Coordinate
	}
	return out
}

// filesOf is the part of the configuration that a reload may change.
func filesOf(c *config.Config) agent.Files {
	limits, conns := agentLimits(c), httpConns(c)
	f := agent.Files{
		Services: c.Services, Checks: c.Checks, Watches: c.Watches, NodeMeta: c.NodeMeta, Limits: &limits, HTTPConns: &conns,
	}
	if level, err := parseLevel(c.LogLevel); err == nil {
		f.LogLevel = &level
	}
	return f
}

// needRestart names the keys whose values differ and that a reload does not change.
func needRestart(running, read *config.Config) []string {
	was, is := running.Effective(), read.Effective()
	var out []string
	for key, v := range is {
		if !config.Reloads(key) && !reflect.DeepEqual(was[key], v) {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

func (h *host) reload(load func() (*config.Config, error)) func(context.Context) (agent.Files, error) {
	return func(context.Context) (agent.Files, error) {
		c, err := load()
		if err != nil {
			return agent.Files{}, err
		}
		for _, w := range c.Warnings {
			h.log.Warn("configuration", "reason", w)
		}
		if keys := needRestart(h.cfg, c); len(keys) > 0 {
			h.log.Warn("changed keys take effect after a restart only", "keys", strings.Join(keys, " "))
		}
		if err := h.logs.reopen(); err != nil {
			return agent.Files{}, err
		}
		f := filesOf(c)
		f.Taken = func() { h.limitServer(c) }
		return f, nil
	}
}

// greet says what is started, and what of its configuration has no effect.
func greet(cfg *config.Config, l *logs) {
	log, b := l.logger(), buildInfo()
	dir := cfg.DataDir
	if dir == "" {
		dir = "none, all is kept in memory"
	}
	log.Info("weft agent starts", "version", b.Version, "node", cfg.NodeName, "datacenter", cfg.Datacenter,
		"server", cfg.Server, "data_dir", dir, "files", cmp.Or(strings.Join(cfg.Files, " "), "none"))
	for _, w := range cfg.Warnings {
		log.Warn("configuration", "reason", w)
	}
	for _, l := range slices.Concat(cfg.HTTP(), openHTTPS(cfg)) {
		if l.Network == "tcp" && !loopbackAddr(l.Addr) {
			log.Warn("the HTTP API can be reached from other hosts, and ACLs are off: anyone there can change everything",
				"addr", l.Addr, "hint", "set client_addr to 127.0.0.1")
		}
	}
}

// openHTTPS is where the API listens with TLS for clients that show no certificate.
func openHTTPS(cfg *config.Config) []config.Listener {
	if cfg.HTTPSFiles().VerifyIncoming {
		return nil
	}
	return cfg.HTTPSAddrs()
}

// banner says where the host listens.
func (h *host) banner() {
	h.log.Info("listening", "service", "gossip", "addr", h.gossip.Addr())
	plain, secure := h.agent.HTTPAddrs()
	for _, a := range plain {
		h.log.Info("listening", "service", "http", "addr", a.String())
	}
	for _, a := range secure {
		h.log.Info("listening", "service", "https", "addr", a.String())
	}
	for _, a := range h.agent.DNSAddrs() {
		h.log.Info("listening", "service", "dns", "addr", a.String())
	}
}
