package sidecar

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

func sidecarService(change ...func(*catalog.Service)) *catalog.Service {
	s := &catalog.Service{
		Kind: catalog.KindConnectProxy, ID: "web-sidecar-proxy", Service: "web-sidecar-proxy", Port: 21000,
		Proxy: catalog.ConnectProxy{
			DestinationServiceName: "web", DestinationServiceID: "web",
			LocalServiceAddress: "127.0.0.1", LocalServicePort: 8080,
			Config: map[string]any{},
		},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func TestBuild(t *testing.T) {
	base := policy{
		trustDomain: "td.consul", roots: []string{"R1", "R2"}, signingRoot: "R2",
		intentions: catalog.Intentions{{SourceName: "a", DestinationName: "web", Action: catalog.ActionAllow}}, fallback: catalog.ActionDeny,
	}
	want := func(change func(*connect.Snapshot)) *connect.Snapshot {
		s := &connect.Snapshot{
			Service: "web", Datacenter: "dc1", TrustDomain: "td.consul", Roots: base.roots, SigningRoot: "R2",
			Intentions: base.intentions, Default: catalog.ActionDeny, Local: "127.0.0.1:8080", Inbound: "0.0.0.0:21000",
		}
		change(s)
		return s
	}
	db := []connect.Endpoint{{ID: "db-1", Node: "n1", Addr: "10.0.0.1:21001", Status: catalog.StatusPassing, Weight: 1}}
	said := newWorld()
	said.learn(catalog.ChainOptions{Datacenter: "dc1"}.Query("db"), &catalog.View{})
	said.learn(catalog.Query{Kind: catalog.QueryConnect, Name: "db"}, &catalog.View{Instances: []*catalog.Instance{{
		Node: &catalog.Node{Node: "n1", Address: "10.0.0.1"}, Service: &catalog.Service{ID: "db-1", Port: 21001},
	}}})
	upstream := func(change func(*catalog.Upstream)) func(*catalog.Service) {
		return func(s *catalog.Service) {
			u := catalog.Upstream{DestinationName: "db", LocalBindPort: 9191}
			change(&u)
			s.Proxy.Upstreams = append(s.Proxy.Upstreams, u)
		}
	}
	wantUp := func(change func(*connect.Upstream)) func(*connect.Snapshot) {
		return func(s *connect.Snapshot) {
			u := connect.Upstream{Name: "db", Datacenter: "dc1", Listen: "127.0.0.1:9191", Instances: db}
			change(&u)
			s.Upstreams = append(s.Upstreams, u)
		}
	}
	same := func(*connect.Snapshot) {}
	for name, tc := range map[string]struct {
		reg      func(*catalog.Service)
		want     func(*connect.Snapshot)
		problems []string // each a part of one
	}{
		"nothing set": {func(*catalog.Service) {}, same, nil},
		"a Unix socket behind": {
			func(s *catalog.Service) { s.Proxy.LocalServiceSocketPath = "/run/web.sock" },
			func(s *connect.Snapshot) { s.Local = "/run/web.sock" }, nil,
		},
		"no application": {func(s *catalog.Service) { s.Proxy.LocalServicePort = 0 }, func(s *connect.Snapshot) { s.Local = "" }, nil},
		"an address of its own": {
			func(s *catalog.Service) { s.Address = "10.1.1.1" },
			func(s *connect.Snapshot) { s.Inbound = "10.1.1.1:21000" }, nil,
		},
		"bind address and port": {func(s *catalog.Service) {
			s.Address = "198.51.100.7"
			s.Proxy.Config = map[string]any{"bind_address": "::1", "bind_port": json.Number("2100")}
		}, func(s *connect.Snapshot) { s.Inbound = "[::1]:2100" }, nil},
		"a bind port that is none": {
			func(s *catalog.Service) { s.Proxy.Config = map[string]any{"bind_port": 70000} }, same, []string{"bind_port = 70000"},
		},
		"a socket for the mesh": {
			func(s *catalog.Service) { s.Port, s.SocketPath = 0, "/run/in.sock" },
			func(s *connect.Snapshot) { s.Inbound = "" },
			[]string{"socket_path"},
		},
		"no port": {func(s *catalog.Service) { s.Port = 0 }, func(s *connect.Snapshot) { s.Inbound = "" }, nil},
		"limits, as JSON, HCL and the wire write numbers": {func(s *catalog.Service) {
			s.Proxy.Config = map[string]any{
				"max_inbound_connections": float64(7), "handshake_timeout_ms": 1500,
				"local_connect_timeout_ms": int64(20), "drain_timeout_ms": "250",
			}
		}, func(s *connect.Snapshot) {
			s.Limits = connect.Limits{
				HandshakeTimeout: 1500 * time.Millisecond, MaxInboundConnections: 7,
				LocalConnectTimeout: 20 * time.Millisecond, DrainTimeout: 250 * time.Millisecond,
			}
		}, nil},
		"limits that are none": {func(s *catalog.Service) {
			s.Proxy.Config = map[string]any{"max_inbound_connections": -1, "handshake_timeout_ms": "soon", "drain_timeout_ms": 1e9, "bind_port": 1.5}
		}, same, []string{"max_inbound_connections", "handshake_timeout_ms", "drain_timeout_ms", "bind_port"}},
		"an upstream": {upstream(func(*catalog.Upstream) {}), wantUp(func(*connect.Upstream) {}), nil},
		"an upstream of this datacenter, by name": {
			upstream(func(u *catalog.Upstream) { u.Datacenter = "dc1" }),
			wantUp(func(*connect.Upstream) {}), nil,
		},
		"an upstream on a socket": {upstream(func(u *catalog.Upstream) {
			u.LocalBindSocketPath, u.LocalBindSocketMode = "/run/db.sock", "0660"
		}), wantUp(func(u *connect.Upstream) { u.Listen, u.SocketMode = "/run/db.sock", "0660" }), nil},
		"an upstream with a timeout": {upstream(func(u *catalog.Upstream) {
			u.LocalBindAddress = "127.0.0.9"
			u.Config = map[string]any{"connect_timeout_ms": uint64(300)}
		}), wantUp(func(u *connect.Upstream) {
			u.Listen, u.ConnectTimeout = "127.0.0.9:9191", 300*time.Millisecond
		}), nil},
		"an upstream nobody serves": {
			upstream(func(u *catalog.Upstream) { u.DestinationName = "none" }),
			wantUp(func(u *connect.Upstream) { u.Name, u.Instances = "none", nil }), nil,
		},
		"an upstream without a listener": {
			upstream(func(u *catalog.Upstream) { u.LocalBindPort = 0 }),
			wantUp(func(u *connect.Upstream) { u.Listen = "" }),
			[]string{"db has no listener"},
		},
		"a prepared query": {
			upstream(func(u *catalog.Upstream) { u.DestinationType = "prepared_query" }),
			wantUp(func(u *connect.Upstream) { u.Name, u.Instances = "query:db", nil }), nil,
		},
		"a destination of no type": {upstream(func(u *catalog.Upstream) { u.DestinationType = "gateway" }), same, []string{`"gateway"`}},
		"explicit instances": {
			upstream(func(u *catalog.Upstream) {
				u.Config = map[string]any{"instances": []any{"10.9.9.9:21001", "nonsense", 5}}
			}),
			wantUp(func(u *connect.Upstream) {
				u.Instances = []connect.Endpoint{{ID: "10.9.9.9:21001", Addr: "10.9.9.9:21001", Status: "passing", Weight: 1}}
			}),
			[]string{`"nonsense"`, `"5"`},
		},
		"passive health check, registered": {
			upstream(func(u *catalog.Upstream) {
				u.Config = map[string]any{"passive_health_check": map[string]any{"max_failures": 3, "interval": "10s", "base_ejection_time": float64(30e9), "max_ejection_percent": 50}}
			}),
			wantUp(func(u *connect.Upstream) {
				u.Ejection = connect.Ejection{Failures: 3, Within: 10 * time.Second, Base: 30 * time.Second, MaxPercent: 50}
			}), nil,
		},
		"passive health check, central": {
			upstream(func(u *catalog.Upstream) {
				u.Config = map[string]any{"passive_health_check": map[string]any{"MaxFailures": float64(2), "Interval": "soon"}}
			}),
			wantUp(func(u *connect.Upstream) { u.Ejection = connect.Ejection{Failures: 2} }),
			[]string{"passive_health_check interval = soon"},
		},
		"a peer":             {upstream(func(u *catalog.Upstream) { u.DestinationPeer = "east" }), same, []string{`peer "east"`}},
		"another datacenter": {upstream(func(u *catalog.Upstream) { u.Datacenter = "dc2" }), same, []string{`"dc2"`}},
		"a named port":       {upstream(func(u *catalog.Upstream) { u.DestinationPort = "admin" }), same, []string{`"admin"`}},
		"transparent":        {func(s *catalog.Service) { s.Proxy.Mode = "transparent" }, same, nil},
	} {
		t.Run(name, func(t *testing.T) {
			reg := sidecarService(tc.reg)
			got, problems := build(inputs{
				proxy: reg, datacenter: "dc1", bindAddr: "0.0.0.0", policy: base, world: said,
			})
			if w := want(tc.want); !reflect.DeepEqual(got, w) {
				t.Errorf("got  %+v\nwant %+v", got, w)
			}
			all := strings.Join(problems, "\n")
			if len(problems) != len(tc.problems) {
				t.Errorf("problems: %q", problems)
			}
			for _, p := range tc.problems {
				if !strings.Contains(all, p) {
					t.Errorf("no problem speaks of %q: %q", p, problems)
				}
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	check := func(s catalog.Status) *catalog.Check { return &catalog.Check{Status: s} }
	inst := func(id string, change func(*catalog.Instance)) *catalog.Instance {
		i := &catalog.Instance{
			Node:    &catalog.Node{Node: "n1", Address: "10.0.0.1"},
			Service: &catalog.Service{ID: id, Service: "db-sidecar-proxy", Port: 21000, Weights: &catalog.Weights{Passing: 3, Warning: 2}},
			Checks:  []*catalog.Check{check(catalog.StatusPassing)},
		}
		change(i)
		return i
	}
	v := &catalog.View{Instances: []*catalog.Instance{
		inst("z-passing", func(*catalog.Instance) {}),
		inst("warning", func(i *catalog.Instance) { i.Checks = append(i.Checks, check(catalog.StatusWarning)) }),
		inst("critical", func(i *catalog.Instance) { i.Checks = append(i.Checks, check(catalog.StatusCritical)) }),
		inst("node in maintenance", func(i *catalog.Instance) {
			i.Checks = append(i.Checks, &catalog.Check{CheckID: catalog.NodeMaintenanceCheckID, Status: catalog.StatusCritical})
		}),
		inst("strange status", func(i *catalog.Instance) { i.Checks = append(i.Checks, check("odd")) }),
		inst("no checks", func(i *catalog.Instance) { i.Checks, i.Service.Weights = nil, nil }),
		inst("own address", func(i *catalog.Instance) { i.Service.Address = "fd00::1" }),
		inst("no port", func(i *catalog.Instance) { i.Service.Port = 0 }),
		inst("weighs nothing while warning", func(i *catalog.Instance) {
			i.Service.Weights.Warning = 0
			i.Checks = append(i.Checks, check(catalog.StatusWarning))
		}),
		nil,
		{},
	}}
	w := newWorld()
	w.learn(catalog.Query{Kind: catalog.QueryConnect, Name: "db"}, v)
	got := combine(slices.Concat(w.tiers(&catalog.Target{Service: "db"}, "db", false)...))
	want := []connect.Endpoint{
		{ID: "no checks", Node: "n1", Addr: "10.0.0.1:21000", Status: "passing", Weight: 1},
		{ID: "own address", Node: "n1", Addr: "[fd00::1]:21000", Status: "passing", Weight: 3},
		{ID: "warning", Node: "n1", Addr: "10.0.0.1:21000", Status: "warning", Weight: 2},
		{ID: "z-passing", Node: "n1", Addr: "10.0.0.1:21000", Status: "passing", Weight: 3},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestProxyDirStaysInside(t *testing.T) {
	for _, id := range []string{"web", "../../etc", ".", "..", "a/b", strings.Repeat("x", 512), "ü"} {
		dir := proxyDir("/data", id)
		rest, ok := strings.CutPrefix(dir, "/data/proxies/")
		if !ok || strings.ContainsAny(rest, "/") || rest == "." || rest == ".." || len(rest) > 255 {
			t.Errorf("%q → %q", id, dir)
		}
	}
}
