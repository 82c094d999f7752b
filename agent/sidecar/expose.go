package sidecar

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// maxExposed bounds the paths that one service exposes.
const maxExposed = 64

// exposed are the paths of the application that the registration, or central
// configuration, opens past the mesh.
func exposed(in inputs, inbound string, p *problems) []connect.Exposed {
	reg := in.proxy.Proxy
	out := exposedChecks(in, inbound, p)
	seen := map[string]bool{}
	for _, e := range out {
		seen[e.Listen+e.Path] = true
	}
	for i := range reg.Expose.Paths {
		e := &reg.Expose.Paths[i]
		at := fmt.Sprintf("expose path %q", e.Path)
		listen := joinAddr(bindHost(in), in.bindAddr, e.ListenerPort)
		u, err := url.ParseRequestURI(e.Path)
		switch {
		case err != nil || !strings.HasPrefix(e.Path, "/") || u.EscapedPath() != e.Path:
			p.add(at + " is no path: it must begin with a slash and have no query")
		case e.ListenerPort < 1 || e.ListenerPort > math.MaxUint16 || e.LocalPathPort < 1 || e.LocalPathPort > math.MaxUint16:
			p.add(fmt.Sprintf("%s needs a listener_port (%d) and a local_path_port (%d) between 1 and 65535", at, e.ListenerPort, e.LocalPathPort))
		case e.Protocol != "" && e.Protocol != "http" && e.Protocol != "http2":
			p.add(fmt.Sprintf("%s: protocol %q is none of http, http2", at, e.Protocol))
		case listen == inbound:
			p.add(fmt.Sprintf("%s: listener_port %d is that of the proxy itself; choose another", at, e.ListenerPort))
		case seen[listen+e.Path]:
			p.add(fmt.Sprintf("%s is exposed twice at %s; the first one counts", at, listen))
		case len(out) == maxExposed:
			p.add(fmt.Sprintf("more than %d paths are exposed; the others are left out", maxExposed))
			return out
		default:
			seen[listen+e.Path] = true
			out = append(out, connect.Exposed{
				Listen: listen, Path: e.Path, HTTP2: e.Protocol == "http2",
				Local: joinAddr(reg.LocalServiceAddress, "127.0.0.1", e.LocalPathPort),
			})
		}
	}
	return out
}

// exposedChecks are the checks of this host that go through the proxy, each for those
// alone who ask from this host.
func exposedChecks(in inputs, inbound string, p *problems) []connect.Exposed {
	var out []connect.Exposed
	for _, c := range in.checks {
		host := checksHost(in.proxy, in.bindAddr)
		e := connect.Exposed{
			Listen: joinAddr(host, "", c.Port), Path: c.Path, Local: c.Local, HTTP2: c.HTTP2, From: []string{"127.0.0.1"},
		}
		for _, ip := range []string{host, in.advertise} {
			if _, err := netip.ParseAddr(ip); err == nil && !slices.Contains(e.From, ip) {
				e.From = append(e.From, ip)
			}
		}
		switch {
		case e.Listen == inbound:
			p.add(fmt.Sprintf("check %q cannot be exposed at %s, which is where the proxy itself listens: move ports.expose_min_port", c.CheckID, e.Listen))
		case len(out) == maxExposed:
			p.add(fmt.Sprintf("more than %d checks are exposed; the others fail: set expose.checks = false", maxExposed))
			return out
		default:
			out = append(out, e)
		}
	}
	return out
}

// checksHost is the address at which this host reaches what a proxy exposes of checks:
// the one that the proxy is bound to, loopback where that is every one.
func checksHost(proxy *catalog.Service, bindAddr string) string {
	host := cmp.Or(boundTo(proxy), bindAddr)
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		return "127.0.0.1"
	}
	return host
}

// checkExposers finds the proxies that expose the checks of their services: by service ID
// the proxy, and where it listens. Of several for one service it is the first.
func checkExposers(want map[string]*catalog.Service, bindAddr string) (proxies, at map[string]string) {
	proxies, at = map[string]string{}, map[string]string{}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		reg := want[id]
		of := reg.Proxy.DestinationServiceID
		if !reg.Proxy.Expose.Checks || of == "" || proxies[of] != "" {
			continue
		}
		proxies[of], at[of] = id, checksHost(reg, bindAddr)
	}
	return proxies, at
}

// checksOf are the checks that go through a proxy.
func checksOf(h *local.Host, proxies map[string]string, reg *catalog.Service) []local.ExposedCheck {
	of := reg.Proxy.DestinationServiceID
	if proxies[of] != reg.ID {
		return nil
	}
	return h.Exposed[of]
}
