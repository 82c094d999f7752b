package catalog

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-bexpr"
)

// ServiceResolver says which instances a service name stands for.
type ServiceResolver struct {
	EntryHead
	DefaultSubset        string                              `json:",omitempty"`
	Subsets              map[string]ServiceResolverSubset    `json:",omitempty"`
	Redirect             *ServiceResolverRedirect            `json:",omitempty"`
	Failover             map[string]*ServiceResolverFailover `json:",omitempty"` // by subset, "*" for the others
	ConnectTimeout       Duration                            `json:",omitempty"`
	RequestTimeout       Duration                            `json:",omitempty"`
	PrioritizeByLocality *PrioritizeByLocality               `json:",omitempty"`
	LoadBalancer         *LoadBalancer                       `json:",omitempty"`
}

// ServiceResolverSubset names the instances that Filter selects.
type ServiceResolverSubset struct {
	Filter      string `json:",omitempty"`
	OnlyPassing bool   `json:",omitempty"`
}

// ServiceResolverRedirect replaces a service by another. What is empty stays as it is.
type ServiceResolverRedirect struct {
	Service       Name   `json:",omitempty"`
	ServiceSubset string `json:",omitempty"`
	Namespace     string `json:",omitempty"`
	Partition     string `json:",omitempty"`
	Datacenter    string `json:",omitempty"`
	Peer          string `json:",omitempty"`
	SamenessGroup string `json:",omitempty"`
}

// ServiceResolverFailover says where to go, in order, while no instance is healthy.
type ServiceResolverFailover struct {
	Service       Name                            `json:",omitempty"`
	ServiceSubset string                          `json:",omitempty"`
	Namespace     string                          `json:",omitempty"`
	Datacenters   []string                        `json:",omitempty"`
	Targets       []ServiceResolverFailoverTarget `json:",omitempty"`
	Policy        *FailoverPolicy                 `json:",omitempty"`
	SamenessGroup string                          `json:",omitempty"`
}

// ServiceResolverFailoverTarget is one place to go.
type ServiceResolverFailoverTarget struct {
	Service       Name   `json:",omitempty"`
	ServiceSubset string `json:",omitempty"`
	Partition     string `json:",omitempty"`
	Namespace     string `json:",omitempty"`
	Datacenter    string `json:",omitempty"`
	Peer          string `json:",omitempty"`
}

// FailoverPolicy orders the places of a failover.
type FailoverPolicy struct {
	Mode    string   `json:",omitempty"` // "" or sequential
	Regions []string `json:",omitempty"`
}

// PrioritizeByLocality prefers instances that are near.
type PrioritizeByLocality struct {
	Mode string `json:",omitempty"` // "", none or failover
}

// PrioritizeFailover is the mode in which those that are farther away are tried when
// nobody nearer can be reached.
const PrioritizeFailover = "failover"

// LoadBalancer says how an instance is picked.
type LoadBalancer struct {
	Policy             string              `json:",omitempty"`
	RingHashConfig     *RingHashConfig     `json:",omitempty"`
	LeastRequestConfig *LeastRequestConfig `json:",omitempty"`
	HashPolicies       []HashPolicy        `json:",omitempty"`
}

// RingHashConfig is for the policy ring_hash.
type RingHashConfig struct {
	MinimumRingSize uint64 `json:",omitempty"`
	MaximumRingSize uint64 `json:",omitempty"`
}

// LeastRequestConfig is for the policy least_request.
type LeastRequestConfig struct {
	ChoiceCount uint32 `json:",omitempty"`
}

// HashPolicy says what of a request is hashed.
type HashPolicy struct {
	Field        string        `json:",omitempty"` // header, cookie or query_parameter
	FieldValue   string        `json:",omitempty"`
	CookieConfig *CookieConfig `json:",omitempty"`
	SourceIP     bool          `json:",omitempty"`
	Terminal     bool          `json:",omitempty"`
}

// CookieConfig is the cookie that is set where there is none.
type CookieConfig struct {
	Session bool          `json:",omitempty"`
	TTL     time.Duration `json:",omitempty"`
	Path    string        `json:",omitempty"`
}

// Load balancing policies.
const (
	BalanceRandom       = "random"
	BalanceRoundRobin   = "round_robin"
	BalanceLeastRequest = "least_request"
	BalanceRingHash     = "ring_hash"
	BalanceMaglev       = "maglev"
)

// EntryKind implements ConfigEntry.
func (*ServiceResolver) EntryKind() string { return KindServiceResolver }

// Normalize implements ConfigEntry.
func (*ServiceResolver) Normalize() {}

// Validate implements ConfigEntry.
func (e *ServiceResolver) Validate() error {
	if err := validEntryName(e.Name); err != nil {
		return err
	}
	if err := e.validateSubsets(); err != nil {
		return err
	}
	if err := e.validateRedirect(); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(e.Failover)) {
		if err := e.validateFailover(key, e.Failover[key]); err != nil {
			return err
		}
	}
	if e.ConnectTimeout < 0 {
		return Invalidf("Bad ConnectTimeout '%s', must be >= 0", e.ConnectTimeout)
	}
	if e.RequestTimeout < 0 {
		return Invalidf("Bad RequestTimeout '%s', must be >= 0", e.RequestTimeout)
	}
	if err := e.PrioritizeByLocality.validate("PrioritizeByLocality"); err != nil {
		return err
	}
	return e.LoadBalancer.validate()
}

func (e *ServiceResolver) validateSubsets() error {
	for _, name := range slices.Sorted(maps.Keys(e.Subsets)) {
		if name == "" {
			return Invalidf("Subset defined with empty name")
		}
		if !isLabel(name) {
			return Invalidf("Subset %q is invalid: a name has at most 63 lower case letters, digits and dashes, and begins and ends without a dash", name)
		}
		if _, err := NewInstanceFilter(e.Subsets[name].Filter); err != nil {
			return Invalidf("Filter for subset %q is not a valid expression: %w", name, err)
		}
	}
	if e.DefaultSubset != "" && !e.HasSubset(e.DefaultSubset) {
		return Invalidf("DefaultSubset %q is not a valid subset", e.DefaultSubset)
	}
	return nil
}

func (e *ServiceResolver) validateRedirect() error {
	r := e.Redirect
	if r == nil {
		return nil
	}
	if err := onlyDefaultTenancy("Redirect", r.Namespace, r.Partition); err != nil {
		return err
	}
	if err := validOptionalName("Redirect.Service", r.Service); err != nil {
		return err
	}
	switch {
	case *r == ServiceResolverRedirect{}:
		return Invalidf("Redirect is empty")
	case r.SamenessGroup != "":
		return Invalidf("Redirect.SamenessGroup: sameness-groups are an enterprise-only feature")
	case r.Service == "" && r.ServiceSubset != "":
		return Invalidf("Redirect.ServiceSubset defined without Redirect.Service")
	case r.Service == "" && r.Peer != "":
		return Invalidf("Redirect.Peer defined without Redirect.Service")
	case r.Service == Wildcard:
		return Invalidf("Redirect.Service must name one service")
	case r.Peer != "" && (r.Datacenter != "" || r.ServiceSubset != ""):
		return Invalidf("Redirect.Peer cannot be set with Redirect.Datacenter or Redirect.ServiceSubset")
	case r.ServiceSubset != "" && (r.Service == "" || r.Service == e.Name) && !e.HasSubset(r.ServiceSubset):
		return Invalidf("Redirect.ServiceSubset %q is not a valid subset", r.ServiceSubset)
	}
	return nil
}

func (e *ServiceResolver) validateFailover(key string, f *ServiceResolverFailover) error {
	at := fmt.Sprintf("Bad Failover[%q]", key)
	switch {
	case key == "":
		return Invalidf("%s: subset name is empty; %q stands for all", at, Wildcard)
	case key != Wildcard && !e.HasSubset(key):
		return Invalidf("%s: not a valid subset", at)
	case f == nil || f.empty():
		return Invalidf("%s: one of Service, ServiceSubset, Namespace, Targets, SamenessGroup, or Datacenters is required", at)
	case f.SamenessGroup != "":
		return Invalidf("%s.SamenessGroup: sameness-groups are an enterprise-only feature", at)
	}
	if err := onlyDefaultTenancy(at, f.Namespace, ""); err != nil {
		return err
	}
	if err := f.Policy.validate(at + ".Policy"); err != nil {
		return err
	}
	if len(f.Targets) > 0 && (f.Service != "" || f.ServiceSubset != "" || len(f.Datacenters) > 0) {
		return Invalidf("%s: Targets cannot be set with Service, ServiceSubset, or Datacenters", at)
	}
	for i, dc := range f.Datacenters {
		if dc == "" {
			return Invalidf("%s.Datacenters[%d]: found empty datacenter", at, i)
		}
	}
	if err := e.validateTarget(at, f.Service, f.ServiceSubset); err != nil {
		return err
	}
	for i, t := range f.Targets {
		where := fmt.Sprintf("%s.Targets[%d]", at, i)
		if err := onlyDefaultTenancy(where, t.Namespace, t.Partition); err != nil {
			return err
		}
		switch {
		case t == ServiceResolverFailoverTarget{}:
			return Invalidf("%s is empty", where)
		case t.Peer != "" && (t.Datacenter != "" || t.ServiceSubset != ""):
			return Invalidf("%s: Peer cannot be set with Datacenter or ServiceSubset", where)
		}
		if err := e.validateTarget(where, t.Service, t.ServiceSubset); err != nil {
			return err
		}
	}
	return nil
}

func (e *ServiceResolver) validateTarget(at string, service Name, subset string) error {
	if service == Wildcard {
		return Invalidf("%s: Service must name one service", at)
	}
	if subset != "" && (service == "" || service == e.Name) && !e.HasSubset(subset) {
		return Invalidf("%s: ServiceSubset %q is not a valid subset of %q", at, subset, e.Name)
	}
	return validOptionalName(at+": Service", service)
}

func (f *ServiceResolverFailover) empty() bool {
	return f.Service == "" && f.ServiceSubset == "" && f.Namespace == "" && len(f.Datacenters) == 0 &&
		len(f.Targets) == 0 && f.SamenessGroup == ""
}

// HasSubset tells whether a subset is defined. The empty one always is.
func (e *ServiceResolver) HasSubset(name string) bool {
	if name == "" {
		return true
	}
	_, ok := e.Subsets[name]
	return ok
}

func (p *FailoverPolicy) validate(at string) error {
	if p == nil {
		return nil
	}
	switch p.Mode {
	case "", "sequential":
		return nil
	case "order-by-locality":
		return Invalidf("%s: order-by-locality is not supported; list the places in their order and leave Mode out", at)
	default:
		return Invalidf("%s: Mode %q is not known, want sequential", at, p.Mode)
	}
}

func (p *PrioritizeByLocality) validate(at string) error {
	if p == nil || slices.Contains([]string{"", "none", PrioritizeFailover}, p.Mode) {
		return nil
	}
	return Invalidf("%s: Mode %q is not known, want none or failover", at, p.Mode)
}

func (b *LoadBalancer) validate() error {
	if b == nil {
		return nil
	}
	policies := []string{"", BalanceRandom, BalanceRoundRobin, BalanceLeastRequest, BalanceRingHash, BalanceMaglev}
	hashes := b.Policy == BalanceRingHash || b.Policy == BalanceMaglev
	switch {
	case !slices.Contains(policies, b.Policy):
		return Invalidf("Bad LoadBalancer policy %q, want one of %s", b.Policy, strings.Join(policies[1:], ", "))
	case b.RingHashConfig != nil && b.Policy != BalanceRingHash:
		return Invalidf("Bad LoadBalancer configuration. RingHashConfig specified for incompatible load balancing policy %q", b.Policy)
	case b.LeastRequestConfig != nil && b.Policy != BalanceLeastRequest:
		return Invalidf("Bad LoadBalancer configuration. LeastRequestConfig specified for incompatible load balancing policy %q", b.Policy)
	case len(b.HashPolicies) > 0 && !hashes:
		return Invalidf("Bad LoadBalancer configuration: HashPolicies specified for non-hash-based Policy: %q", b.Policy)
	}
	if r := b.RingHashConfig; r != nil && r.MaximumRingSize != 0 && r.MinimumRingSize > r.MaximumRingSize {
		return Invalidf("Bad LoadBalancer RingHashConfig: MinimumRingSize %d is above MaximumRingSize %d", r.MinimumRingSize, r.MaximumRingSize)
	}
	for i, h := range b.HashPolicies {
		if err := h.validate(fmt.Sprintf("Bad LoadBalancer HashPolicies[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}

func (h HashPolicy) validate(at string) error {
	if h.SourceIP {
		if h.Field != "" || h.FieldValue != "" {
			return Invalidf("%s: a single hash policy cannot hash both a source address and a %q", at, h.Field)
		}
		return nil
	}
	switch {
	case !slices.Contains([]string{"header", "cookie", "query_parameter"}, h.Field):
		return Invalidf("%s: %q is not a supported field, want header, cookie or query_parameter", at, h.Field)
	case h.FieldValue == "":
		return Invalidf("%s: field %q was specified without a FieldValue", at, h.Field)
	case h.CookieConfig == nil:
		return nil
	case h.Field != "cookie":
		return Invalidf("%s: CookieConfig provided for %q", at, h.Field)
	case h.CookieConfig.TTL < 0:
		return Invalidf("%s: CookieConfig.TTL must not be negative", at)
	case h.CookieConfig.Session && h.CookieConfig.TTL != 0:
		return Invalidf("%s: a session cookie cannot have an associated TTL", at)
	}
	return nil
}

const (
	maxFilter = 8 << 10
	// maxFilterSteps bounds the parser of filters, which backtracks.
	maxFilterSteps = 100_000
)

// InstanceFilter selects instances by an expression over Service, Node and Checks.
type InstanceFilter struct{ eval *bexpr.Evaluator }

// NewInstanceFilter compiles an expression; the empty one selects everything.
func NewInstanceFilter(expr string) (*InstanceFilter, error) {
	if expr == "" {
		return &InstanceFilter{}, nil
	}
	if len(expr) > maxFilter {
		return nil, fmt.Errorf("it has %d bytes, at most %d are allowed", len(expr), maxFilter)
	}
	eval, err := bexpr.CreateEvaluator(expr, bexpr.WithMaxExpressions(maxFilterSteps), bexpr.WithUnknownValue(""))
	if err != nil {
		return nil, err
	}
	return &InstanceFilter{eval}, nil
}

// filterable is an instance as filters see it: with Consul's names, nothing nil.
type filterable struct {
	Node struct {
		ID, Node, Address, Datacenter string
		TaggedAddresses, Meta         map[string]string
	}
	Service struct {
		Kind, ID, Service, Address, SocketPath string
		Tags                                   []string
		Meta                                   map[string]string
		Port                                   int
		EnableTagOverride                      bool
		Weights                                Weights
		TaggedAddresses                        map[string]ServiceAddress
		Connect                                struct{ Native bool }
	}
	Checks []Check
}

// Match tells whether an instance is selected. What an expression cannot be asked
// of does not match.
func (f *InstanceFilter) Match(i *Instance) bool {
	if f == nil || f.eval == nil {
		return true
	}
	if i == nil || i.Node == nil || i.Service == nil {
		return false
	}
	var v filterable
	n, s := i.Node, i.Service
	v.Node.ID, v.Node.Node, v.Node.Address, v.Node.Datacenter = n.ID, n.Node, n.Address, n.Datacenter
	v.Node.TaggedAddresses, v.Node.Meta = n.TaggedAddresses, n.Meta
	v.Service.Kind, v.Service.ID, v.Service.Service, v.Service.Address = string(s.Kind), s.ID, s.Service, s.Address
	v.Service.SocketPath, v.Service.Tags, v.Service.Meta, v.Service.Port = s.SocketPath, s.Tags, s.Meta, s.Port
	v.Service.EnableTagOverride, v.Service.TaggedAddresses = s.EnableTagOverride, s.TaggedAddresses
	v.Service.Weights = Weights{Passing: 1, Warning: 1}
	if s.Weights != nil {
		v.Service.Weights = *s.Weights
	}
	v.Service.Connect.Native = s.Connect.Native
	for _, c := range i.Checks {
		v.Checks = append(v.Checks, *c)
	}
	ok, err := f.eval.Evaluate(v)
	return err == nil && ok
}
