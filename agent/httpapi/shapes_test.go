package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/weftmesh/weft/catalog"
)

const registerWeb = `{"Node":"n1","Address":"10.0.0.1","NodeMeta":{"rack":"r1"},
 "Service":{"ID":"web1","Service":"web","Tags":["v1","All"],"Port":81,"Meta":{"ver":"1"}},
 "Checks":[{"CheckID":"wc1","Name":"wc","ServiceID":"web1","Status":"passing"},
           {"CheckID":"node","Name":"node","Status":"passing","Definition":{"TCP":"10.0.0.1:1","Interval":"5s","Timeout":"1s"}}]}`

const registerBare = `{"Node":"n2","Address":"10.0.0.2","Service":{"Service":"db"},"Check":{"Name":"c","ServiceID":"db","Status":"warning"}}`

// sameJSON compares answers but for the values of indexes and hashes.
func sameJSON(t *testing.T, got, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatalf("%v in the test's own %s", err, want)
	}
	if g, w := blank(g), blank(w); !reflect.DeepEqual(g, w) {
		gb, _ := json.MarshalIndent(g, "", " ")
		wb, _ := json.MarshalIndent(w, "", " ")
		t.Fatalf("got %s\nwant %s", gb, wb)
	}
}

func blank(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			switch k {
			case "CreateIndex", "ModifyIndex", "Hash", "ContentHash":
				v[k] = "*"
			default:
				v[k] = blank(e)
			}
		}
	case []any:
		for i, e := range v {
			v[i] = blank(e)
		}
	}
	return v
}

const (
	proxyEmpty = `{"Mode":"","MeshGateway":{},"Expose":{}}`
	nodeN1     = `{"ID":"","Node":"n1","Address":"10.0.0.1","Datacenter":"dc1","TaggedAddresses":null,"Meta":{"rack":"r1"},"CreateIndex":1,"ModifyIndex":1}`
	nodeN2     = `{"ID":"","Node":"n2","Address":"10.0.0.2","Datacenter":"dc1","TaggedAddresses":null,"Meta":null,"CreateIndex":1,"ModifyIndex":1}`
	serviceWeb = `{"ID":"web1","Service":"web","Tags":["v1","All"],"Address":"","Meta":{"ver":"1"},"Port":81,"Weights":{"Passing":1,"Warning":1},
  "EnableTagOverride":false,"Proxy":` + proxyEmpty + `,"Connect":{},"PeerName":"","CreateIndex":1,"ModifyIndex":1}`
	serviceDB = `{"ID":"db","Service":"db","Tags":[],"Address":"","Meta":null,"Weights":{"Passing":1,"Warning":1},
  "EnableTagOverride":false,"Proxy":` + proxyEmpty + `,"Connect":{},"PeerName":"","CreateIndex":1,"ModifyIndex":1}`
	checkNode = `{"Node":"n1","CheckID":"node","Name":"node","Status":"passing","Notes":"","Output":"","ServiceID":"","ServiceName":"","ServiceTags":[],
  "Type":"tcp","Interval":"","Timeout":"","ExposedPort":0,"Definition":{"TCP":"10.0.0.1:1","Interval":"5s","Timeout":"1s"},"CreateIndex":1,"ModifyIndex":1}`
	checkWeb = `{"Node":"n1","CheckID":"wc1","Name":"wc","Status":"passing","Notes":"","Output":"","ServiceID":"web1","ServiceName":"web","ServiceTags":["v1","All"],
  "Type":"","Interval":"","Timeout":"","ExposedPort":0,"Definition":{},"CreateIndex":1,"ModifyIndex":1}`
	checkDB = `{"Node":"n2","CheckID":"c","Name":"c","Status":"warning","Notes":"","Output":"","ServiceID":"db","ServiceName":"db","ServiceTags":[],
  "Type":"","Interval":"","Timeout":"","ExposedPort":0,"Definition":{},"CreateIndex":1,"ModifyIndex":1}`
	flatWeb = `{"ID":"","Node":"n1","Address":"10.0.0.1","Datacenter":"dc1","TaggedAddresses":null,"NodeMeta":{"rack":"r1"},
  "ServiceKind":"","ServiceID":"web1","ServiceName":"web","ServiceTags":["v1","All"],"ServiceAddress":"","ServiceWeights":{"Passing":1,"Warning":1},
  "ServiceMeta":{"ver":"1"},"ServicePort":81,"ServiceSocketPath":"","ServiceEnableTagOverride":false,"ServiceProxy":` + proxyEmpty + `,
  "ServiceConnect":{},"ServiceLocality":null,"CreateIndex":1,"ModifyIndex":1}`
	flatDB = `{"ID":"","Node":"n2","Address":"10.0.0.2","Datacenter":"dc1","TaggedAddresses":null,"NodeMeta":null,
  "ServiceKind":"","ServiceID":"db","ServiceName":"db","ServiceTags":[],"ServiceAddress":"","ServiceWeights":{"Passing":1,"Warning":1},
  "ServiceMeta":{},"ServicePort":0,"ServiceSocketPath":"","ServiceEnableTagOverride":false,"ServiceProxy":` + proxyEmpty + `,
  "ServiceConnect":{},"ServiceLocality":null,"CreateIndex":1,"ModifyIndex":1}`
)

func TestCatalogAndHealthShapes(t *testing.T) {
	r := newRig(t)
	r.want(r.do("PUT", "/v1/catalog/register", registerWeb), 200, "true")
	r.want(r.do("PUT", "/v1/catalog/register", registerBare), 200, "true")
	for target, want := range map[string]string{
		"/v1/catalog/datacenters":                                    `["dc1"]`,
		"/v1/catalog/nodes?filter=Node+!=+" + testNode:               `[` + nodeN1 + `,` + nodeN2 + `]`,
		"/v1/catalog/nodes?node-meta=rack:r1":                        `[` + nodeN1 + `]`,
		"/v1/catalog/nodes?node-meta=bad":                            `[]`,
		"/v1/catalog/services":                                       `{"web":["All","v1"],"db":[]}`,
		"/v1/catalog/services?node-meta=rack:r1":                     `{"web":["All","v1"]}`,
		"/v1/catalog/services?node-meta=rack:none":                   `{}`,
		"/v1/catalog/services?filter=ServiceName+==+db":              `{"db":[]}`,
		"/v1/catalog/service/web":                                    `[` + flatWeb + `]`,
		"/v1/catalog/service/db":                                     `[` + flatDB + `]`,
		"/v1/catalog/service/none":                                   `[]`,
		"/v1/catalog/service/web?tag=ALL&tag=v1":                     `[` + flatWeb + `]`,
		"/v1/catalog/service/web?tag=v1&tag=v2":                      `[]`,
		"/v1/catalog/service/web?filter=ServiceMeta.ver+==+1":        `[` + flatWeb + `]`,
		"/v1/catalog/service/web?filter=ServiceProxy.Mode+==+%22%22": `[` + flatWeb + `]`,
		"/v1/catalog/connect/none":                                   `[]`,
		"/v1/catalog/node/n1":                                        `{"Node":` + nodeN1 + `,"Services":{"web1":` + serviceWeb + `}}`,
		"/v1/catalog/node/n1?filter=Port+==+1":                       `{"Node":` + nodeN1 + `,"Services":{}}`,
		"/v1/catalog/node/none":                                      `null`,
		"/v1/catalog/node-services/n2":                               `{"Node":` + nodeN2 + `,"Services":[` + serviceDB + `]}`,
		"/v1/catalog/node-services/none":                             `{"Node":null,"Services":null}`,
		"/v1/catalog/node-services/n2?filter=Service+==+x":           `{"Node":` + nodeN2 + `,"Services":[]}`,
		"/v1/health/node/n1":                                         `[` + checkNode + `,` + checkWeb + `]`,
		"/v1/health/node/none":                                       `[]`,
		"/v1/health/checks/web":                                      `[` + checkWeb + `]`,
		"/v1/health/checks/web?node-meta=rack:r2":                    `[]`,
		"/v1/health/checks/db?filter=Status+==+warning":              `[` + checkDB + `]`,
		"/v1/health/state/warning":                                   `[` + checkDB + `]`,
		"/v1/health/state/any?node-meta=rack:r1":                     `[` + checkNode + `,` + checkWeb + `]`,
		"/v1/health/state/bogus":                                     `[]`,
		"/v1/health/service/web":                                     `[{"Node":` + nodeN1 + `,"Service":` + serviceWeb + `,"Checks":[` + checkNode + `,` + checkWeb + `]}]`,
		"/v1/health/service/web?passing":                             `[{"Node":` + nodeN1 + `,"Service":` + serviceWeb + `,"Checks":[` + checkNode + `,` + checkWeb + `]}]`,
		"/v1/health/service/db?passing":                              `[]`,
		"/v1/health/service/db?passing=0":                            `[{"Node":` + nodeN2 + `,"Service":` + serviceDB + `,"Checks":[` + checkDB + `]}]`,
		"/v1/health/service/db?filter=Checks.Status+==+warning":      `[{"Node":` + nodeN2 + `,"Service":` + serviceDB + `,"Checks":[` + checkDB + `]}]`,
		"/v1/health/service/db?filter=Checks.Status+==+critical":     `[]`,
		"/v1/health/connect/none":                                    `[]`,
	} {
		t.Run(target, func(t *testing.T) {
			a := r.do("GET", target, "")
			if a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			sameJSON(t, a.body, want)
			if strings.Contains(target, "datacenters") {
				return
			}
			for h, want := range map[string]string{
				"Content-Type": "application/json", "X-Consul-KnownLeader": "true", "X-Consul-LastContact": "0",
				"X-Consul-Effective-Consistency": "leader", "X-Consul-Default-ACL-Policy": "allow",
			} {
				if got := a.header.Get(h); got != want {
					t.Errorf("%s: %q, want %q", h, got, want)
				}
			}
			if i := a.header.Get("X-Consul-Index"); i == "" || i == "0" {
				t.Errorf("X-Consul-Index is %q", i)
			}
		})
	}
	for target, want := range map[string]string{
		"/v1/catalog/service/": "Missing service name", "/v1/catalog/connect/": "Missing service name",
		"/v1/catalog/node/": "Missing node name", "/v1/catalog/node-services/": "Missing node name",
		"/v1/health/node/": "Missing node name", "/v1/health/checks/": "Missing service name",
		"/v1/health/state/": "Missing check state", "/v1/health/service/": "Missing service name", "/v1/health/connect/": "Missing service name",
		"/v1/health/service/web?passing=maybe": "Invalid value for ?passing",
	} {
		r.want(r.do("GET", target, ""), 400, want)
	}
}

func TestCatalogWriteRefusals(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		path, body string
		status     int
		text       string
	}{
		{"register", `{}`, 500, "Must provide node"},
		{"register", `{"Node":"n"}`, 500, "Must provide address if SkipNodeUpdate is not set"},
		{"register", `{`, 400, "Request decode failed: unexpected EOF"},
		{"register", ``, 400, "Request decode failed: EOF"},
		{"register", `x`, 400, "Request decode failed: invalid character 'x' looking for beginning of value"},
		{"register", `{"Node":"n","Address":"1.1.1.1","Service":{}}`, 500, "Must provide service name (Service.Service)"},
		{"register", `{"Node":5,"Address":"1.1.1.1"}`, 400, ""},
		{"register", `{"Node":"n","Address":"1.1.1.1","Bogus":1}`, 400, `Request decode failed: json: unknown field "Bogus"`},
		{"register", `{"Node":"n","Address":"1.1.1.1","Service":{"Service":"x","Namespace":"other"}}`, 400, ""},
		{"register", `{"Node":"n","Address":"1.1.1.1","Check":{"Name":"c","Status":"odd"}}`, 500, ""},
		{"register", `{"Node":"n","Address":"1.1.1.1","Datacenter":"elsewhere"}`, 500, "No path to datacenter"},
		{"deregister", `{}`, 500, "Must provide node"},
		{"deregister", `{"Node":"ghost"}`, 200, "true"},
		{"deregister", `{"Node":"ghost","ServiceID":"x"}`, 200, "true"},
	} {
		t.Run(c.path+" "+c.body, func(t *testing.T) {
			r.t = t
			r.want(r.do("PUT", "/v1/catalog/"+c.path, c.body), c.status, c.text)
		})
	}
}

func TestAgentServiceShapes(t *testing.T) {
	r := newRig(t)
	r.want(r.do("PUT", "/v1/agent/service/register", `{"name":"web","id":"w1","tags":["a"],"meta":{"k":"v"},"check":{"ttl":"1h","status":"passing"}}`), 200, "")
	r.want(r.do("PUT", "/v1/agent/service/register", `{"Kind":"connect-proxy","Name":"p","Port":20000,
	  "Proxy":{"DestinationServiceName":"web","LocalServicePort":80,"Upstreams":[{"DestinationName":"db","LocalBindPort":1234}]}}`), 200, "")
	web := `{"ID":"w1","Service":"web","Tags":["a"],"Meta":{"k":"v"},"Port":0,"Address":"","Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Datacenter":"dc1"}`
	proxy := `{"Kind":"connect-proxy","ID":"p","Service":"p","Tags":[],"Meta":{},"Port":20000,"Address":"","Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,
	  "Proxy":{"DestinationServiceName":"web","LocalServicePort":80,"Upstreams":[{"DestinationType":"service","DestinationName":"db","LocalBindPort":1234,"MeshGateway":{}}],"MeshGateway":{},"Expose":{}},"Datacenter":"dc1"}`
	sameJSON(t, r.do("GET", "/v1/agent/services", "").body, `{"w1":`+web+`,"p":`+proxy+`}`)
	sameJSON(t, r.do("GET", "/v1/agent/services?filter=Proxy.DestinationServiceName+==+web", "").body, `{"p":`+proxy+`}`)
	sameJSON(t, r.do("GET", "/v1/agent/services?filter=%22a%22+in+Tags", "").body, `{"w1":`+web+`}`)
	one := r.want(r.do("GET", "/v1/agent/service/w1", ""), 200, "")
	sameJSON(t, one.body, strings.Replace(web, `"ID"`, `"ContentHash":"x","ID"`, 1))
	if len(one.header.Get("X-Consul-ContentHash")) < 8 {
		t.Fatal("no X-Consul-ContentHash")
	}
	if one.header.Get("X-Consul-Index") != "" {
		t.Fatal("an index where Consul has none")
	}
	sameJSON(t, r.do("GET", "/v1/agent/checks", "").body, `{"service:w1":{"Node":"node1","CheckID":"service:w1","Name":"Service 'web' check","Status":"passing",
	  "Notes":"","Output":"","ServiceID":"w1","ServiceName":"web","ServiceTags":["a"],"Type":"ttl","Interval":"","Timeout":"","ExposedPort":0,"Definition":{},"CreateIndex":0,"ModifyIndex":0}}`)
	health := r.want(r.do("GET", "/v1/agent/health/service/id/w1", ""), 200, "")
	sameJSON(t, health.body, `{"AggregatedStatus":"passing","Service":`+web+`,"Checks":[{"Node":"node1","CheckID":"service:w1","Name":"Service 'web' check","Status":"passing",
	  "Notes":"","Output":"","ServiceID":"w1","ServiceName":"web","ServiceTags":null,"Type":"","ExposedPort":0,"Definition":{"Interval":"0s","Timeout":"0s",
	  "DeregisterCriticalServiceAfter":"0s","HTTP":"","Header":null,"Method":"","Body":"","TLSServerName":"","TLSSkipVerify":false,"TCP":"","TCPUseTLS":false,
	  "UDP":"","GRPC":"","OSService":"","GRPCUseTLS":false},"CreateIndex":0,"ModifyIndex":0}]}`)
	r.want(r.do("PUT", "/v1/agent/check/warn/service:w1?note=hm", ""), 200, "")
	r.want(r.do("GET", "/v1/agent/health/service/name/web?format=text", ""), 429, "warning")
	r.want(r.do("GET", "/v1/agent/health/service/id/w1", "", "Accept", "text/plain"), 429, "warning")
	if a := r.do("GET", "/v1/agent/health/service/id/w1", "", "Accept", "application/json, text/plain"); !strings.HasPrefix(a.body, "{") {
		t.Fatalf("%+v", a)
	}
	r.want(r.do("PUT", "/v1/agent/service/maintenance/w1?enable=true&reason=because", ""), 200, "")
	if a := r.do("GET", "/v1/agent/health/service/id/w1?format=text", ""); a.status != 503 || a.body != "maintenance" || a.header.Get("X-Consul-Reason") != "maintenance" {
		t.Fatalf("%+v", a)
	}
	r.want(r.do("GET", "/v1/agent/health/service/id/none", ""), 404, "ServiceId none not found")
	r.want(r.do("GET", "/v1/agent/health/service/name/none", ""), 404, "")
	r.want(r.do("PUT", "/v1/agent/service/deregister/w1", ""), 200, "")
	r.want(r.do("PUT", "/v1/agent/service/deregister/w1", ""), 404, `Unknown service ID "w1". Ensure that the service ID is passed, not the service name.`)
	r.want(r.do("PUT", "/v1/agent/service/deregister/", ""), 404, `Unknown service ID "". Ensure that the service ID is passed, not the service name.`)
	r.want(r.do("GET", "/v1/agent/service/w1", ""), 404, "unknown service ID: w1")
}

func TestAgentRefusals(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		path, body string
		status     int
		text       string
	}{
		{"service/register", `{}`, 400, ""},
		{"service/register", `{"Name":"a","Port":"80"}`, 400, ""},
		{"service/register", `{"Name":"a","Tags":"x"}`, 400, ""},
		{"service/register", `{"Name":"a","Bogus":1}`, 400, `Request decode failed: json: unknown field "Bogus"`},
		{"service/register", `{"Name":"a","Namespace":"x"}`, 400, ""},
		{"service/register", `{"Name":"e","Check":{"TTL":"abc"}}`, 400, ""},
		{"service/register", `[]`, 400, ""},
		{"service/register", `null`, 400, ""},
		{"service/register", `{"name":"a","check":{"ttl":"1h","check_id":"c"}}`, 400, `Request decode failed: json: unknown field "check_id"`},
		{"service/register", `{"Name":"a","Port":1,"Connect":{"SidecarService":{"Checks":[{"TTL":"1h","success_before_passing":1}]}}}`, 400, `Request decode failed: json: unknown field "success_before_passing"`},
		{"check/register", `{"Name":"x","TTL":"1h","check_id":"c"}`, 400, `Request decode failed: json: unknown field "check_id"`},
		{"check/register", `{"Name":"y","TTL":"1h","deregister_critical_service_after":"90m"}`, 200, ""},
		{"check/register", `{}`, 400, "Missing check name"},
		{"check/register", `{"Name":"x"}`, 400, ""},
		{"check/register", `{"Name":"x","TTL":"1h","Status":"odd"}`, 400, ""},
		{"check/register", `{"Name":"x","Args":["ls"],"Interval":"10s"}`, 500, ""},
		{"check/register", `{"Name":"c2","ServiceID":"nope","TTL":"1h"}`, 404, `ServiceID "nope" does not exist`},
		{"check/register", `{"Name":"h","TCP":"127.0.0.1:1","Interval":"1h"}`, 200, ""},
		{"check/pass/h", ``, 500, ""},
		{"check/pass/nope", ``, 404, `Unknown check ID "nope". Ensure that the check ID is passed, not the check name.`},
		{"check/warn/", ``, 404, ""},
		{"check/update/h", `{"Status":"bogus"}`, 400, "Invalid check status: 'bogus'"},
		{"check/update/h", `x`, 400, ""},
		{"check/update/nope", `{"Status":"passing"}`, 404, ""},
		{"check/deregister/x", ``, 404, ""},
		{"check/deregister/h", ``, 200, ""},
		{"maintenance", ``, 400, "Missing value for enable"},
		{"maintenance?enable=perhaps", ``, 400, `Invalid value for enable: "perhaps"`},
		{"service/maintenance/none?enable=true", ``, 404, ""},
		{"token/default", `{"Token":"x"}`, 401, "ACL support disabled"},
	} {
		t.Run(c.path+" "+c.body, func(t *testing.T) {
			r.t = t
			a := r.want(r.do("PUT", "/v1/agent/"+c.path, c.body), c.status, c.text)
			if a.status >= 400 && (a.body == "" || a.header.Get("Content-Type") != "text/plain; charset=utf-8") {
				t.Fatalf("%+v", a)
			}
		})
	}
}

func TestAgentItself(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Self.Stats = func() map[string]map[string]string { return map[string]map[string]string{"raft": {"own": "1"}} }
		c.Self.Coordinate = func() catalog.Coordinate { return catalog.Coordinate{Vec: []float64{0.25}, Error: 0.5, Height: 0.125} }
	})
	var self struct {
		Coord  catalog.Coordinate
		Config struct{ NodeName, Datacenter string }
		Member struct{ Name string }
		Stats  map[string]map[string]string
		XDS    struct{ Ports struct{ Plaintext int } } `json:"xDS"`
	}
	if err := json.Unmarshal([]byte(r.do("GET", "/v1/agent/self", "").body), &self); err != nil {
		t.Fatal(err)
	}
	if self.Config.NodeName != testNode || self.Member.Name != testNode || self.Stats["raft"]["state"] != "Leader" || self.Stats["raft"]["own"] != "1" || self.Coord.Vec[0] != 0.25 || self.Coord.Height != 0.125 {
		t.Fatalf("%+v", self)
	}
	r.want(r.do("GET", "/v1/agent/members?segment=x", ""), 500, "")
	sameJSON(t, r.do("GET", "/v1/agent/members", "").body, `[{"Name":"node1","Addr":"127.0.0.1","Port":8301,"Tags":{},"Status":1,
	  "ProtocolMin":1,"ProtocolMax":5,"ProtocolCur":2,"DelegateMin":2,"DelegateMax":5,"DelegateCur":4}]`)
	for path, call := range map[string]string{"reload": "reload", "leave": "leave", "join/10.0.0.9": "join 10.0.0.9", "force-leave/x?prune": "force-leave x"} {
		r.want(r.do("PUT", "/v1/agent/"+path, ""), 200, "")
		if got := <-r.control.calls; got != call {
			t.Fatalf("%s called %q", path, got)
		}
	}
	r.want(r.do("PUT", "/v1/agent/force-leave/", ""), 500, "agent: No node found with name ''")
	r.want(r.do("GET", "/v1/status/leader", ""), 200, `"127.0.0.1:8300"`)
	r.want(r.do("GET", "/v1/status/peers", ""), 200, `["127.0.0.1:8300"]`)
	r.want(r.do("GET", "/v1/status/leader?dc=none", ""), 500, "No path to datacenter")
	var host map[string]any
	if err := json.Unmarshal([]byte(r.do("GET", "/v1/agent/host", "").body), &host); err != nil || host["Memory"] == nil || host["Errors"] != nil {
		t.Fatalf("%v %v", host, err)
	}
	r.want(r.do("GET", "/v1/acl/tokens", ""), 401, "ACL support disabled")
	r.want(r.do("GET", "/v1/peerings", ""), 500, "peering must be enabled to use this endpoint")
	r.want(r.do("DELETE", "/v1/peering/p", ""), 500, "peering must be enabled to use this endpoint")
	r.want(r.do("GET", "/v1/peering/token", ""), 405, "method GET not allowed")
	r.want(r.do("GET", "/v1/agent/connect/proxies", ""), 200, "")
}

func TestServiceNamesByNodeAndFilter(t *testing.T) {
	r := newRig(t)
	for _, body := range []string{
		`{"Node":"n1","Address":"10.0.0.1","NodeMeta":{"rack":"1"},"Service":{"Service":"web","Tags":["b","a"]}}`,
		`{"Node":"n2","Address":"10.0.0.2","NodeMeta":{"rack":"2"},"Service":{"Service":"web","Tags":["c"]}}`,
		`{"Node":"n2","Address":"10.0.0.2","NodeMeta":{"rack":"2"},"Service":{"Service":"db"}}`,
	} {
		r.want(r.do("PUT", "/v1/catalog/register", body), 200, "true")
	}
	for query, want := range map[string]string{
		"?node-meta=rack:1":                            `{"web":["a","b"]}`,
		"?node-meta=rack:2":                            `{"web":["c"],"db":[]}`,
		"?node-meta=rack:2&filter=ServiceName+==+web":  `{"web":["c"]}`,
		"?filter=%22a%22+in+ServiceTags":               `{"web":["a","b"]}`,
		"?filter=NodeMeta.rack+==+%222%22&index=1":     `{"web":["c"],"db":[]}`,
		"?node-meta=rack:3":                            `{}`,
		"?filter=ServiceName+==+none&node-meta=rack:1": `{}`,
	} {
		a := r.want(r.do("GET", "/v1/catalog/services"+query, ""), 200, "")
		sameJSON(t, a.body, want)
		if a.header.Get("X-Consul-Index") == "" {
			t.Errorf("%s: no index", query)
		}
	}
}

func TestGateways(t *testing.T) {
	r := newRig(t)
	for _, body := range []string{
		`{"Kind":"terminating-gateway","Name":"tgw","Services":[{"Name":"ext","SNI":"s","DisableAutoHostRewrite":true},{"Name":"*"}]}`,
		`{"Kind":"ingress-gateway","Name":"igw","Listeners":[{"Port":80,"Protocol":"http","Services":[{"Name":"*"}]},{"Port":81,"Protocol":"tcp","Services":[{"Name":"db"}]}]}`,
	} {
		r.want(r.do("PUT", "/v1/config", body), 200, "true")
	}
	for _, service := range []string{
		`{"Service":"web","Port":1}`, `{"Service":"consul"}`, `{"Service":"ext"}`, `{"Service":"db","Connect":{"Native":true}}`,
		`{"Kind":"connect-proxy","Service":"web-proxy","Port":2,"Proxy":{"DestinationServiceName":"web"}}`,
		`{"Kind":"ingress-gateway","Service":"igw","Port":80}`, `{"ID":"plain","Service":"igw","Port":80}`,
	} {
		r.want(r.do("PUT", "/v1/catalog/register", `{"Node":"n1","Address":"10.0.0.1","Service":`+service+`}`), 200, "true")
	}
	shape := func(path string) string {
		t.Helper()
		var rows []struct {
			Service                  struct{ Name string }
			GatewayKind, ServiceKind string
			Port                     int
			FromWildcard             bool
			AutoHostRewrite          bool
			CreateIndex, ModifyIndex uint64
		}
		if err := json.Unmarshal([]byte(r.want(r.do("GET", path, ""), 200, "").body), &rows); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, g := range rows {
			if g.CreateIndex == 0 || g.CreateIndex != g.ModifyIndex {
				t.Errorf("%s: %+v has no good indexes", path, g)
			}
			out = append(out, fmt.Sprintf("%s %d %v %v %s", g.Service.Name, g.Port, g.FromWildcard, g.AutoHostRewrite, g.ServiceKind))
		}
		return strings.Join(out, ";")
	}
	if got := shape("/v1/catalog/gateway-services/tgw"); got != "ext 0 false false service;igw 0 true true service;web 0 true true service" {
		t.Error(got)
	}
	if got := shape("/v1/catalog/gateway-services/igw"); got != "db 80 true false service;db 81 false false service;web 80 true false service" {
		t.Error(got)
	}
	for service, want := range map[string]int{"db": 1, "web": 1, "ext": 0, "consul": 0} {
		var rows []struct{ Service struct{ ID string } }
		a := r.want(r.do("GET", "/v1/health/ingress/"+service, ""), 200, "")
		if err := json.Unmarshal([]byte(a.body), &rows); err != nil || len(rows) != want || want > 0 && rows[0].Service.ID != "igw" {
			t.Errorf("ingress for %s: %v, %s", service, err, a.body)
		}
	}

	// Who waits hears of a gateway that comes to lead to the service, and of its health.
	index := r.do("GET", "/v1/health/ingress/ext", "").header.Get("X-Consul-Index")
	r.want(r.do("PUT", "/v1/config", `{"Kind":"ingress-gateway","Name":"igw","Listeners":[{"Port":80,"Protocol":"tcp","Services":[{"Name":"ext"}]}]}`), 200, "true")
	a := r.do("GET", "/v1/health/ingress/ext?wait=10s&index="+index, "")
	if !strings.Contains(a.body, `"igw"`) {
		t.Fatal(a.body)
	}
	index = a.header.Get("X-Consul-Index")
	r.want(r.do("PUT", "/v1/catalog/register", `{"Node":"n1","Address":"10.0.0.1","Check":{"CheckID":"c","Name":"c","ServiceID":"igw","Status":"critical"}}`), 200, "true")
	if a = r.do("GET", "/v1/health/ingress/ext?wait=10s&index="+index, ""); !strings.Contains(a.body, `"critical"`) {
		t.Fatal(a.body)
	}
	sameJSON(t, r.do("GET", "/v1/health/ingress/ext?passing", "").body, `[]`)
}

func TestMetricsFormats(t *testing.T) {
	r := newRig(t)
	r.do("GET", "/v1/agent/version", "")
	var m struct {
		Timestamp                         string
		Gauges, Points, Counters, Samples []map[string]any
	}
	if err := json.Unmarshal([]byte(r.do("GET", "/v1/agent/metrics", "").body), &m); err != nil {
		t.Fatal(err)
	}
	if len(m.Samples) == 0 || m.Samples[0]["Name"] != "consul.api.http" || m.Points == nil || m.Gauges == nil {
		t.Fatalf("%+v", m)
	}
	a := r.want(r.do("GET", "/v1/agent/metrics?format=prometheus", ""), 200, "")
	if !strings.Contains(a.body, `weft_http_request_seconds_count{code="2xx",method="GET",path="/v1/agent/version"} 1`) || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
		t.Fatalf("%s %s", a.header.Get("Content-Type"), a.body)
	}
	om := r.do("GET", "/v1/agent/metrics", "", "Accept", "application/openmetrics-text; version=1.0.0")
	if om.status != http.StatusOK || !strings.HasSuffix(om.body, "# EOF\n") {
		t.Fatalf("no OpenMetrics: %q", om.body)
	}
}

// TestPeersInstances: whoever asks for the instances of a peered cluster is never
// given ours.
func TestPeersInstances(t *testing.T) {
	r := newRig(t)
	r.want(r.do("PUT", "/v1/catalog/register", registerWeb), 200, "true")
	for _, path := range []string{"/v1/health/service/web", "/v1/catalog/service/web", "/v1/health/connect/web", "/v1/catalog/connect/web"} {
		if a := r.want(r.do("GET", path+"?peer=other", ""), 200, ""); strings.TrimSpace(a.body) != "[]" || a.header.Get("X-Consul-Index") == "" {
			t.Errorf("%s: %s %v", path, a.body, a.header)
		}
		r.want(r.do("GET", path+"?sg=x", ""), 400, `Invalid query parameter: "sg" - Sameness groups are a Consul Enterprise feature`)
		r.want(r.do("GET", path+"?sameness-group=x", ""), 400, "")
	}
	if a := r.do("GET", "/v1/health/service/web", ""); strings.TrimSpace(a.body) == "[]" {
		t.Error("the instances of this cluster are gone")
	}
}

func TestWithoutCache(t *testing.T) {
	r := newRig(t, func(c *Config) { c.NoCache = true })
	if a := r.want(r.do("GET", "/v1/catalog/services?cached", ""), 200, ""); a.header.Get("X-Cache") != "" {
		t.Errorf("answered from the cache: %v", a.header)
	}
}
