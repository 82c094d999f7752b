package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/weftmesh/weft/catalog"
)

// dev sets what -dev means; any source may still change it.
func (c *Config) dev() {
	c.Dev = true
	c.Server = true
	c.Bootstrap = true
	c.BindAddr = "127.0.0.1"
	c.ClientAddr = "127.0.0.1"
}

// finish resolves defaults that depend on other keys or on the host.
func (c *Config) finish(hostname func() (string, error)) error {
	if hostname == nil {
		hostname = os.Hostname
	}
	if c.NodeName == "" {
		name, err := hostname()
		if err != nil || name == "" {
			return c.problem("node_name", "must be set: this host does not know its own name")
		}
		c.NodeName = name
	}
	c.Datacenter = strings.ToLower(c.Datacenter)
	c.Domain, c.AltDomain = strings.TrimSuffix(c.Domain, "."), strings.TrimSuffix(c.AltDomain, ".")
	c.DefaultIntentionPolicy = cmp.Or(strings.ToLower(c.DefaultIntentionPolicy), string(catalog.ActionDeny))
	c.LogLevel = strings.ToLower(c.LogLevel)
	c.RaftMultiplier = cmp.Or(c.RaftMultiplier, Default().RaftMultiplier) // Consul takes 0 for its default, too
	if c.LeaveOnTerminate == nil {
		leave := !c.Server
		c.LeaveOnTerminate = &leave
	}
	if c.SkipLeaveOnInterrupt == nil {
		skip := c.Server
		c.SkipLeaveOnInterrupt = &skip
	}
	if c.BootstrapExpect == 1 {
		c.Bootstrap = true
	}
	if c.Bootstrap && c.BootstrapExpect == 0 {
		c.BootstrapExpect = 1
	}
	if c.DataDir != "" {
		abs, err := filepath.Abs(c.DataDir)
		if err != nil {
			return c.problem("data_dir", "%v", err)
		}
		c.DataDir = abs
	}
	if !c.Connect.Enabled {
		c.Warnings = append(c.Warnings, fmt.Sprintf("%s: connect.enabled is ignored: the mesh is always on", c.where["connect.enabled"]))
		c.Connect.Enabled = true
	}
	return c.resolveAddresses()
}

// validate refuses what no component could run with. Each component checks its
// own part again.
func (c *Config) validate() error {
	var found Mistakes
	for _, check := range []func() error{
		c.validateNode, c.validateServer, c.validatePorts, c.validateMesh, c.validateDNS, c.validateOperator, c.validateRest,
		c.validateHost, c.validateChecks, c.validateTelemetry, c.validateLogs, c.validateHTTPS, c.validateLimits,
	} {
		found.Add(check())
	}
	return found.Err()
}

var (
	datacenterName = pattern(`^[a-z0-9_-]{1,64}$`)
	uuid           = pattern(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)
	dnsName        = pattern(`^[A-Za-z0-9-]+$`)
)

// Bounds of node metadata, as in Consul.
const (
	maxMeta      = 64
	maxMetaKey   = 128
	maxMetaValue = 512
	metaReserved = "consul-"
	maxNodeName  = 255
)

func (c *Config) validateNode() error {
	if !datacenterName().MatchString(c.Datacenter) {
		return c.problem("datacenter", "%q is not a name: use at most 64 letters, digits, - and _", c.Datacenter)
	}
	if len(c.NodeName) > maxNodeName || !utf8.ValidString(c.NodeName) || strings.ContainsAny(c.NodeName, "/\\\x00\r\n") {
		return c.problem("node_name", "%.64q is not a name: use at most %d bytes, without slashes and line breaks", c.NodeName, maxNodeName)
	}
	if !dnsName().MatchString(c.NodeName) {
		c.Warnings = append(c.Warnings, fmt.Sprintf("node_name %q cannot be looked up in DNS: use letters, digits and -", c.NodeName))
	}
	if c.NodeID != "" && !uuid().MatchString(c.NodeID) {
		return c.problem("node_id", "%q is not a UUID", c.NodeID)
	}
	c.NodeID = strings.ToLower(c.NodeID)
	if len(c.NodeMeta) > maxMeta {
		return c.problem("node_meta", "has %d keys, at most %d are allowed", len(c.NodeMeta), maxMeta)
	}
	for k, v := range c.NodeMeta {
		switch {
		case k == "" || len(k) > maxMetaKey:
			return c.problem("node_meta", "the key %.140q must have 1 to %d bytes", k, maxMetaKey)
		case strings.HasPrefix(k, metaReserved):
			return c.problem("node_meta", "the key %q is reserved: keys may not begin with %q", k, metaReserved)
		case len(v) > maxMetaValue:
			return c.problem("node_meta", "the value of %q has %d bytes, at most %d are allowed", k, len(v), maxMetaValue)
		}
	}
	return nil
}

// setOf is the first of the keys that some source set.
func (c *Config) setOf(keys ...string) string {
	for _, k := range keys {
		if _, ok := c.where[k]; ok {
			return k
		}
	}
	return ""
}

func (c *Config) validatePorts() error {
	ports := []struct {
		key  string
		port int
		off  bool // may be switched off
	}{
		{"ports.http", c.Ports.HTTP, true},
		{"ports.dns", c.Ports.DNS, true},
		{"ports.serf_lan", c.Ports.SerfLAN, false},
		{"ports.server", c.Ports.Server, false},
		{"connect.mesh_port", c.Connect.MeshPort, false},
		{"ports.sidecar_min_port", c.Ports.SidecarMinPort, false},
		{"ports.sidecar_max_port", c.Ports.SidecarMaxPort, false},
		{"ports.expose_min_port", c.Ports.ExposeMinPort, false},
		{"ports.expose_max_port", c.Ports.ExposeMaxPort, false},
	}
	seen := map[int]string{}
	for i, p := range ports {
		if p.port < 0 && p.off {
			continue
		}
		if p.port < 0 || p.port > 65535 {
			return c.problem(p.key, "%d is not a port", p.port)
		}
		if i >= 5 || p.port == 0 {
			continue // a range, or any free port
		}
		if other, taken := seen[p.port]; taken {
			return c.problem(p.key, "%d is also the port of %s", p.port, other)
		}
		seen[p.port] = p.key
	}
	if err := c.validateRange("sidecar", c.Ports.SidecarMinPort, c.Ports.SidecarMaxPort); err != nil {
		return err
	}
	return c.validateRange("expose", c.Ports.ExposeMinPort, c.Ports.ExposeMaxPort)
}

func (c *Config) validateRange(of string, low, high int) error {
	first, last := "ports."+of+"_min_port", "ports."+of+"_max_port"
	switch {
	case low == 0 || high == 0:
		return c.problem(cmp.Or(c.setOf(first), last), "0 is not a port")
	case low > high:
		return c.problem(first, "%d is above %s, %d", low, last, high)
	}
	return nil
}

func (c *Config) validateMesh() error {
	switch catalog.Action(c.DefaultIntentionPolicy) {
	case catalog.ActionAllow, catalog.ActionDeny:
	default:
		return c.problem("default_intention_policy", "%q is neither \"allow\" nor \"deny\"", c.DefaultIntentionPolicy)
	}
	if c.Connect.CAProvider != "consul" {
		return c.problem("connect.ca_provider", "%q is not supported: \"consul\", the built-in authority, is the only one so far", c.Connect.CAProvider)
	}
	if s := c.Connect.AccessLog.Sample; !(s >= 0 && s <= 1) {
		return c.problem("connect.access_log.sample", "%v is not between 0 and 1", s)
	}
	return nil
}

// Levels are the log levels.
func Levels() []string { return []string{"trace", "debug", "info", "warn", "error"} }

// maxLogValue is what a value may have at most: a log entry, less its frame and key.
const maxLogValue = 1<<20 - 64<<10

func (c *Config) validateRest() error {
	switch c.LogLevel {
	case "trace", "debug", "info", "warn", "error":
	case "warning":
		c.LogLevel = "warn"
	case "err":
		c.LogLevel = "error"
	default:
		return c.problem("log_level", "%q is none of %s", c.LogLevel, strings.Join(Levels(), ", "))
	}
	if _, err := c.socketMode(); err != nil {
		return err
	}
	if c.SessionTTLMin <= 0 || c.SessionTTLMin > catalog.MaxSessionTTL {
		return c.problem("session_ttl_min", "%s is not between 0 and %s", c.SessionTTLMin, catalog.MaxSessionTTL)
	}
	if c.MaxHeaderBytes < 4<<10 || c.MaxHeaderBytes > 16<<20 {
		return c.problem("http_config.max_header_bytes", "%d is not between 4 KiB and 16 MiB", c.MaxHeaderBytes)
	}
	if c.MaxQueryTime <= 0 {
		return c.problem("max_query_time", "must be above zero")
	}
	if c.DefaultQueryTime <= 0 || c.DefaultQueryTime > c.MaxQueryTime {
		return c.problem("default_query_time", "%s must be above zero and at most max_query_time, %s", c.DefaultQueryTime, c.MaxQueryTime)
	}
	if _, err := c.writers(); err != nil {
		return err
	}
	for name := range c.ResponseHeaders {
		if !headerName().MatchString(name) {
			return c.problem("http_config.response_headers", "%q is not the name of a header", name)
		}
	}
	for name, v := range c.ResponseHeaders {
		if strings.ContainsAny(v, "\r\n\x00") {
			return c.problem("http_config.response_headers", "the value of %q contains a line break", name)
		}
	}
	return nil
}

func (c *Config) writers() ([]netip.Prefix, error) {
	return c.networks("http_config.allow_write_http_from", c.AllowWriteFrom)
}

func (c *Config) networks(key string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, c.problem(key, "%q is not a network such as 10.0.0.0/8", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// Writers are the networks that may change things over the HTTP API.
func (c *Config) Writers() []netip.Prefix {
	out, _ := c.writers() // Validate refused what does not parse
	return out
}

var headerName = pattern("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

func (c *Config) socketMode() (os.FileMode, error) {
	mode, err := strconv.ParseUint(c.SocketMode, 8, 32)
	if err != nil || mode > 0o777 {
		return 0, c.problem("unix_sockets.mode", "%q is not a mode such as \"0660\"", c.SocketMode)
	}
	return os.FileMode(mode), nil
}

// UnixMode is the mode of Unix sockets.
func (c *Config) UnixMode() os.FileMode {
	mode, err := c.socketMode()
	if err != nil {
		return 0o600
	}
	return mode
}

// Loopback tells whether addr can be reached from this host only.
func Loopback(addr string) bool {
	ip, err := netip.ParseAddr(addr)
	return err == nil && ip.Unmap().IsLoopback()
}
