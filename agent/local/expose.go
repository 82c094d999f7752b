package local

import (
	"cmp"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
)

// ExposedCheck is a check that this host makes through the proxy of its service.
type ExposedCheck struct {
	CheckID string
	// Port is where the proxy is to listen for it.
	Port int
	// Path is what is asked for, and Local where the application answers, "host:port".
	Path  string
	Local string
	// HTTP2 is how a gRPC check speaks.
	HTTP2 bool
}

// grpcHealthPath is what a gRPC check asks for.
const grpcHealthPath = "/grpc.health.v1.Health/Check"

// ExposeChecks sends the http and grpc checks of services through their proxies. at is,
// by service ID, the address on which the proxy of each listens; it replaces what was
// said before.
func (s *State) ExposeChecks(at map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if maps.Equal(s.exposed, at) {
		return
	}
	s.exposed = maps.Clone(at)
	if s.expose() {
		s.changed()
	}
}

// expose makes the ports of checks agree with what is exposed, and tells whether one
// changed. s.mu is held.
func (s *State) expose() bool {
	changed := false
	var without []*check
	for _, c := range s.sortedChecks() {
		host := s.exposed[c.def.ServiceID]
		switch _, ok := exposable(c); {
		case !ok || host == "" || c.def.ServiceID == "":
			changed = s.lead(c, "", 0) || changed
		case c.row.ExposedPort != 0:
			changed = s.lead(c, host, c.row.ExposedPort) || changed
		default:
			without = append(without, c)
		}
	}
	if len(without) == 0 {
		return changed
	}
	used := s.usedPorts()
	for _, c := range without {
		port := s.exposedPort(used)
		if port == 0 {
			s.log.Warn("no port is left to expose a check through the proxy, so it is made directly",
				"check", c.def.CheckID, "service", c.def.ServiceID, "hint", "widen ports.expose_min_port and ports.expose_max_port")
			continue
		}
		used[port] = true
		changed = s.lead(c, s.exposed[c.def.ServiceID], port) || changed
	}
	return changed
}

func (s *State) sortedChecks() []*check {
	return slices.SortedFunc(maps.Values(s.checks), func(a, b *check) int { return cmp.Compare(a.def.CheckID, b.def.CheckID) })
}

// lead has a check go through host and port, or directly where the port is 0.
func (s *State) lead(c *check, host string, port int) bool {
	through := ""
	if port != 0 {
		through = net.JoinHostPort(host, strconv.Itoa(port))
	}
	if c.through == through {
		return false
	}
	row := *c.row
	row.ExposedPort = port
	c.row, c.through, c.outputDue = &row, through, time.Time{} // the servers are to know the port now
	if c.stop != nil {
		c.stop()
		c.stop = nil
		s.start(c)
	}
	return true
}

// usedPorts are those that services, and checks that go through proxies, have taken.
func (s *State) usedPorts() map[int]bool {
	used := map[int]bool{}
	for _, e := range s.services {
		used[e.svc.Port] = true
		for _, p := range e.svc.Ports {
			used[p.Port] = true
		}
		for i := range e.svc.Proxy.Upstreams {
			used[e.svc.Proxy.Upstreams[i].LocalBindPort] = true
		}
		for _, p := range e.svc.Proxy.Expose.Paths {
			used[p.ListenerPort] = true
		}
	}
	for _, c := range s.checks {
		used[c.row.ExposedPort] = true
	}
	return used
}

// exposedPort finds a port of the range that is free, 0 for none. One that somebody
// listens on is taken only when there is no other: it may be a process of this agent
// that ends.
func (s *State) exposedPort(used map[int]bool) int {
	fallback := 0
	for p := max(s.cfg.ExposeMinPort, 1); p <= s.cfg.ExposeMaxPort; p++ {
		switch {
		case used[p]:
		case listenable(p):
			return p
		case fallback == 0:
			fallback = p
		}
	}
	return fallback
}

// exposable tells what the proxy of a check's service would have to let through.
// Checks that speak TLS are made directly: the proxy could not present itself as the
// application.
func exposable(c *check) (ExposedCheck, bool) {
	out := ExposedCheck{CheckID: c.def.CheckID, Port: c.row.ExposedPort}
	switch c.kind {
	case checks.TypeHTTP:
		u, err := url.Parse(checks.PlainURL(c.def.HTTP))
		if err != nil || u.Scheme != "http" || u.Hostname() == "" {
			return out, false
		}
		out.Local = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80"))
		out.Path = cmp.Or(u.EscapedPath(), "/")
		return out, true
	case checks.TypeGRPC:
		out.Local, _, _ = strings.Cut(c.def.GRPC, "/")
		out.Path, out.HTTP2 = grpcHealthPath, true
		_, _, err := net.SplitHostPort(out.Local)
		return out, err == nil && !c.def.GRPCUseTLS
	default:
		return out, false
	}
}

// led is the definition of a check that goes through a proxy.
func led(def *catalog.CheckDefinition, through string) *catalog.CheckDefinition {
	if through == "" {
		return def
	}
	out := *def
	if def.GRPC != "" {
		_, service, named := strings.Cut(def.GRPC, "/")
		if out.GRPC = through; named {
			out.GRPC += "/" + service
		}
		return &out
	}
	u, err := url.Parse(checks.PlainURL(def.HTTP))
	if err != nil {
		return def // it was not exposable
	}
	asked := u.Host
	u.Host = through
	out.HTTP = u.String()
	if !hasHost(def.Header) { // the application is to see the name that it was to be asked by
		out.Header = maps.Clone(def.Header)
		if out.Header == nil {
			out.Header = map[string][]string{}
		}
		out.Header["Host"] = []string{asked}
	}
	return &out
}

func hasHost(header map[string][]string) bool {
	for name := range header {
		if strings.EqualFold(name, "Host") {
			return true
		}
	}
	return false
}

// exposedChecks lists, by service ID, the checks that go through proxies. s.mu is held.
func (s *State) exposedChecks() map[string][]ExposedCheck {
	var out map[string][]ExposedCheck
	if len(s.exposed) == 0 {
		return nil
	}
	for _, c := range s.sortedChecks() {
		if e, ok := exposable(c); ok && c.through != "" {
			if out == nil {
				out = map[string][]ExposedCheck{}
			}
			out[c.def.ServiceID] = append(out[c.def.ServiceID], e)
		}
	}
	return out
}
