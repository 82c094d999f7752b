package sidecar

import (
	"fmt"
	"math"
	"net/url"
	"strings"

	"github.com/weftmesh/weft/connect"
)

// maxExposed bounds the paths that one service exposes.
const maxExposed = 64

// exposed are the paths of the application that the registration, or central
// configuration, opens past the mesh.
func exposed(in inputs, inbound string, p *problems) []connect.Exposed {
	reg := in.proxy.Proxy
	if reg.Expose.Checks {
		p.add("expose.checks is not supported: name the path of each check in expose.paths, with a listener_port of its own")
	}
	var out []connect.Exposed
	seen := map[string]bool{}
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
