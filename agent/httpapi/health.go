package httpapi

import (
	"net/http"

	"github.com/weftmesh/weft/agent/discover"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// healthAPI reads checks, and instances with their checks.
type healthAPI struct{ q *queries }

func (a healthAPI) routes() []Route {
	read := func(path, summary string, perm Permission, params []Param, f func(*call) (any, error)) Route {
		return Route{
			Method: http.MethodGet, Path: path, Summary: summary, Params: params, Permission: perm, MaxBody: bodyNone,
			params: paramsDiscovery, effective: true, handle: f,
		}
	}
	instances := []Param{
		{"passing", "only instances whose every check passes, those of the node included"},
		paramTag, paramMeta, paramFilter, paramNear, paramMerge, paramPeer,
	}
	service := read("/v1/health/service/:service", "the instances of a service with node and checks",
		Permission{acl.Read, acl.Service, "service"}, instances, a.instances(catalog.QueryService))
	connect := read("/v1/health/connect/:service", "the instances that speak the mesh's mTLS for a service, with node and checks",
		Permission{acl.Read, acl.Service, "service"}, instances, a.instances(catalog.QueryConnect))
	service.streaming, connect.streaming = true, true
	ingress := read("/v1/health/ingress/:service", "the instances of the ingress gateways that lead to a service, with node and checks",
		Permission{acl.Read, acl.Service, "service"}, instances, a.instances(catalog.QueryIngress))
	return []Route{
		read("/v1/health/node/:node", "the checks on a node", Permission{acl.Read, acl.Node, "node"},
			[]Param{paramFilter}, a.checks(catalog.QueryNodeChecks, "node name")),
		read("/v1/health/checks/:service", "the checks of a service", Permission{acl.Read, acl.Service, "service"},
			[]Param{paramMeta, paramFilter, paramNear}, a.checks(catalog.QueryServiceChecks, "service name")),
		read("/v1/health/state/:state", "the checks in a state: any, passing, warning or critical", Permission{acl.Read, acl.Node, ""},
			[]Param{paramMeta, paramFilter, paramNear}, a.checks(catalog.QueryChecks, "check state")),
		service, connect, ingress,
	}
}

func (a healthAPI) checks(kind catalog.QueryKind, what string) func(*call) (any, error) {
	return func(c *call) (any, error) {
		name, err := c.need(what)
		if err != nil {
			return nil, err
		}
		f, err := newFilter[checkView](c.opts.filter)
		if err != nil {
			return nil, err
		}
		v, err := a.q.read(c, catalog.Query{Kind: kind, Name: name})
		if err != nil {
			return nil, err
		}
		near, err := a.q.near(c, c.query.Get("near"))
		if err != nil {
			return nil, err
		}
		nodeOfCheck := func(ch *catalog.Check) string { return ch.Node }
		if meta := c.query["node-meta"]; len(meta) > 0 && kind != catalog.QueryNodeChecks {
			nodes, err := a.nodesWith(c, meta)
			if err != nil {
				return nil, err
			}
			checks := keep(v.Checks, func(ch *catalog.Check) bool { return nodes[ch.Node] })
			return f.slice(viewChecks(discover.Sort(near, checks, nodeOfCheck)))
		}
		return a.q.share(c, v, func() (any, error) {
			return f.slice(viewChecks(discover.Sort(near, v.Checks, nodeOfCheck)))
		})
	}
}

// nodesWith names the nodes that have the metadata.
func (a healthAPI) nodesWith(c *call, meta []string) (map[string]bool, error) {
	v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryNodes})
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, n := range v.Nodes {
		if nodeHasMeta(n, meta) {
			out[n.Node] = true
		}
	}
	return out, nil
}

func (a healthAPI) instances(kind catalog.QueryKind) func(*call) (any, error) {
	return func(c *call) (any, error) {
		name, err := c.need("service name")
		if err != nil {
			return nil, err
		}
		passing, err := c.boolParam("passing")
		if err != nil {
			return nil, err
		}
		f, err := newFilter[instanceView](c.opts.filter)
		if err != nil {
			return nil, err
		}
		v, err := a.q.instances(c, kind, name)
		if err != nil {
			return nil, err
		}
		near, err := a.q.near(c, c.query.Get("near"))
		if err != nil {
			return nil, err
		}
		return a.q.share(c, v, func() (any, error) {
			instances := withNodeMeta(withTags(v.Instances, c.query["tag"]), c.query["node-meta"])
			instances = discover.Sort(near, instances, discover.NodeOf)
			if passing {
				instances = passingOnly(instances)
			}
			return f.slice(viewInstances(instances, a.q.datacenter))
		})
	}
}
