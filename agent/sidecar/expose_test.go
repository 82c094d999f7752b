package sidecar

import (
	"reflect"
	"strings"
	"testing"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

func TestExposedPaths(t *testing.T) {
	reg := sidecarService(func(s *catalog.Service) {
		s.Address, s.Port = "10.0.0.1", 21000
		s.Proxy.LocalServiceAddress = ""
		s.Proxy.Expose = catalog.ExposeConfig{Checks: true, Paths: []catalog.ExposePath{
			{Path: "/health", ListenerPort: 21500, LocalPathPort: 8080},
			{Path: "/grpc.health.v1.Health/Check", ListenerPort: 21500, LocalPathPort: 8081, Protocol: "http2"},
			{Path: "/health", ListenerPort: 21500, LocalPathPort: 9},
			{Path: "health", ListenerPort: 21501, LocalPathPort: 8080},
			{Path: "/q?x", ListenerPort: 21501, LocalPathPort: 8080},
			{Path: "/none", LocalPathPort: 8080},
			{Path: "/mine", ListenerPort: 21000, LocalPathPort: 8080},
			{Path: "/tcp", ListenerPort: 21501, LocalPathPort: 8080, Protocol: "tcp"},
		}}
	})
	snap, said := build(inputs{
		proxy: reg, datacenter: "dc1", bindAddr: "0.0.0.0", advertise: "10.0.0.9", world: newWorld(),
		checks: []local.ExposedCheck{
			{CheckID: "c1", Port: 21550, Path: "/ready", Local: "localhost:8080"},
			{CheckID: "c2", Port: 21000, Path: "/ready", Local: "localhost:8080"},
		},
	})
	want := []connect.Exposed{
		{Listen: "10.0.0.1:21550", Path: "/ready", Local: "localhost:8080", From: []string{"127.0.0.1", "10.0.0.1", "10.0.0.9"}},
		{Listen: "10.0.0.1:21500", Path: "/health", Local: "127.0.0.1:8080"},
		{Listen: "10.0.0.1:21500", Path: "/grpc.health.v1.Health/Check", Local: "127.0.0.1:8081", HTTP2: true},
	}
	if !reflect.DeepEqual(snap.Expose, want) {
		t.Errorf("%+v, want %+v", snap.Expose, want)
	}
	all := strings.Join(said, "\n")
	for _, part := range []string{
		`check "c2" cannot be exposed at 10.0.0.1:21000`, `"/health" is exposed twice`, `"health" is no path`, `"/q?x" is no path`,
		`"/none" needs a listener_port (0)`, "21000 is that of the proxy itself", `protocol "tcp" is none of http, http2`,
	} {
		if !strings.Contains(all, part) {
			t.Errorf("%q is not among what is said:\n%s", part, all)
		}
	}
}

// TestWhoExposesChecks: one proxy of each service does, at an address that this host reaches.
func TestWhoExposesChecks(t *testing.T) {
	side := func(id, of, addr string, checks bool) *catalog.Service {
		return sidecarService(func(s *catalog.Service) {
			s.ID, s.Address, s.Proxy.DestinationServiceID = id, addr, of
			s.Proxy.Expose.Checks = checks
		})
	}
	want := map[string]*catalog.Service{
		"a": side("a", "web", "", true), "b": side("b", "web", "10.0.0.1", true),
		"c": side("c", "db", "10.0.0.1", true), "d": side("d", "api", "", false), "e": side("e", "", "", true),
	}
	for bind, host := range map[string]string{"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "127.0.0.1", "10.0.0.7": "10.0.0.7"} {
		proxies, at := checkExposers(want, bind)
		if !reflect.DeepEqual(proxies, map[string]string{"web": "a", "db": "c"}) || !reflect.DeepEqual(at, map[string]string{"web": host, "db": "10.0.0.1"}) {
			t.Errorf("bound to %q: %v at %v", bind, proxies, at)
		}
	}
	h := &local.Host{Exposed: map[string][]local.ExposedCheck{"web": {{CheckID: "x"}}}}
	proxies, _ := checkExposers(want, "")
	if len(checksOf(h, proxies, want["a"])) != 1 || len(checksOf(h, proxies, want["b"])) != 0 {
		t.Error("checks go to the wrong proxy")
	}
}
