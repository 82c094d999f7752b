package catalog

import (
	"slices"
	"time"
)

// EntrySource finds config entries. Entry returns nil when there is none of that
// kind and name; what it returns is not changed.
type EntrySource interface {
	Entry(kind, name string) ConfigEntry
}

// EntrySet is an EntrySource in memory.
type EntrySet []ConfigEntry

// Entry implements EntrySource.
func (s EntrySet) Entry(kind, name string) ConfigEntry {
	for _, e := range s {
		if e.EntryKind() == kind && e.EntryName() == name {
			return e
		}
	}
	return nil
}

// lookup finds an entry of type T; ok is false when there is none.
func lookup[T ConfigEntry](src EntrySource, kind, name string) (entry T, ok bool) {
	e := src.Entry(kind, name)
	if e == nil {
		return entry, false
	}
	entry, ok = e.(T)
	return entry, ok
}

// ServiceProtocol is the protocol of a service: its own, else that of all, else tcp.
func ServiceProtocol(src EntrySource, service Name) string {
	if d, ok := lookup[*ServiceDefaults](src, KindServiceDefaults, service); ok && d.Protocol != "" {
		return d.Protocol
	}
	if g, ok := lookup[*ProxyDefaults](src, KindProxyDefaults, ProxyDefaultsName); ok && g.Protocol() != "" {
		return g.Protocol()
	}
	return ProtocolTCP
}

// DefaultConnectTimeout is that of targets whose resolver has none.
const DefaultConnectTimeout = 5 * time.Second

// maxChainNodes bounds a chain: entries can refer to each other without end.
const maxChainNodes = 4096

// CompileChain takes the config entries that speak of a service together. It is a
// function of what src holds and of the options. Its error wraps ErrInvalid and
// says which entries do not fit together.
func CompileChain(src EntrySource, service Name, o ChainOptions) (*Chain, error) {
	c := &compiler{
		src: src, opt: o, service: service,
		nodes: map[string]*ChainNode{}, targets: map[string]*Target{}, protocols: map[Name]bool{},
	}
	return c.compile()
}

// compiler is one compilation.
type compiler struct {
	src      EntrySource
	opt      ChainOptions
	service  Name
	protocol string
	// advanced tells whether routers and splitters count.
	advanced bool

	nodes     map[string]*ChainNode
	targets   map[string]*Target
	protocols map[Name]bool // services whose protocol was compared

	// what overrides changed
	changedProtocol, changedTimeout, changedGateway bool
}

func (c *compiler) compile() (*Chain, error) {
	own := ServiceProtocol(c.src, c.service)
	c.protocol, c.advanced = own, true
	if p := c.opt.Protocol; p != "" && p != own {
		c.protocol, c.changedProtocol = p, true
		c.advanced = IsHTTP(p) && IsHTTP(own)
	}
	start, err := c.start()
	if err != nil {
		return nil, err
	}
	if err := c.flattenSplitters(); err != nil {
		return nil, err
	}
	c.removeUnused(start)
	c.balanceSplitters()
	chain := &Chain{
		ServiceName: c.service, Namespace: "default", Partition: "default", Datacenter: c.opt.Datacenter,
		Protocol: c.protocol, StartNode: start, Nodes: c.nodes, Targets: c.targets,
	}
	if n := c.nodes[start]; n.Resolver != nil && n.Resolver.Default {
		t := c.targets[n.Resolver.Target]
		chain.Default = t.Service == c.service && t.Datacenter == c.opt.Datacenter && t.Peer == ""
	}
	c.describe(chain)
	return chain, nil
}

// describe adds what entries say of the service beside the graph.
func (c *compiler) describe(chain *Chain) {
	if g, ok := lookup[*ProxyDefaults](c.src, KindProxyDefaults, ProxyDefaultsName); ok {
		chain.EnvoyExtensions = append(chain.EnvoyExtensions, g.EnvoyExtensions...)
	}
	if d, ok := lookup[*ServiceDefaults](c.src, KindServiceDefaults, c.service); ok {
		chain.ServiceMeta = d.Meta
		chain.EnvoyExtensions = append(chain.EnvoyExtensions, d.EnvoyExtensions...)
	}
	var protocol, gateway string
	var timeout time.Duration
	if c.changedProtocol {
		protocol = c.opt.Protocol
	}
	if c.changedTimeout {
		timeout = c.opt.ConnectTimeout
	}
	if c.changedGateway {
		gateway = c.opt.MeshGateway
	}
	chain.CustomizationHash = customization(protocol, timeout, gateway)
}

// start builds the graph and names its first node.
func (c *compiler) start() (string, error) {
	router, hasRouter := lookup[*ServiceRouter](c.src, KindServiceRouter, c.service)
	if !c.advanced || !hasRouter {
		return c.splitterOrResolver(c.service, 0)
	}
	if !IsHTTP(c.protocol) {
		return "", c.notAdvanced(c.service)
	}
	name := c.service + ".default.default"
	node := &ChainNode{Type: NodeRouter, Name: name}
	id := NodeRouter + ":" + name
	c.nodes[id] = node
	for _, r := range router.Routes {
		next, err := c.routeDestination(r.Destination)
		if err != nil {
			return "", err
		}
		node.Routes = append(node.Routes, &ChainRoute{Definition: r, NextNode: next})
	}
	next, err := c.splitterOrResolver(c.service, 0)
	if err != nil {
		return "", err
	}
	node.Routes = append(node.Routes, &ChainRoute{
		Definition: &ServiceRoute{
			Match:       &ServiceRouteMatch{HTTP: &ServiceRouteHTTPMatch{PathPrefix: "/"}},
			Destination: &ServiceRouteDestination{Service: c.service, Namespace: "default", Partition: "default"},
		},
		NextNode: next,
	})
	return id, nil
}

func (c *compiler) notAdvanced(service Name) error {
	return Invalidf("discovery chain %q uses a protocol %q that does not permit advanced routing or splitting behavior;"+
		" set Protocol in the service-defaults of %q to http, http2 or grpc first", c.service, c.protocol, service)
}

// routeDestination is where a route leads: a subset is gone to past any splitter.
func (c *compiler) routeDestination(d *ServiceRouteDestination) (string, error) {
	service, subset := c.service, ""
	if d != nil {
		subset = d.ServiceSubset
		if d.Service != "" {
			service = d.Service
		}
	}
	if subset == "" {
		return c.splitterOrResolver(service, 0)
	}
	return c.resolver(service, subset, c.opt.Datacenter, "")
}

// splitterOrResolver gives the node of a service, past any router of its own.
func (c *compiler) splitterOrResolver(service Name, depth int) (string, error) {
	splitter, ok := lookup[*ServiceSplitter](c.src, KindServiceSplitter, service)
	if !ok || !c.advanced {
		return c.resolver(service, "", c.opt.Datacenter, "")
	}
	if err := c.sameProtocol(service); err != nil {
		return "", err
	}
	if !IsHTTP(c.protocol) {
		return "", c.notAdvanced(service)
	}
	name := service + ".default.default"
	id := NodeSplitter + ":" + name
	if c.nodes[id] != nil {
		return id, nil
	}
	if depth > maxChainNodes || len(c.nodes) > maxChainNodes {
		return "", Invalidf("discovery chain %q has more than %d nodes", c.service, maxChainNodes)
	}
	node := &ChainNode{Type: NodeSplitter, Name: name}
	c.nodes[id] = node
	for _, s := range splitter.Splits {
		to := s.Service
		if to == "" {
			to = service
		}
		var next string
		var err error
		if s.ServiceSubset == "" && to != service {
			next, err = c.splitterOrResolver(to, depth+1)
		} else {
			next, err = c.resolver(to, s.ServiceSubset, c.opt.Datacenter, "")
		}
		if err != nil {
			return "", err
		}
		node.Splits = append(node.Splits, &ChainSplit{Definition: s, Weight: s.Weight, NextNode: next})
	}
	return id, nil
}

// sameProtocol refuses chains that lead from one protocol to another.
func (c *compiler) sameProtocol(service Name) error {
	if c.changedProtocol || c.protocols[service] {
		return nil
	}
	c.protocols[service] = true
	if p := ServiceProtocol(c.src, service); p != c.protocol {
		return Invalidf("discovery chain %q uses inconsistent protocols; service %q has %q which is not %q", c.service, service, p, c.protocol)
	}
	return nil
}

// resolver makes the resolver node of a service after all redirects.
func (c *compiler) resolver(service Name, subset, datacenter, peer string) (string, error) {
	t, entry, err := c.target(service, subset, datacenter, peer)
	if err != nil {
		return "", err
	}
	id := NodeResolver + ":" + t.ID
	if c.nodes[id] != nil {
		return id, nil
	}
	if len(c.nodes) > maxChainNodes {
		return "", Invalidf("discovery chain %q has more than %d nodes", c.service, maxChainNodes)
	}
	r := &ChainResolver{ConnectTimeout: t.ConnectTimeout, Default: entry == nil, Target: t.ID}
	node := &ChainNode{Type: NodeResolver, Name: t.ID, Resolver: r}
	c.nodes[id] = node
	if g, ok := lookup[*ProxyDefaults](c.src, KindProxyDefaults, ProxyDefaultsName); ok {
		r.PrioritizeByLocality = g.PrioritizeByLocality
	}
	if entry == nil {
		return id, nil
	}
	r.RequestTimeout = time.Duration(entry.RequestTimeout)
	node.LoadBalancer = entry.LoadBalancer
	if entry.PrioritizeByLocality != nil {
		r.PrioritizeByLocality = entry.PrioritizeByLocality
	}
	if t.Peer == "" {
		if err := c.failover(r, entry, t); err != nil {
			return "", err
		}
	}
	return id, nil
}

// target follows redirects and default subsets to a set of instances. It also
// gives the resolver entry that decides over it, nil for none.
func (c *compiler) target(service Name, subset, datacenter, peer string) (*Target, *ServiceResolver, error) {
	var seen []string
	for {
		id := targetID(service, subset, datacenter, peer)
		if slices.Contains(seen, id) {
			return nil, nil, Invalidf("discovery chain %q: detected circular resolver redirect: %s", c.service, describeTargets(append(seen, id)))
		}
		if seen = append(seen, id); len(seen) > maxChainNodes {
			return nil, nil, Invalidf("discovery chain %q: more than %d redirects in a row", c.service, maxChainNodes)
		}
		if peer != "" {
			// What the name means there is for the other cluster to say.
			return c.keep(&Target{ID: id, Service: service, Peer: peer, ConnectTimeout: c.connectTimeout(nil)}), nil, nil
		}
		if err := c.sameProtocol(service); err != nil {
			return nil, nil, err
		}
		entry, ok := lookup[*ServiceResolver](c.src, KindServiceResolver, service)
		if !ok {
			if subset != "" {
				return nil, nil, noSubset(service, subset)
			}
			return c.keep(c.newTarget(id, service, subset, datacenter, nil)), nil, nil
		}
		if r := entry.Redirect; r != nil {
			s, sub, dc, p := service, subset, datacenter, r.Peer
			if r.Service != "" && r.Service != service {
				s, sub = r.Service, ""
			}
			if r.ServiceSubset != "" {
				sub = r.ServiceSubset
			}
			if r.Datacenter != "" {
				dc = r.Datacenter
			}
			if targetID(s, sub, dc, p) != id {
				service, subset, datacenter, peer = s, sub, dc, p
				continue
			}
		}
		if subset == "" && entry.DefaultSubset != "" {
			subset = entry.DefaultSubset
			id = targetID(service, subset, datacenter, peer)
		}
		if !entry.HasSubset(subset) {
			return nil, nil, noSubset(service, subset)
		}
		t := c.newTarget(id, service, subset, datacenter, entry)
		if err := c.external(t, entry); err != nil {
			return nil, nil, err
		}
		return c.keep(t), entry, nil
	}
}

func noSubset(service Name, subset string) error {
	return Invalidf("service %q does not have a subset named %q; define it in Subsets of its service-resolver", service, subset)
}

func (c *compiler) newTarget(id string, service Name, subset, datacenter string, entry *ServiceResolver) *Target {
	t := &Target{
		ID: id, Service: service, ServiceSubset: subset, Datacenter: datacenter, ConnectTimeout: c.connectTimeout(entry),
	}
	if entry != nil {
		t.Subset = entry.Subsets[subset]
	}
	t.SNI = t.sni(c.opt.TrustDomain)
	t.Name = t.SNI
	if g, ok := lookup[*ProxyDefaults](c.src, KindProxyDefaults, ProxyDefaultsName); ok {
		t.MeshGateway, t.TransparentProxy = g.MeshGateway, g.TransparentProxy
	}
	if d, ok := lookup[*ServiceDefaults](c.src, KindServiceDefaults, service); ok {
		if d.MeshGateway.Mode != "" {
			t.MeshGateway = d.MeshGateway
		}
		if d.TransparentProxy != (TransparentProxy{}) {
			t.TransparentProxy = d.TransparentProxy
		}
		if d.ExternalSNI != "" {
			t.SNI, t.External = d.ExternalSNI, true
		}
	}
	return t
}

// external refuses what cannot be done with a service outside of the mesh.
func (c *compiler) external(t *Target, entry *ServiceResolver) error {
	switch {
	case !t.External:
		return nil
	case len(entry.Subsets) > 0:
		return Invalidf("service %q has an external SNI set; cannot define subsets for external services", t.Service)
	case len(entry.Failover) > 0:
		return Invalidf("service %q has an external SNI set; cannot define failover for external services", t.Service)
	}
	return nil
}

// keep adds a target to the chain, once.
func (c *compiler) keep(t *Target) *Target {
	if have := c.targets[t.ID]; have != nil {
		return have
	}
	t.Namespace, t.Partition = "default", "default"
	if m := c.opt.MeshGateway; m != "" && t.MeshGateway.Mode != m {
		t.MeshGateway.Mode, c.changedGateway = m, true
	}
	c.targets[t.ID] = t
	return t
}

func (c *compiler) connectTimeout(entry *ServiceResolver) Duration {
	d := Duration(DefaultConnectTimeout)
	if entry != nil && entry.ConnectTimeout > 0 {
		d = entry.ConnectTimeout
	}
	if o := Duration(c.opt.ConnectTimeout); o > 0 && o != d {
		c.changedTimeout = true
		return o
	}
	return d
}

// failover lists where to go when t has no healthy instance.
func (c *compiler) failover(r *ChainResolver, entry *ServiceResolver, t *Target) error {
	f := entry.Failover[t.ServiceSubset]
	if f == nil || t.ServiceSubset == "" {
		f = entry.Failover[Wildcard]
	}
	if f == nil {
		return nil
	}
	out := &ChainFailover{Policy: f.Policy}
	for _, to := range f.places() {
		service, subset, dc := t.Service, t.ServiceSubset, t.Datacenter
		if to.Service != "" && to.Service != service {
			service, subset = to.Service, ""
		}
		if to.ServiceSubset != "" {
			subset = to.ServiceSubset
		}
		if to.Datacenter != "" {
			dc = to.Datacenter
		}
		place, _, err := c.target(service, subset, dc, to.Peer)
		if err != nil {
			return err
		}
		if place.ID != t.ID && !slices.Contains(out.Targets, place.ID) {
			out.Targets = append(out.Targets, place.ID)
		}
	}
	if len(out.Targets) > 0 {
		r.Failover = out
	}
	return nil
}

// places gives the three forms of a failover one shape.
func (f *ServiceResolverFailover) places() []ServiceResolverFailoverTarget {
	if len(f.Targets) > 0 {
		return f.Targets
	}
	one := ServiceResolverFailoverTarget{Service: f.Service, ServiceSubset: f.ServiceSubset}
	if len(f.Datacenters) == 0 {
		return []ServiceResolverFailoverTarget{one}
	}
	out := make([]ServiceResolverFailoverTarget, 0, len(f.Datacenters))
	for _, dc := range f.Datacenters {
		one.Datacenter = dc
		out = append(out, one)
	}
	return out
}

// removeUnused drops the nodes and targets that flattening left without a way to them.
func (c *compiler) removeUnused(start string) {
	nodes, targets := map[string]*ChainNode{}, map[string]*Target{}
	todo := []string{start}
	for len(todo) > 0 {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if nodes[id] != nil {
			continue
		}
		n := c.nodes[id]
		nodes[id] = n
		for _, r := range n.Routes {
			todo = append(todo, r.NextNode)
		}
		for _, s := range n.Splits {
			todo = append(todo, s.NextNode)
		}
		if n.Resolver != nil {
			for _, t := range append([]string{n.Resolver.Target}, n.Resolver.failover()...) {
				targets[t] = c.targets[t]
			}
		}
	}
	c.nodes, c.targets = nodes, targets
}
