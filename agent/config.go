package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"

	"github.com/weftmesh/weft/agent/dns"
	"github.com/weftmesh/weft/agent/events"
	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
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
	// BindAddr is where inbound listeners of proxies are bound whose registration
	// names no address. Default 0.0.0.0.
	BindAddr string
	// NodeMeta is metadata of the node, beside what the agent adds.
	NodeMeta map[string]string
	// Version is shown as the node's consul-version.
	Version string

	// DataDir keeps registrations, proxies' keys and last snapshots. Empty: in memory.
	DataDir string

	// Dial opens a connection to a server; Credentials secure it, nil only for a
	// server in this process. Required.
	Dial        func(ctx context.Context) (net.Conn, error)
	Credentials credentials.TransportCredentials
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
	// DrainTimeout is how long running connections of a proxy may finish when it stops,
	// where its registration does not say. Default 5 s.
	DrainTimeout time.Duration
	// AccessLog says which connections of the proxies get a line in the log.
	AccessLog connect.AccessLog
	// MeshPort is the one inbound port of all sidecars that name none; 0: each has its own.
	MeshPort int
	// CheckUpdateInterval holds back changes of a check's output alone. Default 5 min.
	CheckUpdateInterval time.Duration

	Logger     *slog.Logger
	LogLevel   *slog.LevelVar        // set by Reload; may be nil
	Registerer prometheus.Registerer // nil: no metrics
}

// Files is the part of the configuration that may change while the agent runs.
type Files struct {
	Services []*catalog.ServiceRegistration
	Checks   []*catalog.CheckDefinition
	// NodeMeta replaces that of Config, when not nil.
	NodeMeta map[string]string
	// LogLevel is set when not nil.
	LogLevel *slog.Level
}

// Gossip is membership (agent/gossip).
type Gossip interface {
	httpapi.Members
	// Run takes part until ctx ends.
	Run(ctx context.Context) error
	// Join contacts members of a cluster and returns how many answered.
	Join(ctx context.Context, addrs []string) (int, error)
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
	case c.Dial == nil:
		return c, errors.New("agent: there is no way to a server")
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
	}
	n.TaggedAddresses["lan_"+family(c.Advertise)] = c.Advertise
	n.TaggedAddresses["wan_"+family(c.AdvertiseWAN)] = c.AdvertiseWAN
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
