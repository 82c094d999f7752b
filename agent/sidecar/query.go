package sidecar

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// queryPrefix is before the name of a prepared query where upstreams are known by
// name, as a service may have the same.
const queryPrefix = "query:"

const destinationQuery = "prepared_query"

// upstreamName is what an upstream is known by.
func upstreamName(up *catalog.Upstream) catalog.Name {
	if up.DestinationType == destinationQuery {
		return queryPrefix + up.DestinationName
	}
	return up.DestinationName
}

// askedQuery is what the servers say of a prepared query: nil, where there is none.
type askedQuery struct{ stored *catalog.PreparedQuery }

// rendered is the query as it is executed for an upstream, and why it cannot be.
func (w *world) rendered(name catalog.Name) (q *catalog.PreparedQuery, why string) {
	plain := strings.TrimPrefix(name, queryPrefix)
	asked := w.queries[name]
	if asked.stored == nil {
		return nil, fmt.Sprintf("upstream %s: there is no prepared query %q, by name or by ID; create it, or name a service", plain, plain)
	}
	q, err := asked.stored.Render(plain, "")
	switch {
	case err != nil:
		return nil, fmt.Sprintf("upstream %s: its prepared query cannot be rendered: %v", plain, err)
	case q.Service.Peer != "":
		return nil, fmt.Sprintf("upstream %s: its prepared query leads to another cluster (peer %q), which is not supported", plain, q.Service.Peer)
	case q.Service.Service == "":
		return nil, fmt.Sprintf("upstream %s: its prepared query names no service", plain)
	}
	return q, ""
}

// resolveQuery gives the endpoints that a prepared query chooses now.
func (w *world) resolveQuery(name catalog.Name, p *problems) []connect.Endpoint {
	q, why := w.rendered(name)
	if q == nil {
		p.add(why)
		return nil
	}
	if f := q.Service.Failover; f.NearestN > 0 || len(f.Datacenters) > 0 || len(f.Targets) > 0 {
		p.add(fmt.Sprintf("upstream %s: the failover of its prepared query leads to other datacenters, which are not supported", strings.TrimPrefix(name, queryPrefix)))
	}
	var out []connect.Endpoint
	for _, i := range q.Service.Select(w.instances[q.Service.Service]) {
		if len(q.Service.IgnoreCheckIDs) > 0 {
			seen := *i
			seen.Checks = slices.DeleteFunc(slices.Clone(i.Checks), func(c *catalog.Check) bool {
				return slices.Contains(q.Service.IgnoreCheckIDs, c.CheckID)
			})
			i = &seen
		}
		if e, ok := endpoint(i); ok {
			e.Service = q.Service.Service
			out = append(out, e)
		}
	}
	return combine(out)
}

// explicitInstances reads the addresses that an upstream's config names; ok is false
// where it names none. They must still prove to be the service.
func explicitInstances(p *problems, up *catalog.Upstream) (out []connect.Endpoint, ok bool) {
	list, ok := up.Config["instances"].([]any)
	if !ok {
		if up.Config["instances"] != nil {
			p.add(fmt.Sprintf("upstream %s: config instances is not a list of addresses, host:port each, and is left out", up.DestinationName))
		}
		return nil, false
	}
	for _, v := range list {
		addr, text := v.(string)
		if !text || !validAddr(addr) {
			p.add(fmt.Sprintf("upstream %s: config instances has %q, which is no host:port, and is left out", up.DestinationName, fmt.Sprint(v)))
			continue
		}
		out = append(out, connect.Endpoint{ID: addr, Addr: addr, Status: catalog.StatusPassing, Weight: 1})
	}
	return combine(out), true
}
