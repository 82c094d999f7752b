package sidecar

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// world is what the servers say of the upstreams of a proxy.
type world struct {
	// chains say, by upstream, where its name leads; nil where it leads to itself.
	chains map[catalog.Name]*catalog.Chain
	// troubles say why entries lead nowhere, by upstream.
	troubles map[catalog.Name]string
	// instances answer, for each service that a chain leads to, who speaks for it.
	instances map[catalog.Name][]*catalog.Instance
	// queries answer, for upstreams that are prepared queries, which.
	queries map[catalog.Name]askedQuery
	// last are, by upstream, the endpoints that it had when all about it was known, on
	// this run of the agent or the one before.
	last map[catalog.Name][]connect.Endpoint
	// filters are those of subsets, compiled.
	filters map[string]*catalog.InstanceFilter
	// place is where the proxy stands; nil: nobody said.
	place *catalog.Locality
}

func newWorld() world {
	return world{
		chains: map[catalog.Name]*catalog.Chain{}, troubles: map[catalog.Name]string{},
		instances: map[catalog.Name][]*catalog.Instance{}, last: map[catalog.Name][]connect.Endpoint{},
		filters: map[string]*catalog.InstanceFilter{}, queries: map[catalog.Name]askedQuery{},
	}
}

// learn takes an answer of the servers.
func (w *world) learn(q catalog.Query, v *catalog.View) {
	if q.Kind == catalog.QueryChain {
		w.chains[q.Name], w.troubles[q.Name] = v.Chain, v.Problem
		return
	}
	if q.Kind == catalog.QueryPreparedQuery {
		var a askedQuery
		if len(v.Queries) > 0 {
			a.stored = v.Queries[0]
		}
		w.queries[queryPrefix+q.Name] = a
		return
	}
	w.instances[q.Name] = v.Instances
}

// forget drops what was an answer to q.
func (w *world) forget(q catalog.Query) {
	if q.Kind == catalog.QueryChain {
		delete(w.chains, q.Name)
		delete(w.troubles, q.Name)
		return
	}
	if q.Kind == catalog.QueryPreparedQuery {
		delete(w.queries, queryPrefix+q.Name)
		return
	}
	delete(w.instances, q.Name)
}

// remember keeps the endpoints that the servers gave an upstream. Those that a
// registration names have no node: they are of that one alone.
func (w *world) remember(up *connect.Upstream) {
	if len(up.Instances) == 0 || up.Instances[0].Node != "" {
		w.last[up.Name] = up.Instances
	}
}

// shares tells where the connections to an upstream go; plainly to itself where
// nothing says otherwise.
func (w *world) shares(name catalog.Name, datacenter string) []catalog.Share {
	if s := w.chains[name].Connections(); len(s) > 0 {
		return s
	}
	return []catalog.Share{{Weight: 100, Targets: []*catalog.Target{{Service: name, Datacenter: datacenter}}}}
}

// services names those whose instances an upstream needs.
func (w *world) services(name catalog.Name, datacenter string) []catalog.Name {
	if strings.HasPrefix(name, queryPrefix) {
		if q, _ := w.rendered(name); q != nil {
			return []catalog.Name{q.Service.Service}
		}
		return nil
	}
	var out []catalog.Name
	for _, s := range w.shares(name, datacenter) {
		for _, t := range s.Targets {
			if unreachable(t, datacenter) == "" && !slices.Contains(out, t.Service) {
				out = append(out, t.Service)
			}
		}
	}
	return out
}

// known tells whether the servers have said all that an upstream needs.
func (w *world) known(name catalog.Name, datacenter string) bool {
	_, ok := w.chains[name]
	if strings.HasPrefix(name, queryPrefix) {
		_, ok = w.queries[name]
	}
	if !ok {
		return false
	}
	for _, s := range w.services(name, datacenter) {
		if _, ok := w.instances[s]; !ok {
			return false
		}
	}
	return true
}

// unreachable says why this version cannot reach a target, "" when it can.
func unreachable(t *catalog.Target, datacenter string) string {
	switch {
	case t.Peer != "":
		return fmt.Sprintf("destinations of another cluster (peer %q) are not supported", t.Peer)
	case t.Datacenter != datacenter:
		return fmt.Sprintf("other datacenters (%q) are not supported", t.Datacenter)
	case t.External:
		return fmt.Sprintf("services outside of the mesh (%s) are not supported", t.SNI)
	default:
		return ""
	}
}

// resolve gives the endpoints of an upstream and how long each may take to answer,
// 0 for the default.
func (w *world) resolve(name catalog.Name, datacenter string, p *problems) ([]connect.Endpoint, time.Duration) {
	if !w.known(name, datacenter) {
		if last, ok := w.last[name]; ok {
			return last, 0
		}
		// A server that does not know of chains never tells of one.
		return combine(slices.Concat(w.tiers(&catalog.Target{Service: name}, name, false)...)), 0
	}
	if strings.HasPrefix(name, queryPrefix) {
		return w.resolveQuery(name, p), 0
	}
	w.report(name, p)
	shares := w.shares(name, datacenter)
	var out []connect.Endpoint
	for _, s := range shares {
		tier := 0
		for _, t := range s.Targets {
			if why := unreachable(t, datacenter); why != "" {
				p.add(fmt.Sprintf("upstream %s: its service-resolver leads to %s: %s", name, t.Service, why))
				continue
			}
			for _, eps := range w.tiers(t, name, s.Nearest) {
				if len(shares) > 1 {
					spread(eps, s.Weight)
				}
				for i := range eps {
					eps[i].Priority = tier
				}
				out = append(out, eps...)
				tier++
			}
		}
	}
	return combine(out), connectTimeout(shares)
}

// report tells what of the entries for an upstream is not done.
func (w *world) report(name catalog.Name, p *problems) {
	if why := w.troubles[name]; why != "" {
		p.add(fmt.Sprintf("upstream %s: its config entries do not fit together, and are left out: %s", name, why))
	}
	c := w.chains[name]
	if c == nil {
		return
	}
	if n := c.Nodes[c.StartNode]; n != nil && len(n.Routes) > 1 {
		p.add(fmt.Sprintf("upstream %s: its service-router needs HTTP, which proxies do not speak yet; every connection takes its last route", name))
	}
}

func (w *world) filter(expr string) *catalog.InstanceFilter {
	if f, ok := w.filters[expr]; ok {
		return f
	}
	f, err := catalog.NewInstanceFilter(expr)
	if err != nil {
		f = nil // it was valid for a server; a newer one, perhaps
	}
	w.filters[expr] = f
	return f
}

// tiers are the instances of a target that may be dialled, in the groups in which they
// are tried: those of one distance each, or all in one.
func (w *world) tiers(t *catalog.Target, upstream catalog.Name, nearest bool) [][]connect.Endpoint {
	f := w.filter(t.Subset.Filter)
	if f == nil {
		return nil // rather none than the wrong ones
	}
	var by [farthest + 1][]connect.Endpoint
	for _, inst := range w.instances[t.Service] {
		e, ok := endpoint(inst)
		if !ok || (t.Subset.OnlyPassing && e.Status != catalog.StatusPassing) || !f.Match(inst) {
			continue
		}
		if t.Service != upstream {
			e.Service = t.Service
		}
		at := 0
		if nearest && w.place != nil {
			at = w.place.Distance(inst.Place())
		}
		by[at] = append(by[at], e)
	}
	return slices.DeleteFunc(by[:], func(eps []connect.Endpoint) bool { return len(eps) == 0 })
}

// farthest is the greatest distance between two places.
const farthest = 2

// shareUnits is how finely weights of shares are counted out to instances.
const shareUnits = 1 << 10

// spread gives instances together the weight of their share.
func spread(eps []connect.Endpoint, percent float32) {
	sum := 0
	for _, e := range eps {
		sum += e.Weight
	}
	for i := range eps {
		part := float64(percent) * shareUnits / 100 * float64(eps[i].Weight) / float64(sum)
		eps[i].Weight = max(1, int(math.Round(part*16)))
	}
}

// combine sorts endpoints, so that equal answers make equal snapshots, and makes
// one of an instance that several shares lead to.
func combine(eps []connect.Endpoint) []connect.Endpoint {
	slices.SortFunc(eps, func(a, b connect.Endpoint) int {
		for _, c := range []int{
			strings.Compare(a.Node, b.Node), strings.Compare(a.ID, b.ID), strings.Compare(a.Service, b.Service), a.Priority - b.Priority,
		} {
			if c != 0 {
				return c
			}
		}
		return 0
	})
	out := eps[:0]
	for _, e := range eps {
		if n := len(out); n > 0 && out[n-1].Node == e.Node && out[n-1].ID == e.ID && out[n-1].Service == e.Service {
			if out[n-1].Priority == e.Priority {
				out[n-1].Weight += e.Weight
			}
			continue
		}
		out = append(out, e)
	}
	return out
}

// connectTimeout is that of the first target, 0 when it is the default.
func connectTimeout(shares []catalog.Share) time.Duration {
	for _, s := range shares {
		if len(s.Targets) > 0 {
			if d := time.Duration(s.Targets[0].ConnectTimeout); d != catalog.DefaultConnectTimeout {
				return d
			}
			return 0
		}
	}
	return 0
}
