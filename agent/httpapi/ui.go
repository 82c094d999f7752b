package httpapi

import (
	"net/http"
	"slices"
	"strings"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// uiAPI gives user interfaces what they show, ready to be shown.
type uiAPI struct {
	cfg Config
	q   *queries
}

func (a uiAPI) routes() []Route {
	read := func(path, summary string, of acl.Resource, name string, f func(*call) (any, error)) Route {
		return Route{
			Method: http.MethodGet, Path: path, Summary: summary, Permission: Permission{acl.Read, of, name},
			MaxBody: bodyNone, params: paramsRead, handle: f,
		}
	}
	nodes := read("/v1/internal/ui/nodes", "every node with its services and checks", acl.Node, "", a.nodes)
	services := read("/v1/internal/ui/services", "every service in one line: instances, checks, tags, whether it is in the mesh", acl.Service, "", a.services)
	nodes.Params, services.Params = []Param{paramFilter}, []Param{paramFilter}
	exported := read("/v1/internal/ui/exported-services", "the services that are exported to a peer", acl.Service, "", a.exportedTo)
	exported.Params = []Param{{"peer", "the peer; required"}}
	topology := read("/v1/internal/ui/service-topology/:service", "who a service calls and who calls it, with the verdict on each", acl.Service, "service", a.topology)
	topology.Params = []Param{{"kind", "the kind of the service, empty for an ordinary one; required"}}
	overview := read("/v1/internal/ui/catalog-overview", "how many nodes, services and checks are in which state", acl.Operator, "", a.overview)
	overview.params = paramsConsistency
	return []Route{
		nodes, services, exported, topology, overview,
		read("/v1/internal/ui/node/:node", "a node with its services and checks", acl.Node, "node", a.node),
		read("/v1/internal/ui/gateway-services-nodes/:gateway", "the services behind a gateway", acl.Service, "gateway", a.gatewayServices),
		read("/v1/internal/ui/gateway-intentions/:gateway", "the intentions that can decide for the services behind a gateway", acl.Intention, "", a.gatewayIntentions),
	}
}

// uiNodeView is a node with all that is on it.
type uiNodeView struct {
	ID              string
	Node            string
	Address         string
	TaggedAddresses map[string]string
	Meta            map[string]string
	Services        []*serviceView
	Checks          []checkView
}

func viewUINode(n *catalog.Node) *uiNodeView {
	return &uiNodeView{
		ID: n.ID, Node: n.Node, Address: n.Address, TaggedAddresses: nilIfEmpty(n.TaggedAddresses), Meta: nilIfEmpty(n.Meta),
		Services: []*serviceView{}, Checks: []checkView{},
	}
}

// viewUIService is a service as it is stored: no tags are none here.
func viewUIService(s *catalog.Service) *serviceView {
	v := viewService(s)
	if len(v.Tags) == 0 {
		v.Tags = nil
	}
	return v
}

func (a uiAPI) nodes(c *call) (any, error) {
	f, err := newFilter[*uiNodeView](c.opts.filter)
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryDump})
	if err != nil {
		return nil, err
	}
	return a.q.share(c, v, func() (any, error) {
		out := make([]*uiNodeView, 0, len(v.Nodes))
		byName := make(map[string]*uiNodeView, len(v.Nodes))
		for _, n := range v.Nodes {
			u := viewUINode(n)
			out, byName[n.Node] = append(out, u), u
		}
		for _, i := range v.Instances {
			if u := byName[i.Node.Node]; u != nil {
				u.Services = append(u.Services, viewUIService(i.Service))
			}
		}
		for _, ch := range v.Checks {
			if u := byName[ch.Node]; u != nil {
				u.Checks = append(u.Checks, viewCheck(ch))
			}
		}
		return f.slice(out)
	})
}

func (a uiAPI) node(c *call) (any, error) {
	name, err := c.need("node name")
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryNode, Name: name})
	if err != nil {
		return nil, err
	}
	if len(v.Nodes) == 0 {
		return withStatus{http.StatusNotFound, nil}, nil
	}
	checks, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryNodeChecks, Name: name})
	if err != nil {
		return nil, err
	}
	u := viewUINode(v.Nodes[0])
	for _, i := range v.Instances {
		u.Services = append(u.Services, viewUIService(i.Service))
	}
	u.Checks = viewChecks(checks.Checks)
	return u, nil
}

// uiServiceView is a service in one line.
type uiServiceView struct {
	Kind             catalog.ServiceKind `json:",omitempty"`
	Name             string
	Datacenter       string
	Tags             []string
	Nodes            []string
	ExternalSources  []string
	InstanceCount    int
	ChecksPassing    int
	ChecksWarning    int
	ChecksCritical   int
	GatewayConfig    uiGatewayView
	TransparentProxy bool
	ConnectNative    bool
}

type uiGatewayView struct {
	AssociatedServiceCount int `json:",omitempty"`
}

type uiListedServiceView struct {
	uiServiceView
	ConnectedWithProxy   bool
	ConnectedWithGateway bool
}

// metaSource is the metadata that says which other system made a thing.
const metaSource = "external-source"

// summary makes one line of the instances of a service.
func (a uiAPI) summary(name catalog.Name, in []*catalog.Instance) uiServiceView {
	v := uiServiceView{Name: name, Datacenter: a.cfg.Self.Datacenter, InstanceCount: len(in)}
	counted := map[[2]string]bool{}
	for _, i := range in {
		s := i.Service
		v.Kind = s.Kind
		v.Tags = append(v.Tags, s.Tags...)
		v.Nodes = append(v.Nodes, i.Node.Node)
		if src := s.Meta[metaSource]; src != "" {
			v.ExternalSources = append(v.ExternalSources, src)
		}
		v.TransparentProxy = v.TransparentProxy || s.Proxy.Mode == "transparent"
		v.ConnectNative = v.ConnectNative || s.Connect.Native
		for _, ch := range i.Checks {
			key := [2]string{ch.Node, ch.CheckID} // one of the node is not counted for each instance on it
			if counted[key] {
				continue
			}
			counted[key] = true
			switch ch.Status {
			case catalog.StatusPassing:
				v.ChecksPassing++
			case catalog.StatusWarning:
				v.ChecksWarning++
			default:
				v.ChecksCritical++
			}
		}
	}
	v.Tags, v.Nodes, v.ExternalSources = setOf(v.Tags), setOf(v.Nodes), setOf(v.ExternalSources)
	return v
}

func setOf(in []string) []string {
	slices.Sort(in)
	return slices.Compact(in)
}

func byService(in []*catalog.Instance) (names []catalog.Name, of map[catalog.Name][]*catalog.Instance) {
	of = map[catalog.Name][]*catalog.Instance{}
	for _, i := range in {
		if of[i.Service.Service] == nil {
			names = append(names, i.Service.Service)
		}
		of[i.Service.Service] = append(of[i.Service.Service], i)
	}
	slices.Sort(names)
	return names, of
}

func (a uiAPI) services(c *call) (any, error) {
	f, err := newFilter[instanceView](c.opts.filter)
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryDump})
	if err != nil {
		return nil, err
	}
	behind, err := a.behindGateways(c)
	if err != nil {
		return nil, err
	}
	proxied := map[catalog.Name]bool{}
	var wanted []*catalog.Instance
	for _, i := range v.Instances {
		if i.Service.Kind == catalog.KindConnectProxy {
			proxied[i.Service.Proxy.DestinationServiceName] = true
		}
		ok, err := f.match(instanceView{viewNode(i.Node, a.cfg.Self.Datacenter), viewService(i.Service), viewChecks(i.Checks)})
		if err != nil {
			return nil, err
		}
		if ok {
			wanted = append(wanted, i)
		}
	}
	names, of := byService(wanted)
	out := make([]uiListedServiceView, 0, len(names))
	for _, n := range names {
		line := uiListedServiceView{a.summary(n, of[n]), proxied[n], behind.services[n]}
		line.GatewayConfig.AssociatedServiceCount = behind.count[n]
		out = append(out, line)
	}
	return out, nil
}

// tallyView counts the states of one family of things.
type tallyView struct {
	Name     string `json:",omitempty"`
	Total    int
	Passing  int
	Warning  int
	Critical int
}

func (t *tallyView) add(s catalog.Status) {
	t.Total++
	switch s {
	case catalog.StatusPassing:
		t.Passing++
	case catalog.StatusWarning:
		t.Warning++
	default:
		t.Critical++
	}
}

func worst(checks []*catalog.Check) catalog.Status {
	s := catalog.StatusPassing
	for _, ch := range checks {
		s = catalog.Worse(s, ch.Status)
	}
	return s
}

// overview counts now, and not every so often as Consul does.
func (a uiAPI) overview(c *call) (any, error) {
	v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryDump})
	if err != nil {
		return nil, err
	}
	onNode := map[string][]*catalog.Check{}
	checks := map[string]*tallyView{}
	for _, ch := range v.Checks {
		if ch.ServiceID == "" {
			onNode[ch.Node] = append(onNode[ch.Node], ch)
		}
		tally(checks, ch.Name).add(ch.Status)
	}
	nodes := &tallyView{}
	for _, n := range v.Nodes {
		nodes.add(worst(onNode[n.Node]))
	}
	services := map[string]*tallyView{}
	for _, i := range v.Instances {
		tally(services, i.Service.Service).add(worst(i.Checks))
	}
	return struct{ Nodes, Services, Checks []*tallyView }{[]*tallyView{nodes}, tallies(services), tallies(checks)}, nil
}

func tally(in map[string]*tallyView, name string) *tallyView {
	if in[name] == nil {
		in[name] = &tallyView{Name: name}
	}
	return in[name]
}

func tallies(in map[string]*tallyView) []*tallyView {
	out := make([]*tallyView, 0, len(in))
	for _, t := range in {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *tallyView) int { return strings.Compare(a.Name, b.Name) })
	return out
}
