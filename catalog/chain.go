package catalog

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/url"
	"strings"
	"time"
)

// Chain is what a service name stands for once every config entry that speaks of
// it is taken together: a graph of routers, splitters and resolvers that leads
// each request to a target.
type Chain struct {
	ServiceName Name
	Namespace   string // "default", as Partition: clients look for both
	Partition   string
	Datacenter  string
	// CustomizationHash tells chains apart that options changed.
	CustomizationHash string `json:",omitempty"`
	// Default is set when no router, splitter or resolver had a part in it.
	Default         bool                  `json:",omitempty"`
	Protocol        string                `json:",omitempty"`
	ServiceMeta     map[string]string     `json:",omitempty"`
	EnvoyExtensions []EnvoyExtension      `json:",omitempty"`
	StartNode       string                `json:",omitempty"`
	Nodes           map[string]*ChainNode `json:",omitempty"`
	Targets         map[string]*Target    `json:",omitempty"`
	// AutoVirtualIPs are given by the servers; nil where the service has none.
	AutoVirtualIPs   []string
	ManualVirtualIPs []string
}

// Types of chain nodes.
const (
	NodeRouter   = "router"
	NodeSplitter = "splitter"
	NodeResolver = "resolver"
)

// ChainNode is a node of a chain; its type says which field is set.
type ChainNode struct {
	Type         string
	Name         string
	Routes       []*ChainRoute  `json:",omitempty"`
	Splits       []*ChainSplit  `json:",omitempty"`
	Resolver     *ChainResolver `json:",omitempty"`
	LoadBalancer *LoadBalancer  `json:",omitempty"`
}

// ChainRoute leads the requests that its definition matches to a node.
type ChainRoute struct {
	Definition *ServiceRoute
	NextNode   string
}

// ChainSplit leads a share of the requests to a node.
type ChainSplit struct {
	Definition *ServiceSplit
	Weight     float32
	NextNode   string
}

// ChainResolver leads to a target, or, while it has no healthy instance, to the
// first of others that has.
type ChainResolver struct {
	ConnectTimeout       Duration      `json:",omitempty"`
	RequestTimeout       time.Duration `json:",omitempty"`
	Default              bool          `json:",omitempty"`
	Target               string
	Failover             *ChainFailover        `json:",omitempty"`
	PrioritizeByLocality *PrioritizeByLocality `json:",omitempty"`
}

// ChainFailover lists targets in the order in which they are tried.
type ChainFailover struct {
	Targets []string
	Policy  *FailoverPolicy `json:",omitempty"`
}

// Target is a set of instances.
type Target struct {
	ConnectTimeout   Duration `json:",omitempty"`
	ID               string
	Service          Name
	ServiceSubset    string `json:",omitempty"`
	Namespace        string
	Partition        string
	Datacenter       string `json:",omitempty"`
	Peer             string `json:",omitempty"`
	MeshGateway      MeshGatewayConfig
	Subset           ServiceResolverSubset
	TransparentProxy TransparentProxy
	External         bool   `json:",omitempty"`
	SNI              string `json:",omitempty"`
	Name             string `json:",omitempty"`
}

// ChainOptions are what a chain depends on beside config entries.
type ChainOptions struct {
	// Datacenter in which the chain is evaluated. Required.
	Datacenter string
	// TrustDomain ends the server names of targets.
	TrustDomain string
	// Overrides replace what entries say.
	Protocol       string
	ConnectTimeout time.Duration
	MeshGateway    string
}

// Query is the watchable question for the chain of a service. The trust domain is
// not part of it: it is the servers' to say.
func (o ChainOptions) Query(service Name) Query {
	v := url.Values{"dc": {o.Datacenter}}
	if o.Protocol != "" {
		v.Set("protocol", o.Protocol)
	}
	if o.ConnectTimeout != 0 {
		v.Set("timeout", o.ConnectTimeout.String())
	}
	if o.MeshGateway != "" {
		v.Set("gateway", o.MeshGateway)
	}
	return Query{Kind: QueryChain, Name: service, Sub: v.Encode()}
}

// ChainOptions reads what ChainOptions.Query wrote.
func (q Query) ChainOptions() (ChainOptions, error) {
	v, err := url.ParseQuery(q.Sub)
	if err != nil {
		return ChainOptions{}, Invalidf("query chain: options: %w", err)
	}
	o := ChainOptions{Datacenter: v.Get("dc"), Protocol: v.Get("protocol"), MeshGateway: v.Get("gateway")}
	if t := v.Get("timeout"); t != "" {
		if o.ConnectTimeout, err = time.ParseDuration(t); err != nil {
			return ChainOptions{}, Invalidf("query chain: timeout: %w", err)
		}
	}
	if o.Datacenter == "" {
		return ChainOptions{}, Invalidf("query chain: no datacenter")
	}
	return o, nil
}

// customization is the hash of overrides that had an effect. It tells chains apart
// that differ by them; it is computed as others do, so that the same overrides have
// the same hash everywhere.
func customization(protocol string, timeout time.Duration, gateway string) string {
	if protocol == "" && timeout == 0 && gateway == "" {
		return ""
	}
	h := fnv.New64()
	sum := func(b []byte) uint64 {
		h.Reset()
		_, _ = h.Write(b) // a hash takes everything
		return h.Sum64()
	}
	text := func(s string) uint64 { return sum([]byte(s)) }
	number := func(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }
	field := func(name string, value uint64) uint64 { return sum(append(number(text(name)), number(value)...)) }
	mesh := text("MeshGatewayConfig") ^ field("Mode", text(gateway))
	all := text("") ^ field("OverrideMeshGateway", mesh) ^ field("OverrideProtocol", text(protocol)) ^
		field("OverrideConnectTimeout", sum(number(uint64(timeout)))) //nolint:gosec // its bits, whatever the sign
	return fmt.Sprintf("%08x", all)[:8]
}

// targetID names a target: [subset.]service.namespace.partition.datacenter.
func targetID(service Name, subset, datacenter, peer string) string {
	where := datacenter
	if peer != "" {
		where = "external." + peer
	}
	id := service + ".default.default." + where
	if subset != "" {
		id = subset + "." + id
	}
	return id
}

// sni is the server name of a target of this cluster.
func (t *Target) sni(trustDomain string) string {
	s := t.Service + ".default." + t.Datacenter + ".internal." + cmp.Or(trustDomain, "consul")
	if t.ServiceSubset != "" {
		s = t.ServiceSubset + "." + s
	}
	return s
}

// Share is a part of the connections to a service and the targets that it goes to,
// in the order in which they are tried.
type Share struct {
	Weight  float32 // percent
	Targets []*Target
	// Nearest has the instances of each target tried from near to far: see Locality.Distance.
	Nearest bool
}

// Connections tells where connections go of whose requests nothing is known: by
// the route for what no other route matches, and by the shares of splitters.
func (c *Chain) Connections() []Share {
	if c == nil {
		return nil
	}
	var out []Share
	c.walk(c.StartNode, 100, len(c.Nodes)+1, func(weight float32, r *ChainResolver) {
		s := Share{Weight: weight, Nearest: r.PrioritizeByLocality != nil && r.PrioritizeByLocality.Mode == PrioritizeFailover}
		for _, id := range append([]string{r.Target}, r.failover()...) {
			if t := c.Targets[id]; t != nil {
				s.Targets = append(s.Targets, t)
			}
		}
		out = append(out, s)
	})
	return out
}

func (r *ChainResolver) failover() []string {
	if r.Failover == nil {
		return nil
	}
	return r.Failover.Targets
}

// walk visits the resolvers below a node. A chain may come from elsewhere: steps
// bounds one that goes round.
func (c *Chain) walk(name string, weight float32, steps int, visit func(float32, *ChainResolver)) {
	n := c.Nodes[name]
	if n == nil || steps == 0 {
		return
	}
	switch {
	case n.Resolver != nil:
		visit(weight, n.Resolver)
	case len(n.Routes) > 0:
		c.walk(n.Routes[len(n.Routes)-1].NextNode, weight, steps-1, visit)
	default:
		for _, s := range n.Splits {
			if s.Weight > 0 {
				c.walk(s.NextNode, weight*s.Weight/100, steps-1, visit)
			}
		}
	}
}

func describeTargets(ids []string) string { return "[" + strings.Join(ids, " -> ") + "]" }
