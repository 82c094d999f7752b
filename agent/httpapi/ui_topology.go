package httpapi

import (
	"fmt"
	"slices"

	"github.com/weftmesh/weft/catalog"
)

// Why a service is in the topology of another.
const (
	sourceRegistration = "proxy-registration"
	sourceSpecific     = "specific-intention"
	sourceWildcard     = "wildcard-intention"
	sourceDefault      = "default-allow"
)

type topologyView struct {
	Protocol         string
	TransparentProxy bool
	Upstreams        []edgeView
	Downstreams      []edgeView
	FilteredByACLs   bool
}

// edgeView is the service at the other end of a connection.
type edgeView struct {
	uiServiceView
	Source    string
	Intention verdictView
}

// verdictView is what the judge says of a connection.
type verdictView struct {
	Allowed        bool
	HasPermissions bool
	ExternalSource string
	HasExact       bool
	DefaultAllow   bool
}

// mesh is all that a topology is drawn from.
type mesh struct {
	of         map[catalog.Name][]*catalog.Instance
	inMesh     []catalog.Name                  // those that speak mTLS, in order
	upstreams  map[catalog.Name][]catalog.Name // that proxies were registered with
	intentions catalog.Intentions
	fallback   catalog.Action
}

func newMesh(dump, intentions *catalog.View, dc string) *mesh {
	m := &mesh{upstreams: map[catalog.Name][]catalog.Name{}, intentions: intentions.Intentions, fallback: intentions.Default}
	_, m.of = byService(dump.Instances)
	for _, i := range dump.Instances {
		s := i.Service
		switch {
		case s.Kind == catalog.KindConnectProxy:
			dest := s.Proxy.DestinationServiceName
			if len(m.of[dest]) > 0 {
				m.inMesh = append(m.inMesh, dest)
			}
			for _, u := range s.Proxy.Upstreams {
				if (u.DestinationType == "" || u.DestinationType == "service") && (u.Datacenter == "" || u.Datacenter == dc) && u.DestinationPeer == "" {
					m.upstreams[dest] = append(m.upstreams[dest], u.DestinationName)
				}
			}
		case s.Connect.Native:
			m.inMesh = append(m.inMesh, s.Service)
		}
	}
	m.inMesh = setOf(m.inMesh)
	return m
}

// judge asks the one judge, and says how it came to its verdict.
func (m *mesh) judge(source, destination catalog.Name) (verdictView, catalog.Decision) {
	d := m.intentions.Decide(catalog.Request{Source: source, Destination: destination}, m.fallback)
	v := verdictView{Allowed: d.Action.Allowed(), DefaultAllow: m.fallback == catalog.ActionAllow}
	for _, i := range m.intentions {
		if !d.Rule.IsDefault() && i.SourcePeer == d.Rule.SourcePeer && i.SourceName == d.Rule.Source && i.DestinationName == d.Rule.Destination {
			v.HasPermissions = len(i.Permissions) > 0
			v.ExternalSource = i.Meta[metaSource]
			v.HasExact = !catalog.IsPattern(i.SourceName) && !catalog.IsPattern(i.DestinationName)
		}
	}
	return v, d
}

// why says by which rule two services may talk that no registration connects; ""
// when they may not.
func why(v verdictView, d catalog.Decision) string {
	switch {
	case !v.Allowed && !v.HasPermissions:
		return ""
	case d.Rule.IsDefault():
		return sourceDefault
	case v.HasExact:
		return sourceSpecific
	default:
		return sourceWildcard
	}
}

func (a uiAPI) topology(c *call) (any, error) {
	name, err := c.need("service name")
	if err != nil {
		return nil, err
	}
	if !c.query.Has("kind") {
		return nil, badRequest("Missing service kind")
	}
	kind := catalog.ServiceKind(c.query.Get("kind"))
	if kind != catalog.KindTypical && kind != catalog.KindIngressGateway {
		return nil, badRequest(fmt.Sprintf("Unsupported service kind %q", kind))
	}
	dump, err := a.q.read(c, catalog.Query{Kind: catalog.QueryDump})
	if err != nil {
		return nil, err
	}
	intentions, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryIntentions})
	if err != nil {
		return nil, err
	}
	m := newMesh(dump, intentions, a.cfg.Self.Datacenter)
	out := topologyView{Upstreams: []edgeView{}, Downstreams: []edgeView{}}
	if out.Protocol, err = a.protocol(c, name); err != nil {
		return nil, err
	}
	if kind == catalog.KindIngressGateway {
		behind, err := a.servicesOf(c, name, ordinary(dump.Instances))
		if err != nil {
			return nil, err
		}
		for _, n := range behind {
			v, _ := m.judge(name, n)
			out.Upstreams = append(out.Upstreams, edgeView{a.summary(n, m.of[n]), sourceRegistration, v})
		}
		return out, nil
	}
	for _, i := range dump.Instances {
		if i.Service.Kind == catalog.KindConnectProxy && i.Service.Proxy.DestinationServiceName == name {
			out.TransparentProxy = out.TransparentProxy || i.Service.Proxy.Mode == "transparent"
		}
	}
	out.Upstreams = a.edges(m, slices.Concat(m.upstreams[name], m.inMesh), name, func(other catalog.Name) (verdictView, catalog.Decision, bool) {
		v, d := m.judge(name, other)
		return v, d, slices.Contains(m.upstreams[name], other)
	})
	callers := slices.Clone(m.inMesh)
	for caller := range m.upstreams {
		callers = append(callers, caller)
	}
	out.Downstreams = a.edges(m, callers, name, func(other catalog.Name) (verdictView, catalog.Decision, bool) {
		v, d := m.judge(other, name)
		return v, d, slices.Contains(m.upstreams[other], name)
	})
	return out, nil
}

// edges are the services among others that a service is connected with: by the
// registration of a proxy, or because an intention lets them talk.
func (a uiAPI) edges(m *mesh, others []catalog.Name, self catalog.Name, judge func(catalog.Name) (verdictView, catalog.Decision, bool)) []edgeView {
	out := []edgeView{}
	if !slices.Contains(m.inMesh, self) {
		return out
	}
	for _, n := range setOf(others) {
		if n == self {
			continue
		}
		v, d, registered := judge(n)
		source := why(v, d)
		if registered {
			source = sourceRegistration
		}
		if source != "" {
			out = append(out, edgeView{a.summary(n, m.of[n]), source, v})
		}
	}
	return out
}

// protocol of a service: its own, that of all proxies, or TCP.
func (a uiAPI) protocol(c *call, name catalog.Name) (string, error) {
	var own struct{ Protocol string }
	if err := a.entryInto(c, kindDefaults, name, &own); err != nil {
		return "", err
	}
	if own.Protocol != "" {
		return own.Protocol, nil
	}
	var all struct {
		Config struct {
			Protocol string `json:"protocol"`
		}
	}
	if err := a.entryInto(c, kindProxy, "global", &all); err != nil {
		return "", err
	}
	return orString(all.Config.Protocol, "tcp"), nil
}
