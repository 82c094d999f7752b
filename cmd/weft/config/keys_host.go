package config

import (
	"maps"
	"net/netip"
	"os/user"
	"strconv"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Advertised are the further addresses of this host.
type Advertised struct {
	IPv4    string            `key:"advertise_addr_ipv4"`
	IPv6    string            `key:"advertise_addr_ipv6"`
	WAN     string            `key:"advertise_addr_wan"`
	WANIPv4 string            `key:"advertise_addr_wan_ipv4"`
	WANIPv6 string            `key:"advertise_addr_wan_ipv6"`
	Tagged  map[string]string `key:"tagged_addresses"`
	// Translate says in each answer that WAN addresses would be given to other datacenters.
	Translate bool `key:"translate_wan_addrs"`
}

// Place is where this host stands.
type Place struct {
	Region string `key:"locality.region"`
	Zone   string `key:"locality.zone"`
}

// GossipSettings are the pace of gossip, and where it listens.
type GossipSettings struct {
	BindAddr       string        `key:"serf_lan"`
	Interval       time.Duration `key:"gossip_lan.gossip_interval"`
	Nodes          int           `key:"gossip_lan.gossip_nodes"`
	ProbeInterval  time.Duration `key:"gossip_lan.probe_interval"`
	ProbeTimeout   time.Duration `key:"gossip_lan.probe_timeout"`
	RetransmitMult int           `key:"gossip_lan.retransmit_mult"`
	SuspicionMult  int           `key:"gossip_lan.suspicion_mult"`
}

// SocketOwner is who owns the Unix sockets that the agent makes, by name or number.
type SocketOwner struct {
	User  string `key:"unix_sockets.user"`
	Group string `key:"unix_sockets.group"`
}

func defaultGossip() GossipSettings {
	return GossipSettings{
		Interval: 200 * time.Millisecond, Nodes: 4, ProbeInterval: time.Second, ProbeTimeout: 500 * time.Millisecond,
		RetransmitMult: 8, SuspicionMult: 4,
	}
}

func hostKeys() []Key {
	return with(Effective, "",
		Key{Name: "advertise_addr_ipv4", Type: String, Doc: "The IPv4 address that other hosts use for this one, in the catalog as lan_ipv4. advertise_addr when that is not set. May be a template."},
		Key{Name: "advertise_addr_ipv6", Type: String, Doc: "The IPv6 address that other hosts use for this one, in the catalog as lan_ipv6. advertise_addr when neither that nor advertise_addr_ipv4 is set. May be a template."},
		Key{Name: "advertise_addr_wan", Type: String, Flag: "advertise-wan", Doc: "The address of this host for other datacenters, in the catalog as wan. advertise_addr when it is not set. May be a template."},
		Key{Name: "advertise_addr_wan_ipv4", Type: String, Doc: "The same, in the catalog as wan_ipv4."},
		Key{Name: "advertise_addr_wan_ipv6", Type: String, Doc: "The same, in the catalog as wan_ipv6."},
		Key{Name: "tagged_addresses", Type: StringMap, Doc: "Further addresses of this host in the catalog, by name. They replace those that the keys above give."},
		Key{Name: "translate_wan_addrs", Type: Bool, Default: "false", Doc: "Answer with WAN addresses about other datacenters. There is one so far, so that only the header X-Consul-Translate-Addresses says it."},
		Key{Name: "locality.region", Type: String, Doc: "The region of this host. It stands at the node, and holds for services that name none."},
		Key{Name: "locality.zone", Type: String, Doc: "The zone of this host within its region."},
		Key{Name: "serf_lan", Type: String, Flag: "serf-lan-bind", Doc: "The address of gossip, where it differs from bind_addr. May be a template."},
		Key{Name: "gossip_lan.gossip_interval", Type: Duration, Default: "200ms", Doc: "The time between rounds of gossip. Hosts of one cluster should agree in this and what follows."},
		Key{Name: "gossip_lan.gossip_nodes", Type: Int, Default: "4", Doc: "To how many hosts a round goes."},
		Key{Name: "gossip_lan.probe_interval", Type: Duration, Default: "1s", Doc: "The time between probes of a random host."},
		Key{Name: "gossip_lan.probe_timeout", Type: Duration, Default: "500ms", Doc: "How long a probe waits."},
		Key{Name: "gossip_lan.retransmit_mult", Type: Int, Default: "8", Doc: "How often a message is repeated, times the logarithm of the number of hosts."},
		Key{Name: "gossip_lan.suspicion_mult", Type: Int, Default: "4", Doc: "How long a silent host is only suspected, in probes, times that logarithm."},
		Key{Name: "auto_reload_config", Type: Bool, Default: "false", Flag: "auto-reload-config", Doc: "Reload when a configuration file changes, as SIGHUP does."},
		Key{Name: "unix_sockets.user", Type: String, Doc: "The owner of Unix sockets that the agent makes, by name or number."},
		Key{Name: "unix_sockets.group", Type: String, Doc: "The group of Unix sockets that the agent makes, by name or number."},
		Key{Name: "http_config.use_cache", Type: Bool, Default: "true", Doc: "Let requests with ?cached be answered from what this agent knows. Without, they ask a server."},
	)
}

// resolveAdvertised evaluates templates and checks the further addresses.
func (c *Config) resolveAdvertised() error {
	a := &c.Advertised
	for _, e := range []struct {
		key    string
		val    *string
		family string
	}{
		{"advertise_addr_ipv4", &a.IPv4, "IPv4"},
		{"advertise_addr_ipv6", &a.IPv6, "IPv6"},
		{"advertise_addr_wan", &a.WAN, ""},
		{"advertise_addr_wan_ipv4", &a.WANIPv4, "IPv4"},
		{"advertise_addr_wan_ipv6", &a.WANIPv6, "IPv6"},
		{"serf_lan", &c.Gossip.BindAddr, ""},
	} {
		s, err := evaluate(*e.val)
		if err != nil {
			return c.problem(e.key, "%v", err)
		}
		if *e.val = s; s == "" {
			continue
		}
		if err := c.oneIP(e.key, s); err != nil {
			return err
		}
		ip := netip.MustParseAddr(s).Unmap()
		if e.key != "serf_lan" && ip.IsUnspecified() {
			return c.problem(e.key, "%s is not an address that others can use", s)
		}
		if e.family != "" && ip.Is4() != (e.family == "IPv4") {
			return c.problem(e.key, "%s is no %s address", s, e.family)
		}
	}
	for tag, addr := range a.Tagged {
		if tag == "" || addr == "" {
			return c.problem("tagged_addresses", "%q = %q: neither the name nor the address may be empty", tag, addr)
		}
	}
	if c.AdvertiseAddr == "" {
		c.AdvertiseAddr = a.IPv4
	}
	if c.AdvertiseAddr == "" {
		c.AdvertiseAddr = a.IPv6
	}
	return nil
}

// TaggedAddresses are those that the configuration adds to what follows from the
// advertised address.
func (c *Config) TaggedAddresses() map[string]string {
	a := c.Advertised
	out := map[string]string{}
	for tag, addr := range map[string]string{
		"lan_ipv4": a.IPv4, "lan_ipv6": a.IPv6, "wan_ipv4": a.WANIPv4, "wan_ipv6": a.WANIPv6,
	} {
		if addr != "" {
			out[tag] = addr
		}
	}
	maps.Copy(out, a.Tagged)
	return out
}

// Locality is where this host stands; nil where nothing is said.
func (c *Config) Locality() *catalog.Locality {
	if c.Place == (Place{}) {
		return nil
	}
	return &catalog.Locality{Region: c.Place.Region, Zone: c.Place.Zone}
}

func (c *Config) validateHost() error {
	if c.Place.Zone != "" && c.Place.Region == "" {
		return c.problem("locality.zone", "a zone is in a region: set locality.region, too")
	}
	g := c.Gossip
	for key, d := range map[string]time.Duration{
		"gossip_lan.gossip_interval": g.Interval, "gossip_lan.probe_interval": g.ProbeInterval, "gossip_lan.probe_timeout": g.ProbeTimeout,
	} {
		if d < 10*time.Millisecond || d > time.Minute {
			return c.problem(key, "%s is not between 10ms and 1m", d)
		}
	}
	for key, n := range map[string]int{
		"gossip_lan.gossip_nodes": g.Nodes, "gossip_lan.retransmit_mult": g.RetransmitMult, "gossip_lan.suspicion_mult": g.SuspicionMult,
	} {
		if n < 1 || n > 100 {
			return c.problem(key, "%d is not between 1 and 100", n)
		}
	}
	_, _, err := c.socketOwner()
	return err
}

// SocketOwner gives the user and group of Unix sockets; -1 leaves what the process has.
func (c *Config) SocketOwner() (uid, gid int) {
	uid, gid, err := c.socketOwner()
	if err != nil {
		return -1, -1 // validation has refused it
	}
	return uid, gid
}

func (c *Config) socketOwner() (uid, gid int, err error) {
	uid, gid = -1, -1
	if name := c.Sockets.User; name != "" {
		if uid, err = strconv.Atoi(name); err != nil {
			u, lookup := user.Lookup(name)
			if lookup != nil {
				return -1, -1, c.problem("unix_sockets.user", "there is no user %q on this host", name)
			}
			uid, err = strconv.Atoi(u.Uid)
		}
		if err != nil || uid < 0 {
			return -1, -1, c.problem("unix_sockets.user", "%q is neither the name nor the number of a user", name)
		}
	}
	if name := c.Sockets.Group; name != "" {
		if gid, err = strconv.Atoi(name); err != nil {
			g, lookup := user.LookupGroup(name)
			if lookup != nil {
				return -1, -1, c.problem("unix_sockets.group", "there is no group %q on this host", name)
			}
			gid, err = strconv.Atoi(g.Gid)
		}
		if err != nil || gid < 0 {
			return -1, -1, c.problem("unix_sockets.group", "%q is neither the name nor the number of a group", name)
		}
	}
	return uid, gid, nil
}
