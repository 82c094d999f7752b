package sidecar

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

func transparentService(change ...func(*catalog.Service)) *catalog.Service {
	return sidecarService(append([]func(*catalog.Service){func(s *catalog.Service) { s.Proxy.Mode = modeTransparent }}, change...)...)
}

// setReach answers what a proxy of web in transparent mode asks.
func (f *fakeViews) setReach(meshOnly bool, addrs []*catalog.VirtualIP, rules ...*catalog.Intention) {
	f.set(&catalog.View{
		Query: catalog.Query{Kind: catalog.QueryIntentionsSrc, Name: "web"}, Intentions: rules, Default: catalog.ActionDeny,
	})
	f.set(&catalog.View{Query: catalog.Query{Kind: catalog.QueryVirtualIPs}, VirtualIPs: addrs})
	f.setMesh(meshOnly)
}

func (f *fakeViews) setMesh(only bool) {
	v := &catalog.View{Query: catalog.Query{Kind: catalog.QueryConfigEntry, Name: catalog.KindMesh, Sub: catalog.MeshName}}
	if only {
		v.Entries = []catalog.Entry{{ConfigEntry: &catalog.Mesh{TransparentProxy: catalog.MeshTransparentProxy{MeshDestinationsOnly: true}}}}
	}
	f.set(v)
}

func webTo(destination string, action catalog.Action) *catalog.Intention {
	return &catalog.Intention{SourceName: "web", DestinationName: destination, Action: action}
}

func names(s *connect.Snapshot) string {
	var out []string
	for _, u := range s.Upstreams {
		out = append(out, fmt.Sprintf("%s %v implicit=%t instances=%d", u.Name, u.Virtual, u.Implicit, len(u.Instances)))
	}
	return strings.Join(out, "; ")
}

// What intentions let a service reach is its upstreams, and no more than that, from one
// run of the agent to the next.
func TestTransparentMode(t *testing.T) {
	dir := t.TempDir()
	addrs := []*catalog.VirtualIP{
		{Service: "api", Auto: "240.0.0.1"}, {Service: "db", Auto: "240.0.0.2", Manual: []string{"10.1.1.1"}}, {Service: "pay", Auto: "240.0.0.3"},
	}
	var kept *connect.Snapshot
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, dir)
		r.setHost(transparentService(withUpstream("cache")))
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		r.views.setInstances("cache", "10.0.0.9")
		r.views.setInstances("api", "10.0.0.1")
		time.Sleep(2 * time.Second)
		p := r.proxy(0)
		if s := p.last(); s == nil || s.Capture != nil || len(s.Upstreams) != 1 {
			t.Fatalf("before the servers said who may be reached: %+v", s)
		}
		r.views.setReach(false, addrs, webTo("api", catalog.ActionAllow), webTo("pay", catalog.ActionDeny))
		synctest.Wait()
		s := p.last()
		if got := names(s); got != "cache [] implicit=false instances=1; api [240.0.0.1] implicit=true instances=1" {
			t.Errorf("upstreams: %s", got)
		}
		if s.Capture == nil || s.Capture.Port != DefaultOutboundPort || s.Capture.MeshOnly || len(s.Capture.Denied) != 2 ||
			!s.Capture.Denied[0].Rule.IsDefault() || s.Capture.Denied[1].Rule.Destination != "pay" {
			t.Errorf("%+v", s.Capture)
		}
		r.views.setReach(true, addrs, webTo("*", catalog.ActionAllow), webTo("api", catalog.ActionDeny))
		r.views.setInstances("db")
		r.views.setInstances("pay")
		synctest.Wait()
		s = p.last()
		if got := names(s); got != "cache [] implicit=false instances=1; db [240.0.0.2 10.1.1.1] implicit=true instances=0; pay [240.0.0.3] implicit=true instances=0" {
			t.Errorf("upstreams: %s", got)
		}
		if !s.Capture.MeshOnly || len(s.Capture.Denied) != 1 || s.Capture.Denied[0].Name != "api" {
			t.Errorf("%+v", s.Capture)
		}
		time.Sleep(time.Minute)
		if strings.Contains(r.logged(), "no healthy instance") || strings.Contains(r.logged(), "cannot be honoured") {
			t.Errorf("a service that nobody asked for is complained of:\n%s", r.logged())
		}
		kept = s
		r.stop()
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, dir)
		r.setHost(transparentService(withUpstream("cache")))
		time.Sleep(2 * time.Second)
		s := r.proxy(0).last()
		if s == nil || !reflect.DeepEqual(s.Upstreams, kept.Upstreams) || !reflect.DeepEqual(s.Capture, kept.Capture) {
			t.Fatalf("without servers, after a restart: %+v, before %+v", s, kept)
		}
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		r.views.setReach(false, addrs[:1])
		synctest.Wait()
		if s = r.proxy(0).last(); names(s) != "cache [] implicit=false instances=1" || s.Capture.MeshOnly || len(s.Capture.Denied) != 1 {
			t.Errorf("once the servers are back: %s, %+v", names(s), s.Capture)
		}
		r.setHost(sidecarService(withUpstream("cache")))
		synctest.Wait()
		if s = r.proxy(0).last(); s.Capture != nil {
			t.Errorf("in direct mode: %+v", s.Capture)
		}
		r.setHost(transparentService())
		synctest.Wait()
		r.setHost()
		synctest.Wait()
		if !strings.Contains(r.logged(), "redirect-traffic -remove") {
			t.Errorf("nothing tells that the redirection stays:\n%s", r.logged())
		}
		r.stop()
	})
}

func TestTransparentSettings(t *testing.T) {
	in := func(change func(*catalog.Service), services int) inputs {
		in := inputs{proxy: transparentService(change), datacenter: "dc1", bindAddr: "0.0.0.0", world: newWorld()}
		all := &catalog.View{}
		for i := range services {
			all.VirtualIPs = append(all.VirtualIPs, &catalog.VirtualIP{Service: fmt.Sprintf("s%04d", i), Auto: "240.0.0.1"})
		}
		queries := reachQueries("web")
		in.learn(queries[0], &catalog.View{Default: catalog.ActionAllow})
		in.learn(queries[1], all)
		in.learn(queries[2], &catalog.View{})
		return in
	}
	port := func(n int) func(*catalog.Service) {
		return func(s *catalog.Service) {
			s.Proxy.TransparentProxy = &catalog.TransparentProxy{OutboundListenerPort: n}
		}
	}
	if s, problems := build(in(port(15009), 2)); s.Capture == nil || s.Capture.Port != 15009 || len(s.Upstreams) != 2 || len(problems) > 0 {
		t.Errorf("%+v, %q", s.Capture, problems)
	}
	if s, problems := build(in(port(70000), 0)); s.Capture != nil || len(problems) != 1 {
		t.Errorf("%+v, %q", s.Capture, problems)
	}
	s, problems := build(in(port(0), maxImplicit+3))
	if len(s.Upstreams) != maxImplicit || len(problems) != 1 || !strings.Contains(problems[0], "3 services more") {
		t.Errorf("%d upstreams, %q", len(s.Upstreams), problems)
	}
	named := in(func(s *catalog.Service) { s.Proxy.Upstreams = []catalog.Upstream{{DestinationName: "s0001"}} }, 2)
	s, problems = build(named)
	if got := names(s); got != "s0001 [240.0.0.1] implicit=false instances=0; s0000 [240.0.0.1] implicit=true instances=0" || len(problems) > 0 {
		t.Errorf("%s, %q", got, problems)
	}
	b, err := json.Marshal(s)
	var again connect.Snapshot
	if err != nil || json.Unmarshal(b, &again) != nil || !reflect.DeepEqual(again.Upstreams[0].Virtual, s.Upstreams[0].Virtual) {
		t.Errorf("%v, %s", err, b)
	}
}

func TestDialedDirectly(t *testing.T) {
	inst := func(address string, on bool) *catalog.Instance {
		return &catalog.Instance{Node: &catalog.Node{Node: "n", Address: "10.0.0.1"}, Service: &catalog.Service{
			ID: "db-1", Address: address, Port: 21000,
			Proxy: catalog.ConnectProxy{LocalServicePort: 5432, TransparentProxy: &catalog.TransparentProxy{DialedDirectly: on}},
		}}
	}
	at := netip.MustParseAddrPort
	for _, c := range []struct {
		inst *catalog.Instance
		want []netip.AddrPort
	}{
		{inst("", false), nil},
		{inst("", true), []netip.AddrPort{at("10.0.0.1:5432"), at("10.0.0.1:21000")}},
		{inst("fd00::1", true), []netip.AddrPort{at("[fd00::1]:5432"), at("[fd00::1]:21000")}},
		{inst("db.example", true), nil},
	} {
		if e, ok := endpoint(c.inst); !ok || !slices.Equal(e.Direct, c.want) {
			t.Errorf("%s: %v", c.inst.Service.Address, e.Direct)
		}
	}
}
