package httpapi

import (
	"net/http"
	"slices"

	"github.com/weftmesh/weft/agent/discover"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// catalogAPI reads the catalog.
type catalogAPI struct {
	cfg Config
	q   *queries
}

func (a catalogAPI) routes() []Route {
	read := func(path, summary string, of acl.Resource, name string, params []Param, f func(*call) (any, error)) Route {
		return Route{
			Method: http.MethodGet, Path: path, Summary: summary, Params: params, MaxBody: bodyNone,
			Permission: Permission{acl.Read, of, name}, params: paramsDiscovery, effective: true, handle: f,
		}
	}
	service := []Param{paramTag, paramMeta, paramFilter, paramNear, paramMerge, paramPeer}
	datacenters := read("/v1/catalog/datacenters", "the datacenters, nearest first", "", "", nil, a.datacenters)
	datacenters.params, datacenters.effective = paramsToken, false
	return []Route{
		datacenters,
		read("/v1/catalog/nodes", "every node", acl.Node, "", []Param{paramMeta, paramFilter, paramNear}, a.nodes),
		read("/v1/catalog/services", "the name of every service, with the tags of its instances", acl.Service, "", []Param{paramMeta, paramFilter}, a.services),
		read("/v1/catalog/service/:service", "the instances of a service, healthy or not", acl.Service, "service", service, a.service(catalog.QueryService)),
		read("/v1/catalog/connect/:service", "the instances that speak the mesh's mTLS for a service: sidecars, native ones and terminating gateways", acl.Service, "service", service, a.service(catalog.QueryConnect)),
		read("/v1/catalog/node/:node", "a node with its services by ID, null when there is no such node", acl.Node, "node", []Param{paramFilter}, a.node),
		read("/v1/catalog/node-services/:node", "a node with a list of its services", acl.Node, "node", []Param{paramFilter, paramMerge}, a.nodeServices),
	}
}

func (a catalogAPI) datacenters(c *call) (any, error) {
	if err := c.parseCached(a.cfg); err != nil {
		return nil, err
	}
	if c.opts.cached {
		c.setCached(a.q.seen.hit("datacenters"), 0)
	}
	return []string{a.cfg.Self.Datacenter}, nil
}

func (a catalogAPI) nodes(c *call) (any, error) {
	f, err := newFilter[nodeView](c.opts.filter)
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryNodes})
	if err != nil {
		return nil, err
	}
	near, err := a.q.near(c, c.query.Get("near"))
	if err != nil {
		return nil, err
	}
	return a.q.share(c, v, func() (any, error) {
		nodes := keep(v.Nodes, func(n *catalog.Node) bool { return nodeHasMeta(n, c.query["node-meta"]) })
		nodes = discover.Sort(near, nodes, func(n *catalog.Node) string { return n.Node })
		return f.slice(viewNodes(nodes, a.cfg.Self.Datacenter))
	})
}

func (a catalogAPI) services(c *call) (any, error) {
	f, err := newFilter[serviceNodeView](c.opts.filter)
	if err != nil {
		return nil, err
	}
	meta := c.query["node-meta"]
	if c.opts.filter == "" && len(meta) == 0 {
		v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryServices})
		if err != nil {
			return nil, err
		}
		return a.q.share(c, v, func() (any, error) { return viewServiceNames(v.Services), nil })
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryInstances})
	if err != nil {
		return nil, err
	}
	return a.q.share(c, v, func() (any, error) {
		selected, err := f.slice(viewServiceNodes(withNodeMeta(v.Instances, meta), a.cfg.Self.Datacenter))
		if err != nil {
			return nil, err
		}
		return tagsByService(selected), nil
	})
}

func viewServiceNames(in []*catalog.ServiceSummary) map[string][]string {
	out := make(map[string][]string, len(in))
	for _, s := range in {
		out[s.Name] = notNil(s.Tags)
	}
	return out
}

func tagsByService(in []serviceNodeView) map[string][]string {
	out := map[string][]string{}
	for _, s := range in {
		tags := append(notNil(out[s.ServiceName]), s.ServiceTags...)
		slices.Sort(tags)
		out[s.ServiceName] = slices.Compact(tags)
	}
	return out
}

func (a catalogAPI) service(kind catalog.QueryKind) func(*call) (any, error) {
	return func(c *call) (any, error) {
		name, err := c.need("service name")
		if err != nil {
			return nil, err
		}
		f, err := newFilter[serviceNodeView](c.opts.filter)
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
			return f.slice(viewServiceNodes(instances, a.cfg.Self.Datacenter))
		})
	}
}

// readNode gives a node and the selected of its services; nil when there is none.
func (a catalogAPI) readNode(c *call) (*nodeView, []*serviceView, error) {
	name, err := c.need("node name")
	if err != nil {
		return nil, nil, err
	}
	f, err := newFilter[*serviceView](c.opts.filter)
	if err != nil {
		return nil, nil, err
	}
	v, err := a.q.read(c, c.instances(catalog.QueryNode, name))
	if err != nil || len(v.Nodes) == 0 {
		return nil, nil, err
	}
	services := make([]*serviceView, 0, len(v.Instances))
	for _, i := range v.Instances {
		if i.Service != nil {
			services = append(services, viewService(i.Service))
		}
	}
	services, err = f.slice(services)
	node := viewNode(v.Nodes[0], a.cfg.Self.Datacenter)
	return &node, services, err
}

func (a catalogAPI) node(c *call) (any, error) {
	node, services, err := a.readNode(c)
	if err != nil {
		return nil, err
	}
	if node == nil {
		return null{}, nil
	}
	byID := make(map[string]*serviceView, len(services))
	for _, s := range services {
		byID[s.ID] = s
	}
	return struct {
		Node     *nodeView
		Services map[string]*serviceView
	}{node, byID}, nil
}

func (a catalogAPI) nodeServices(c *call) (any, error) {
	node, services, err := a.readNode(c)
	if err != nil {
		return nil, err
	}
	return struct {
		Node     *nodeView
		Services []*serviceView
	}{node, services}, nil
}
