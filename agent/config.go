package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/agent/dns"
	"github.com/weftmesh/weft/agent/events"
	"github.com/weftmesh/weft/agent/handover"
	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/agent/remote"
	"github.com/weftmesh/weft/agent/watches"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
	"github.com/weftmesh/weft/connect/enroll"
)

// Config configures an Agent.
type Config struct {
	// NodeName, NodeID (see NodeID) and Datacenter name this host. Required.
	NodeName   string
	NodeID     string
	Datacenter string
	// Advertise is the IP address at which other hosts reach this one. Required.
	Advertise string
	// AdvertiseWAN is the one for other datacenters. Default: Advertise.
	AdvertiseWAN string
	// TaggedAddresses are further ones by name; they replace those that follow from these.
	TaggedAddresses map[string]string
	// Locality is where the host stands; nil: nobody said.
	Locality *catalog.Locality
	// BindAddr is where inbound listeners of proxies are bound whose registration
	// names no address. Default 0.0.0.0.
	BindAddr string
	// NodeMeta is metadata of the node, beside what the agent adds.
	NodeMeta map[string]string
	// Version is shown as the node's consul-version.
	Version string

	// DataDir keeps registrations, proxies' keys and last snapshots. Empty: in memory.
	DataDir string

	// Dial opens a connection to the server in this process. Required where there is no Pool.
	Dial func(ctx context.Context) (net.Conn, error)
	// Pool is the servers on other hosts. The agent fills it with those that gossip knows.
	Pool *remote.Pool
	// Credentials are what this host proves itself with to others. Nil: it has none to
	// speak to.
	Credentials *enroll.Credentials
	// Join is how this host meets the others.
	Join Join
	// Limits bound what this agent asks of servers.
	Limits Limits
	// HoldTimeout is for how long calls wait for a leader. Default 7 s.
	HoldTimeout time.Duration

	// Gossip is the membership of this host; the agent runs it. Nil: none.
	Gossip Gossip
	// Courier carries user events to other hosts. Nil: they stay on this one.
	Courier events.Courier
	// LeaveOnStop takes the host out of gossip and the catalog when Run ends, as
	// Leave does. Agents without a server want that; servers come back.
	LeaveOnStop bool

	// Coordinates says where this host is, and how often it tells.
	Coordinates Coordinates

	// HTTP configures the API. The agent fills in Self's names and its components.
	HTTP httpapi.Config

	// DNS configures the DNS server, and DNSViews how old its answers may be. The agent
	// fills in the datacenter and its components. Without Addrs none is run.
	DNS      dns.Config
	DNSViews dns.ViewsConfig

	// Files is what the configuration files say; Load reads them again, for Reload.
	Files Files
	Load  func(ctx context.Context) (Files, error)

	// NoCentralConfig leaves registrations as they are, whatever proxy-defaults and
	// service-defaults say.
	NoCentralConfig bool

	// SidecarMinPort and SidecarMaxPort bound the ports given to sidecars. Default 21000 to 21255.
	SidecarMinPort int
	SidecarMaxPort int
	// ExposeMinPort and ExposeMaxPort bound the ports of checks that go through proxies.
	// Default 21500 to 21755.
	ExposeMinPort int
	ExposeMaxPort int
	// Checks configures health checks.
	Checks Checks
	// DrainTimeout is how long running connections of a proxy may finish when it stops,
	// where its registration does not say. Default 5 s.
	DrainTimeout time.Duration
	// Sockets keeps what listens for the process that comes next. Nil: nobody does.
	Sockets *handover.Sockets
	// AccessLog says which connections of the proxies get a line in the log.
	AccessLog connect.AccessLog
	// MeshPort is the one inbound port of all sidecars that name none; 0: each has its own.
	MeshPort int
	// NoShortCut has services of this host reach each other by TLS, as if on two hosts.
	NoShortCut bool
	// CheckUpdateInterval holds back changes of a check's output alone. Default 5 min.
	CheckUpdateInterval time.Duration

	Logger     *slog.Logger
	LogLevel   *slog.LevelVar        // set by Reload; may be nil
	Registerer prometheus.Registerer // nil: no metrics
}

// Checks configures health checks.
type Checks struct {
	// Scripts says whose checks may run commands. Default: nobody's.
	Scripts checks.Scripts
	// OutputMaxSize cuts the output of every check, in bytes; a definition may ask for less.
	// Default 4096.
	OutputMaxSize int
	// TLS is what checks over TLS show of this host and whom they trust. Nil: nothing, and
	// the authorities of the system.
	TLS *tls.Config
	// DiscardOutput keeps the status of checks and drops what they said.
	DiscardOutput bool
	// SidecarDeregisterAfter deregisters a sidecar whose own checks stay critical for
	// this long. 0: never.
	SidecarDeregisterAfter time.Duration
}

// Limits bound what an agent asks of servers. Zero fields take their defaults.
type Limits struct {
	// CallTimeout bounds one try of a request: 10 s.
	CallTimeout time.Duration
	// Rate is how many requests a second are made for others, by the API; 0 is no
	// limit. Burst may come at once: 1000.
	Rate  float64
	Burst int
}

// Files is the part of the configuration that may change while the agent runs.
type Files struct {
	Services []*catalog.ServiceRegistration
	Checks   []*catalog.CheckDefinition
	Watches  []watches.Definition
	// NodeMeta replaces that of Config, when not nil.
	NodeMeta map[string]string
	// LogLevel is set when not nil.
	LogLevel *slog.Level
	// Limits and HTTPConns replace Config.Limits and Config.HTTP.MaxConnsPerClient, when
	// not nil.
	Limits    *Limits
	HTTPConns *int
	// Taken, when not nil, is called once all of it is in force.
	Taken func()
}

// Gossip is membership (agent/gossip).
type Gossip interface {
	httpapi.Members
	// Run takes part until ctx ends.
	Run(ctx context.Context) error
	// Join contacts members of a cluster and returns how many answered.
	Join(ctx context.Context, addrs []string) (int, error)
	// Alone tells whether no other member is alive.
	Alone() bool
	// Peers are the addresses at which members were last, also before this start.
	Peers() []string
	// Servers counts the servers beside this host that are alive, and those that were
	// once and are missed.
	Servers() (alive, missing int)
	// Elder is the address of a living host of which this one is a copy; "" for none.
	Elder() string
	// Disown makes this host a copy for good, and returns the error that says so.
	Disown(original string) error
	// Changed has a value after the members changed. It is for one reader: the server,
	// where there is one, else the agent.
	Changed() <-chan struct{}
	// Leave tells the others that this host goes.
	Leave(ctx context.Context) error
	// ForceLeave declares a failed member gone.
	ForceLeave(name string, prune bool) error
}

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.NodeName == "":
		return c, errors.New("agent: the node has no name")
	case c.NodeID == "":
		return c, errors.New("agent: the node has no ID")
	case c.Datacenter == "":
		return c, errors.New("agent: the datacenter has no name")
	case (c.Dial == nil) == (c.Pool == nil):
		return c, errors.New("agent: either Dial or Pool must be set: the way to a server")
	}
	if c.AdvertiseWAN == "" {
		c.AdvertiseWAN = c.Advertise
	}
	for _, a := range []string{c.Advertise, c.AdvertiseWAN} {
		ip, err := netip.ParseAddr(a)
		if err != nil || ip.IsUnspecified() {
			return c, fmt.Errorf("agent: advertise address %q: %w: name an IP address that other hosts can reach", a, catalog.ErrInvalid)
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// node is the row of this host in the catalog.
func (c Config) node(meta map[string]string) *catalog.Node {
	n := &catalog.Node{
		ID:              c.NodeID,
		Node:            c.NodeName,
		Address:         c.Advertise,
		Datacenter:      c.Datacenter,
		TaggedAddresses: map[string]string{"lan": c.Advertise, "wan": c.AdvertiseWAN},
		Meta:            map[string]string{},
		Locality:        c.Locality,
	}
	n.TaggedAddresses["lan_"+family(c.Advertise)] = c.Advertise
	n.TaggedAddresses["wan_"+family(c.AdvertiseWAN)] = c.AdvertiseWAN
	maps.Copy(n.TaggedAddresses, c.TaggedAddresses)
	if meta == nil {
		meta = c.NodeMeta
	}
	maps.Copy(n.Meta, meta)
	n.Meta["consul-network-segment"] = ""
	n.Meta["consul-version"] = c.Version
	return n
}

func family(addr string) string {
	if ip, err := netip.ParseAddr(addr); err == nil && !ip.Unmap().Is4() {
		return "ipv6"
	}
	return "ipv4"
}
