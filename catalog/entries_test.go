package catalog

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Refusals by kind: what an entry is decoded from, normalized and validated, and
// how its error begins; empty where it is accepted.
func TestEntriesAreRefused(t *testing.T) {
	for _, c := range []struct{ doc, want string }{
		{`{"Kind":"service-defaults"}`, "Name is required"},
		{`{"Kind":"service-defaults","Name":"*"}`, "Name must be the name of a service"},
		{`{"Kind":"service-defaults","Name":"a\u0000"}`, "Name: the name"},
		{`{"Kind":"service-defaults","Name":"a","Protocol":"HTTP2"}`, ""},
		{`{"Kind":"service-defaults","Name":"a","Protocol":"thrift"}`, "invalid value for protocol: thrift"},
		{`{"Kind":"service-defaults","Name":"a","RateLimits":{"InstanceLevel":{"RequestsPerSecond":1}}}`, "invalid rate_limits config."},
		{`{"Kind":"service-defaults","Name":"a","BalanceInboundConnections":"x"}`, "invalid value for BalanceInboundConnections"},
		{`{"Kind":"service-defaults","Name":"a","MutualTLSMode":"x"}`, "invalid MutualTLSMode"},
		{`{"Kind":"service-defaults","Name":"a","MaxInboundConnections":-1}`, "MaxInboundConnections must not be negative"},
		{`{"Kind":"service-defaults","Name":"a","UpstreamConfig":{"Defaults":{"Name":"x"}}}`, "UpstreamConfig.Defaults: Name and Peer must be empty"},
		{`{"Kind":"service-defaults","Name":"a","UpstreamConfig":{"Overrides":[{}]}}`, "UpstreamConfig.Overrides[0]: Name is required"},
		{`{"Kind":"service-defaults","Name":"a","UpstreamConfig":{"Overrides":[{"Name":"*"}]}}`, "UpstreamConfig.Overrides[0]: wildcard"},
		{`{"Kind":"service-defaults","Name":"a","UpstreamConfig":{"Overrides":[{"Name":"b"},{"Name":"b"}]}}`, "UpstreamConfig.Overrides[1]: \"b\" is given more than once"},
		{`{"Kind":"service-defaults","Name":"a","UpstreamConfig":{"Overrides":[{"Name":"b","Namespace":"x"}]}}`, "UpstreamConfig.Overrides[0].Namespace"},
		{`{"Kind":"service-defaults","Name":"a","UpstreamConfig":{"Defaults":{"Limits":{"MaxConnections":-1}}}}`, "UpstreamConfig.Defaults.Limits"},
		{`{"Kind":"service-defaults","Name":"a","UpstreamConfig":{"Defaults":{"PassiveHealthCheck":{"EnforcingConsecutive5xx":101}}}}`, "UpstreamConfig.Defaults.PassiveHealthCheck"},
		{`{"Kind":"service-defaults","Name":"a","Destination":{"Port":1}}`, "Destination: at least one address"},
		{`{"Kind":"service-defaults","Name":"a","Destination":{"Addresses":["x"],"Port":0}}`, "Destination.Port 0"},
		{`{"Kind":"service-defaults","Name":"a","Destination":{"Addresses":["*.x"],"Port":1}}`, "Destination.Addresses[0]"},
		{`{"Kind":"service-defaults","Name":"a","EnvoyExtensions":[{}]}`, "EnvoyExtensions[0]: Name"},
		{`{"Kind":"proxy-defaults"}`, ""},
		{`{"Kind":"proxy-defaults","Name":"x"}`, `invalid name ("x")`},
		{`{"Kind":"proxy-defaults","Config":{"protocol":"x"}}`, "Config: invalid value for protocol"},
		{`{"Kind":"proxy-defaults","AccessLogs":{"Type":"file"}}`, "path must be specified"},
		{`{"Kind":"proxy-defaults","AccessLogs":{"JSONFormat":"x","TextFormat":"y"}}`, "cannot specify both"},
		{`{"Kind":"proxy-defaults","FailoverPolicy":{"Mode":"order-by-locality"}}`, "FailoverPolicy: order-by-locality"},
		{`{"Kind":"proxy-defaults","PrioritizeByLocality":{"Mode":"x"}}`, "PrioritizeByLocality: Mode"},
		{`{"Kind":"service-router","Name":"a","Routes":[null]}`, "Route[0] is empty"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Match":{"HTTP":{"PathExact":"/a","PathRegex":"b"}}}]}`, "Route[0] should only contain at most one"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Match":{"HTTP":{"PathRegex":"("}}}]}`, "Route[0] PathRegex"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Match":{"HTTP":{"Header":[{"Name":"x"}]}}}]}`, "Route[0] Header[0] should contain one of"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Match":{"HTTP":{"QueryParam":[{"Exact":"x"}]}}}]}`, "Route[0] QueryParam[0] missing"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Match":{"HTTP":{"Methods":["get","GET"]}}}]}`, "Route[0] Methods contains \"GET\" more than once"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Destination":{"PrefixRewrite":"/x"}}]}`, "Route[0] cannot make use of PrefixRewrite"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Destination":{"RetryOn":["x"]}}]}`, "Route[0] contains an invalid retry condition"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Destination":{"RetryOnStatusCodes":[1]}}]}`, "Route[0]: RetryOnStatusCodes"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Destination":{"RequestTimeout":"-1s"}}]}`, "Route[0]: RequestTimeout"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Destination":{"RequestHeaders":{"Set":{"a b":"x"}}}}]}`, "Route[0] RequestHeaders"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Destination":{"ResponseHeaders":{"Add":{"a":"x\r\ny: z"}}}}]}`, "Route[0] ResponseHeaders"},
		{`{"Kind":"service-router","Name":"a","Routes":[{"Destination":{"Namespace":"x"}}]}`, "Route[0] Destination.Namespace"},
		{`{"Kind":"service-splitter","Name":"a"}`, "no splits configured"},
		{`{"Kind":"service-splitter","Name":"a","Splits":[{"Weight":33.33},{"Weight":33.33,"Service":"b"},{"Weight":33.34,"Service":"c"}]}`, ""},
		{`{"Kind":"service-splitter","Name":"a","Splits":[{"Weight":99.99}]}`, "the sum of all split weights must be 100, not 99.990000"},
		{`{"Kind":"service-splitter","Name":"a","Splits":[{"Weight":-1},{"Weight":101,"Service":"b"}]}`, "Splits[0]: Weight"},
		{`{"Kind":"service-splitter","Name":"a","Splits":[{"Weight":50},{"Weight":50,"Service":"a"}]}`, "split destination occurs more than once"},
		{`{"Kind":"service-resolver","Name":"a","Subsets":{"A":{}}}`, "Subset \"A\" is invalid"},
		{`{"Kind":"service-resolver","Name":"a","Subsets":{"v":{"Filter":"Service.Meta.v =="}}}`, "Filter for subset \"v\""},
		{`{"Kind":"service-resolver","Name":"a","Redirect":{"ServiceSubset":"v"}}`, "Redirect.ServiceSubset defined without Redirect.Service"},
		{`{"Kind":"service-resolver","Name":"a","Redirect":{"Service":"b","Peer":"p","Datacenter":"d"}}`, "Redirect.Peer cannot be set with"},
		{`{"Kind":"service-resolver","Name":"a","Redirect":{"SamenessGroup":"g"}}`, "Redirect.SamenessGroup"},
		{`{"Kind":"service-resolver","Name":"a","Failover":{"v":{"Service":"b"}}}`, "Bad Failover[\"v\"]: not a valid subset"},
		{`{"Kind":"service-resolver","Name":"a","Failover":{"*":{"Service":"b","Targets":[{"Service":"c"}]}}}`, "Bad Failover[\"*\"]: Targets cannot be set with"},
		{`{"Kind":"service-resolver","Name":"a","Failover":{"*":{"Datacenters":[""]}}}`, "Bad Failover[\"*\"].Datacenters[0]"},
		{`{"Kind":"service-resolver","Name":"a","Failover":{"*":{"Targets":[{}]}}}`, "Bad Failover[\"*\"].Targets[0] is empty"},
		{`{"Kind":"service-resolver","Name":"a","Failover":{"*":{"ServiceSubset":"v"}}}`, "Bad Failover[\"*\"]: ServiceSubset \"v\""},
		{`{"Kind":"service-resolver","Name":"a","ConnectTimeout":"-1s"}`, "Bad ConnectTimeout '-1s'"},
		{`{"Kind":"service-resolver","Name":"a","LoadBalancer":{"Policy":"x"}}`, "Bad LoadBalancer policy"},
		{`{"Kind":"service-resolver","Name":"a","LoadBalancer":{"Policy":"random","RingHashConfig":{}}}`, "Bad LoadBalancer configuration. RingHashConfig"},
		{`{"Kind":"service-resolver","Name":"a","LoadBalancer":{"Policy":"maglev","HashPolicies":[{"Field":"header"}]}}`, "Bad LoadBalancer HashPolicies[0]: field \"header\""},
		{`{"Kind":"service-resolver","Name":"a","LoadBalancer":{"Policy":"maglev","HashPolicies":[{"Field":"cookie","FieldValue":"c","CookieConfig":{"TTL":"1s"}}]}}`, ""},
		{`{"Kind":"mesh","TLS":{"Outgoing":{"TLSMinVersion":"TLSv1_3","TLSMaxVersion":"TLSv1_2"}}}`, "error in outgoing TLS configuration: configuring max version"},
		{`{"Kind":"mesh","TLS":{"Incoming":{"CipherSuites":["x"]}}}`, "error in incoming TLS configuration: unrecognized cipher suite"},
		{`{"Kind":"mesh","HTTP":{"Incoming":{"RequestNormalization":{"PathWithEscapedSlashesAction":"x"}}}}`, "no matching PathWithEscapedSlashesAction"},
		{`{"Kind":"mesh","Name":"x"}`, `json: unknown field "Name"`},
		{`{"Kind":"exported-services","Name":"default","Services":[{"Name":"a","Consumers":[{"peer_name":"p"}]}]}`, ""},
		{`{"Kind":"exported-services","Name":"default","Services":[{"Name":"a","Consumers":[{"Partition":"p"}]}]}`, "Services[0].Consumers[0]: partitions"},
		{`{"Kind":"jwt-provider","Name":"a","JSONWebKeySet":{"Local":{"JWKS":"%"}}}`, "JWKS must be valid base64"},
		{`{"Kind":"jwt-provider","Name":"a","JSONWebKeySet":{"Local":{"JWKS":"eA==","Filename":"f"}}}`, "must specify exactly one of String or filename"},
		{`{"Kind":"jwt-provider","Name":"a","JSONWebKeySet":{"Remote":{"URI":"ftp://x"}}}`, "Remote JWKS URI is invalid"},
		{`{"Kind":"jwt-provider","Name":"a","JSONWebKeySet":{"Remote":{"URI":"https://x","CacheDuration":"5m"}},"Locations":[{}]}`, "Locations[0]: must set exactly one"},
		{`{"Kind":"jwt-provider","Name":"a","JSONWebKeySet":{"Local":{"Filename":"f"}},"Forwarding":{}}`, "Header name required"},
		{`{"Kind":"terminating-gateway","Name":"a","Services":[{"Name":"b","CertFile":"c"}]}`, "Service \"b\" must have a CertFile"},
		{`{"Kind":"ingress-gateway","Name":"a","Listeners":[{"Port":1,"Services":[{"Name":"b","Hosts":["x"]}]}]}`, "Associating hosts to a service is not supported for the tcp protocol"},
		{`{"Kind":"ingress-gateway","Name":"a","Listeners":[{"Port":1,"Protocol":"http","Services":[{"Name":"b","Hosts":["a.*.b"]}]}]}`, "Service b (listener on port 1): host"},
		{`{"Kind":"ingress-gateway","Name":"a","Listeners":[{"Port":1,"Services":[{"Name":"b"}]},{"Port":1,"Services":[{"Name":"c"}]}]}`, "port 1 declared on two listeners"},
		{`{"Kind":"ingress-gateway","Name":"a","Listeners":[{"Port":1}]}`, "No service declared"},
		{`{"Kind":"api-gateway","Name":"a","Listeners":[{"Name":"l","Port":1,"Protocol":"tcp","Hostname":"x"}]}`, "listener \"l\": hostname"},
		{`{"Kind":"api-gateway","Name":"a","Listeners":[{"Name":"l","Port":1,"Protocol":"http","TLS":{"Certificates":[{"Kind":"x","Name":"y"}]}}]}`, "unsupported certificate kind"},
		{`{"Kind":"api-gateway","Name":"a","Listeners":[{"Name":"l","Port":1,"Protocol":"tcp"},{"Name":"m","Port":1,"Protocol":"tcp"}]}`, "listener \"m\": port 1"},
		{`{"Kind":"http-route","Name":"a","Parents":[{"Name":"g"},{"Name":"g"}]}`, "route parents must be unique"},
		{`{"Kind":"http-route","Name":"a","Rules":[{"Matches":[{"Method":"FROB"}]}]}`, "Rule[0], Match[0], Method"},
		{`{"Kind":"http-route","Name":"a","Rules":[{"Filters":{"JWT":{}}}]}`, "Rule[0], Filters: JWT"},
		{`{"Kind":"http-route","Name":"a","Rules":[{"Filters":{"ExtProc":null,"ExtAuthz":null},"Services":[{"Name":"x","Weight":-1}]}]}`, "Rule[0], Service[0], weight"},
		{`{"Kind":"tcp-route","Name":"a","Services":[{"Name":"b"},{"Name":"c"}]}`, "tcp-route currently only supports one service"},
		{`{"Kind":"inline-certificate","Name":"a","PrivateKey":"secret"}`, "failed to parse private key PEM"},
		{`{"Kind":"file-system-certificate"}`, "Name is required"},
		{`{"Kind":"sameness-group","Name":"a"}`, "sameness-groups are an enterprise-only feature"},
		{`{"Kind":"bound-api-gateway","Name":"a"}`, "bound-api-gateway entries cannot be written"},
		{`{"Kind":"service-defaults","Name":"a","Namespace":"default","Hash":1,"CreateIndex":1,"ModifyIndex":2}`, ""},
		{`{"Kind":"service-defaults","Name":"a","Namespace":"x"}`, `invalid Namespace "x"`},
	} {
		e, err := decodeEntry(t, c.doc)
		if err == nil {
			e.Normalize()
			err = e.Validate()
		}
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.doc, err)
		case c.want != "" && (!errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), c.want)):
			t.Errorf("%s: %v, want %s", c.doc, err, c.want)
		}
	}
}

// Whatever an entry of any kind holds comes back from the log and from its JSON.
func TestEntriesKeepAllTheyHold(t *testing.T) {
	for _, kind := range ConfigKinds() {
		e, err := NewConfigEntry(kind)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := e.(*readOnly); ok {
			continue
		}
		fill(reflect.ValueOf(e).Elem(), 0)
		b, err := Entry{e}.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var back Entry
		if err := back.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(back.ConfigEntry, e) {
			t.Errorf("%s: the log gives back %+v, not %+v", kind, back.ConfigEntry, e)
		}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := ParseJSON(text)
		if err != nil {
			t.Fatal(err)
		}
		raw["Kind"] = kind
		decoded, err := DecodeConfigEntry(raw)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		*decoded.Raft() = *e.Raft() // answers carry indexes, which nobody can set
		if !reflect.DeepEqual(decoded, e) {
			t.Errorf("%s: decoded\n%+v, not\n%+v", kind, decoded, e)
		}
	}
}

// fill gives every field a value.
func fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Struct:
		if v.Type() == timeType {
			v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), depth+1)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), depth+1)
		fill(v.Index(1), depth+1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(k, depth+1)
		fill(e, depth+1)
		v.SetMapIndex(k, e)
	case reflect.Interface:
		v.Set(reflect.ValueOf("any"))
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(depth + 1))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(depth + 1))
	case reflect.Float32:
		v.SetFloat(0.5)
	default:
		panic(v.Kind())
	}
}

func TestInlineCertificateNeverQuotesItsKey(t *testing.T) {
	e := &InlineCertificate{EntryHead: EntryHead{Name: "a"}, PrivateKey: "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"}
	if err := e.Validate(); err == nil || strings.Contains(err.Error(), "c2VjcmV0") || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

func TestInstanceFilter(t *testing.T) {
	i := &Instance{
		Node:    &Node{Node: "n", Meta: map[string]string{"rack": "r1"}},
		Service: &Service{ID: "s", Service: "web", Tags: []string{"a"}, Meta: map[string]string{"v": "1"}, Port: 8080},
		Checks:  []*Check{{CheckID: "c", Status: StatusPassing}},
	}
	for expr, want := range map[string]bool{
		"":                                        true,
		"Service.Meta.v == 1":                     true,
		"Service.Meta.v == 2":                     false,
		"Service.Meta.none == 1":                  false,
		"Service.Meta.none != 1":                  true,
		`"a" in Service.Tags`:                     true,
		"Node.Meta.rack == r1":                    true,
		"Service.Port == 8080":                    true,
		"Service.Weights.Passing == 1":            true,
		"any Checks as c { c.Status == passing }": true,
		"Nonsense == 1":                           false,
	} {
		f, err := NewInstanceFilter(expr)
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		if got := f.Match(i); got != want {
			t.Errorf("%s: %v", expr, got)
		}
	}
	f, err := NewInstanceFilter("Service.Port == 1")
	if err != nil || f.Match(nil) || f.Match(&Instance{}) {
		t.Errorf("nothing was selected: %v", err)
	}
}

func TestEntryWarnings(t *testing.T) {
	for doc, want := range map[string]string{
		`{"Kind":"service-defaults","Name":"a","Protocol":"http"}`: "",
		`{"Kind":"service-defaults","Name":"a","BalanceInboundConnections":"exact_balance","EnvoyExtensions":[{"Name":"x"}],
		  "UpstreamConfig":{"Overrides":[{"Name":"b","EnvoyListenerJSON":"{}"},{"Name":"c","EnvoyListenerJSON":"{}"}]}}`: "UpstreamConfig.Overrides.EnvoyListenerJSON has no effect; " +
			"BalanceInboundConnections has no effect; EnvoyExtensions has no effect",
		`{"Kind":"inline-certificate","Name":"a"}`:                                             "whoever may read this entry, or a backup, reads its private key; prefer file-system-certificate",
		`{"Kind":"http-route","Name":"a","Rules":[{"Filters":{"ExtAuthz":{"Enabled":true}}}]}`: "Rules.Filters.ExtAuthz has no effect",
	} {
		e, err := decodeEntry(t, doc)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(EntryWarnings(e), "; "); got != want {
			t.Errorf("%s: %s", doc, got)
		}
	}
}

// Nothing that a client sends as an entry ends the process, and what is accepted is
// carried by the log and compiles or is refused.
func FuzzConfigEntry(f *testing.F) {
	for _, kind := range ConfigKinds() {
		e, err := NewConfigEntry(kind)
		if err != nil {
			f.Fatal(err)
		}
		if _, ok := e.(*readOnly); !ok {
			fill(reflect.ValueOf(e).Elem(), 0)
		}
		b, err := json.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(kind, b)
		f.Add(kind, []byte(`{"name":"web"}`))
	}
	f.Add(KindServiceSplitter, []byte(`{"Name":"web","Splits":[{"Weight":1e38},{"Weight":-1e38}]}`))
	f.Add(KindServiceResolver, []byte(`{"Name":"web","Redirect":{"Service":"web","Datacenter":"dc1"},"Subsets":{"a":{"Filter":"((((("}}}`))
	f.Add(KindServiceRouter, []byte(`{"Name":"web","Routes":[{},{"Match":{}},{"Match":{"HTTP":{}},"Destination":{}}]}`))
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		raw, err := ParseJSON(body)
		if err != nil {
			return
		}
		if raw == nil {
			raw = map[string]any{}
		}
		raw["Kind"] = kind
		e, err := DecodeConfigEntry(raw)
		if err != nil {
			return
		}
		e.Normalize()
		if e.Validate() != nil {
			return
		}
		_ = EntryWarnings(e)
		b, err := Entry{e}.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var back Entry
		if err := back.UnmarshalBinary(b); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		back.Normalize()
		if err := back.Validate(); err != nil {
			t.Fatalf("valid at first, then not: %v", err)
		}
		c, err := CompileChain(EntrySet{e}, e.EntryName(), ChainOptions{Datacenter: "dc1"})
		if err == nil {
			_ = c.Connections()
		}
		MergeCentral(EntrySet{e}, &Service{Kind: KindConnectProxy, Proxy: ConnectProxy{DestinationServiceName: e.EntryName(), Upstreams: []Upstream{{DestinationName: e.EntryName()}}}})
	})
}

// TestCipherSuites: suites may have the names of IANA, as Consul documents them, and
// those of OpenSSL.
func TestCipherSuites(t *testing.T) {
	if len(cipherSuites) != len(opensslSuites) {
		t.Errorf("%d names of IANA, %d of OpenSSL", len(cipherSuites), len(opensslSuites))
	}
	if err := validTLS("TLSv1_2", "", []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"}); err != nil {
		t.Error(err)
	}
	if err := validTLS("TLSv1_2", "", []string{"TLS_NULL_WITH_NULL_NULL"}); err == nil {
		t.Error("an unknown suite is accepted")
	}
}
