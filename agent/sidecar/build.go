package sidecar

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// inputs are all that a snapshot is made of. Build reads them and changes nothing.
type inputs struct {
	proxy      *catalog.Service // the registration, of kind connect-proxy
	datacenter string
	locality   *catalog.Locality    // of the host; the registration may say another
	bindAddr   string               // of the inbound listener when the registration names none
	advertise  string               // at which others reach this host
	checks     []local.ExposedCheck // that go through the proxy
	rest       string               // why the instance should rest, "" for not at all
	drain      time.Duration        // when the registration says nothing; 0 is the proxy's own default
	accessLog  *connect.AccessLog   // nil for a proxy that has it from its process

	// policy is what the servers say; each part is the last one known.
	policy
	world
	reach
}

// policy is the part of a snapshot that comes from the servers and is the same
// for every upstream.
type policy struct {
	trustDomain string
	roots       []string
	signingRoot string
	// revokedSerials and revokedIDs are who is not trusted any more.
	revokedSerials, revokedIDs []string
	intentions                 catalog.Intentions
	fallback                   catalog.Action
}

// build makes the snapshot of a proxy, and the list of what in its registration
// cannot be done, each a sentence that names the thing and says what to do.
func build(in inputs) (*connect.Snapshot, []string) {
	p := &problems{}
	reg := in.proxy.Proxy
	cfg := reg.Config
	snap := &connect.Snapshot{
		Service:     reg.DestinationServiceName,
		Datacenter:  in.datacenter,
		TrustDomain: in.trustDomain,
		Roots:       in.roots,
		SigningRoot: in.signingRoot,

		RevokedSerials: in.revokedSerials, RevokedIDs: in.revokedIDs,

		Intentions: in.intentions,
		Default:    in.fallback,
		AccessLog:  in.accessLog,
		Local:      localAddr(reg),
		Inbound:    inboundAddr(in, p),
		Limits: connect.Limits{
			HandshakeTimeout:      cfgMillis(p, cfg, "handshake_timeout_ms"),
			MaxInboundConnections: cfgInt(p, cfg, "max_inbound_connections"),
			DrainTimeout:          cmp.Or(cfgMillis(p, cfg, "drain_timeout_ms"), in.drain),
			LocalConnectTimeout:   cfgMillis(p, cfg, "local_connect_timeout_ms"),
		},
	}
	snap.Rest = rest(in, p)
	if in.place = in.locality; in.proxy.Locality != nil {
		in.place = in.proxy.Locality
	}
	snap.Expose = exposed(in, snap.Inbound, p)
	for i := range reg.Upstreams {
		if up, ok := buildUpstream(in, &reg.Upstreams[i], p); ok {
			snap.Upstreams = append(snap.Upstreams, up)
		}
	}
	capture(&in, snap, p)
	return snap, p.list
}

// localAddr is where the application listens, "" where none does.
func localAddr(reg catalog.ConnectProxy) string {
	if reg.LocalServiceSocketPath != "" {
		return reg.LocalServiceSocketPath
	}
	return joinAddr(reg.LocalServiceAddress, "127.0.0.1", reg.LocalServicePort)
}

// inboundAddr is where the proxy takes connections of the mesh: at bind_address
// and bind_port of its Config, else at its own address and port.
func inboundAddr(in inputs, p *problems) string {
	cfg := in.proxy.Proxy.Config
	port := in.proxy.Port
	switch n := cfgInt(p, cfg, "bind_port"); {
	case n > math.MaxUint16:
		p.add(fmt.Sprintf("config bind_port = %d is no port; the registered one is used", n))
	case n > 0:
		port = n
	}
	if port == 0 && in.proxy.SocketPath != "" {
		p.add("socket_path of a sidecar is not supported, so it takes no connections of the mesh; set port")
	}
	return joinAddr(bindHost(in), in.bindAddr, port)
}

// bindHost is the address that the proxy listens on for others, "" for that of all.
func bindHost(in inputs) string { return boundTo(in.proxy) }

func boundTo(proxy *catalog.Service) string {
	if s, ok := proxy.Proxy.Config["bind_address"].(string); ok && s != "" {
		return s
	}
	return proxy.Address
}

func joinAddr(host, fallback string, port int) string {
	if port <= 0 {
		return ""
	}
	if host == "" {
		host = fallback
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// watchable tells whether up is a destination that this version can reach, and
// why not.
func watchable(up *catalog.Upstream, datacenter string) (ok bool, why string) {
	name := up.DestinationName
	switch {
	case name == "":
		return false, "an upstream has no destination_name; name the service it leads to"
	case up.DestinationType != "" && up.DestinationType != "service" && up.DestinationType != destinationQuery:
		return false, fmt.Sprintf("upstream %s: destination_type %q is not supported; name a service or a prepared query", name, up.DestinationType)
	case up.DestinationPeer != "":
		return false, fmt.Sprintf("upstream %s: destinations of another cluster (peer %q) are not supported", name, up.DestinationPeer)
	case up.Datacenter != "" && up.Datacenter != datacenter:
		return false, fmt.Sprintf("upstream %s: datacenter %q is not this one (%s), and other datacenters are not supported", name, up.Datacenter, datacenter)
	case up.DestinationPort != "":
		return false, fmt.Sprintf("upstream %s: named ports (%q) are not supported; leave destination_port out", name, up.DestinationPort)
	default:
		return true, ""
	}
}

func buildUpstream(in inputs, up *catalog.Upstream, p *problems) (connect.Upstream, bool) {
	if ok, why := watchable(up, in.datacenter); !ok {
		p.add(why)
		return connect.Upstream{}, false
	}
	instances, timeout := in.resolve(upstreamName(up), in.datacenter, p)
	if explicit, ok := explicitInstances(p, up); ok {
		instances = explicit
	}
	out := connect.Upstream{
		Name:           upstreamName(up),
		Datacenter:     in.datacenter,
		Listen:         up.LocalBindSocketPath,
		SocketMode:     up.LocalBindSocketMode,
		Instances:      instances,
		ConnectTimeout: cmp.Or(cfgMillis(p, up.Config, "connect_timeout_ms"), timeout),
	}
	out.Ejection = ejection(p, up)
	if limits, ok := up.Config["limits"].(map[string]any); ok {
		out.MaxConnections = maxConnections(p, limits)
	}
	if out.Listen == "" {
		out.Listen = joinAddr(up.LocalBindAddress, "127.0.0.1", up.LocalBindPort)
	}
	if out.Listen == "" && !transparent(in.proxy) {
		p.add(fmt.Sprintf("upstream %s has no listener; set local_bind_port or local_bind_socket_path", up.DestinationName))
	}
	return out, true
}

// maxConnections reads the limit in either spelling: registrations are written
// with one, entries with the other.
func maxConnections(p *problems, limits map[string]any) int {
	return cmp.Or(cfgInt(p, limits, "max_connections"), cfgInt(p, limits, "MaxConnections"))
}

// endpoint is the address of an instance, unless it is critical, in maintenance,
// weighs nothing or has no port.
func endpoint(inst *catalog.Instance) (connect.Endpoint, bool) {
	if inst == nil || inst.Service == nil || inst.Node == nil {
		return connect.Endpoint{}, false
	}
	status := catalog.StatusPassing
	for _, c := range inst.Checks {
		status = catalog.Worse(status, c.Status)
	}
	if status != catalog.StatusPassing && status != catalog.StatusWarning {
		return connect.Endpoint{}, false
	}
	weight := 1
	if w := inst.Service.Weights; w != nil {
		weight = w.Passing
		if status == catalog.StatusWarning {
			weight = w.Warning
		}
	}
	addr := joinAddr(inst.Service.Address, inst.Node.Address, inst.Service.Port)
	if weight <= 0 || addr == "" {
		return connect.Endpoint{}, false
	}
	return connect.Endpoint{ID: inst.Service.ID, Node: inst.Node.Node, Addr: addr, Status: status, Weight: weight, Direct: direct(inst)}, true
}

// rootsOf splits a view of roots; ok is false while the mesh has no authority yet.
func rootsOf(v *catalog.View) (trustDomain string, roots []string, signing string, ok bool) {
	if v.CAConfig == nil || v.CAConfig.ClusterID == "" || len(v.Roots) == 0 {
		return "", nil, "", false
	}
	for _, r := range v.Roots {
		roots = append(roots, r.RootCert)
		if r.Active {
			signing = r.RootCert
		}
	}
	return catalog.TrustDomain(v.CAConfig.ClusterID), roots, signing, true
}

// problems collects sentences.
type problems struct{ list []string }

func (p *problems) add(s string) {
	if !slices.Contains(p.list, s) {
		p.list = append(p.list, s)
	}
}

// maxMillis bounds settings in milliseconds: a day.
const maxMillis = 24 * 60 * 60 * 1000

func cfgMillis(p *problems, cfg map[string]any, key string) time.Duration {
	n := cfgInt(p, cfg, key)
	if n > maxMillis {
		p.add(fmt.Sprintf("config %s = %d is more than a day; the default is used", key, n))
		return 0
	}
	return time.Duration(n) * time.Millisecond
}

// cfgInt reads a whole number, not negative, of an opaque Config, where JSON, HCL
// and the wire leave numbers of different types. Missing is 0.
func cfgInt(p *problems, cfg map[string]any, key string) int {
	v, there := cfg[key]
	if !there || v == nil {
		return 0
	}
	n, ok := wholeNumber(v)
	if !ok {
		p.add(fmt.Sprintf("config %s = %v is not a whole number, 0 or more; the default is used", key, v))
		return 0
	}
	return n
}

func wholeNumber(v any) (int, bool) {
	var f float64
	switch x := v.(type) {
	case int:
		f = float64(x)
	case int64:
		f = float64(x)
	case uint64:
		f = float64(x)
	case float64:
		f = x
	case json.Number:
		return wholeNumber(x.String())
	case string:
		n, err := strconv.ParseFloat(x, 64)
		if err != nil {
			return 0, false
		}
		f = n
	default:
		return 0, false
	}
	if f < 0 || f > math.MaxInt32 || f != math.Trunc(f) {
		return 0, false
	}
	return int(f), true
}
