package rpc

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// How often the servers beside this one are asked again, and how long one may take.
const (
	askMin     = 20 * time.Millisecond
	askMax     = 250 * time.Millisecond
	askTimeout = 2 * time.Second
	// lookAgain is when the catalog is looked at again though nobody reported.
	lookAgain = time.Second
	// settle keeps a burst of reports from being judged one by one.
	settle = 2 * time.Millisecond
)

// PolicyServer is another server, to which other agents report.
type PolicyServer struct {
	Name string
	wire.Policies
}

// PoliciesConfig configures Policies.
type PoliciesConfig struct {
	// Handler answers everybody else; its store, log, limits and rights are used.
	Handler *Handler
	// Others lists the other servers as they are now; each is asked what was reported
	// to it. Nil: this is the only one.
	Others func() []PolicyServer
	// Forward reaches the leader, as that of Config. May be nil.
	Forward func(addr string) (wire.Policies, error)
}

// Policies knows what agents enforce.
type Policies struct {
	cfg     PoliciesConfig
	h       *Handler
	reports *reports
}

var _ wire.Policies = (*Policies)(nil)

// NewPolicies makes a Policies.
func NewPolicies(cfg PoliciesConfig) (*Policies, error) {
	if cfg.Handler == nil {
		return nil, catalog.Invalidf("rpc: a Handler is needed to serve policies")
	}
	if cfg.Others == nil {
		cfg.Others = func() []PolicyServer { return nil }
	}
	return &Policies{cfg: cfg, h: cfg.Handler, reports: newReports(cfg.Handler.cfg.Now)}, nil
}

// Report implements wire.Policies.
func (p *Policies) Report(ctx context.Context, req *wire.ReportRequest) (_ *wire.ReportReply, err error) {
	defer p.h.metrics.count("Report", &err)
	if err := p.h.authorize(req.Token, need{acl.Write, acl.Node, req.Node}); err != nil {
		return nil, err
	}
	c := CallerOf(ctx)
	if err := c.own(req.Node, c.NodeID); err != nil {
		return nil, err
	}
	if err := p.h.notLiving(c, req.Node); err != nil {
		return nil, err
	}
	if err := p.reports.put(req); err != nil {
		return nil, err
	}
	return &wire.ReportReply{}, nil
}

// Enforced implements wire.Policies.
func (p *Policies) Enforced(ctx context.Context, req *wire.EnforcedRequest) (_ *wire.EnforcedReply, err error) {
	defer p.h.metrics.count("Enforced", &err)
	want := need{acl.Read, acl.Intention, req.Destination}
	switch {
	case req.Revocations == (req.Destination != ""):
		return nil, catalog.Invalidf("enforced: name either a destination or the revocations")
	case req.Revocations:
		want = need{acl.Read, acl.Operator, ""}
	case req.Destination == catalog.Wildcard:
		want.name = ""
	}
	if err := p.h.authorize(req.Token, want); err != nil {
		return nil, err
	}
	if req.Here {
		list, _ := p.reports.list()
		return &wire.EnforcedReply{Reports: list}, nil
	}
	if at, err := p.leader(ctx); err != nil {
		return nil, err
	} else if at != nil {
		return at.Enforced(ctx, req)
	}
	index := req.Index
	if index == 0 {
		if index, err = p.h.readable(ctx); err != nil {
			return nil, err
		}
	} else if err := p.h.cfg.Store.WaitIndex(ctx, index); err != nil {
		return nil, err
	}
	return p.wait(ctx, req, index)
}

func (p *Policies) leader(ctx context.Context) (wire.Policies, error) {
	addr, self, err := p.h.cfg.Log.Leader()
	switch {
	case err != nil:
		return nil, err
	case self:
		return nil, nil
	case p.cfg.Forward == nil, CallerOf(ctx).Forwarded:
		return nil, fmt.Errorf("%w here, %s leads", catalog.ErrNoLeader, addr)
	}
	return p.cfg.Forward(addr)
}

// wait judges the reports again and again until all enforce the policy or the time
// is up.
func (p *Policies) wait(ctx context.Context, req *wire.EnforcedRequest, index uint64) (*wire.EnforcedReply, error) {
	done, err := p.h.wait()
	if err != nil {
		return nil, err
	}
	defer done()
	until := time.Now().Add(min(max(req.MaxWait, 0), p.h.cfg.Limits.MaxWait))
	pause := askMin
	for {
		here, changed := p.reports.list()
		others, silent := p.ask(ctx, req)
		rep, err := p.judge(req, index, append(here, others...), silent)
		if err != nil {
			return nil, err
		}
		left := time.Until(until)
		if len(rep.Missing()) == 0 || left <= 0 {
			return rep, nil
		}
		again := lookAgain
		if len(others)+len(silent) > 0 { // their news does not reach us by itself
			again, pause = pause, min(2*pause, askMax)
		}
		if err := waitFor(ctx, changed, min(again, left)); err != nil {
			return nil, err
		}
	}
}

// waitFor returns after d, or soon after changed is closed.
func waitFor(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	case <-changed:
		t.Reset(min(d, settle))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
			return nil
		}
	}
}

// ask gathers what was reported to the other servers, and names those that did not
// answer.
func (p *Policies) ask(ctx context.Context, req *wire.EnforcedRequest) (got []wire.NodeReport, silent []string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for _, s := range p.cfg.Others() {
		wg.Go(func() {
			ask := *req
			ask.Here = true
			rep, err := s.Enforced(ctx, &ask)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent = append(silent, s.Name)
				return
			}
			got = append(got, rep.Reports...)
		})
	}
	wg.Wait()
	return got, silent
}

// target is a proxy that a policy concerns.
type target struct{ node, proxy string }

// newer tells which of two reports of a host, to two servers, is the last.
func newer(a, b wire.NodeReport) bool {
	if max(a.Seq, b.Seq)-min(a.Seq, b.Seq) > uint64(reportTTL) {
		return a.Age < b.Age
	}
	return a.Seq > b.Seq
}

// judge holds the reports against the index that each proxy must have reached.
func (p *Policies) judge(req *wire.EnforcedRequest, index uint64, list []wire.NodeReport, silent []string) (*wire.EnforcedReply, error) {
	latest := map[string]wire.NodeReport{}
	for _, r := range list {
		if old, there := latest[r.Node]; !there || newer(r, old) {
			latest[r.Node] = r
		}
	}
	want, err := p.concerned(req, latest)
	if err != nil {
		return nil, err
	}
	required := map[catalog.Name]uint64{}
	epoch := p.h.cfg.Store.Epoch()
	rep := &wire.EnforcedReply{Index: index, Proxies: make([]wire.ProxyState, 0, len(want))}
	for t, service := range want {
		must, known := required[service]
		if !known {
			if must, err = p.required(req, service, index); err != nil {
				return nil, err
			}
			required[service] = must
		}
		st := wire.ProxyState{Node: t.node, Proxy: t.proxy, Service: service}
		st.Why = why(req, t, latest, epoch, must, silent)
		st.Enforced = st.Why == ""
		rep.Proxies = append(rep.Proxies, st)
	}
	slices.SortFunc(rep.Proxies, func(a, b wire.ProxyState) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Proxy, b.Proxy))
	})
	return rep, nil
}

// why says why a proxy does not enforce what it must, "" when it does.
func why(req *wire.EnforcedRequest, t target, latest map[string]wire.NodeReport, epoch string, must uint64, silent []string) string {
	report, there := latest[t.node]
	if !there {
		text := fmt.Sprintf("the agent of %s has not reported for %s: is it running?", t.node, reportTTL)
		if len(silent) > 0 {
			slices.Sort(silent)
			text = fmt.Sprintf("the agent of %s reports to none of the servers that answer; %s did not", t.node, strings.Join(silent, ", "))
		}
		return text
	}
	for _, pr := range report.Proxies {
		if pr.ID != t.proxy {
			continue
		}
		at := pr.Intentions
		if req.Revocations {
			at = pr.Roots
		}
		switch {
		case at == 0 || pr.Epoch != epoch:
			return "it enforces what was known before a restart, and waits for the servers"
		case at < must:
			return fmt.Sprintf("it enforces the policy of index %d, not yet that of %d", at, must)
		default:
			return ""
		}
	}
	return "its agent does not run it: the registration is new, or it is another program's proxy"
}

// concerned lists the proxies that a policy concerns, with their services: those of
// the catalog and those that only their agents know of yet.
func (p *Policies) concerned(req *wire.EnforcedRequest, latest map[string]wire.NodeReport) (map[target]catalog.Name, error) {
	q := catalog.Query{Kind: catalog.QueryInstances}
	all := req.Revocations || catalog.IsPattern(req.Destination)
	if !all {
		q = catalog.Query{Kind: catalog.QueryConnect, Name: req.Destination}
	}
	v, err := p.h.cfg.Store.Read(q)
	if err != nil {
		return nil, err
	}
	out := map[target]catalog.Name{}
	mine := func(service catalog.Name) bool { return req.Revocations || catalog.Covers(req.Destination, service) }
	for _, i := range v.Instances {
		if i.Service.Kind == catalog.KindConnectProxy && mine(i.Service.Proxy.DestinationServiceName) {
			out[target{i.Node.Node, i.Service.ID}] = i.Service.Proxy.DestinationServiceName
		}
	}
	for node, r := range latest {
		for _, pr := range r.Proxies {
			if mine(pr.Service) {
				out[target{node, pr.ID}] = pr.Service
			}
		}
	}
	return out, nil
}

// required is the index that the view of a service's proxy must have: that of the
// change, or an older one where the change did not concern it.
func (p *Policies) required(req *wire.EnforcedRequest, service catalog.Name, index uint64) (uint64, error) {
	q := catalog.Query{Kind: catalog.QueryIntentionsDest, Name: service}
	if req.Revocations {
		q = catalog.Query{Kind: catalog.QueryRoots}
	}
	v, err := p.h.cfg.Store.Read(q)
	if err != nil {
		return 0, err
	}
	return min(v.Index, index), nil
}
