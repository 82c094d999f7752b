package config

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// DNS configures the answering of names.
type DNS struct {
	AllowStale         bool                     `key:"dns_config.allow_stale"`
	MaxStale           time.Duration            `key:"dns_config.max_stale"`
	UseCache           bool                     `key:"dns_config.use_cache"`
	OnlyPassing        bool                     `key:"dns_config.only_passing"`
	NodeTTL            time.Duration            `key:"dns_config.node_ttl"`
	ServiceTTL         map[string]time.Duration `key:"dns_config.service_ttl"`
	UDPAnswerLimit     int                      `key:"dns_config.udp_answer_limit"`
	ARecordLimit       int                      `key:"dns_config.a_record_limit"`
	EnableTruncate     bool                     `key:"dns_config.enable_truncate"`
	DisableCompression bool                     `key:"dns_config.disable_compression"`
	NodeMetaTXT        bool                     `key:"dns_config.enable_additional_node_meta_txt"`
	SOA                SOA

	Recursors        []string      `key:"recursors"`
	RecursorStrategy string        `key:"dns_config.recursor_strategy"`
	RecursorTimeout  time.Duration `key:"dns_config.recursor_timeout"`
	RecurseFrom      []string      `key:"dns_config.recurse_from"`
}

// SOA holds the numbers of the SOA record, in seconds.
type SOA struct {
	Refresh int `key:"dns_config.soa.refresh"`
	Retry   int `key:"dns_config.soa.retry"`
	Expire  int `key:"dns_config.soa.expire"`
	MinTTL  int `key:"dns_config.soa.min_ttl"`
}

func defaultDNS() DNS {
	return DNS{
		AllowStale: true, MaxStale: 87600 * time.Hour, UDPAnswerLimit: 3, NodeMetaTXT: true,
		SOA:              SOA{Refresh: 3600, Retry: 600, Expire: 86400},
		RecursorStrategy: "sequential", RecursorTimeout: 2 * time.Second,
	}
}

func dnsKeys() []Key {
	keys := with(Effective, "",
		Key{Name: "ports.dns", Type: Int, Default: "8600", Flag: "dns-port", Doc: "The port of DNS, UDP and TCP. -1 switches it off."},
		Key{Name: "addresses.dns", Type: String, Doc: "The addresses of DNS, separated by spaces, instead of client_addr. May be a template."},
		Key{Name: "alt_domain", Type: String, Flag: "alt-domain", Doc: "A second domain that DNS answers for, with the same names."},
		Key{Name: "recursors", Type: StringList, Flag: "recursor", Doc: "DNS servers to ask about names outside the domain: IP addresses, with a port or without. Without any, such queries are refused. Each may be a template."},
		Key{Name: "dns_config.recurse_from", Type: StringList, Doc: "Networks (CIDR) whose clients may ask about names outside the domain. Loopback, private, shared and link-local addresses when it is not set."},
		Key{Name: "dns_config.recursor_strategy", Type: String, Default: "sequential", Doc: "In which order recursors are asked: sequential or random."},
		Key{Name: "dns_config.recursor_timeout", Type: Duration, Default: "2s", Doc: "How long each recursor may take."},
		Key{Name: "dns_config.allow_stale", Type: Bool, Default: "true", Doc: "Let any server answer, or this host from what it last knew, so that names resolve while there is no leader. false asks the leader each time."},
		Key{Name: "dns_config.max_stale", Type: Duration, Default: "87600h", Doc: "How old such an answer may be before the leader is asked. 0s sets no bound."},
		Key{Name: "dns_config.use_cache", Type: Bool, Default: "false", Doc: "Answer from views that the servers keep current on this host. Acts with allow_stale alone."},
		Key{Name: "dns_config.only_passing", Type: Bool, Default: "false", Doc: "Leave out instances of which a check warns. Those with a critical one are always left out."},
		Key{Name: "dns_config.node_ttl", Type: Duration, Default: "0s", Doc: "The TTL of answers about nodes."},
		Key{Name: "dns_config.service_ttl", Type: Durations, Doc: "The TTL of answers about services, by name. \"name*\" stands for all that begin so, \"*\" for all; the longest that fits holds."},
		Key{Name: "dns_config.udp_answer_limit", Type: Int, Default: "3", Doc: "How many records an answer over UDP holds, for clients without EDNS."},
		Key{Name: "dns_config.a_record_limit", Type: Int, Default: "0", Doc: "How many addresses an answer holds, over UDP and TCP. 0 sets no bound."},
		Key{Name: "dns_config.enable_truncate", Type: Bool, Default: "false", Doc: "Mark answers over UDP that were cut, so that clients ask again over TCP."},
		Key{Name: "dns_config.disable_compression", Type: Bool, Default: "false", Doc: "Do not compress names in answers."},
		Key{Name: "dns_config.enable_additional_node_meta_txt", Type: Bool, Default: "true", Doc: "Add the metadata of nodes as TXT records to answers that name them."},
		Key{Name: "dns_config.soa.refresh", Type: Int, Default: "3600", Doc: "The refresh time in the SOA record, in seconds."},
		Key{Name: "dns_config.soa.retry", Type: Int, Default: "600", Doc: "The retry time in the SOA record, in seconds."},
		Key{Name: "dns_config.soa.expire", Type: Int, Default: "86400", Doc: "The expiry time in the SOA record, in seconds."},
		Key{Name: "dns_config.soa.min_ttl", Type: Int, Default: "0", Doc: "For how many seconds a resolver may remember that a name does not exist."},
	)
	return append(keys, with(Ignored, "",
		Key{Name: "dns_config.cache_max_age", Type: Duration, Default: "0s", Doc: "How old an answer from the cache may be.", Note: "with use_cache the servers keep the views of this host current, and there is no age to bound"},
		Key{Name: "dns_config.prefer_namespace", Type: Bool, Default: "false", Doc: "How names with two labels are read in Consul Enterprise.", Note: "there is one tenancy"},
	)...)
}

// DNSAddrs are the host:port on which DNS listens; none when its port is off.
func (c *Config) DNSAddrs() []string {
	key, list := "client_addr", c.ClientAddr
	if c.Addresses.DNS != "" {
		key, list = "addresses.dns", c.Addresses.DNS
	}
	var out []string
	found, _ := c.listeners(key, list, c.Ports.DNS) // Load has refused what is wrong
	for _, l := range found {
		if l.Network == "tcp" { // a Unix socket in client_addr is for the HTTP API
			out = append(out, l.Addr)
		}
	}
	return out
}

// resolveDNS evaluates the templates among the recursors.
func (c *Config) resolveDNS() error {
	found, err := c.listeners("addresses.dns", c.Addresses.DNS, c.Ports.DNS)
	if err != nil {
		return err
	}
	for _, l := range found {
		if l.Network == "unix" {
			return c.problem("addresses.dns", "%q: DNS is not served on Unix sockets, name an IP address", l)
		}
	}
	var recursors []string
	for _, r := range c.DNS.Recursors {
		s, err := evaluate(r)
		if err != nil {
			return c.problem("recursors", "%v", err)
		}
		recursors = append(recursors, strings.Fields(s)...)
	}
	c.DNS.Recursors = recursors
	return nil
}

var domainName = pattern(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)

// maxDomain leaves room for the names in a domain.
const maxDomain = 128

func (c *Config) validateDNS() error {
	for _, d := range []struct{ key, name string }{{"domain", c.Domain}, {"alt_domain", c.AltDomain}} {
		if d.key == "alt_domain" && d.name == "" {
			continue
		}
		if len(d.name) > maxDomain || !domainName().MatchString(d.name) {
			return c.problem(d.key, "%.140q is not a DNS domain such as \"consul\", of at most %d bytes", d.name, maxDomain)
		}
	}
	d := c.DNS
	for _, n := range []struct {
		key string
		val int
	}{
		{"dns_config.udp_answer_limit", d.UDPAnswerLimit},
		{"dns_config.a_record_limit", d.ARecordLimit},
		{"dns_config.soa.refresh", d.SOA.Refresh},
		{"dns_config.soa.retry", d.SOA.Retry},
		{"dns_config.soa.expire", d.SOA.Expire},
		{"dns_config.soa.min_ttl", d.SOA.MinTTL},
	} {
		if n.val < 0 || n.val > 1<<31-1 {
			return c.problem(n.key, "%d is not between 0 and %d", n.val, 1<<31-1)
		}
	}
	if d.RecursorStrategy != "sequential" && d.RecursorStrategy != "random" {
		return c.problem("dns_config.recursor_strategy", "%q is neither \"sequential\" nor \"random\"", d.RecursorStrategy)
	}
	for _, r := range d.Recursors {
		if !recursor(r) {
			return c.problem("recursors", "%q is not an IP address, with a port or without", r)
		}
	}
	_, err := c.recurseFrom()
	return err
}

func recursor(s string) bool {
	host, port := strings.Trim(s, "[]"), "53"
	if _, err := netip.ParseAddr(host); err != nil {
		if host, port, err = net.SplitHostPort(s); err != nil {
			return false
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	ip, ipErr := netip.ParseAddr(host)
	return err == nil && n > 0 && ipErr == nil && !ip.IsUnspecified()
}

// RecurseFrom are the networks whose clients may ask about names outside the
// domain; nil when none is named and the default holds.
func (c *Config) RecurseFrom() []netip.Prefix {
	out, _ := c.recurseFrom() // Load has refused what does not parse
	return out
}

func (c *Config) recurseFrom() ([]netip.Prefix, error) {
	return c.networks("dns_config.recurse_from", c.DNS.RecurseFrom)
}
