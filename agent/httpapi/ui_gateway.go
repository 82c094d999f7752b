package httpapi

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/weftmesh/weft/catalog"
)

// Config entries are read here by their JSON alone, which is the same for every
// kind and version.

// Kinds of config entries that are looked at.
const (
	kindTerminating = "terminating-gateway"
	kindIngress     = "ingress-gateway"
	kindAPIGateway  = "api-gateway"
	kindHTTPRoute   = "http-route"
	kindTCPRoute    = "tcp-route"
	kindExported    = "exported-services"
	kindDefaults    = "service-defaults"
	kindProxy       = "proxy-defaults"
)

// entryInto reads one entry into out, which stays as it is when there is none.
func (a uiAPI) entryInto(c *call, kind, name string, out any) error {
	v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryConfigEntry, Name: kind, Sub: name})
	if err != nil || len(v.Entries) == 0 {
		return err
	}
	return readEntry(v.Entries[0], out)
}

func readEntry(e catalog.Entry, out any) error {
	b, err := json.Marshal(e.ConfigEntry)
	if err != nil {
		return fmt.Errorf("config entry %s/%s: %w", e.EntryKind(), e.EntryName(), err)
	}
	return json.Unmarshal(b, out)
}

// servicesOf are the services behind a gateway, in order; the wildcard stands for
// every ordinary one but the servers.
func (a uiAPI) servicesOf(c *call, gateway string, all []catalog.Name) ([]catalog.Name, error) {
	v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryGateway, Name: gateway})
	if err != nil {
		return nil, err
	}
	return expand(linkedTo(v.Entries), all), nil
}

// linkedTo names the services that gateways lead to, those of API gateways by the routes
// that are bound to them; a wildcard is named as it is.
func linkedTo(entries []catalog.Entry) []catalog.Name {
	var out []catalog.Name
	for _, e := range entries {
		for _, l := range catalog.LinksOf(e.ConfigEntry, entries) {
			out = append(out, l.Service)
		}
	}
	return setOf(out)
}

func expand(names, all []catalog.Name) []catalog.Name {
	if !slices.Contains(names, catalog.Wildcard) {
		return setOf(names)
	}
	names = slices.DeleteFunc(append(names, all...), func(n catalog.Name) bool {
		return n == catalog.Wildcard || n == catalog.ServerService
	})
	return setOf(names)
}

// ordinary names the services that are no proxies and no gateways.
func ordinary(in []*catalog.Instance) []catalog.Name {
	var out []catalog.Name
	for _, i := range in {
		if i.Service.Kind == catalog.KindTypical {
			out = append(out, i.Service.Service)
		}
	}
	return setOf(out)
}

// gateways says which services are behind any gateway, and how many behind each.
type gateways struct {
	services map[catalog.Name]bool
	count    map[catalog.Name]int
}

func (a uiAPI) behindGateways(c *call) (gateways, error) {
	g := gateways{services: map[catalog.Name]bool{}, count: map[catalog.Name]int{}}
	var entries []catalog.Entry
	for _, kind := range []string{kindTerminating, kindIngress, kindAPIGateway, kindHTTPRoute, kindTCPRoute} {
		v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryConfigEntries, Name: kind})
		if err != nil {
			return g, err
		}
		entries = append(entries, v.Entries...)
	}
	for _, e := range entries {
		names := map[catalog.Name]bool{}
		for _, l := range catalog.LinksOf(e.ConfigEntry, entries) {
			names[l.Service], g.services[l.Service] = true, true
		}
		if len(names) > 0 {
			g.count[e.EntryName()] += len(names)
		}
	}
	return g, nil
}

func (a uiAPI) gatewayServices(c *call) (any, error) {
	gateway, err := c.need("gateway name")
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryDump})
	if err != nil {
		return nil, err
	}
	names, err := a.servicesOf(c, gateway, ordinary(v.Instances))
	if err != nil {
		return nil, err
	}
	_, of := byService(v.Instances)
	out := make([]uiServiceView, 0, len(names))
	for _, n := range names {
		if len(of[n]) > 0 {
			out = append(out, a.summary(n, of[n]))
		}
	}
	return out, nil
}

func (a uiAPI) gatewayIntentions(c *call) (any, error) {
	gateway, err := c.need("gateway name")
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryIntentions})
	if err != nil {
		return nil, err
	}
	dump, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryDump})
	if err != nil {
		return nil, err
	}
	names, err := a.servicesOf(c, gateway, ordinary(dump.Instances))
	if err != nil {
		return nil, err
	}
	return viewIntentions(keep(v.Intentions, func(i *catalog.Intention) bool {
		return slices.ContainsFunc(names, func(n catalog.Name) bool { return catalog.Covers(i.DestinationName, n) })
	})), nil
}

// exportedEntry is the part of exported-services that is shown.
type exportedEntry struct {
	Services []struct {
		Name      catalog.Name
		Consumers []struct{ Peer string }
	}
}

type exportedServiceView struct {
	Service   catalog.Name
	Consumers struct{ Peers []string }
}

func (a uiAPI) exports(c *call) ([]exportedServiceView, error) {
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryConfigEntry, Name: kindExported, Sub: "default"})
	if err != nil {
		return nil, err
	}
	out := []exportedServiceView{}
	if len(v.Entries) == 0 {
		return out, nil
	}
	var e exportedEntry
	if err := readEntry(v.Entries[0], &e); err != nil {
		return nil, err
	}
	dump, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryDump})
	if err != nil {
		return nil, err
	}
	peers := map[catalog.Name][]string{}
	for _, s := range e.Services {
		for _, name := range expand([]catalog.Name{s.Name}, ordinary(dump.Instances)) {
			for _, consumer := range s.Consumers {
				if consumer.Peer != "" {
					peers[name] = append(peers[name], consumer.Peer)
				}
			}
		}
	}
	names := make([]catalog.Name, 0, len(peers))
	for n := range peers {
		names = append(names, n)
	}
	for _, n := range setOf(names) {
		e := exportedServiceView{Service: n}
		e.Consumers.Peers = setOf(peers[n])
		out = append(out, e)
	}
	return out, nil
}

func (a uiAPI) exportedTo(c *call) (any, error) {
	peer := c.query.Get("peer")
	if peer == "" {
		return nil, internal("must provide PeerName")
	}
	all, err := a.exports(c)
	if err != nil {
		return nil, err
	}
	dump, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryDump})
	if err != nil {
		return nil, err
	}
	_, of := byService(dump.Instances)
	out := []uiListedServiceView{}
	for _, e := range all {
		if slices.Contains(e.Consumers.Peers, peer) && len(of[e.Service]) > 0 {
			out = append(out, uiListedServiceView{uiServiceView: a.summary(e.Service, of[e.Service])})
		}
	}
	return out, nil
}
