package config

import (
	"cmp"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Cluster is how this host meets the others.
type Cluster struct {
	RetryJoin        []string      `key:"retry_join"`
	StartJoin        []string      `key:"start_join"`
	RetryInterval    time.Duration `key:"retry_interval"`
	RetryMax         int           `key:"retry_max"`
	RejoinAfterLeave bool          `key:"rejoin_after_leave"`
	ReconnectTimeout time.Duration `key:"reconnect_timeout"`
	AllowedNets      []string      `key:"serf_lan_allowed_cidrs"`
	SecretFile       string        `key:"cluster_secret_file"`
	JoinTokenFile    string        `key:"join_token_file"`
	RPCHoldTimeout   time.Duration `key:"performance.rpc_hold_timeout"`
}

func defaultCluster() Cluster {
	return Cluster{RetryInterval: 30 * time.Second, ReconnectTimeout: 72 * time.Hour, RPCHoldTimeout: 7 * time.Second}
}

// Keys of hosts that meet others.
func joinKeys() []Key {
	return with(Effective, "",
		Key{Name: "cluster_secret_file", Type: String, Flag: "cluster-secret-file", Doc: "The file of the cluster secret (weft secret new), which a server needs: mode 0600. cluster.secret in the data directory when it is not set. Also the systemd credential weft-cluster-secret, or WEFT_CLUSTER_SECRET_FILE. A first server that is alone makes one by itself."},
		Key{Name: "join_token_file", Type: String, Flag: "join-token-file", Doc: "The file of a join token (weft join-token), by which an agent without a server joins for the first time: mode 0600. Also the systemd credential weft-join-token, or WEFT_JOIN_TOKEN_FILE."},
		Key{Name: "retry_join", Type: StringList, Flag: "retry-join", Doc: "Addresses of hosts to join, host or host:port of gossip, tried until one answers."},
		Key{Name: "start_join", Type: StringList, Flag: "join", Doc: "Addresses of hosts to join. Where none answers at the first attempt the agent ends."},
		Key{Name: "retry_interval", Type: Duration, Default: "30s", Flag: "retry-interval", Doc: "The longest time between attempts to join; the first follow each other sooner."},
		Key{Name: "retry_max", Type: Int, Default: "0", Flag: "retry-max", Doc: "How many attempts to join are made before the agent ends. 0 is no end."},
		Key{Name: "rejoin_after_leave", Type: Bool, Default: "false", Flag: "rejoin", Doc: "Keep the addresses of the members also when the host leaves, and join them at the next start."},
		Key{Name: "reconnect_timeout", Type: Duration, Default: "72h", Doc: "After how long a host that failed is forgotten, by gossip and by the catalog; at least 8h."},
		Key{Name: "serf_lan_allowed_cidrs", Type: StringList, Doc: "Networks whose hosts may take part in gossip. All, when empty."},
		Key{Name: "performance.rpc_hold_timeout", Type: Duration, Default: "7s", Doc: "How long a request waits for a leader, or for a server that answers."},
	)
}

// minReconnect is the least reconnect_timeout, as in Consul.
const minReconnect = 8 * time.Hour

func (c *Config) validateServer() error {
	switch {
	case c.BootstrapExpect < 0:
		return c.problem("bootstrap_expect", "must not be below 0")
	case !c.Server && (c.BootstrapExpect > 0 || (c.Bootstrap && !c.Dev)):
		return c.problem(cmp.Or(c.setOf("bootstrap_expect", "bootstrap"), "bootstrap"), "needs server = true")
	case c.BootstrapExpect > 1 && c.Dev:
		return c.problem("bootstrap_expect", "is %d, but -dev is a cluster of one", c.BootstrapExpect)
	case c.BootstrapExpect > 1 && c.Bootstrap:
		return c.problem("bootstrap", "contradicts bootstrap_expect = %d: leave one of them out", c.BootstrapExpect)
	case c.BootstrapExpect > maxExpect:
		return c.problem("bootstrap_expect", "is %d, more than %d servers only slow each other down: use 3 or 5", c.BootstrapExpect, maxExpect)
	case c.BootstrapExpect > 0 && c.BootstrapExpect%2 == 0:
		c.Warnings = append(c.Warnings, "bootstrap_expect is an even number: as many failures are survived with one server less")
	}
	if c.DataDir == "" && !c.Dev {
		return c.problem("data_dir", "must be set (or use -dev, which keeps everything in memory)")
	}
	if !c.Server && !c.Dev && len(c.Cluster.RetryJoin)+len(c.Cluster.StartJoin) == 0 {
		c.Warnings = append(c.Warnings, "retry_join is not set: an agent without a server that never met one waits for `weft join`")
	}
	if c.Server && !c.Dev && !c.Bootstrap && c.BootstrapExpect == 0 && len(c.Cluster.RetryJoin)+len(c.Cluster.StartJoin) == 0 {
		c.Warnings = append(c.Warnings, "neither bootstrap_expect nor retry_join is set: a server without a past waits until it is joined to a cluster (weft join)")
	}
	return c.validateJoin()
}

// maxExpect is the most servers that may begin a cluster together.
const maxExpect = 7

func (c *Config) validateJoin() error {
	for key, list := range map[string][]string{"retry_join": c.Cluster.RetryJoin, "start_join": c.Cluster.StartJoin} {
		for _, a := range list {
			if why := badAddr(a); why != "" {
				return c.problem(key, "%q %s", a, why)
			}
		}
	}
	switch {
	case c.Cluster.RetryInterval <= 0:
		return c.problem("retry_interval", "must be above zero")
	case c.Cluster.RetryMax < 0:
		return c.problem("retry_max", "must not be below 0")
	case c.Cluster.ReconnectTimeout < minReconnect:
		return c.problem("reconnect_timeout", "%s is less than %s: hosts would be forgotten that are away for a night", c.Cluster.ReconnectTimeout, minReconnect)
	case c.Cluster.RPCHoldTimeout < 0:
		return c.problem("performance.rpc_hold_timeout", "must not be below zero")
	}
	_, err := c.networks("serf_lan_allowed_cidrs", c.Cluster.AllowedNets)
	return err
}

// badAddr says what is wrong with an address to join, "" for nothing.
func badAddr(a string) string {
	switch {
	case a == "":
		return "is empty"
	case strings.Contains(a, "provider="):
		return "asks a cloud for addresses, which is not supported: name hosts or a DNS name"
	case strings.ContainsAny(a, " \t/"):
		return "is not a host, nor host:port"
	}
	return ""
}

// GossipNets are the networks whose hosts may take part in gossip; none for all.
func (c *Config) GossipNets() []net.IPNet {
	list, _ := c.networks("serf_lan_allowed_cidrs", c.Cluster.AllowedNets) // validated
	out := make([]net.IPNet, 0, len(list))
	for _, p := range list {
		out = append(out, net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
	}
	return out
}

// ServerAddrs are where servers are looked for before gossip tells: the hosts to
// join, at the server port.
func (c *Config) ServerAddrs() []string {
	var out []string
	for _, list := range [][]string{c.Cluster.RetryJoin, c.Cluster.StartJoin} {
		for _, a := range list {
			out = append(out, net.JoinHostPort(hostOf(a), strconv.Itoa(c.Ports.Server)))
		}
	}
	return out
}

// hostOf takes the port off an address.
func hostOf(a string) string {
	if ip, err := netip.ParseAddr(strings.Trim(a, "[]")); err == nil {
		return ip.String()
	}
	if host, _, err := net.SplitHostPort(a); err == nil {
		return host
	}
	return a
}

// inDataDir is a file or folder of the data directory; "" when there is none.
func (c *Config) inDataDir(parts ...string) string {
	if c.DataDir == "" {
		return ""
	}
	return filepath.Join(append([]string{c.DataDir}, parts...)...)
}

// PeersFile keeps where the members of gossip were; "" for nowhere.
func (c *Config) PeersFile() string { return c.inDataDir("serf", "members.json") }

// HomeFile keeps since when this host lives at its address; "" for nowhere.
func (c *Config) HomeFile() string { return c.inDataDir("serf", "home.json") }

// ServersFile keeps the servers known last; "" for nowhere.
func (c *Config) ServersFile() string { return c.inDataDir("servers.json") }
