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

// gatewayEntry is what of a gateway's entry names services.
type gatewayEntry struct {
	Services  []struct{ Name catalog.Name }
	Listeners []struct {
		Services []struct{ Name catalog.Name }
	}
}

func (g gatewayEntry) names() []catalog.Name {
	var out []catalog.Name
	for _, s := range g.Services {
		out = append(out, s.Name)
	}
	for _, l := range g.Listeners {
		for _, s := range l.Services {
			out = append(out, s.Name)
		}
	}
	return setOf(out)
}

// servicesOf are the services behind a gateway, in order; the wildcard stands for
// every ordinary one but the servers.
func (a uiAPI) servicesOf(c *call, gateway string, all []catalog.Name) ([]catalog.Name, error) {
	var names []catalog.Name
	for _, kind := range []string{kindTerminating, kindIngress} {
		var g gatewayEntry
		if err := a.entryInto(c, kind, gateway, &g); err != nil {
			return nil, err
		}
		names = append(names, g.names()...)
	}
	return expand(names, all), nil
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
	for _, kind := range []string{kindTerminating, kindIngress} {
		v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryConfigEntries, Name: kind})
		if err != nil {
			return g, err
		}
		for _, e := range v.Entries {
			var entry gatewayEntry
			if err := readEntry(e, &entry); err != nil {
				return g, err
			}
			names := entry.names()
			g.count[e.EntryName()] += len(names)
			for _, n := range names {
				g.services[n] = true
			}
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
