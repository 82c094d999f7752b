package local

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// Kinds of destinations of an upstream.
const (
	upstreamService = "service"
	upstreamQuery   = "prepared_query"
)

func validKind(reg *catalog.ServiceRegistration) error {
	if err := reg.Locality.Validate(); err != nil {
		return refuse("Validation failed: service %s: %v", reg.Name, err)
	}
	native := reg.Connect != nil && reg.Connect.Native
	switch reg.Kind {
	case catalog.KindTypical:
		return nil
	case catalog.KindConnectProxy:
		return validProxy(reg, native)
	case catalog.KindMeshGateway, catalog.KindTerminatingGateway, catalog.KindIngressGateway, catalog.KindAPIGateway:
		return validGateway(reg, native)
	default:
		return refuse("service %s: unknown Kind %q", reg.Name, reg.Kind)
	}
}

func validProxy(reg *catalog.ServiceRegistration, native bool) error {
	switch {
	case reg.Proxy == nil || reg.Proxy.DestinationServiceName == "":
		return refuse("Validation failed: service %s: Proxy.DestinationServiceName must be non-empty for Connect proxy services", reg.Name)
	case reg.Proxy.DestinationServiceName == catalog.Wildcard:
		return refuse("Validation failed: service %s: Proxy.DestinationServiceName must not be a wildcard for Connect proxy services", reg.Name)
	case reg.Port == 0 && reg.SocketPath == "" && !external(reg.Proxy.Config):
		// A proxy in a process of its own may be there to dial only.
		return refuse("Validation failed: service %s: Port or SocketPath must be set for a connect-proxy", reg.Name)
	case native:
		return refuse("Validation failed: service %s: A Proxy cannot also be Connect Native, only typical services", reg.Name)
	}
	p := reg.Proxy
	if err := validText("Proxy.DestinationServiceName", p.DestinationServiceName); err != nil {
		return err
	}
	switch p.Mode {
	case "", "direct", "transparent":
	default:
		return refuse("Validation failed: service %s: Proxy.Mode %q is none of direct, transparent", reg.Name, p.Mode)
	}
	if t := p.TransparentProxy; t != nil && (t.OutboundListenerPort < 0 || t.OutboundListenerPort > maxPort) {
		return refuse("Validation failed: service %s: Proxy.TransparentProxy.OutboundListenerPort %d is not between 0 and %d", reg.Name, t.OutboundListenerPort, maxPort)
	}
	if p.LocalServicePort < 0 || p.LocalServicePort > maxPort {
		return refuse("Validation failed: service %s: Proxy.LocalServicePort %d is not between 0 and %d", reg.Name, p.LocalServicePort, maxPort)
	}
	if p.LocalServicePort != 0 && p.LocalServiceSocketPath != "" {
		return refuse("Validation failed: service %s: Proxy.LocalServicePort and Proxy.LocalServiceSocketPath exclude each other", reg.Name)
	}
	if p.LocalServiceSocketPath != "" && !filepath.IsAbs(p.LocalServiceSocketPath) {
		return refuse("Validation failed: service %s: Proxy.LocalServiceSocketPath %q is not an absolute path", reg.Name, p.LocalServiceSocketPath)
	}
	if bracketed(p.LocalServiceAddress) {
		return refuse("Validation failed: service %s: Proxy.LocalServiceAddress %q: write an IPv6 address without brackets", reg.Name, p.LocalServiceAddress)
	}
	return validUpstreams(reg)
}

// bracketed tells the address of a URL from one that a port can be joined to.
func bracketed(addr string) bool { return strings.HasPrefix(addr, "[") }

func validGateway(reg *catalog.ServiceRegistration, native bool) error {
	if native {
		return refuse("Validation failed: service %s: A %s cannot also be Connect Native", reg.Name, reg.Kind)
	}
	if reg.Proxy == nil {
		return nil
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"DestinationServiceName", reg.Proxy.DestinationServiceName != ""},
		{"DestinationServiceID", reg.Proxy.DestinationServiceID != ""},
		{"LocalServiceAddress", reg.Proxy.LocalServiceAddress != ""},
		{"LocalServicePort", reg.Proxy.LocalServicePort != 0},
		{"LocalServiceSocketPath", reg.Proxy.LocalServiceSocketPath != ""},
		{"Upstreams", len(reg.Proxy.Upstreams) > 0},
	} {
		if f.set {
			return refuse("Validation failed: service %s: The Proxy.%s configuration is invalid for a %s", reg.Name, f.name, reg.Kind)
		}
	}
	return nil
}

// validUpstreams refuses listeners that cannot be opened side by side. An upstream
// that no host provides is no error: it may come later.
func validUpstreams(reg *catalog.ServiceRegistration) error {
	binds := map[string]bool{}
	for i := range reg.Proxy.Upstreams {
		u := &reg.Proxy.Upstreams[i]
		if err := validUpstream(reg.Name, u, reg.Proxy.Mode == "transparent"); err != nil {
			return err
		}
		bind := bindOf(u)
		if bind == "" {
			continue
		}
		if binds[bind] {
			return refuse("Failed Validation: service %s: upstreams cannot contain duplicates by local bind address and port or unix path; %q is specified twice", reg.Name, bind)
		}
		binds[bind] = true
	}
	return nil
}

// validUpstream: a proxy that takes redirected connections needs no listener for each.
func validUpstream(service string, u *catalog.Upstream, redirected bool) error {
	bad := func(format string, args ...any) error {
		return refuse("Failed Validation: service %s: upstream "+format, append([]any{service}, args...)...)
	}
	switch u.DestinationType {
	case "", upstreamService, upstreamQuery:
	default:
		return bad("%s: DestinationType %q is none of service, prepared_query", u.DestinationName, u.DestinationType)
	}
	for _, t := range []struct{ field, value string }{{"DestinationNamespace", u.DestinationNamespace}, {"DestinationPartition", u.DestinationPartition}} {
		if t.value != "" && t.value != "default" {
			return bad("%s: %s %q: there is one tenancy, leave it out or say \"default\"", u.DestinationName, t.field, t.value)
		}
	}
	switch {
	case u.DestinationName == "":
		return bad("destination name cannot be empty")
	case u.DestinationName == catalog.Wildcard:
		return bad("destination name cannot be a wildcard")
	case u.LocalBindPort < 0 || u.LocalBindPort > maxPort:
		return bad("%s: LocalBindPort %d is not between 1 and %d", u.DestinationName, u.LocalBindPort, maxPort)
	case u.LocalBindPort != 0 && u.LocalBindSocketPath != "":
		return bad("%s: only one of LocalBindPort and LocalBindSocketPath can be given", u.DestinationName)
	case u.LocalBindSocketPath != "" && !filepath.IsAbs(u.LocalBindSocketPath):
		return bad("%s: LocalBindSocketPath %q is not an absolute path", u.DestinationName, u.LocalBindSocketPath)
	case bracketed(u.LocalBindAddress):
		return bad("%s: LocalBindAddress %q: write an IPv6 address without brackets", u.DestinationName, u.LocalBindAddress)
	case u.LocalBindPort == 0 && u.LocalBindSocketPath == "" && !u.CentrallyConfigured && !redirected:
		return bad("%s: local bind port or local socket path must be defined and nonzero, unless Proxy.Mode is transparent", u.DestinationName)
	}
	if u.LocalBindSocketMode != "" {
		if _, err := strconv.ParseUint(u.LocalBindSocketMode, 8, 9); err != nil {
			return bad("%s: LocalBindSocketMode %q is no octal file mode such as 0660", u.DestinationName, u.LocalBindSocketMode)
		}
	}
	return validText("upstream name", u.DestinationName)
}

// bindOf is where an upstream listens, "" when nowhere.
func bindOf(u *catalog.Upstream) string {
	if u.LocalBindSocketPath != "" {
		return u.LocalBindSocketPath
	}
	if u.LocalBindPort == 0 {
		return ""
	}
	host := u.LocalBindAddress
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(u.LocalBindPort))
}
