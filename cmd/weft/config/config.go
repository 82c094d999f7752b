package config

import (
	"crypto/tls"
	"time"

	"github.com/weftmesh/weft/agent/watches"
	"github.com/weftmesh/weft/catalog"
)

// Config is what the sources say together, defaults filled in. The tag of a field
// names its key.
type Config struct {
	// Dev is set by the flag -dev alone.
	Dev bool

	Server          bool              `key:"server"`
	Bootstrap       bool              `key:"bootstrap"`
	BootstrapExpect int               `key:"bootstrap_expect"`
	Datacenter      string            `key:"datacenter"`
	NodeName        string            `key:"node_name"`
	NodeID          string            `key:"node_id"`
	NodeMeta        map[string]string `key:"node_meta"`
	DataDir         string            `key:"data_dir"`
	Domain          string            `key:"domain"`
	AltDomain       string            `key:"alt_domain"`

	BindAddr      string `key:"bind_addr"`
	AdvertiseAddr string `key:"advertise_addr"`
	ClientAddr    string `key:"client_addr"`
	Advertised    Advertised
	Place         Place
	Addresses     Addresses
	Ports         Ports

	DefaultIntentionPolicy string `key:"default_intention_policy"`
	Connect                Connect
	DNS                    DNS

	Services      []*catalog.ServiceRegistration
	Checks        []*catalog.CheckDefinition
	ConfigEntries []catalog.ConfigEntry
	// CentralServiceConfig merges proxy-defaults and service-defaults into proxies.
	CentralServiceConfig bool `key:"enable_central_service_config"`

	CheckUpdateInterval time.Duration `key:"check_update_interval"`
	CheckSettings       CheckSettings
	Watches             []watches.Definition

	LogLevel string `key:"log_level"`
	LogJSON  bool   `key:"log_json"`
	LogFile  string `key:"log_file"`
	Log      LogSettings

	DefaultQueryTime  time.Duration `key:"default_query_time"`
	MaxQueryTime      time.Duration `key:"max_query_time"`
	DiscoveryMaxStale time.Duration `key:"discovery_max_stale"`
	Limits            Limits
	SessionTTLMin     time.Duration     `key:"session_ttl_min"`
	MaxHeaderBytes    int               `key:"http_config.max_header_bytes"`
	ResponseHeaders   map[string]string `key:"http_config.response_headers"`
	BlockEndpoints    []string          `key:"http_config.block_endpoints"`
	AllowWriteFrom    []string          `key:"http_config.allow_write_http_from"`
	AllowedHosts      []string          `key:"http_config.allowed_hosts"`
	EnableDebug       bool              `key:"enable_debug"`
	HTTPS             HTTPS
	HTTPUseCache      bool   `key:"http_config.use_cache"`
	SocketMode        string `key:"unix_sockets.mode"`
	Sockets           SocketOwner
	PIDFile           string `key:"pid_file"`
	AutoReload        bool   `key:"auto_reload_config"`
	// LeaveOnTerminate and SkipLeaveOnInterrupt are nil until Load resolves their
	// defaults, which depend on Server.
	LeaveOnTerminate     *bool         `key:"leave_on_terminate"`
	SkipLeaveOnInterrupt *bool         `key:"skip_leave_on_interrupt"`
	LeaveDrainTime       time.Duration `key:"performance.leave_drain_time"`
	HandoverDrainTime    time.Duration `key:"performance.handover_drain_time"`

	Encrypt                   string        `key:"encrypt"`
	DisableKeyringFile        bool          `key:"disable_keyring_file"`
	DisableCoordinates        bool          `key:"disable_coordinates"`
	SyncCoordinateIntervalMin time.Duration `key:"sync_coordinate_interval_min"`
	SyncCoordinateRateTarget  float64       `key:"sync_coordinate_rate_target"`
	RaftSnapshotThreshold     int           `key:"raft_snapshot_threshold"`
	RaftSnapshotInterval      time.Duration `key:"raft_snapshot_interval"`
	RaftMultiplier            int           `key:"performance.raft_multiplier"`
	RaftTrailingLogs          int           `key:"raft_trailing_logs"`
	Autopilot                 Autopilot
	Cluster                   Cluster
	Gossip                    GossipSettings
	Telemetry                 Telemetry

	// Warnings are said once, when the agent starts or is validated.
	Warnings []string
	// Files are the files that were read, in order.
	Files []string

	where    map[string]Pos
	checkTLS *tls.Config
}

// Addresses of listeners that differ from client_addr.
type Addresses struct {
	HTTP string `key:"addresses.http"`
	DNS  string `key:"addresses.dns"`
}

// Ports of listeners; -1 is off.
type Ports struct {
	HTTP           int `key:"ports.http"`
	DNS            int `key:"ports.dns"`
	SerfLAN        int `key:"ports.serf_lan"`
	SerfWAN        int `key:"ports.serf_wan"` // only shown
	Server         int `key:"ports.server"`
	SidecarMinPort int `key:"ports.sidecar_min_port"`
	SidecarMaxPort int `key:"ports.sidecar_max_port"`
	ExposeMinPort  int `key:"ports.expose_min_port"`
	ExposeMaxPort  int `key:"ports.expose_max_port"`
	// GRPC and GRPCTLS are shown to those who ask; nothing is served on them.
	GRPC    int `key:"ports.grpc"`
	GRPCTLS int `key:"ports.grpc_tls"`
}

// Connect configures the mesh.
type Connect struct {
	Enabled    bool           `key:"connect.enabled"`
	CAProvider string         `key:"connect.ca_provider"`
	CAConfig   map[string]any `key:"connect.ca_config"`
	AccessLog  AccessLog
	MeshPort   int `key:"connect.mesh_port"`
	// LocalShortCut joins services of this agent without TLS between them.
	LocalShortCut bool `key:"connect.local_short_cut"`
}

// AccessLog says which connections of the mesh get a line in the log.
type AccessLog struct {
	Enabled bool    `key:"connect.access_log.enabled"`
	Sample  float64 `key:"connect.access_log.sample"`
}

// Autopilot is how the servers of a new cluster look after themselves.
type Autopilot struct {
	CleanupDeadServers      bool          `key:"autopilot.cleanup_dead_servers"`
	LastContactThreshold    time.Duration `key:"autopilot.last_contact_threshold"`
	MaxTrailingLogs         int           `key:"autopilot.max_trailing_logs"`
	MinQuorum               int           `key:"autopilot.min_quorum"`
	ServerStabilizationTime time.Duration `key:"autopilot.server_stabilization_time"`
	DisableUpgradeMigration bool          `key:"autopilot.disable_upgrade_migration"`
	RedundancyZoneTag       string        `key:"autopilot.redundancy_zone_tag"`
	UpgradeVersionTag       string        `key:"autopilot.upgrade_version_tag"`
}

// Default is the configuration of no source at all.
func Default() *Config {
	return &Config{
		Datacenter: "dc1",
		Domain:     "consul",
		BindAddr:   "0.0.0.0",
		ClientAddr: "127.0.0.1",
		Ports: Ports{
			HTTP: 8500, DNS: 8600, SerfLAN: 8301, SerfWAN: 8302, Server: 8300,
			SidecarMinPort: 21000, SidecarMaxPort: 21255, ExposeMinPort: 21500, ExposeMaxPort: 21755, GRPC: -1, GRPCTLS: -1,
		},
		DefaultIntentionPolicy: string(catalog.ActionDeny),
		Connect:                Connect{Enabled: true, CAProvider: "consul", AccessLog: AccessLog{Enabled: true, Sample: 1}, LocalShortCut: true},
		DNS:                    defaultDNS(),
		Telemetry:              defaultTelemetry(),
		CentralServiceConfig:   true,
		CheckUpdateInterval:    5 * time.Minute,
		CheckSettings:          CheckSettings{OutputMaxSize: 4096},
		Log:                    LogSettings{RotateDuration: 24 * time.Hour, SyslogFacility: "LOCAL0"},
		HTTPS:                  HTTPS{Port: -1, HandshakeTimeout: 5 * time.Second},
		LogLevel:               "info",
		DefaultQueryTime:       5 * time.Minute,
		MaxQueryTime:           10 * time.Minute,
		Limits:                 defaultLimits(),
		SessionTTLMin:          10 * time.Second,
		MaxHeaderBytes:         64 << 10,
		SocketMode:             "0600",
		HTTPUseCache:           true,
		LeaveDrainTime:         5 * time.Second,
		HandoverDrainTime:      10 * time.Minute,

		RaftSnapshotThreshold: 16384, RaftSnapshotInterval: 30 * time.Second, RaftTrailingLogs: 10240, RaftMultiplier: 1,
		SyncCoordinateIntervalMin: 15 * time.Second,
		SyncCoordinateRateTarget:  64,
		Autopilot: Autopilot{
			CleanupDeadServers: true, LastContactThreshold: 200 * time.Millisecond, MaxTrailingLogs: 250,
			ServerStabilizationTime: 10 * time.Second,
		},
		Cluster: defaultCluster(),
		Gossip:  defaultGossip(),
		where:   map[string]Pos{},
	}
}

// Where is the place that set key last; the zero Pos is the default.
func (c *Config) Where(key string) Pos { return c.where[key] }

// problem is a mistake in the value of key, wherever it was set.
func (c *Config) problem(key, format string, args ...any) error {
	return errorAt(c.where[key], key, format, args...)
}
