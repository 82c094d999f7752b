package dns

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
)

// Views gives the answer to a catalog query as it is now, or as it was last known.
// Errors wrap the sentinels of catalog. See NewViews.
type Views interface {
	Read(ctx context.Context, q catalog.Query) (*catalog.View, error)
}

// QueryRequest asks to execute a prepared query.
type QueryRequest struct {
	// Name is the query's name or ID as the client wrote it. DNS knows no case:
	// it has to be compared without regard to it.
	Name string
	// Source is where the client is: its address, or the network that its
	// resolver says it is in. It is what "near=_ip" means.
	Source netip.Prefix
}

// QueryAnswer is what a prepared query found.
type QueryAnswer struct {
	Service catalog.Name
	// Datacenter is where the instances are, which failover may have chosen. Empty: here.
	Datacenter string
	// Instances come in the order in which they are to be preferred, unhealthy ones left out.
	Instances []*catalog.Instance
	// TTL is that of the query, nil where it has none and the service's holds.
	TTL *time.Duration
}

// Recursor strategies.
const (
	Sequential = "sequential"
	Random     = "random"
)

// SOA holds the numbers of the zone's SOA record, in seconds.
type SOA struct {
	Refresh uint32 // default 3600
	Retry   uint32 // default 600
	Expire  uint32 // default 86400
	MinTTL  uint32 // default 0: what does not exist is not to be remembered
}

// Config configures a Server. Fields that have the name of a key of Consul's
// configuration mean the same. All is checked by New.
type Config struct {
	// Views answers from the catalog. Required.
	Views Views
	// Query executes a prepared query; the error wraps catalog.ErrNotFound when
	// there is none of the name. Nil: there are none.
	Query func(ctx context.Context, req QueryRequest) (*QueryAnswer, error)

	// Addrs are the "host:port" to listen on, each over UDP and TCP. Required.
	Addrs []string
	// Sockets keeps what listens for the process that comes next. Nil: nobody does.
	Sockets Sockets
	// Domain is the zone; default "consul.". AltDomain is a second name of it, or empty.
	Domain    string
	AltDomain string
	// Datacenter is that of this agent. Required.
	Datacenter string

	NodeTTL time.Duration
	// ServiceTTL is by service name; "name*" stands for all that begin so, "*" for
	// all. The longest that fits holds.
	ServiceTTL  map[string]time.Duration
	OnlyPassing bool // leave out warning instances too
	// UDPAnswerLimit bounds the records of an answer over UDP without EDNS. Default 3.
	UDPAnswerLimit int
	// ARecordLimit bounds A and AAAA records in an answer. 0: no bound.
	ARecordLimit int
	// EnableTruncate marks an answer over UDP that was cut, so that the client asks
	// again over TCP. Without it only one that had to be emptied is.
	EnableTruncate     bool
	DisableCompression bool
	// DisableNodeMetaTXT leaves the metadata of nodes out of the additional
	// section: enable_additional_node_meta_txt = false.
	DisableNodeMetaTXT bool
	SOA                SOA

	// Recursors are the servers ("ip" or "ip:port") to ask about other zones.
	// None: such queries are refused.
	Recursors        []string
	RecursorStrategy string        // Sequential (default) or Random
	RecursorTimeout  time.Duration // default 2 s, for each recursor
	// RecurseFrom are the networks whose clients may ask about other zones.
	// Default: loopback, private, shared and link-local addresses.
	RecurseFrom []netip.Prefix

	Logger     *slog.Logger          // nil: discards
	Registerer prometheus.Registerer // nil: no metrics
}

// Limits that no setting moves.
const (
	defaultUDPAnswers = 3
	minUDPSize        = dns.MinMsgSize // what every client takes
	// farUDPSize bounds answers over UDP to public addresses, whatever EDNS asks:
	// it passes every path unfragmented, and keeps reflection unattractive.
	farUDPSize     = 1232
	nearUDPSize    = 4096
	tcpSize        = dns.MaxMsgSize
	minRecord      = 16 // bytes of the smallest record
	lookupTimeout  = 5 * time.Second
	maxInFlight    = 4096 // queries being answered; more are dropped
	maxTCPConns    = 1024
	maxTCPPerHost  = 128
	tcpIdle        = 10 * time.Second
	tcpQueries     = 4096 // on one connection
	maxForwards    = 1024
	maxForwardsPer = 64 // of one client
	maxCNAMEs      = 3
)

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Views == nil:
		return c, fmt.Errorf("dns: there are no views to answer from")
	case len(c.Addrs) == 0:
		return c, fmt.Errorf("dns: there is no address to listen on")
	case c.Datacenter == "":
		return c, fmt.Errorf("dns: the datacenter has no name")
	case c.UDPAnswerLimit < 0 || c.ARecordLimit < 0 || c.NodeTTL < 0 || c.RecursorTimeout < 0:
		return c, fmt.Errorf("dns_config: limits and times cannot be negative: %w", catalog.ErrInvalid)
	}
	var err error
	if c.Domain, err = zoneName("domain", cmp.Or(c.Domain, "consul.")); err != nil {
		return c, err
	}
	if c.AltDomain != "" {
		if c.AltDomain, err = zoneName("alt_domain", c.AltDomain); err != nil {
			return c, err
		}
	}
	for name, ttl := range c.ServiceTTL {
		if ttl < 0 {
			return c, fmt.Errorf("dns_config: service_ttl of %q: %w: it is negative", name, catalog.ErrInvalid)
		}
	}
	c.UDPAnswerLimit = cmp.Or(c.UDPAnswerLimit, defaultUDPAnswers)
	c.SOA.Refresh, c.SOA.Retry, c.SOA.Expire = cmp.Or(c.SOA.Refresh, 3600), cmp.Or(c.SOA.Retry, 600), cmp.Or(c.SOA.Expire, 86400)
	c.RecursorStrategy = cmp.Or(c.RecursorStrategy, Sequential)
	if c.RecursorStrategy != Sequential && c.RecursorStrategy != Random {
		return c, fmt.Errorf("dns_config: recursor_strategy %q: %w: use %q or %q", c.RecursorStrategy, catalog.ErrInvalid, Sequential, Random)
	}
	c.RecursorTimeout = cmp.Or(c.RecursorTimeout, 2*time.Second)
	if c.Recursors, err = recursorAddrs(c.Recursors); err != nil {
		return c, err
	}
	if c.RecurseFrom == nil {
		c.RecurseFrom = nearNets
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// zoneName makes a domain absolute and lower case.
func zoneName(key, name string) (string, error) {
	z := dns.CanonicalName(name)
	if _, ok := dns.IsDomainName(z); !ok || z == "." {
		return "", fmt.Errorf("%s %q: %w: name a DNS domain such as \"consul.\"", key, name, catalog.ErrInvalid)
	}
	return z, nil
}

// recursorAddrs gives each address a port and drops repetitions.
func recursorAddrs(in []string) ([]string, error) {
	var out []string
	for _, r := range in {
		host, port := strings.Trim(r, "[]"), "53"
		if _, err := netip.ParseAddr(host); err == nil {
			// without a port
		} else if host, port, err = net.SplitHostPort(r); err != nil {
			return nil, fmt.Errorf("recursors: %q: %w: use an IP address, with a port or without", r, catalog.ErrInvalid)
		}
		ip, err := netip.ParseAddr(host)
		if err != nil || ip.IsUnspecified() {
			return nil, fmt.Errorf("recursors: %q: %w: a recursor is named by its IP address", r, catalog.ErrInvalid)
		}
		addr, err := netip.ParseAddrPort(net.JoinHostPort(ip.String(), port))
		if err != nil || addr.Port() == 0 {
			return nil, fmt.Errorf("recursors: %q: %w: its port is no number from 1 to 65535", r, catalog.ErrInvalid)
		}
		if !slices.Contains(out, addr.String()) {
			out = append(out, addr.String())
		}
	}
	return out, nil
}

// nearNets are the networks of a fleet's own hosts.
var nearNets = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"),
}

func within(nets []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// ttls finds the TTL of a service.
type ttls struct {
	exact    map[string]uint32
	prefixes []prefixTTL // longest first
}

type prefixTTL struct {
	prefix string
	ttl    uint32
}

func newTTLs(in map[string]time.Duration) ttls {
	t := ttls{exact: map[string]uint32{}}
	for name, ttl := range in {
		name = strings.ToLower(name)
		if p, ok := strings.CutSuffix(name, "*"); ok {
			t.prefixes = append(t.prefixes, prefixTTL{p, seconds(ttl)})
		} else {
			t.exact[name] = seconds(ttl)
		}
	}
	slices.SortFunc(t.prefixes, func(a, b prefixTTL) int { return len(b.prefix) - len(a.prefix) })
	return t
}

func (t ttls) of(service string) uint32 {
	service = strings.ToLower(service)
	if ttl, ok := t.exact[service]; ok {
		return ttl
	}
	for _, p := range t.prefixes {
		if strings.HasPrefix(service, p.prefix) {
			return p.ttl
		}
	}
	return 0
}

// seconds is d as a TTL. RFC 2181 allows 31 bits.
func seconds(d time.Duration) uint32 {
	return uint32(min(max(d/time.Second, 0), 1<<31-1))
}
