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
			if got := told(eps); got != c.want || timeout != c.timeout {
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

// told writes endpoints in a line.
func told(eps []connect.Endpoint) string {
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
	return strings.Join(parts, " ")
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

// TestNearestFirst: where entries ask for it, instances are tried from near to far, and
// a split stays what it is at each distance.
func TestNearestFirst(t *testing.T) {
	at := func(i *catalog.Instance, node, service *catalog.Locality) *catalog.Instance {
		i.Node.Locality, i.Service.Locality = node, service
		return i
	}
	a1, a2, b1 := &catalog.Locality{Region: "a", Zone: "1"}, &catalog.Locality{Region: "a", Zone: "2"}, &catalog.Locality{Region: "b", Zone: "1"}
	const passing = catalog.StatusPassing
	all := map[catalog.Name][]*catalog.Instance{
		"db": {
			at(instance("here", "1", passing), a1, nil), at(instance("next", "1", passing), a1, a2),
			at(instance("far", "1", passing), b1, nil), at(instance("unsaid", "1", passing), nil, nil),
		},
		"backup": {at(instance("x", "1", passing), b1, nil)},
	}
	failover := &catalog.PrioritizeByLocality{Mode: catalog.PrioritizeFailover}
	global := &catalog.ProxyDefaults{EntryHead: catalog.EntryHead{Name: "global"}, PrioritizeByLocality: failover}
	for name, c := range map[string]struct {
		host, proxy *catalog.Locality
		entries     []catalog.ConfigEntry
		want        string
	}{
		"nobody asks":             {a1, nil, nil, "far here next unsaid"},
		"nobody said where":       {nil, nil, []catalog.ConfigEntry{global}, "far here next unsaid"},
		"from the zone":           {a1, nil, []catalog.ConfigEntry{global}, "far/2 here next/1 unsaid/2"},
		"the proxy says":          {b1, a2, []catalog.ConfigEntry{global}, "far/2 here/1 next unsaid/2"},
		"from another region":     {b1, nil, []catalog.ConfigEntry{global}, "far here/1 next/1 unsaid/1"},
		"its resolver says so":    {b1, nil, []catalog.ConfigEntry{&catalog.ServiceResolver{EntryHead: catalog.EntryHead{Name: "db"}, PrioritizeByLocality: failover}}, "far here/1 next/1 unsaid/1"},
		"its resolver says no":    {b1, nil, []catalog.ConfigEntry{global, &catalog.ServiceResolver{EntryHead: catalog.EntryHead{Name: "db"}, PrioritizeByLocality: &catalog.PrioritizeByLocality{Mode: "none"}}}, "far here next unsaid"},
		"before failover, by far": {a1, nil, []catalog.ConfigEntry{global, &catalog.ServiceResolver{EntryHead: catalog.EntryHead{Name: "db"}, Failover: map[string]*catalog.ServiceResolverFailover{"*": {Service: "backup"}}}}, "far/2 here next/1 unsaid/2 x:backup/3"},
		"and a split": {a1, nil, []catalog.ConfigEntry{
			&catalog.ProxyDefaults{EntryHead: catalog.EntryHead{Name: "global"}, Config: map[string]any{"protocol": "http"}, PrioritizeByLocality: failover},
			&catalog.ServiceSplitter{EntryHead: catalog.EntryHead{Name: "db"}, Splits: []*catalog.ServiceSplit{{Weight: 75}, {Weight: 25, Service: "backup"}}},
		}, "far/2*6144 here*12288 next/1*12288 unsaid/2*6144 x:backup*4096"},
	} {
		in := inputs{proxy: sidecarService(withUpstream("db")), datacenter: "dc1", locality: c.host, world: newWorld()}
		in.proxy.Locality = c.proxy
		q := catalog.ChainOptions{Datacenter: "dc1"}.Query("db")
		in.learn(q, chainView(q, c.entries...))
		for service, list := range all {
			in.learn(catalog.Query{Kind: catalog.QueryConnect, Name: service}, &catalog.View{Instances: list})
		}
		snap, _ := build(in)
		if got := told(snap.Upstreams[0].Instances); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestNamedInstancesAreOfOneUpstream: what a registration names for one listener is not
// what another one of the same destination has while no server answers.
func TestNamedInstancesAreOfOneUpstream(t *testing.T) {
	w := newWorld()
	told := []connect.Endpoint{{ID: "db-1", Node: "n1", Addr: "10.0.0.1:21000"}}
	for _, instances := range [][]connect.Endpoint{told, {{ID: "10.9.9.9:21000", Addr: "10.9.9.9:21000"}}} {
		w.remember(&connect.Upstream{Name: "db", Instances: instances})
	}
	if got, _ := w.resolve("db", "dc1", &problems{}); !reflect.DeepEqual(got, told) {
		t.Errorf("without servers it leads to %v, want %v", got, told)
	}
}
