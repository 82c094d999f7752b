package catalog

import (
	"cmp"
	"slices"
)

// GatewayLink is one service that a gateway leads to, or from the mesh to.
type GatewayLink struct {
	Gateway Name
	Kind    ServiceKind
	Service Name
	// Of an ingress gateway: the listener.
	Port     int
	Protocol string
	Hosts    []string
	// Of a terminating gateway: how it speaks to the service.
	CAFile, CertFile, KeyFile, SNI string
	AutoHostRewrite                bool
	// FromWildcard: the entry says "*". Registered: the service has an instance.
	FromWildcard, Registered bool
	RaftIndex
}

// gatewayLinks lists what the entry of a gateway says, wildcards as they are; nil
// for entries of other kinds.
func gatewayLinks(e ConfigEntry) []GatewayLink {
	var out []GatewayLink
	raft := RaftIndex{CreateIndex: e.Raft().ModifyIndex, ModifyIndex: e.Raft().ModifyIndex}
	switch e := e.(type) {
	case *TerminatingGateway:
		for _, s := range e.Services {
			out = append(out, GatewayLink{
				Gateway: e.Name, Kind: KindTerminatingGateway, Service: s.Name, CAFile: s.CAFile, CertFile: s.CertFile,
				KeyFile: s.KeyFile, SNI: s.SNI, AutoHostRewrite: !s.DisableAutoHostRewrite, RaftIndex: raft,
			})
		}
	case *IngressGateway:
		for _, l := range e.Listeners {
			for _, s := range l.Services {
				out = append(out, GatewayLink{
					Gateway: e.Name, Kind: KindIngressGateway, Service: s.Name, Port: l.Port, Protocol: l.Protocol,
					Hosts: s.Hosts, RaftIndex: raft,
				})
			}
		}
	}
	return out
}

// apiGatewayLinks lists the services of the routes among entries that are bound to
// an API gateway, each once.
func apiGatewayLinks(gw *APIGateway, entries []Entry) []GatewayLink {
	var out []GatewayLink
	add := func(services []Name, route ConfigEntry) {
		at := max(gw.ModifyIndex, route.Raft().ModifyIndex)
		for _, s := range services {
			if slices.ContainsFunc(out, func(l GatewayLink) bool { return l.Service == s }) {
				continue
			}
			out = append(out, GatewayLink{
				Gateway: gw.Name, Kind: KindAPIGateway, Service: s, RaftIndex: RaftIndex{CreateIndex: at, ModifyIndex: at},
			})
		}
	}
	for _, e := range entries {
		switch r := e.ConfigEntry.(type) {
		case *HTTPRoute:
			if r.Status.boundTo(gw.Name) {
				add(r.services(), r)
			}
		case *TCPRoute:
			if r.Status.boundTo(gw.Name) {
				add(r.services(), r)
			}
		}
	}
	return out
}

// LinksOf lists what an entry leads to, wildcards as they are; nil for those that are no
// gateways. An API gateway leads where the routes among entries do that are bound to it.
func LinksOf(e ConfigEntry, entries []Entry) []GatewayLink {
	if gw, ok := e.(*APIGateway); ok {
		return apiGatewayLinks(gw, entries)
	}
	return gatewayLinks(e)
}

// HasParent tells whether an entry is a route that names the gateway.
func HasParent(e ConfigEntry, gateway Name) bool {
	var parents []ResourceReference
	switch r := e.(type) {
	case *HTTPRoute:
		parents = r.Parents
	case *TCPRoute:
		parents = r.Parents
	}
	return slices.ContainsFunc(parents, func(p ResourceReference) bool { return p.Name == gateway })
}

// LeadsTo tells whether the entry is that of a gateway with the service, which is
// in the mesh or not; a wildcard stands for the services of the mesh.
func LeadsTo(e ConfigEntry, service Name, inMesh bool) bool {
	return slices.ContainsFunc(gatewayLinks(e), func(l GatewayLink) bool {
		return l.Service == service || l.Service == Wildcard && inMesh && service != ServerService
	})
}

// GatewayLinks lists what the entries of a gateway lead to, sorted by service and
// port; an API gateway leads where the routes among them do. A wildcard stands for those of the instances' services that are not named
// beside it: of an ingress gateway those of the mesh, of a terminating gateway those
// that also speak without it.
func GatewayLinks(entries []Entry, instances []*Instance) []GatewayLink {
	since, plain, mesh := servicesOf(instances)
	out := []GatewayLink{}
	for _, e := range entries {
		out = append(out, expandLinks(LinksOf(e.ConfigEntry, entries), since, plain, mesh)...)
	}
	slices.SortFunc(out, func(a, b GatewayLink) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Kind, b.Kind))
	})
	return out
}

// servicesOf gives the services of the instances with the index of the oldest of
// each, and which of them speak in plain, and in the mesh.
func servicesOf(instances []*Instance) (since map[Name]uint64, plain, mesh map[Name]bool) {
	since, plain, mesh = map[Name]uint64{}, map[Name]bool{}, map[Name]bool{}
	for _, i := range instances {
		s := i.Service
		switch {
		case s.Service == ServerService:
			continue
		case s.Kind == KindConnectProxy:
			mesh[s.Proxy.DestinationServiceName] = true
			continue
		case s.Kind != KindTypical:
			continue
		case s.Connect.Native:
			mesh[s.Service] = true
		default:
			plain[s.Service] = true
		}
		if at, ok := since[s.Service]; !ok || s.CreateIndex < at {
			since[s.Service] = s.CreateIndex
		}
	}
	return since, plain, mesh
}

// expandLinks puts services in the place of wildcards.
func expandLinks(links []GatewayLink, since map[Name]uint64, plain, mesh map[Name]bool) []GatewayLink {
	type listed struct {
		service Name
		port    int
	}
	var out []GatewayLink
	named := map[listed]bool{}
	for _, l := range links {
		named[listed{l.Service, l.Port}] = true
	}
	for _, l := range links {
		if l.Service != Wildcard {
			_, l.Registered = since[l.Service]
			out = append(out, l)
			continue
		}
		meant := plain
		if l.Kind == KindIngressGateway {
			meant = mesh
		}
		for name := range meant {
			if named[listed{name, l.Port}] {
				continue
			}
			w := l
			w.Service, w.FromWildcard = name, true
			_, w.Registered = since[name]
			w.CreateIndex = max(w.CreateIndex, since[name])
			w.ModifyIndex = w.CreateIndex
			out = append(out, w)
		}
	}
	return out
}
