package remote

import (
	"context"
	"fmt"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// Remote is the way to what servers know of policies being enforced.
var _ wire.Policies = (*Remote)(nil)

func (r *Remote) policies() (wire.Policies, error) {
	if r.links == nil {
		return nil, fmt.Errorf("policies: %w: there is no connection to the servers", catalog.ErrUnavailable)
	}
	return wire.NewPoliciesClient(r.links), nil
}

// Report tells a server what this host enforces. It is not made again: the next
// report says it all.
func (r *Remote) Report(ctx context.Context, req *wire.ReportRequest) (*wire.ReportReply, error) {
	p, err := r.policies()
	if err != nil {
		return nil, err
	}
	return once(ctx, r, "report", r.pace.callTimeout(), func(ctx context.Context) (*wire.ReportReply, error) {
		return p.Report(ctx, req)
	})
}

// Enforced waits, as long as the request says, until a policy is enforced.
func (r *Remote) Enforced(ctx context.Context, req *wire.EnforcedRequest) (*wire.EnforcedReply, error) {
	p, err := r.policies()
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(req.MaxWait)
	ask := *req
	for {
		left := max(time.Until(end), 0)
		ask.MaxWait = min(left, r.pace.callTimeout()/2) // each call has a deadline of its own
		rep, err := retry(ctx, r, "enforced", retryAny, func(ctx context.Context) (*wire.EnforcedReply, error) {
			return p.Enforced(ctx, &ask)
		})
		if err != nil || req.Here || len(rep.Missing()) == 0 || left <= ask.MaxWait {
			return rep, err
		}
		ask.Index = rep.Index // the policy that was asked for, not one written since
	}
}
