package sidecar

import (
	"reflect"
	"strings"
	"testing"

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
	snap, said := build(inputs{proxy: reg, datacenter: "dc1", bindAddr: "0.0.0.0", world: newWorld()})
	want := []connect.Exposed{
		{Listen: "10.0.0.1:21500", Path: "/health", Local: "127.0.0.1:8080"},
		{Listen: "10.0.0.1:21500", Path: "/grpc.health.v1.Health/Check", Local: "127.0.0.1:8081", HTTP2: true},
	}
	if !reflect.DeepEqual(snap.Expose, want) {
		t.Errorf("%+v, want %+v", snap.Expose, want)
	}
	all := strings.Join(said, "\n")
	for _, part := range []string{
		"expose.checks is not supported", `"/health" is exposed twice`, `"health" is no path`, `"/q?x" is no path`,
		`"/none" needs a listener_port (0)`, "21000 is that of the proxy itself", `protocol "tcp" is none of http, http2`,
	} {
		if !strings.Contains(all, part) {
			t.Errorf("%q is not among what is said:\n%s", part, all)
		}
	}
}
