package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

func newPolicies(t *testing.T, r *rig, others ...PolicyServer) *Policies {
	t.Helper()
	p, err := NewPolicies(PoliciesConfig{Handler: r.Handler, Others: func() []PolicyServer { return others }})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func proxyOn(node, service string) catalog.Command {
	return &catalog.Register{
		Node: &catalog.Node{Node: node, Address: "10.0.0.1", Datacenter: "dc1"},
		Service: &catalog.Service{
			Kind: catalog.KindConnectProxy, ID: service + "-proxy", Service: service + "-proxy", Port: 1,
			Proxy: catalog.ConnectProxy{DestinationServiceName: service},
		},
	}
}

var seq atomic.Uint64

func (r *rig) reportOf(node, service string, intentions uint64) *wire.ReportRequest {
	return &wire.ReportRequest{Node: node, Seq: seq.Add(1), Proxies: []wire.ProxyReport{{
		ID: service + "-proxy", Service: service, Intentions: intentions, Roots: 1, Epoch: r.store.Epoch(),
	}}}
}

func mustReport(t *testing.T, p *Policies, req *wire.ReportRequest) {
	t.Helper()
	if _, err := p.Report(t.Context(), req); err != nil {
		t.Fatal(err)
	}
}

// TestEnforcedOverServers: hosts report to different servers, and one answers for all.
func TestEnforcedOverServers(t *testing.T) {
	r := newRig(t, nil)
	second, gone := newPolicies(t, r), wire.Policies(silent{})
	p := newPolicies(t, r, PolicyServer{"s2", second}, PolicyServer{"s3", gone})
	for _, node := range []string{"n1", "n2", "n3"} {
		r.apply(t, proxyOn(node, "db"))
	}
	r.apply(t, proxyOn("n1", "web"))
	at := r.apply(t, allow("web", "db")).Index
	mustReport(t, p, r.reportOf("n1", "db", at))
	mustReport(t, p, r.reportOf("n2", "db", at-1)) // before it moved to the other server
	mustReport(t, second, r.reportOf("n2", "db", at))
	late := r.reportOf("n2", "db", 1)
	late.Seq = 1
	mustReport(t, second, late)

	req := &wire.EnforcedRequest{Destination: "db", Index: at}
	rep, err := p.Enforced(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Proxies) != 3 || len(rep.Missing()) != 1 {
		t.Fatalf("%+v", rep)
	}
	if m := rep.Missing()[0]; m.Node != "n3" || !strings.Contains(m.Why, "s3 did not") {
		t.Errorf("%+v", m)
	}

	done := make(chan error, 1)
	go func() {
		req := *req
		req.MaxWait = time.Minute
		rep, err := p.Enforced(t.Context(), &req)
		if err == nil && len(rep.Missing()) > 0 {
			err = fmt.Errorf("%+v", rep.Missing())
		}
		done <- err
	}()
	mustReport(t, second, r.reportOf("n3", "db", at))
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A later change that did not concern web asks nothing of its proxy.
	all, err := p.Enforced(t.Context(), &wire.EnforcedRequest{Destination: "*", Index: at})
	if err != nil || len(all.Proxies) != 4 {
		t.Errorf("%+v %v", all, err)
	}
}

type silent struct{ wire.Policies }

func (silent) Enforced(context.Context, *wire.EnforcedRequest) (*wire.EnforcedReply, error) {
	return nil, catalog.ErrUnavailable
}

// TestReportsAge: what was reported long ago, under another epoch, or before a
// restart, proves nothing.
func TestReportsAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := newPolicies(t, r)
		r.apply(t, proxyOn("n1", "db"))
		at := r.apply(t, allow("web", "db")).Index
		why := func() string {
			t.Helper()
			rep, err := p.Enforced(t.Context(), &wire.EnforcedRequest{Destination: "db", Index: at})
			if err != nil || len(rep.Proxies) != 1 {
				t.Fatalf("%+v %v", rep, err)
			}
			return rep.Proxies[0].Why
		}
		want := func(part string) {
			t.Helper()
			if got := why(); (part == "") != (got == "") || !strings.Contains(got, part) {
				t.Errorf("why: %q, want %q", got, part)
			}
		}
		want("has not reported")
		mustReport(t, p, &wire.ReportRequest{Node: "n1"})
		want("does not run it")
		old := r.reportOf("n1", "db", at)
		old.Proxies[0].Epoch = "another"
		mustReport(t, p, old)
		want("before a restart")
		mustReport(t, p, r.reportOf("n1", "db", at-1))
		want("not yet")
		mustReport(t, p, r.reportOf("n1", "db", at))
		want("")
		overtaken := r.reportOf("n1", "db", at-1)
		overtaken.Seq = 5e9
		mustReport(t, p, &wire.ReportRequest{Node: "n1", Seq: 6e9, Proxies: r.reportOf("n1", "db", at).Proxies})
		mustReport(t, p, overtaken)
		want("")
		// The agent was restarted, and its clock set back by an hour: this is no old report.
		mustReport(t, p, &wire.ReportRequest{Node: "n1", Seq: 3600e9, Proxies: r.reportOf("n1", "db", at).Proxies})
		mustReport(t, p, overtaken)
		want("not yet")
		time.Sleep(reportTTL + time.Second)
		want("has not reported")
	})
}

func TestPoliciesAsk(t *testing.T) {
	a := &asked{}
	r := newRig(t, func(c *Config) { c.Authorizer = func(string) (acl.Authorizer, error) { return a, nil } })
	p := newPolicies(t, r)
	ctx := t.Context()
	for _, tc := range []struct {
		want string
		call func() error
	}{
		{"node:write:n", func() error { _, err := p.Report(ctx, &wire.ReportRequest{Node: "n"}); return err }},
		{"intention:read:db", func() error { _, err := p.Enforced(ctx, &wire.EnforcedRequest{Destination: "db"}); return err }},
		{"intention:read:", func() error { _, err := p.Enforced(ctx, &wire.EnforcedRequest{Destination: "*"}); return err }},
		{"operator:read:", func() error {
			_, err := p.Enforced(ctx, &wire.EnforcedRequest{Revocations: true, Here: true})
			return err
		}},
	} {
		if err := tc.call(); !errors.Is(err, catalog.ErrDenied) {
			t.Errorf("%s: %v, want a refusal", tc.want, err)
		}
		if got := a.take(); !strings.Contains(got, tc.want) {
			t.Errorf("asked %q, want %q", got, tc.want)
		}
	}
	for _, req := range []*wire.EnforcedRequest{{}, {Destination: "db", Revocations: true}} {
		if _, err := p.Enforced(ctx, req); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%+v: %v", req, err)
		}
	}
}

func TestReportsAreBounded(t *testing.T) {
	p := newPolicies(t, newRig(t, nil))
	if _, err := p.Report(t.Context(), &wire.ReportRequest{Node: "n", Proxies: make([]wire.ProxyReport, maxReported+1)}); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("too many proxies: %v", err)
	}
	for i := range maxReporters {
		p.reports.nodes[fmt.Sprint(i)] = &nodeReport{heard: time.Now()}
	}
	if _, err := p.Report(t.Context(), &wire.ReportRequest{Node: "one more"}); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("too many hosts: %v", err)
	}
}

// TestReportsOfHostsThatWent: they are forgotten though nobody asks for reports.
func TestReportsOfHostsThatWent(t *testing.T) {
	now := time.Now()
	r := newReports(func() time.Time { return now })
	for i := range 100 {
		if err := r.put(&wire.ReportRequest{Node: fmt.Sprint("went", i), Seq: 1}); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(reportTTL + time.Second)
	if err := r.put(&wire.ReportRequest{Node: "here", Seq: 1}); err != nil || len(r.nodes) != 1 {
		t.Errorf("%v, %d reports are kept", err, len(r.nodes))
	}
}
