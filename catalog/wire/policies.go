package wire

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/weftmesh/weft/catalog"
)

// Policies is how servers learn what is enforced, and tell. What agents report lives
// in the memory of the server that they report to: no log entry is written for it.
type Policies interface {
	// Report states what the proxies of a host enforce now.
	Report(ctx context.Context, req *ReportRequest) (*ReportReply, error)
	// Enforced waits until every proxy that a policy concerns enforces it, and gives
	// the state of each.
	Enforced(ctx context.Context, req *EnforcedRequest) (*EnforcedReply, error)
}

// ReportRequest states all proxies of a host, each time.
type ReportRequest struct {
	Token string
	Node  string
	// Seq orders the reports of a host, whichever servers they went to.
	Seq     uint64
	Proxies []ProxyReport
}

// ReportReply answers a ReportRequest.
type ReportReply struct{}

// ProxyReport is what one proxy enforces: the views that made its policy.
type ProxyReport struct {
	ID      string
	Service catalog.Name
	// Intentions and Roots are the indexes of those views; 0 for one that is not from a
	// server, as after a restart while no server answers.
	Intentions uint64
	Roots      uint64
	// Epoch is that of the indexes.
	Epoch string
}

// EnforcedRequest asks who enforces the intentions of Destination, "*" for those of
// every service, or, with Revocations, what is trusted and what is revoked.
type EnforcedRequest struct {
	Token       string
	Destination catalog.Name
	Revocations bool
	// Index is that of a change, as ApplyReply has it. 0: the policy as it is now.
	Index uint64
	// MaxWait is how long to wait for those that do not enforce it yet.
	MaxWait time.Duration
	// Here asks, without waiting, for what was reported to the answering server alone.
	Here bool
}

// EnforcedReply answers an EnforcedRequest.
type EnforcedReply struct {
	Index   uint64
	Proxies []ProxyState // sorted by node and proxy
	// Reports answer a request with Here.
	Reports []NodeReport
}

// ProxyState says whether a proxy enforces a policy.
type ProxyState struct {
	Node     string
	Proxy    string
	Service  catalog.Name
	Enforced bool
	Why      string `json:",omitempty"` // it does not
}

// NodeReport is the last report of a host and how old it is.
type NodeReport struct {
	Node    string
	Seq     uint64
	Age     time.Duration
	Proxies []ProxyReport
}

// Missing lists the proxies that do not enforce the policy.
func (r *EnforcedReply) Missing() []ProxyState {
	var out []ProxyState
	for _, p := range r.Proxies {
		if !p.Enforced {
			out = append(out, p)
		}
	}
	return out
}

const policiesName = "weft.Policies"

var policiesDescription = grpc.ServiceDesc{
	ServiceName: policiesName,
	HandlerType: (*Policies)(nil),
	Methods: []grpc.MethodDesc{
		unaryOf(policiesName, "Report", Policies.Report),
		unaryOf(policiesName, "Enforced", Policies.Enforced),
	},
}

// RegisterPolicies offers impl to the clients of s.
func RegisterPolicies(s grpc.ServiceRegistrar, impl Policies) {
	s.RegisterService(&policiesDescription, impl)
}

// NewPoliciesClient returns the client side of Policies.
func NewPoliciesClient(cc grpc.ClientConnInterface) Policies { return policiesClient{cc} }

type policiesClient struct{ cc grpc.ClientConnInterface }

// Report implements Policies.
func (c policiesClient) Report(ctx context.Context, req *ReportRequest) (*ReportReply, error) {
	return invokeOf[ReportReply](ctx, c.cc, policiesName, "Report", req)
}

// Enforced implements Policies.
func (c policiesClient) Enforced(ctx context.Context, req *EnforcedRequest) (*EnforcedReply, error) {
	return invokeOf[EnforcedReply](ctx, c.cc, policiesName, "Enforced", req)
}
