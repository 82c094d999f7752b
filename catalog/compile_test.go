package catalog

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// entries decodes documents.
func entries(t *testing.T, docs ...string) EntrySet {
	t.Helper()
	var out EntrySet
	for _, d := range docs {
		e, err := decodeEntry(t, d)
		if err != nil {
			t.Fatalf("%s: %v", d, err)
		}
		e.Normalize()
		if err := e.Validate(); err != nil {
			t.Fatalf("%s: %v", d, err)
		}
		out = append(out, e)
	}
	return out
}

const allHTTP = `{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`

// where shows a chain as the shares of connections and their targets.
func where(c *Chain) string {
	var parts []string
	for _, s := range c.Connections() {
		var ids []string
		for _, t := range s.Targets {
			ids = append(ids, strings.ReplaceAll(t.ID, ".default.default", ""))
		}
		parts = append(parts, fmt.Sprintf("%v%%: %s", s.Weight, strings.Join(ids, ", ")))
	}
	return strings.Join(parts, "; ")
}

func TestCompileChain(t *testing.T) {
	for name, c := range map[string]struct {
		docs []string
		want string // of where, or of the error with "!"
	}{
		"nothing": {nil, "100%: web.dc1"},
		"redirects follow each other": {[]string{
			`{"Kind":"service-resolver","Name":"web","Redirect":{"Service":"a"}}`,
			`{"Kind":"service-resolver","Name":"a","Redirect":{"Service":"b","ServiceSubset":"s"}}`,
			`{"Kind":"service-resolver","Name":"b","Subsets":{"s":{}}}`,
		}, "100%: s.b.dc1"},
		"a redirect leaves the subset of the other behind": {[]string{
			`{"Kind":"service-resolver","Name":"web","Subsets":{"v":{}},"DefaultSubset":"v","Redirect":{"Service":"a"}}`,
		}, "100%: a.dc1"},
		"a redirect round and round": {[]string{
			`{"Kind":"service-resolver","Name":"web","Redirect":{"Service":"a"}}`,
			`{"Kind":"service-resolver","Name":"a","Redirect":{"Service":"web"}}`,
		}, "!detected circular resolver redirect: [web.default.default.dc1 -> a.default.default.dc1 -> web.default.default.dc1]"},
		"a redirect to itself": {[]string{`{"Kind":"service-resolver","Name":"web","Redirect":{"Service":"web"}}`}, "100%: web.dc1"},
		"a redirect to a peer": {[]string{
			`{"Kind":"service-resolver","Name":"web","Redirect":{"Service":"a","Peer":"p"}}`,
			`{"Kind":"service-resolver","Name":"a","Redirect":{"Service":"b"}}`,
		}, "100%: a.external.p"},
		"no such subset": {[]string{
			`{"Kind":"service-resolver","Name":"web","Redirect":{"Service":"a","ServiceSubset":"s"}}`,
		}, `!service "a" does not have a subset named "s"`},
		"failover of the default subset, to another's default subset": {[]string{
			`{"Kind":"service-resolver","Name":"web","Subsets":{"v":{}},"DefaultSubset":"v","Failover":{"v":{"Service":"a"},"*":{"Datacenters":["dc2"]}}}`,
			`{"Kind":"service-resolver","Name":"a","Subsets":{"w":{}},"DefaultSubset":"w","Failover":{"*":{"Service":"b"}}}`,
		}, "100%: v.web.dc1, w.a.dc1"},
		"failover to datacenters keeps the subset": {[]string{
			`{"Kind":"service-resolver","Name":"web","Subsets":{"v":{}},"DefaultSubset":"v","Failover":{"*":{"Datacenters":["dc1","dc2"]}}}`,
		}, "100%: v.web.dc1, v.web.dc2"},
		"failover to a service that redirects": {[]string{
			`{"Kind":"service-resolver","Name":"web","Failover":{"*":{"Targets":[{"Service":"a"},{"Service":"b"},{"Service":"b"}]}}}`,
			`{"Kind":"service-resolver","Name":"a","Redirect":{"Service":"b"}}`,
		}, "100%: web.dc1, b.dc1"},
		"splitters become one": {[]string{
			allHTTP,
			`{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":60,"Service":"a"},{"Weight":40,"Service":"b"}]}`,
			`{"Kind":"service-splitter","Name":"a","Splits":[{"Weight":50},{"Weight":50,"Service":"c"}]}`,
			`{"Kind":"service-splitter","Name":"c","Splits":[{"Weight":10},{"Weight":90,"Service":"b"}]}`,
		}, "30%: a.dc1; 3%: c.dc1; 27%: b.dc1; 40%: b.dc1"},
		"splitters that lead back": {[]string{
			allHTTP,
			`{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":100,"Service":"a"}]}`,
			`{"Kind":"service-splitter","Name":"a","Splits":[{"Weight":100,"Service":"web"}]}`,
		}, "!splitters lead back to each other"},
		"nothing for a weight of nothing": {[]string{
			allHTTP,
			`{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":0,"Service":"a"},{"Weight":100}]}`,
		}, "100%: web.dc1"},
		"a router ends at its service": {[]string{
			allHTTP,
			`{"Kind":"service-router","Name":"web","Routes":[{"Match":{"HTTP":{"PathPrefix":"/a"}},"Destination":{"Service":"a"}}]}`,
			`{"Kind":"service-router","Name":"a","Routes":[{"Destination":{"Service":"never"}}]}`,
			`{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":100,"Service":"b"}]}`,
		}, "100%: b.dc1"},
		"routes need requests": {[]string{
			`{"Kind":"service-router","Name":"web"}`,
		}, `!discovery chain "web" uses a protocol "tcp" that does not permit advanced routing or splitting behavior`},
		"one protocol": {[]string{
			`{"Kind":"service-defaults","Name":"web","Protocol":"http"}`,
			`{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":50},{"Weight":50,"Service":"a"}]}`,
		}, `!discovery chain "web" uses inconsistent protocols; service "a" has "tcp" which is not "http"`},
		"subsets of what is outside": {[]string{
			`{"Kind":"service-defaults","Name":"web","ExternalSNI":"x.test"}`,
			`{"Kind":"service-resolver","Name":"web","Subsets":{"v":{}}}`,
		}, `!service "web" has an external SNI set; cannot define subsets for external services`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := CompileChain(entries(t, c.docs...), "web", ChainOptions{Datacenter: "dc1"})
			if want, refused := strings.CutPrefix(c.want, "!"); refused {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if w := where(got); w != c.want {
				t.Errorf("got  %s\nwant %s", w, c.want)
			}
		})
	}
}

func TestCompileChainOverrides(t *testing.T) {
	src := entries(t, allHTTP,
		`{"Kind":"service-router","Name":"web","Routes":[{"Destination":{"Service":"a"}}]}`,
		`{"Kind":"service-resolver","Name":"web","ConnectTimeout":"2s"}`,
		`{"Kind":"service-defaults","Name":"web","Protocol":"http","MeshGateway":{"Mode":"remote"},"Meta":{"k":"v"}}`)
	compile := func(o ChainOptions) *Chain {
		t.Helper()
		o.Datacenter = "dc1"
		c, err := CompileChain(src, "web", o)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := compile(ChainOptions{})
	if target := c.Targets["web.default.default.dc1"]; c.CustomizationHash != "" || c.ServiceMeta["k"] != "v" ||
		target.MeshGateway.Mode != "remote" || target.ConnectTimeout != Duration(2*time.Second) || target.SNI != "web.default.dc1.internal.consul" {
		t.Errorf("%+v %+v", c, target)
	}
	// What is as it would be without is no customization.
	if c := compile(ChainOptions{Protocol: "http", MeshGateway: "remote"}); c.CustomizationHash == "" || c.StartNode != "router:web.default.default" {
		t.Errorf("the other targets have no gateway: %+v", c)
	}
	if c := compile(ChainOptions{Protocol: "grpc"}); c.StartNode != "router:web.default.default" || c.Protocol != "grpc" {
		t.Errorf("%+v", c)
	}
	if c := compile(ChainOptions{Protocol: "tcp"}); c.StartNode != "resolver:web.default.default.dc1" || c.CustomizationHash != "96f2c150" {
		t.Errorf("%+v", c)
	}
	c = compile(ChainOptions{ConnectTimeout: 7 * time.Second})
	if target := c.Targets["web.default.default.dc1"]; target.ConnectTimeout != Duration(7*time.Second) {
		t.Errorf("%+v", target)
	}
	o := ChainOptions{Datacenter: "dc2", Protocol: "grpc", ConnectTimeout: time.Second, MeshGateway: "local"}
	q := o.Query("web")
	if back, err := q.ChainOptions(); err != nil || back != o || q.Validate() != nil {
		t.Errorf("%+v %v", back, err)
	}
	for _, bad := range []Query{{Kind: QueryChain, Name: "web"}, {Kind: QueryChain, Sub: q.Sub}, {Kind: QueryChain, Name: "web", Sub: "dc=a&timeout=x"}, {Kind: QueryChain, Name: "web", Sub: "%"}} {
		if bad.Validate() == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// Any set of entries compiles to a graph that holds together, or is refused.
func TestCompiledChainsHoldTogether(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	rapid.Check(t, func(t *rapid.T) {
		pick := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
		src := EntrySet{&ProxyDefaults{EntryHead: EntryHead{Name: "global"}, Config: map[string]any{"protocol": "http"}}}
		for _, n := range names {
			head := EntryHead{Name: n}
			if rapid.Bool().Draw(t, "router") {
				src = append(src, &ServiceRouter{EntryHead: head, Routes: []*ServiceRoute{{
					Destination: &ServiceRouteDestination{Service: pick("to", names...), ServiceSubset: pick("subset", "", "v")},
				}}})
			}
			if rapid.Bool().Draw(t, "splitter") {
				w := float32(rapid.IntRange(0, 100).Draw(t, "weight"))
				src = append(src, &ServiceSplitter{EntryHead: head, Splits: []*ServiceSplit{
					{Weight: w, Service: pick("to", names...), ServiceSubset: pick("subset", "", "v")}, {Weight: 100 - w, Service: pick("to", names...)},
				}})
			}
			if rapid.Bool().Draw(t, "resolver") {
				r := &ServiceResolver{EntryHead: head, Subsets: map[string]ServiceResolverSubset{"v": {}}, DefaultSubset: pick("default", "", "v")}
				switch pick("what", "redirect", "failover", "none") {
				case "redirect":
					r.Redirect = &ServiceResolverRedirect{Service: pick("to", names...), Datacenter: pick("dc", "", "dc2")}
				case "failover":
					r.Failover = map[string]*ServiceResolverFailover{"*": {Targets: []ServiceResolverFailoverTarget{
						{Service: pick("to", names...)}, {Datacenter: "dc2"}, {Peer: "p"},
					}}}
				}
				src = append(src, r)
			}
		}
		c, err := CompileChain(src, "a", ChainOptions{Datacenter: "dc1"})
		if err != nil {
			return
		}
		node := func(id string) {
			if c.Nodes[id] == nil {
				t.Fatalf("there is no node %s", id)
			}
		}
		node(c.StartNode)
		for id, n := range c.Nodes {
			if id != n.Type+":"+n.Name {
				t.Fatalf("%s is called %s:%s", id, n.Type, n.Name)
			}
			sum := 0.0
			for _, s := range n.Splits {
				node(s.NextNode)
				if c.Nodes[s.NextNode].Type == NodeSplitter {
					t.Fatal("a splitter leads to another")
				}
				sum += float64(s.Weight)
			}
			if n.Type == NodeSplitter && math.Abs(sum-100) > 0.5 {
				t.Fatalf("weights of %s add up to %v", id, sum)
			}
			for _, r := range n.Routes {
				node(r.NextNode)
			}
			if n.Resolver == nil {
				continue
			}
			for _, id := range append([]string{n.Resolver.Target}, n.Resolver.failover()...) {
				if c.Targets[id] == nil {
					t.Fatalf("there is no target %s", id)
				}
			}
		}
		if _, err := json.Marshal(c); err != nil {
			t.Fatal(err)
		}
	})
}

func TestMergeCentral(t *testing.T) {
	src := entries(t,
		`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http","a":1,"b":1,"c":1},"Mode":"direct","AccessLogs":{"Enabled":true},"MeshGateway":{"Mode":"remote"}}`,
		`{"Kind":"service-defaults","Name":"web","Protocol":"grpc","MaxInboundConnections":7,"MeshGateway":{"Mode":"local"},
		  "Expose":{"Checks":true},"UpstreamConfig":{"Defaults":{"ConnectTimeoutMs":10,"Limits":{"MaxConnections":1}},
		  "Overrides":[{"Name":"db","ConnectTimeoutMs":20,"MeshGateway":{"Mode":"none"}}]}}`,
		`{"Kind":"service-defaults","Name":"db","Protocol":"tcp"}`)
	s := &Service{
		Kind: KindConnectProxy, ID: "p", Service: "web-sidecar-proxy",
		Proxy: ConnectProxy{
			DestinationServiceName: "web", Config: map[string]any{"c": "mine"},
			Upstreams: []Upstream{
				{DestinationName: "db", Config: map[string]any{"connect_timeout_ms": 30}},
				{DestinationName: "api"},
				{DestinationType: "prepared_query", DestinationName: "q"},
			},
		},
	}
	before := fmt.Sprintf("%+v", s)
	got := MergeCentral(src, s)
	want := `{"DestinationServiceName":"web","DestinationServiceID":"","LocalServiceAddress":"","LocalServicePort":0,"LocalServiceSocketPath":"",` +
		`"Mode":"direct","TransparentProxy":null,"Config":{"a":1,"b":1,"c":"mine","max_inbound_connections":7,"protocol":"grpc"},"Upstreams":[` +
		`{"DestinationType":"","DestinationNamespace":"","DestinationPartition":"","DestinationPeer":"","DestinationName":"db","DestinationPort":"","Datacenter":"",` +
		`"LocalBindAddress":"","LocalBindPort":0,"LocalBindSocketPath":"","LocalBindSocketMode":"",` +
		`"Config":{"connect_timeout_ms":30,"limits":{"MaxConnections":1},"protocol":"tcp"},"MeshGateway":{"Mode":"none"},"CentrallyConfigured":false},` +
		`{"DestinationType":"","DestinationNamespace":"","DestinationPartition":"","DestinationPeer":"","DestinationName":"api","DestinationPort":"","Datacenter":"",` +
		`"LocalBindAddress":"","LocalBindPort":0,"LocalBindSocketPath":"","LocalBindSocketMode":"",` +
		`"Config":{"connect_timeout_ms":10,"limits":{"MaxConnections":1},"protocol":"http"},"MeshGateway":{"Mode":"local"},"CentrallyConfigured":false},` +
		`{"DestinationType":"prepared_query","DestinationNamespace":"","DestinationPartition":"","DestinationPeer":"","DestinationName":"q","DestinationPort":"","Datacenter":"",` +
		`"LocalBindAddress":"","LocalBindPort":0,"LocalBindSocketPath":"","LocalBindSocketMode":"","Config":null,"MeshGateway":{"Mode":"local"},"CentrallyConfigured":false}],` +
		`"MeshGateway":{"Mode":"local"},"Expose":{"Checks":true},"AccessLogs":{"Enabled":true},"MutualTLSMode":"","EnvoyExtensions":null}`
	b, err := json.Marshal(got.Proxy)
	if err != nil || string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	if fmt.Sprintf("%+v", s) != before {
		t.Error("the registration was changed")
	}
	if again, _ := json.Marshal(MergeCentral(src, got).Proxy); string(again) != want {
		t.Errorf("merging twice gives %s", again)
	}
	plain := &Service{ID: "web", Service: "web"}
	if MergeCentral(src, plain) != plain {
		t.Error("a service that is no proxy was changed")
	}
	b, err = json.Marshal(MergeCentral(EntrySet{}, s))
	if was, _ := json.Marshal(s); err != nil || string(b) != string(was) {
		t.Errorf("without entries, %s became %s", was, b)
	}
}
