package local

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// sidecarPort finds a port for the sidecar id of a service: the mesh port, where there is
// one and no other instance of the service has it, or the one that it has, else the
// lowest of the range that nothing on this host is registered with and nothing, as far
// as one can see now, listens on.
func (d *draft) sidecarPort(id, service string) (int, error) {
	if p := d.s.cfg.MeshPort; p > 0 && d.onMeshPort(id, service) == "" {
		return p, nil
	}
	used := map[int]bool{}
	for other, e := range d.services {
		if other == id {
			continue
		}
		used[e.svc.Port] = true
		for _, p := range e.svc.Ports {
			used[p.Port] = true
		}
		for i := range e.svc.Proxy.Upstreams {
			used[e.svc.Proxy.Upstreams[i].LocalBindPort] = true
		}
	}
	if old := d.services[id]; old != nil && old.svc.Port != 0 && !used[old.svc.Port] {
		return old.svc.Port, nil
	}
	low, high := d.s.cfg.SidecarMinPort, d.s.cfg.SidecarMaxPort
	fallback := 0
	for p := max(low, 1); p <= high; p++ {
		if used[p] {
			continue
		}
		if listenable(p) || d.s.freedSoon(p) {
			return p, nil
		}
		if fallback == 0 {
			fallback = p // the proxy waits for it, and says so
		}
	}
	if fallback != 0 {
		return fallback, nil
	}
	return 0, refuse("service %s: no port is left for its sidecar, all of %d to %d are taken: widen ports.sidecar_min_port and ports.sidecar_max_port, or set sidecar_service.port", service, low, high)
}

// onMeshPort is the proxy of an instance of the service, other than id, that has the
// mesh port, where services are told apart and instances are not: for its callers all
// behind one address are one, which they cannot prefer, leave, or retry elsewhere.
func (d *draft) onMeshPort(id, service string) string {
	for other, e := range d.services {
		if other != id && RunsHere(e.svc) && e.svc.Port == d.s.cfg.MeshPort && strings.EqualFold(e.svc.Proxy.DestinationServiceName, service) {
			return other
		}
	}
	return ""
}

const (
	// leavingFor is how long a proxy that was removed may go on holding its port.
	leavingFor = 5 * time.Second
	// leavingWait is how long a registration waits for such a port.
	leavingWait = 250 * time.Millisecond
)

// noteLeaving remembers the ports of the proxies that the draft takes away.
func (s *State) noteLeaving(d *draft) {
	now := time.Now()
	for port, at := range s.leaving {
		if now.Sub(at) > leavingFor {
			delete(s.leaving, port)
		}
	}
	for id, e := range s.services {
		if d.services[id] == nil && RunsHere(e.svc) {
			s.leaving[e.svc.Port] = now
		}
	}
}

// freedSoon tells whether who listens on the port is a proxy of ours that was removed a
// moment ago. It gives that one time to close; a proxy that comes too early tries again.
func (s *State) freedSoon(port int) bool {
	at, ok := s.leaving[port]
	if !ok || time.Since(at) > leavingFor {
		return false
	}
	for end := time.Now().Add(leavingWait); time.Now().Before(end) && !listenable(port); {
		time.Sleep(5 * time.Millisecond) // it closes soon, and nobody tells us when
	}
	return true
}

// listenable tells whether the port is free on every address of this host, so that
// a second agent, or another program in the range, costs nobody a sidecar.
func listenable(port int) bool {
	ln, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	ln.Close()
	return true
}

// listener is a place where a proxy of this agent listens.
type listener struct {
	what string
	host string // "": that of the node
	port int
	path string // of a Unix socket, in place of host and port
	// inbound listeners are for the mesh, and may share the mesh port.
	inbound bool
}

func (l listener) addr() string {
	if l.path != "" {
		return l.path
	}
	return net.JoinHostPort(l.host, strconv.Itoa(l.port))
}

func (l listener) clashes(o listener) bool {
	if l.path != "" || o.path != "" {
		return l.path == o.path
	}
	return l.port == o.port && (l.host == o.host || l.everywhere() || o.everywhere())
}

func (l listener) everywhere() bool { return l.host == "" || l.host == "0.0.0.0" || l.host == "::" }

func listeners(svc *catalog.Service) []listener {
	var out []listener
	_, elsewhere := svc.Proxy.Config["bind_port"]
	if svc.Port != 0 && !elsewhere {
		out = append(out, listener{what: "service " + svc.ID, host: svc.Address, port: svc.Port, inbound: true})
	}
	for i := range svc.Proxy.Upstreams {
		u := &svc.Proxy.Upstreams[i]
		l := listener{what: fmt.Sprintf("the upstream %s of service %s", u.DestinationName, svc.ID), path: u.LocalBindSocketPath}
		if l.path == "" {
			l.port, l.host = u.LocalBindPort, u.LocalBindAddress
			if l.host == "" {
				l.host = "127.0.0.1"
			}
		}
		if l.path != "" || l.port != 0 {
			out = append(out, l)
		}
	}
	return out
}

// clash refuses a proxy of this agent that would listen where another one does.
// Proxies that somebody else runs may live in a network namespace of their own.
func (d *draft) clash(svc *catalog.Service) error {
	if !RunsHere(svc) {
		return nil
	}
	if p := d.s.cfg.MeshPort; p > 0 && svc.Port == p {
		if other := d.onMeshPort(svc.ID, svc.Proxy.DestinationServiceName); other != "" {
			return refuse("service %s cannot share the mesh port with %s: both are proxies of %s, which callers could not tell apart there; leave out its port, and it gets one of its own", svc.ID, other, svc.Proxy.DestinationServiceName)
		}
	}
	mine := listeners(svc)
	for i, l := range mine {
		for _, other := range mine[:i] {
			if l.clashes(other) {
				return refuse("%s cannot listen on %s: %s does, on %s", l.what, l.addr(), other.what, other.addr())
			}
		}
	}
	for id, e := range d.services {
		if id == svc.ID || !RunsHere(e.svc) {
			continue
		}
		for _, theirs := range listeners(e.svc) {
			for _, l := range mine {
				if l.inbound && theirs.inbound && l.port == d.s.cfg.MeshPort && l.port != 0 {
					continue
				}
				if l.clashes(theirs) {
					return refuse("%s cannot listen on %s: %s does, on %s", l.what, l.addr(), theirs.what, theirs.addr())
				}
			}
		}
	}
	return nil
}
