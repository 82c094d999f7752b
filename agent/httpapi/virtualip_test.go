package httpapi

import (
	"strings"
	"testing"
)

func TestManualVirtualIPs(t *testing.T) {
	r := newRig(t)
	assign := func(body string, status int, want string) {
		t.Helper()
		a := r.do("PUT", "/v1/internal/service-virtual-ip", body)
		if a.status != status || !strings.Contains(a.body, want) {
			t.Errorf("%s: %d %s, want %d %s", body, a.status, a.body, status, want)
		}
	}
	manual := func(service, want string) {
		t.Helper()
		a := r.want(r.do("GET", "/v1/discovery-chain/"+service, ""), 200, "")
		if !strings.Contains(a.body, `"ManualVirtualIPs":`+want) {
			t.Errorf("%s: %s, want %s", service, a.body, want)
		}
	}
	assign(`{"Service":"web","ManualVIPs":["1.1.1.1"]}`, 200, `{"Found":false,"UnassignedFrom":[]}`)
	for _, name := range []string{"web", "api"} {
		r.want(r.do("PUT", "/v1/config", `{"Kind":"service-defaults","Name":"`+name+`","Protocol":"http"}`), 200, "true")
	}
	assign(`{"Service":"web","ManualVIPs":["1.1.1.1","2.2.2.2"]}`, 200, `{"Found":true,"UnassignedFrom":[]}`)
	manual("web", `["1.1.1.1","2.2.2.2"]`)
	index := r.do("GET", "/v1/discovery-chain/web", "").header.Get("X-Consul-Index")
	assign(`{"Service":"api","ManualVIPs":["2.2.2.2"]}`, 200, `{"Found":true,"UnassignedFrom":[{"ServiceName":{"Name":"web"}}]}`)
	manual("web", `["1.1.1.1"]`)
	manual("api", `["2.2.2.2"]`)
	if a := r.do("GET", "/v1/discovery-chain/web?wait=10s&index="+index, ""); a.header.Get("X-Consul-Index") == index {
		t.Error("who waits for the chain is not woken")
	}
	assign(`{"Service":"api","ManualVIPs":[]}`, 200, `{"Found":true`)
	manual("api", `[]`)

	assign(`{"Service":"","ManualVIPs":[]}`, 400, "the service has no name")
	assign(`{"Service":"web","ManualVIPs":["::1"]}`, 400, `"::1" is not a valid IPv4 address`)
	assign(`{"Service":"web","ManualVIPs":["1.1.1.1","1.1.1.1"]}`, 400, "given twice")
	assign(`{"Service":"web","ManualVIPs":["1.0.0.1","1.0.0.2","1.0.0.3","1.0.0.4","1.0.0.5","1.0.0.6","1.0.0.7","1.0.0.8","1.0.0.9"]}`, 400, "more than 8")
	assign(`{"Servce":"web"}`, 400, "Servce")
}
