package httpapi

import (
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// agentServiceView is a service as the agent shows its own.
type agentServiceView struct {
	Kind              catalog.ServiceKind `json:",omitempty"`
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Port              int
	Ports             []servicePortView `json:",omitempty" bexpr:"-"`
	Address           string
	SocketPath        string                            `json:",omitempty"`
	TaggedAddresses   map[string]catalog.ServiceAddress `json:",omitempty"`
	Weights           catalog.Weights
	EnableTagOverride bool
	ContentHash       string            `json:",omitempty" bexpr:"-"`
	Proxy             *agentProxyView   `json:",omitempty"`
	Connect           *connectView      `json:",omitempty"`
	Datacenter        string            `bexpr:"-"`
	Locality          *catalog.Locality `json:",omitempty" bexpr:"-"`
}

type servicePortView struct {
	Name    string
	Port    int
	Default bool `json:",omitempty"`
}

type connectView struct {
	Native bool `json:",omitempty"`
}

func viewAgentService(s *catalog.Service, dc string) *agentServiceView {
	v := &agentServiceView{
		Kind: s.Kind, ID: s.ID, Service: s.Service, Tags: notNil(s.Tags), Meta: notNilMap(s.Meta),
		Port: s.Port, Ports: viewPorts(s.Ports), Address: s.Address, SocketPath: s.SocketPath,
		TaggedAddresses: s.TaggedAddresses, Weights: weightsOf(s), EnableTagOverride: s.EnableTagOverride,
		Datacenter: dc, Locality: s.Locality,
	}
	if s.Kind != catalog.KindTypical {
		v.Proxy = viewAgentProxy(&s.Proxy)
	}
	if s.Connect.Native {
		v.Connect = &connectView{Native: true}
	}
	return v
}

func viewAgentServices(in map[string]*catalog.Service, dc string) map[string]*agentServiceView {
	out := make(map[string]*agentServiceView, len(in))
	for id, s := range in {
		out[id] = viewAgentService(s, dc)
	}
	return out
}

// serviceView is a service beside its node.
type serviceView struct {
	Kind              catalog.ServiceKind `json:",omitempty"`
	ID                string
	Service           string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]catalog.ServiceAddress `json:",omitempty"`
	Meta              map[string]string
	Port              int               `json:",omitempty"`
	Ports             []servicePortView `json:",omitempty" bexpr:"-"`
	SocketPath        string            `json:",omitempty"`
	Weights           catalog.Weights
	EnableTagOverride bool
	Proxy             catalogProxyView
	Connect           connectView
	PeerName          string
	Locality          *catalog.Locality `json:",omitempty" bexpr:"-"`
	CreateIndex       uint64            `bexpr:"-"`
	ModifyIndex       uint64            `bexpr:"-"`
}

func viewService(s *catalog.Service) *serviceView {
	return &serviceView{
		Kind: s.Kind, ID: s.ID, Service: s.Service, Tags: notNil(s.Tags), Address: s.Address,
		TaggedAddresses: s.TaggedAddresses, Meta: nilIfEmpty(s.Meta), Port: s.Port, Ports: viewPorts(s.Ports),
		SocketPath: s.SocketPath, Weights: weightsOf(s), EnableTagOverride: s.EnableTagOverride,
		Proxy: viewCatalogProxy(&s.Proxy), Connect: connectView{Native: s.Connect.Native}, Locality: s.Locality,
		CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex,
	}
}

// serviceNodeView is an instance, flat, as the catalog lists it.
type serviceNodeView struct {
	ID                       string
	Node                     string
	Address                  string
	Datacenter               string
	TaggedAddresses          map[string]string
	NodeMeta                 map[string]string
	ServiceKind              catalog.ServiceKind
	ServiceID                string
	ServiceName              string
	ServiceTags              []string
	ServiceAddress           string
	ServiceTaggedAddresses   map[string]catalog.ServiceAddress `json:",omitempty"`
	ServiceWeights           catalog.Weights
	ServiceMeta              map[string]string
	ServicePort              int
	ServicePorts             []servicePortView `json:",omitempty" bexpr:"-"`
	ServiceSocketPath        string
	ServiceEnableTagOverride bool
	ServiceProxy             catalogProxyView
	ServiceConnect           connectView
	ServiceLocality          *catalog.Locality `bexpr:"-"`
	CreateIndex              uint64            `bexpr:"-"`
	ModifyIndex              uint64            `bexpr:"-"`
}

func viewServiceNode(i *catalog.Instance, dc string) serviceNodeView {
	n, s := viewNode(i.Node, dc), i.Service
	return serviceNodeView{
		ID: n.ID, Node: n.Node, Address: n.Address, Datacenter: n.Datacenter, TaggedAddresses: n.TaggedAddresses, NodeMeta: n.Meta,
		ServiceKind: s.Kind, ServiceID: s.ID, ServiceName: s.Service, ServiceTags: notNil(s.Tags),
		ServiceAddress: s.Address, ServiceTaggedAddresses: s.TaggedAddresses, ServiceWeights: weightsOf(s),
		ServiceMeta: notNilMap(s.Meta), ServicePort: s.Port, ServicePorts: viewPorts(s.Ports), ServiceSocketPath: s.SocketPath,
		ServiceEnableTagOverride: s.EnableTagOverride, ServiceProxy: viewCatalogProxy(&s.Proxy),
		ServiceConnect: connectView{Native: s.Connect.Native}, ServiceLocality: s.Locality,
		CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex,
	}
}

func viewServiceNodes(in []*catalog.Instance, dc string) []serviceNodeView {
	out := make([]serviceNodeView, 0, len(in))
	for _, i := range in {
		out = append(out, viewServiceNode(i, dc))
	}
	return out
}

// instanceView is an instance with its node and checks, as health shows it.
type instanceView struct {
	Node    nodeView
	Service *serviceView
	Checks  []checkView
}

func viewInstances(in []*catalog.Instance, dc string) []instanceView {
	out := make([]instanceView, 0, len(in))
	for _, i := range in {
		out = append(out, instanceView{viewNode(i.Node, dc), viewService(i.Service), viewChecks(i.Checks)})
	}
	return out
}

func viewPorts(in []catalog.ServicePort) []servicePortView {
	var out []servicePortView
	for _, p := range in {
		out = append(out, servicePortView(p))
	}
	return out
}

func weightsOf(s *catalog.Service) catalog.Weights {
	if s.Weights == nil {
		return catalog.Weights{Passing: 1, Warning: 1}
	}
	return *s.Weights
}

// withTags keeps the instances that have every tag, in any case.
func withTags(in []*catalog.Instance, tags []string) []*catalog.Instance {
	return keep(in, func(i *catalog.Instance) bool {
		for _, want := range tags {
			found := false
			for _, have := range i.Service.Tags {
				found = found || strings.EqualFold(have, want)
			}
			if !found {
				return false
			}
		}
		return true
	})
}

// withNodeMeta keeps the instances on nodes that have every key:value.
func withNodeMeta(in []*catalog.Instance, want []string) []*catalog.Instance {
	return keep(in, func(i *catalog.Instance) bool { return nodeHasMeta(i.Node, want) })
}

// passingOnly keeps the instances whose every check passes.
func passingOnly(in []*catalog.Instance) []*catalog.Instance {
	return keep(in, func(i *catalog.Instance) bool {
		for _, c := range i.Checks {
			if c.Status != catalog.StatusPassing {
				return false
			}
		}
		return true
	})
}

func nodeHasMeta(n *catalog.Node, want []string) bool {
	for _, kv := range want {
		k, v, _ := strings.Cut(kv, ":")
		if n == nil {
			return false
		}
		if have, ok := n.Meta[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// keep gives the elements that f accepts, in a list of its own: views are shared.
func keep[T any](in []T, f func(T) bool) []T {
	out := make([]T, 0, len(in))
	for _, v := range in {
		if f(v) {
			out = append(out, v)
		}
	}
	return out
}
