package catalog

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
)

// MergeCentral gives a proxy or gateway what config entries say of all proxies
// and of its service: proxy-defaults, over it service-defaults, over both the
// registration. Services of other kinds, and those of which entries say nothing,
// are returned as they are; s is never changed.
func MergeCentral(src EntrySource, s *Service) *Service {
	name := centralName(s)
	if name == "" {
		return s
	}
	global, _ := lookup[*ProxyDefaults](src, KindProxyDefaults, ProxyDefaultsName)
	own, _ := lookup[*ServiceDefaults](src, KindServiceDefaults, name)
	if global == nil {
		global = &ProxyDefaults{}
	}
	if own == nil {
		own = &ServiceDefaults{}
	}
	out := *s
	p := &out.Proxy
	p.Config = centralConfig(global, own, s.Proxy.Config)
	p.Mode = cmp.Or(p.Mode, own.Mode, global.Mode)
	p.MutualTLSMode = cmp.Or(p.MutualTLSMode, own.MutualTLSMode, global.MutualTLSMode)
	p.MeshGateway.Mode = cmp.Or(p.MeshGateway.Mode, own.MeshGateway.Mode, global.MeshGateway.Mode)
	p.TransparentProxy = centralCapture(p.TransparentProxy, own.TransparentProxy, global.TransparentProxy)
	p.Expose = centralExpose(p.Expose, own.Expose, global.Expose)
	if p.AccessLogs == nil && global.AccessLogs != (AccessLogsConfig{}) {
		logs := global.AccessLogs
		p.AccessLogs = &logs
	}
	if len(p.EnvoyExtensions) == 0 {
		p.EnvoyExtensions = append(slices.Clone(global.EnvoyExtensions), own.EnvoyExtensions...)
	}
	if len(p.Upstreams) > 0 {
		p.Upstreams = slices.Clone(p.Upstreams)
		for i := range p.Upstreams {
			mergeUpstream(src, own.UpstreamConfig, p.MeshGateway, &p.Upstreams[i])
		}
	}
	return &out
}

// centralName is the service whose service-defaults are for s, "" for none.
func centralName(s *Service) Name {
	if s == nil {
		return ""
	}
	switch s.Kind {
	case KindConnectProxy:
		return s.Proxy.DestinationServiceName
	case KindMeshGateway, KindTerminatingGateway, KindIngressGateway, KindAPIGateway:
		return s.Service
	default:
		return ""
	}
}

// centralConfig merges the opaque maps, key by key.
func centralConfig(global *ProxyDefaults, own *ServiceDefaults, registered map[string]any) map[string]any {
	out := maps.Clone(global.Config)
	if out == nil {
		out = map[string]any{}
	}
	if own.Protocol != "" {
		out["protocol"] = own.Protocol
	}
	for key, n := range map[string]int{
		"max_inbound_connections": own.MaxInboundConnections, "local_connect_timeout_ms": own.LocalConnectTimeoutMs,
		"local_request_timeout_ms": own.LocalRequestTimeoutMs,
	} {
		if n != 0 {
			out[key] = float64(n)
		}
	}
	if own.BalanceInboundConnections != "" {
		out["balance_inbound_connections"] = own.BalanceInboundConnections
	}
	if own.MaxRequestHeadersKB != nil {
		out["max_request_headers_kb"] = float64(*own.MaxRequestHeadersKB)
	}
	maps.Copy(out, registered)
	if len(out) == 0 {
		return registered
	}
	return out
}

func centralCapture(registered *TransparentProxy, own, global TransparentProxy) *TransparentProxy {
	var out TransparentProxy
	if registered != nil {
		out = *registered
	}
	for _, c := range []TransparentProxy{own, global} {
		if out.OutboundListenerPort == 0 {
			out.OutboundListenerPort = c.OutboundListenerPort
		}
		out.DialedDirectly = out.DialedDirectly || c.DialedDirectly
	}
	if registered == nil && out == (TransparentProxy{}) {
		return nil
	}
	return &out
}

func centralExpose(registered, own, global ExposeConfig) ExposeConfig {
	out := registered
	for _, c := range []ExposeConfig{own, global} {
		out.Checks = out.Checks || c.Checks
		if len(out.Paths) == 0 {
			out.Paths = c.Paths
		}
	}
	return out
}

// mergeUpstream gives an upstream what is said of it: how all address it, how it
// wants to be addressed, how this service calls others, how it calls this one, and
// last what was registered.
func mergeUpstream(src EntrySource, calls *UpstreamConfiguration, gateway MeshGatewayConfig, up *Upstream) {
	if up.DestinationType != "" && up.DestinationType != "service" {
		up.MeshGateway.Mode = cmp.Or(up.MeshGateway.Mode, gateway.Mode)
		return
	}
	central := map[string]any{}
	if g, ok := lookup[*ProxyDefaults](src, KindProxyDefaults, ProxyDefaultsName); ok && g.Protocol() != "" {
		central["protocol"] = g.Protocol()
	}
	if d, ok := lookup[*ServiceDefaults](src, KindServiceDefaults, up.DestinationName); ok && d.Protocol != "" {
		central["protocol"] = d.Protocol
	}
	var override, defaults MeshGatewayConfig
	if calls != nil {
		if calls.Defaults != nil {
			calls.Defaults.into(central)
			defaults = calls.Defaults.MeshGateway
		}
		for _, o := range calls.Overrides {
			if o.Name == up.DestinationName && o.Peer == up.DestinationPeer {
				o.into(central)
				override = o.MeshGateway
			}
		}
	}
	up.MeshGateway.Mode = cmp.Or(up.MeshGateway.Mode, override.Mode, defaults.Mode, gateway.Mode)
	if len(central) == 0 {
		return
	}
	maps.Copy(central, up.Config)
	up.Config = central
}

// into sets the keys of an upstream's opaque config.
func (u *UpstreamConfig) into(m map[string]any) {
	for key, v := range map[string]string{
		"protocol": u.Protocol, "envoy_listener_json": u.EnvoyListenerJSON, "envoy_cluster_json": u.EnvoyClusterJSON,
		"balance_outbound_connections": u.BalanceOutboundConnections,
	} {
		if v != "" {
			m[key] = v
		}
	}
	if u.ConnectTimeoutMs != 0 {
		m["connect_timeout_ms"] = float64(u.ConnectTimeoutMs)
	}
	if u.Limits != nil {
		m["limits"] = opaque(u.Limits)
	}
	if u.PassiveHealthCheck != nil {
		m["passive_health_check"] = opaque(u.PassiveHealthCheck)
	}
}

// opaque turns a struct into what a map of JSON would hold.
func opaque(v any) map[string]any {
	b, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		return nil
	}
	return out
}
