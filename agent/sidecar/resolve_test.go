package sidecar

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// instance is one that speaks for a service.
func instance(id, version string, status catalog.Status) *catalog.Instance {
	return &catalog.Instance{
		Node:    &catalog.Node{Node: "n", Address: "10.0.0.1"},
		Service: &catalog.Service{ID: id, Service: id, Port: 1, Meta: map[string]string{"v": version}},
		Checks:  []*catalog.Check{{Status: status}},
	}
}

func TestResolve(t *testing.T) {
	const passing, warning, critical = catalog.StatusPassing, catalog.StatusWarning, catalog.StatusCritical
	http := &catalog.ProxyDefaults{EntryHead: catalog.EntryHead{Name: "global"}, Config: map[string]any{"protocol": "http"}}
	resolver := func(name string, change func(*catalog.ServiceResolver)) *catalog.ServiceResolver {
		r := &catalog.ServiceResolver{EntryHead: catalog.EntryHead{Name: name}}
		change(r)
		return r
	}
	subsets := func(r *catalog.ServiceResolver) {
		r.Subsets = map[string]catalog.ServiceResolverSubset{"one": {Filter: "Service.Meta.v == 1"}, "well": {OnlyPassing: true}}
	}
	all := map[catalog.Name][]*catalog.Instance{
		"db":     {instance("a", "1", passing), instance("b", "2", warning), instance("c", "1", critical)},
		"backup": {instance("x", "1", passing)},
		"down":   {instance("y", "1", critical)},
	}
	for name, c := range map[string]struct {
		entries []catalog.ConfigEntry
		want    string
		timeout time.Duration
		problem string
	}{
		"as its name says": {nil, "a b", 0, ""},
		"a subset": {[]catalog.ConfigEntry{resolver("db", func(r *catalog.ServiceResolver) {
			subsets(r)
			r.DefaultSubset, r.ConnectTimeout = "one", catalog.Duration(time.Second)
		})}, "a", time.Second, ""},
		"only what passes": {[]catalog.ConfigEntry{resolver("db", func(r *catalog.ServiceResolver) {
			subsets(r)
			r.DefaultSubset = "well"
		})}, "a", 0, ""},
		"a redirect": {[]catalog.ConfigEntry{resolver("db", func(r *catalog.ServiceResolver) {
			r.Redirect = &catalog.ServiceResolverRedirect{Service: "backup"}
		})}, "x:backup", 0, ""},
		"a redirect away": {[]catalog.ConfigEntry{resolver("db", func(r *catalog.ServiceResolver) {
			r.Redirect = &catalog.ServiceResolverRedirect{Datacenter: "dc2"}
		})}, "", 0, `other datacenters ("dc2") are not supported`},
		"failover behind": {[]catalog.ConfigEntry{resolver("db", func(r *catalog.ServiceResolver) {
			r.Failover = map[string]*catalog.ServiceResolverFailover{"*": {Targets: []catalog.ServiceResolverFailoverTarget{{Service: "down"}, {Peer: "p"}, {Service: "backup"}}}}
		})}, "a b x:backup/1", 0, `peer "p"`},
		"failover in front": {[]catalog.ConfigEntry{
			resolver("db", func(r *catalog.ServiceResolver) { r.Redirect = &catalog.ServiceResolverRedirect{Service: "down"} }),
			resolver("down", func(r *catalog.ServiceResolver) {
				r.Failover = map[string]*catalog.ServiceResolverFailover{"*": {Service: "backup"}}
			}),
		}, "x:backup", 0, ""},
		"a split": {[]catalog.ConfigEntry{http, &catalog.ServiceSplitter{EntryHead: catalog.EntryHead{Name: "db"}, Splits: []*catalog.ServiceSplit{
			{Weight: 75}, {Weight: 25, Service: "backup"},
		}}}, "a*6144 b*6144 x:backup*4096", 0, ""},
		"a split over one instance twice": {[]catalog.ConfigEntry{
			http,
			resolver("db", func(r *catalog.ServiceResolver) {
				r.Subsets = map[string]catalog.ServiceResolverSubset{"one": {Filter: "Service.Meta.v == 1"}}
			}),
			&catalog.ServiceSplitter{EntryHead: catalog.EntryHead{Name: "db"}, Splits: []*catalog.ServiceSplit{
				{Weight: 50}, {Weight: 50, ServiceSubset: "one"},
			}},
		}, "a*12288 b*4096", 0, ""},
		"a router": {[]catalog.ConfigEntry{http, &catalog.ServiceRouter{EntryHead: catalog.EntryHead{Name: "db"}, Routes: []*catalog.ServiceRoute{
			{Destination: &catalog.ServiceRouteDestination{Service: "backup"}},
		}}}, "a b", 0, "service-router needs HTTP"},
		"what does not fit": {[]catalog.ConfigEntry{&catalog.ServiceRouter{EntryHead: catalog.EntryHead{Name: "db"}}}, "a b", 0, "do not fit together"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			q := catalog.ChainOptions{Datacenter: "dc1"}.Query("db")
			w.last["db"] = []connect.Endpoint{{ID: "old"}}
			if eps, _ := w.resolve("db", "dc1", &problems{}); len(eps) != 1 || eps[0].ID != "old" {
				t.Errorf("before the servers spoke: %+v", eps)
			}
			w.learn(q, chainView(q, c.entries...))
			for _, s := range w.services("db", "dc1") {
				if w.known("db", "dc1") {
					t.Error("known too early")
				}
				w.learn(catalog.Query{Kind: catalog.QueryConnect, Name: s}, &catalog.View{Instances: all[s]})
			}
			p := &problems{}
			eps, timeout := w.resolve("db", "dc1", p)
			var parts []string
			for _, e := range eps {
				s := e.ID
				if e.Service != "" {
					s += ":" + e.Service
				}
				if e.Priority > 0 {
					s += fmt.Sprintf("/%d", e.Priority)
				}
				if e.Weight > 1 {
					s += fmt.Sprintf("*%d", e.Weight)
				}
				parts = append(parts, s)
			}
			if got := strings.Join(parts, " "); got != c.want || timeout != c.timeout {
				t.Errorf("got %s (%s), want %s (%s)", got, timeout, c.want, c.timeout)
			}
			if all := strings.Join(p.list, "\n"); (c.problem == "") != (all == "") || !strings.Contains(all, c.problem) {
				t.Errorf("problems: %s", all)
			}
			w.forget(q)
			if w.known("db", "dc1") {
				t.Error("known although forgotten")
			}
		})
	}
}

func TestUpstreamFollowsItsChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		r.setHost(sidecarService(withUpstream("db"), func(s *catalog.Service) {
			s.Proxy.Upstreams[0].Config = map[string]any{"limits": map[string]any{"max_connections": 3}}
		}))
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		r.views.setInstances("db", "10.0.0.1")
		synctest.Wait()
		ups := func() connect.Upstream { return r.proxy(0).last().Upstreams[0] }
		if u := ups(); len(u.Instances) != 1 || u.Instances[0].Service != "" || u.MaxConnections != 3 {
			t.Fatalf("%+v", u)
		}
		r.views.setChain("db", &catalog.ServiceResolver{
			EntryHead: catalog.EntryHead{Name: "db"}, Redirect: &catalog.ServiceResolverRedirect{Service: "other"},
		})
		synctest.Wait()
		if u := ups(); len(u.Instances) != 1 || u.Instances[0].Addr != "10.0.0.1:1" {
			t.Errorf("without instances of the other it leads where it led: %+v", u)
		}
		r.views.setInstances("other", "10.0.0.2")
		synctest.Wait()
		want := []connect.Endpoint{{ID: "10.0.0.2", Node: "n1", Addr: "10.0.0.2:1", Status: "passing", Weight: 1, Service: "other"}}
		if u := ups(); !reflect.DeepEqual(u.Instances, want) {
			t.Errorf("%+v", u)
		}
		r.views.setChain("db")
		r.views.setInstances("db", "10.0.0.3")
		synctest.Wait()
		if u := ups(); len(u.Instances) != 1 || u.Instances[0].Addr != "10.0.0.3:1" {
			t.Errorf("%+v", u)
		}
		r.stop()
	})
}

func TestNoAnswerAboutAChainDoesNotHoldTheProxyBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		r.views.noChains = true
		r.setHost(sidecarService(withUpstream("db")))
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		r.views.setInstances("db", "10.0.0.1")
		synctest.Wait()
		if r.proxy(0).last() != nil {
			t.Fatal("the first snapshot did not wait for the chain")
		}
		time.Sleep(2 * time.Second)
		if s := r.proxy(0).last(); s == nil || len(s.Upstreams) != 1 || len(s.Upstreams[0].Instances) != 1 {
			t.Fatalf("after the grace: %+v", s)
		}
		r.stop()
	})
}
