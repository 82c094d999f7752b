package store

import (
	"cmp"
	"slices"

	"github.com/weftmesh/weft/catalog"
)

// kindsOfGateways are the kinds of entries that say what a gateway leads to.
var kindsOfGateways = []string{catalog.KindTerminatingGatewayEntry, catalog.KindIngressGatewayEntry, catalog.KindAPIGatewayEntry}

// kindsOfRoutes are the kinds of entries that say what an API gateway leads to.
var kindsOfRoutes = []string{catalog.KindHTTPRoute, catalog.KindTCPRoute}

// gateway gives the entries of the gateways that are called name, and the routes that
// name an API gateway of them.
func (r reader) gateway(name catalog.Name) []catalog.Entry {
	var out []catalog.Entry
	for _, kind := range kindsOfGateways {
		if e, ok := r.entry(kind, name); ok {
			out = append(out, catalog.Entry{ConfigEntry: e})
		}
	}
	if _, ok := r.entry(catalog.KindAPIGatewayEntry, name); ok {
		for _, kind := range kindsOfRoutes {
			for _, row := range all[*entryRow](r, tableEntries, byKind, kind) {
				if catalog.HasParent(row.Entry, name) {
					out = append(out, catalog.Entry{ConfigEntry: row.Entry})
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b catalog.Entry) int { return cmp.Compare(a.EntryKind(), b.EntryKind()) })
	return out
}

// gatewayKeys are what the gateways of a name rest on beside their entries.
func (r reader) gatewayKeys(name catalog.Name) []indexKey {
	if len(r.gateway(name)) == 0 {
		return nil
	}
	keys := []indexKey{fixed(keyInstances)}
	if _, ok := r.entry(catalog.KindAPIGatewayEntry, name); ok {
		for _, kind := range kindsOfRoutes {
			keys = append(keys, fixed(classKey(classKind, kind)))
		}
	}
	return keys
}

// ingress gives the instances of the ingress gateways that lead to a service, and
// what that rests on beside the entries.
func (r reader) ingress(service catalog.Name) ([]*catalog.Instance, []indexKey) {
	keys := []indexKey{{classConnect, service}}
	_, inMesh := first[*serviceRow](r, tableServices, byConnect, service)
	var rows []*serviceRow
	for _, row := range all[*entryRow](r, tableEntries, byKind, catalog.KindIngressGatewayEntry) {
		if !catalog.LeadsTo(row.Entry, service, inMesh) {
			continue
		}
		name := row.Entry.EntryName()
		keys = append(keys, indexKey{classService, name})
		for _, s := range all[*serviceRow](r, tableServices, byName, name) {
			if s.Service.Kind == catalog.KindIngressGateway {
				rows = append(rows, s)
			}
		}
	}
	slices.SortFunc(rows, byPlace)
	return r.instances(rows), keys
}

// connectRows gives who speaks the mesh's mTLS for a service: its sidecars, its native
// instances, and the terminating gateways that lead to it; and what the latter rest on
// beside the class of the former.
func (r reader) connectRows(service catalog.Name) ([]*serviceRow, []indexKey) {
	rows := all[*serviceRow](r, tableServices, byConnect, service)
	gateways, keys := r.terminating(service)
	if len(gateways) == 0 {
		return rows, keys
	}
	for _, name := range gateways {
		keys = append(keys, indexKey{classService, name})
		for _, s := range all[*serviceRow](r, tableServices, byName, name) {
			if s.Service.Kind == catalog.KindTerminatingGateway {
				rows = append(rows, s)
			}
		}
	}
	slices.SortFunc(rows, byPlace)
	return rows, keys
}

// terminating names the terminating gateways that lead to a service. Those that say
// "*" lead to each one that also speaks without the mesh: which of them do rests on the
// service's own instances.
func (r reader) terminating(service catalog.Name) ([]catalog.Name, []indexKey) {
	keys := []indexKey{{classTerminating, service}, {classTerminating, catalog.Wildcard}}
	rows := all[*entryRow](r, tableEntries, byReference, refTerminating+service)
	if everyone := all[*entryRow](r, tableEntries, byReference, refTerminating+catalog.Wildcard); len(everyone) > 0 && service != catalog.Wildcard {
		keys = append(keys, indexKey{classService, service})
		if r.speaksPlain(service) {
			rows = append(rows, everyone...)
		}
	}
	var names []catalog.Name
	for _, row := range rows {
		if name := row.Entry.EntryName(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, keys
}

func (r reader) speaksPlain(service catalog.Name) bool {
	if service == catalog.ServerService {
		return false
	}
	return slices.ContainsFunc(all[*serviceRow](r, tableServices, byName, service), func(s *serviceRow) bool {
		return s.Service.Kind == catalog.KindTypical && !s.Service.Connect.Native
	})
}

// byPlace is the order of the table of services.
func byPlace(a, b *serviceRow) int {
	return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Service.ID, b.Service.ID))
}
