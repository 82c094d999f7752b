package catalog

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// ServiceDefaults is what all instances of one service, and those that call it, have
// in common unless their registration says otherwise.
type ServiceDefaults struct {
	EntryHead
	// Protocol that the service speaks: tcp (default), http, http2 or grpc.
	Protocol         string
	Mode             string `json:",omitempty"`
	TransparentProxy TransparentProxy
	MutualTLSMode    string `json:",omitempty"` // strict or permissive
	MeshGateway      MeshGatewayConfig
	Expose           ExposeConfig
	// ExternalSNI is the server name of a service outside of the mesh.
	ExternalSNI    string                 `json:",omitempty"`
	UpstreamConfig *UpstreamConfiguration `json:",omitempty"`
	Destination    *DestinationConfig     `json:",omitempty"`
	// MaxInboundConnections, for each instance; 0: no cap.
	MaxInboundConnections     int              `json:",omitempty"`
	LocalConnectTimeoutMs     int              `json:",omitempty"`
	LocalRequestTimeoutMs     int              `json:",omitempty"`
	BalanceInboundConnections string           `json:",omitempty" doc:"has no effect"`
	RateLimits                *RateLimits      `json:",omitempty"`
	EnvoyExtensions           []EnvoyExtension `json:",omitempty" doc:"has no effect"`
	MaxRequestHeadersKB       *uint32          `json:",omitempty"`
}

// ProxyDefaults is what all proxies have in common. There is one, "global".
type ProxyDefaults struct {
	EntryHead
	// Config is opaque here; proxies read the keys that they know: protocol and more.
	Config               map[string]any `bexpr:"-"`
	Mode                 string         `json:",omitempty"`
	TransparentProxy     TransparentProxy
	MutualTLSMode        string `json:",omitempty"`
	MeshGateway          MeshGatewayConfig
	Expose               ExposeConfig
	AccessLogs           AccessLogsConfig
	EnvoyExtensions      []EnvoyExtension      `json:",omitempty"`
	FailoverPolicy       *FailoverPolicy       `json:",omitempty"`
	PrioritizeByLocality *PrioritizeByLocality `json:",omitempty"`
}

// UpstreamConfiguration is how a service calls others: all, and some by name.
type UpstreamConfiguration struct {
	Overrides []*UpstreamConfig `json:",omitempty"`
	Defaults  *UpstreamConfig   `json:",omitempty"`
}

// UpstreamConfig is how a service calls another.
type UpstreamConfig struct {
	Name                       Name   `json:",omitempty"`
	Namespace                  string `json:",omitempty"`
	Partition                  string `json:",omitempty"`
	Peer                       string
	EnvoyListenerJSON          string              `json:",omitempty" doc:"has no effect"`
	EnvoyClusterJSON           string              `json:",omitempty" doc:"has no effect"`
	Protocol                   string              `json:",omitempty"`
	ConnectTimeoutMs           int                 `json:",omitempty"`
	Limits                     *UpstreamLimits     `json:",omitempty"`
	PassiveHealthCheck         *PassiveHealthCheck `json:",omitempty"`
	MeshGateway                MeshGatewayConfig
	BalanceOutboundConnections string `json:",omitempty" doc:"has no effect"`
}

// UpstreamLimits bound what one proxy asks of one upstream.
type UpstreamLimits struct {
	MaxConnections        *int                `json:",omitempty"`
	MaxPendingRequests    *int                `json:",omitempty"`
	MaxConcurrentRequests *int                `json:",omitempty"`
	PassiveHealthCheck    *PassiveHealthCheck `json:",omitempty"`
}

// PassiveHealthCheck says when an instance that fails is left alone for a while.
type PassiveHealthCheck struct {
	Interval                           time.Duration  `json:",omitempty"`
	MaxFailures                        uint32         `json:",omitempty"`
	EnforcingConsecutive5xx            *uint32        `json:",omitempty"`
	EnforcingConsecutiveGatewayFailure *uint32        `json:",omitempty"`
	Consecutive5xx                     *uint32        `json:",omitempty"`
	ConsecutiveGatewayFailure          *uint32        `json:",omitempty"`
	MaxEjectionPercent                 *uint32        `json:",omitempty"`
	BaseEjectionTime                   *time.Duration `json:",omitempty"`
}

// DestinationConfig is where a service outside of the mesh is.
type DestinationConfig struct {
	Addresses []string `json:",omitempty"`
	Port      int      `json:",omitempty"`
}

// RateLimits bound the requests that an instance takes.
type RateLimits struct {
	InstanceLevel InstanceRateLimits
}

// InstanceRateLimits are those of each instance.
type InstanceRateLimits struct {
	RequestsPerSecond int
	RequestsMaxBurst  int              `json:",omitempty"`
	Routes            []RouteRateLimit `json:",omitempty"`
}

// RouteRateLimit is that of the requests to some paths.
type RouteRateLimit struct {
	PathExact         string `json:",omitempty"`
	PathPrefix        string `json:",omitempty"`
	PathRegex         string `json:",omitempty"`
	RequestsPerSecond int    `json:",omitempty"`
	RequestsMaxBurst  int    `json:",omitempty"`
}

// Protocols of services. All but tcp are HTTP, which routing needs.
const (
	ProtocolTCP   = "tcp"
	ProtocolHTTP  = "http"
	ProtocolHTTP2 = "http2"
	ProtocolGRPC  = "grpc"
)

// IsHTTP tells whether a protocol has requests that can be routed.
func IsHTTP(protocol string) bool {
	return protocol == ProtocolHTTP || protocol == ProtocolHTTP2 || protocol == ProtocolGRPC
}

func validProtocol(p string) error {
	if p != "" && p != ProtocolTCP && !IsHTTP(p) {
		return Invalidf("invalid value for protocol: %s, want tcp, http, http2 or grpc", p)
	}
	return nil
}

// EntryKind implements ConfigEntry.
func (*ServiceDefaults) EntryKind() string { return KindServiceDefaults }

// Normalize implements ConfigEntry.
func (e *ServiceDefaults) Normalize() {
	e.Protocol = strings.ToLower(e.Protocol)
	if e.UpstreamConfig == nil {
		return
	}
	e.UpstreamConfig.Defaults.normalize()
	for _, o := range e.UpstreamConfig.Overrides {
		o.normalize()
	}
}

func (u *UpstreamConfig) normalize() {
	if u != nil {
		u.Protocol = strings.ToLower(u.Protocol)
		u.ConnectTimeoutMs = max(u.ConnectTimeoutMs, 0)
	}
}

// Validate implements ConfigEntry.
func (e *ServiceDefaults) Validate() error {
	if err := validEntryName(e.Name); err != nil {
		return err
	}
	if e.RateLimits != nil {
		return Invalidf("invalid rate_limits config. Rate limiting is a consul enterprise feature; remove RateLimits")
	}
	if err := validProtocol(e.Protocol); err != nil {
		return err
	}
	if err := validBalance("BalanceInboundConnections", e.BalanceInboundConnections); err != nil {
		return err
	}
	if err := validMutualTLSMode(e.MutualTLSMode); err != nil {
		return err
	}
	for _, n := range []struct {
		field string
		v     int
	}{
		{"MaxInboundConnections", e.MaxInboundConnections},
		{"LocalConnectTimeoutMs", e.LocalConnectTimeoutMs},
		{"LocalRequestTimeoutMs", e.LocalRequestTimeoutMs},
	} {
		if n.v < 0 {
			return Invalidf("%s must not be negative, it is %d", n.field, n.v)
		}
	}
	if err := e.UpstreamConfig.validate(); err != nil {
		return err
	}
	if err := e.Destination.validate(); err != nil {
		return err
	}
	return validExtensions(e.EnvoyExtensions)
}

func (u *UpstreamConfiguration) validate() error {
	if u == nil {
		return nil
	}
	if d := u.Defaults; d != nil {
		if d.Name != "" || d.Peer != "" {
			return Invalidf("UpstreamConfig.Defaults: Name and Peer must be empty; use Overrides for one upstream")
		}
		if err := d.validate("UpstreamConfig.Defaults"); err != nil {
			return err
		}
	}
	seen := map[[2]string]bool{}
	for i, o := range u.Overrides {
		at := fmt.Sprintf("UpstreamConfig.Overrides[%d]", i)
		switch {
		case o == nil || (o.Name == "" && o.Peer == ""):
			return Invalidf("%s: Name is required", at)
		case o.Name == Wildcard && o.Peer == "":
			return Invalidf("%s: wildcard name is not supported; use Defaults for all upstreams", at)
		case seen[[2]string{o.Name, o.Peer}]:
			return Invalidf("%s: %q is given more than once", at, o.Name)
		}
		seen[[2]string{o.Name, o.Peer}] = true
		if err := o.validate(at); err != nil {
			return err
		}
	}
	return nil
}

func (u *UpstreamConfig) validate(at string) error {
	if err := onlyDefaultTenancy(at, u.Namespace, u.Partition); err != nil {
		return err
	}
	if err := validProtocol(u.Protocol); err != nil {
		return Invalidf("%s: %w", at, err)
	}
	if err := validBalance(at+".BalanceOutboundConnections", u.BalanceOutboundConnections); err != nil {
		return err
	}
	if l := u.Limits; l != nil {
		for _, n := range []*int{l.MaxConnections, l.MaxPendingRequests, l.MaxConcurrentRequests} {
			if n != nil && *n < 0 {
				return Invalidf("%s.Limits: a limit must not be negative, one is %d", at, *n)
			}
		}
		if err := l.PassiveHealthCheck.validate(at + ".Limits.PassiveHealthCheck"); err != nil {
			return err
		}
	}
	return u.PassiveHealthCheck.validate(at + ".PassiveHealthCheck")
}

func (p *PassiveHealthCheck) validate(at string) error {
	if p == nil {
		return nil
	}
	if p.Interval < 0 || (p.BaseEjectionTime != nil && *p.BaseEjectionTime < 0) {
		return Invalidf("%s: Interval and BaseEjectionTime must not be negative", at)
	}
	for _, percent := range []*uint32{p.EnforcingConsecutive5xx, p.EnforcingConsecutiveGatewayFailure, p.MaxEjectionPercent} {
		if percent != nil && *percent > 100 {
			return Invalidf("%s: %d is no percentage", at, *percent)
		}
	}
	return nil
}

func (d *DestinationConfig) validate() error {
	if d == nil {
		return nil
	}
	if len(d.Addresses) == 0 {
		return Invalidf("Destination: at least one address is required")
	}
	if err := validPort("Destination.Port", d.Port); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i, a := range d.Addresses {
		switch {
		case a == "" || strings.ContainsAny(a, "* \t\r\n/"):
			return Invalidf("Destination.Addresses[%d]: %q is neither a host name nor an IP address", i, a)
		case seen[a]:
			return Invalidf("Destination.Addresses[%d]: %q is given more than once", i, a)
		}
		seen[a] = true
	}
	return nil
}

func validBalance(field, v string) error {
	if v != "" && v != "exact_balance" {
		return Invalidf("invalid value for %s: %q, want exact_balance or nothing", field, v)
	}
	return nil
}

func validMutualTLSMode(v string) error {
	switch v {
	case "", "strict", "permissive":
		return nil
	default:
		return Invalidf("invalid MutualTLSMode %q, want strict or permissive", v)
	}
}

func validExtensions(in []EnvoyExtension) error {
	for i, x := range in {
		if x.Name == "" {
			return Invalidf("EnvoyExtensions[%d]: Name is required", i)
		}
	}
	return nil
}

// ProxyDefaultsName is the only name of a proxy-defaults entry.
const ProxyDefaultsName = "global"

// EntryKind implements ConfigEntry.
func (*ProxyDefaults) EntryKind() string { return KindProxyDefaults }

// Normalize implements ConfigEntry.
func (e *ProxyDefaults) Normalize() {
	if e.Name == "" {
		e.Name = ProxyDefaultsName
	}
}

// Validate implements ConfigEntry.
func (e *ProxyDefaults) Validate() error {
	if e.Name != ProxyDefaultsName {
		return Invalidf("invalid name (%q), only %q is supported", e.Name, ProxyDefaultsName)
	}
	if err := e.AccessLogs.validate(); err != nil {
		return err
	}
	if err := validMutualTLSMode(e.MutualTLSMode); err != nil {
		return err
	}
	if p, ok := e.Config["protocol"].(string); ok {
		if err := validProtocol(strings.ToLower(p)); err != nil {
			return Invalidf("Config: %w", err)
		}
	}
	if err := e.FailoverPolicy.validate("FailoverPolicy"); err != nil {
		return err
	}
	if err := e.PrioritizeByLocality.validate("PrioritizeByLocality"); err != nil {
		return err
	}
	return validExtensions(e.EnvoyExtensions)
}

// Protocol is the protocol of services that have none of their own, "" for none.
func (e *ProxyDefaults) Protocol() string {
	if e == nil {
		return ""
	}
	p, _ := e.Config["protocol"].(string)
	return strings.ToLower(p)
}

func (a *AccessLogsConfig) validate() error {
	if !slices.Contains([]string{"", "file", "stderr", "stdout"}, a.Type) {
		return Invalidf("invalid access log type: %s, want file, stderr or stdout", a.Type)
	}
	if a.Type == "file" && a.Path == "" {
		return Invalidf("path must be specified when using file type access logs")
	}
	if a.Type != "file" && a.Path != "" {
		return Invalidf("path is only valid for file type access logs")
	}
	if a.JSONFormat != "" && a.TextFormat != "" {
		return Invalidf("cannot specify both access log JSONFormat and TextFormat")
	}
	return nil
}
