package httpapi

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// The official client drives the API, unchanged.

func TestClientRegistersAndDiscovers(t *testing.T) {
	r := newRig(t)
	agent, health := r.client.Agent(), r.client.Health()
	err := agent.ServiceRegister(&api.AgentServiceRegistration{
		ID: "web1", Name: "web", Port: 80, Tags: []string{"a"}, Meta: map[string]string{"k": "v"},
		TaggedAddresses: map[string]api.ServiceAddress{"lan": {Address: "10.0.0.1", Port: 80}},
		Check:           &api.AgentServiceCheck{TTL: "1h", CheckID: "alive"},
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{
			Proxy: &api.AgentServiceConnectProxyConfig{Upstreams: []api.Upstream{{DestinationName: "db", LocalBindPort: 9191}}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.UpdateTTL("alive", "fine", api.HealthPassing); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service is passing in the catalog", func() bool {
		got, _, err := health.Service("web", "a", true, nil)
		return err == nil && len(got) == 1 && got[0].Service.Port == 80 && got[0].Node.Node == testNode
	})
	eventually(t, "its sidecar is in the catalog", func() bool {
		got, _, err := health.Connect("web", "", false, nil)
		return err == nil && len(got) == 1 && got[0].Service.Proxy.DestinationServiceName == "web" && got[0].Service.Proxy.Upstreams[0].LocalBindPort == 9191
	})
	services, err := agent.Services()
	if err != nil || len(services) != 2 || services["web1-sidecar-proxy"].Proxy.Upstreams[0].DestinationName != "db" {
		t.Fatalf("%v %v", services, err)
	}
	status, info, err := agent.AgentHealthServiceByID("web1")
	if err != nil || status != api.HealthPassing || info.Service.Service != "web" {
		t.Fatalf("%s %v %v", status, info, err)
	}
	checks, err := agent.ChecksWithFilter("Status == passing and CheckID == alive")
	if err != nil || checks["alive"] == nil || checks["alive"].Output != "fine" {
		t.Fatalf("%v %v", checks, err)
	}
	one, _, err := agent.Service("web1", nil)
	if err != nil || one.ContentHash == "" {
		t.Fatalf("%v %v", one, err)
	}
	if err := agent.EnableServiceMaintenance("web1", "why"); err != nil {
		t.Fatal(err)
	}
	if err := agent.ServiceDeregister("web1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it left the catalog", func() bool {
		got, _, err := r.client.Catalog().Services(nil)
		return err == nil && got["web"] == nil
	})
	self, err := agent.Self()
	if err != nil || self["Config"]["NodeName"] != testNode {
		t.Fatalf("%v %v", self, err)
	}
	if name, err := agent.NodeName(); err != nil || name != testNode {
		t.Fatalf("%s %v", name, err)
	}
	if m, err := agent.Members(false); err != nil || len(m) != 1 {
		t.Fatalf("%v %v", m, err)
	}
	if _, err := agent.Metrics(); err != nil {
		t.Fatal(err)
	}
	if l, err := r.client.Status().Leader(); err != nil || l == "" {
		t.Fatalf("%s %v", l, err)
	}
}

func TestClientCatalog(t *testing.T) {
	r := newRig(t)
	reg := &api.CatalogRegistration{
		Node: "ext", Address: "10.1.1.1", NodeMeta: map[string]string{"external-node": "true"},
		Service: &api.AgentService{ID: "s1", Service: "search", Port: 9200, Weights: api.AgentWeights{Passing: 2, Warning: 1}},
		Check:   &api.AgentCheck{CheckID: "c1", Name: "c", ServiceID: "s1", Status: api.HealthPassing},
		Checks: api.HealthChecks{{Node: "ext", CheckID: "c2", Name: "c2", Status: api.HealthPassing, Definition: api.HealthCheckDefinition{
			HTTP: "http://x", IntervalDuration: 5 * time.Second, TimeoutDuration: time.Second,
		}}},
	}
	if _, err := r.client.Catalog().Register(reg, nil); err != nil {
		t.Fatal(err)
	}
	got, _, err := r.client.Catalog().Service("search", "", nil)
	if err != nil || len(got) != 1 || got[0].ServiceWeights.Passing != 2 || got[0].NodeMeta["external-node"] != "true" {
		t.Fatalf("%v %v", got, err)
	}
	checks, _, err := r.client.Health().Node("ext", nil)
	if err != nil || len(checks) != 2 || checks[1].Definition.IntervalDuration != 5*time.Second {
		t.Fatalf("%v %v", checks, err)
	}
	node, _, err := r.client.Catalog().Node("ext", nil)
	if err != nil || node.Services["s1"].Port != 9200 {
		t.Fatalf("%v %v", node, err)
	}
	if none, _, err := r.client.Catalog().Node("none", nil); err != nil || none != nil {
		t.Fatalf("%v %v", none, err)
	}
	if list, _, err := r.client.Catalog().NodeServiceList("ext", nil); err != nil || len(list.Services) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	// What was read can be written back.
	reg.Service, reg.Check, reg.Checks = node.Services["s1"], nil, checks
	if _, err := r.client.Catalog().Register(reg, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Catalog().Deregister(&api.CatalogDeregistration{Node: "ext"}, nil); err != nil {
		t.Fatal(err)
	}
	if dcs, err := r.client.Catalog().Datacenters(); err != nil || len(dcs) != 1 {
		t.Fatalf("%v %v", dcs, err)
	}
}

func TestClientIntentions(t *testing.T) {
	r := newRig(t)
	c := r.client.Connect()
	allowed := func(source, destination string) bool {
		t.Helper()
		ok, _, err := c.IntentionCheck(&api.IntentionCheck{Source: source, Destination: destination}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if allowed("web", "db") {
		t.Fatal("allowed by default")
	}
	if _, err := c.IntentionUpsert(&api.Intention{SourceName: "web", DestinationName: "db", Action: api.IntentionActionAllow, Description: "d"}, nil); err != nil {
		t.Fatal(err)
	}
	if !allowed("web", "db") || allowed("api", "db") {
		t.Fatal("the intention does not decide")
	}
	got, _, err := c.IntentionGetExact("web", "db", nil)
	if err != nil || got.Precedence != 9 || got.Description != "d" || got.SourceNS != "default" {
		t.Fatalf("%+v %v", got, err)
	}
	if got, _, err := c.IntentionGetExact("x", "db", nil); err != nil || got != nil {
		t.Fatalf("%+v %v", got, err)
	}
	id, _, err := c.IntentionCreate(&api.Intention{SourceName: "*", DestinationName: "db", Action: api.IntentionActionDeny, Meta: map[string]string{"m": "1"}}, nil) //nolint:staticcheck // the CLI uses it
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.IntentionCreate(&api.Intention{SourceName: "*", DestinationName: "db", Action: api.IntentionActionAllow}, nil); err == nil { //nolint:staticcheck // the CLI uses it
		t.Fatal("created twice")
	}
	byID, _, err := c.IntentionGet(id, nil) //nolint:staticcheck // the CLI uses it
	if err != nil || byID.Meta["m"] != "1" || byID.Action != api.IntentionActionDeny || byID.CreatedAt.IsZero() || len(byID.Hash) == 0 {
		t.Fatalf("%+v %v", byID, err)
	}
	byID.Action, byID.Description = api.IntentionActionAllow, "changed"
	if _, err := c.IntentionUpdate(byID, nil); err != nil { //nolint:staticcheck // the CLI uses it
		t.Fatal(err)
	}
	list, _, err := c.Intentions(&api.QueryOptions{Filter: `SourceName == "*"`})
	if err != nil || len(list) != 1 || list[0].Description != "changed" || !list[0].CreatedAt.Equal(byID.CreatedAt) {
		t.Fatalf("%+v %v", list, err)
	}
	match, _, err := c.IntentionMatch(&api.IntentionMatch{By: api.IntentionMatchDestination, Names: []string{"db", "none"}}, nil)
	if err != nil || len(match["db"]) != 2 || match["db"][0].SourceName != "web" || match["none"] == nil && len(match) != 2 {
		t.Fatalf("%+v %v", match, err)
	}
	if _, err := c.IntentionDelete(id, nil); err != nil { //nolint:staticcheck // the CLI uses it
		t.Fatal(err)
	}
	if _, err := c.IntentionDeleteExact("web", "db", nil); err != nil {
		t.Fatal(err)
	}
	if list, _, err := c.Intentions(nil); err != nil || len(list) != 0 {
		t.Fatalf("%+v %v", list, err)
	}
}

func TestClientConfigEntries(t *testing.T) {
	r := newRig(t)
	c := r.client.ConfigEntries()
	entry := &api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: "db", Sources: []*api.SourceIntention{
		{Name: "*", Action: api.IntentionActionDeny}, {Name: "web", Action: api.IntentionActionAllow, Description: "d"},
	}, Meta: map[string]string{"m": "x"}}
	if ok, _, err := c.CAS(entry, 0, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	if ok, _, err := c.CAS(entry, 0, nil); err != nil || ok {
		t.Fatal("a lost check-and-set won", err)
	}
	got, meta, err := c.Get(api.ServiceIntentions, "db", nil)
	if err != nil || meta.LastIndex == 0 {
		t.Fatal(err)
	}
	si := got.(*api.ServiceIntentionsConfigEntry)
	if si.Sources[0].Name != "web" || si.Sources[0].Precedence != 9 || si.Meta["m"] != "x" || si.Kind != api.ServiceIntentions {
		t.Fatalf("%+v", si)
	}
	// What was read can be written back.
	if ok, _, err := c.Set(si, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	if list, _, err := c.List(api.ServiceIntentions, nil); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if ok, _, err := c.DeleteCAS(api.ServiceIntentions, "db", 1, nil); err != nil || ok {
		t.Fatal(ok, err)
	}
	if _, err := c.Delete(api.ServiceIntentions, "db", nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Get(api.ServiceIntentions, "db", nil); err == nil {
		t.Fatal("it is still there")
	}
}

func TestClientConnect(t *testing.T) {
	r := newRig(t)
	roots, _, err := r.client.Connect().CARoots(nil)
	if err != nil || roots.ActiveRootID != "aa:bb" || roots.TrustDomain != testDomain {
		t.Fatalf("%+v %v", roots, err)
	}
	cfg, _, err := r.client.Connect().CAGetConfig(nil)
	if err != nil || cfg.Config["LeafCertTTL"] != "72h" || cfg.Config["PrivateKey"] != nil {
		t.Fatalf("%+v %v", cfg, err)
	}
	cfg.Config["LeafCertTTL"] = "24h"
	if _, err := r.client.Connect().CASetConfig(cfg, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Connect().CASetConfig(&api.CAConfig{Provider: "nope"}, nil); err == nil {
		t.Fatal("an unknown provider was taken")
	}
	if roots, _, err := r.client.Agent().ConnectCARoots(nil); err != nil || len(roots.Roots) != 1 {
		t.Fatal(roots, err)
	}
	leaf, meta, err := r.client.Agent().ConnectCALeaf("web", nil)
	if err != nil || leaf.PrivateKeyPEM != "key\n" || leaf.Service != "web" || meta.LastIndex != 7 {
		t.Fatalf("%+v %+v %v", leaf, meta, err)
	}
	auth, err := r.client.Agent().ConnectAuthorize(&api.AgentAuthorizeParams{Target: "db", ClientCertURI: "spiffe://" + testDomain + "/ns/default/dc/dc1/svc/web"})
	if err != nil || auth.Authorized || auth.Reason != "Default behavior configured by ACLs" {
		t.Fatalf("%+v %v", auth, err)
	}
}

func TestAuthorize(t *testing.T) {
	r := newRig(t)
	r.mustApply(&catalog.SetIntention{Destination: "db", Source: catalog.SourceIntention{Name: "web", Action: catalog.ActionAllow, Type: "consul"}})
	ask := func(domain, source string) (int, authorizeView, string) {
		a := r.do("POST", "/v1/agent/connect/authorize", `{"Target":"db","ClientCertURI":"spiffe://`+domain+`/ns/default/dc/dc1/svc/`+source+`","ClientCertSerial":"01"}`)
		var v authorizeView
		_ = json.Unmarshal([]byte(a.body), &v)
		return a.status, v, a.header.Get("X-Cache")
	}
	if s, v, cache := ask(testDomain, "web"); s != 200 || !v.Authorized || cache != "MISS" || v.Reason != "Matched L4 intention: default/web => default/db (Precedence: 9, Action: ALLOW)" {
		t.Fatal(s, v, cache)
	}
	if s, v, cache := ask(testDomain, "api"); s != 200 || v.Authorized || cache != "HIT" {
		t.Fatal(s, v, cache)
	}
	if s, v, _ := ask("99999999-2222-3333-4444-555555555555.consul", "web"); s != 200 || v.Authorized {
		t.Fatal("another trust domain is authorised:", s, v)
	}
	for _, body := range []string{`{`, `{"Target":"","ClientCertURI":"x"}`, `{"Target":"db","ClientCertURI":"not-spiffe"}`, `{"Target":"db","ClientCertURI":"spiffe://x/agent/client/dc/dc1/id/n"}`} {
		if a := r.do("POST", "/v1/agent/connect/authorize", body); a.status != 400 {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
}

func TestCheckSaysWhy(t *testing.T) {
	r := newRig(t)
	sameJSON(t, r.do("GET", "/v1/connect/intentions/check?source=web&destination=db", "").body,
		`{"Allowed":false,"Action":"deny","Reason":"default: deny, no intention matches","Rule":"default"}`)
	r.want(r.do("PUT", "/v1/connect/intentions/exact?source=web&destination=db", `{"Action":"allow"}`), 200, "true")
	sameJSON(t, r.do("GET", "/v1/connect/intentions/check?source=web&destination=db", "").body,
		`{"Allowed":true,"Action":"allow","Reason":"allow by intention web → db (precedence 9)","Rule":"web → db (precedence 9)"}`)
}

func TestIntentionRefusals(t *testing.T) {
	r := newRig(t)
	const exact = "/v1/connect/intentions/exact?"
	for _, c := range []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"PUT", exact + "source=web&destination=db", `{"Action":"allow","Meta":{"a":"b"}}`, 500, ""},
		{"PUT", exact + "source=web&destination=db", `{}`, 500, ""},
		{"PUT", exact + "source=web&destination=db", `{`, 400, "Request decode failed: unexpected EOF"},
		{"PUT", exact + "source=web", `{"Action":"allow"}`, 500, "required query parameter 'destination' not set"},
		{"PUT", exact + "destination=db", `{"Action":"allow"}`, 500, "required query parameter 'source' not set"},
		{"PUT", exact + "source=*we&destination=db", `{"Action":"allow"}`, 500, ""},
		{"PUT", exact + "source=a/b/c/d&destination=db", `{"Action":"allow"}`, 500, `source "a/b/c/d" is invalid: input can contain at most two '/'`},
		{"PUT", exact + "source=other/web&destination=db", `{"Action":"allow"}`, 500, ""},
		{"PUT", exact + "source=web&destination=db", `{"Action":"allow","SourceName":"x"}`, 500, ""},
		{"PUT", exact + "source=default/web&destination=db", `{"Action":"deny"}`, 200, "true"},
		{"GET", exact + "source=x&destination=db", ``, 404, "Intention not found"},
		{"DELETE", exact + "source=x&destination=db", ``, 200, "true"},
		{"POST", exact + "source=web&destination=db", `{}`, 405, "method POST not allowed"},
		{"GET", "/v1/connect/intentions/match", ``, 500, "required query parameter 'by' not set"},
		{"GET", "/v1/connect/intentions/match?by=destination", ``, 500, "required query parameter 'name' not set"},
		{"GET", "/v1/connect/intentions/match?by=zz&name=db", ``, 500, "'by' parameter must be one of 'source' or 'destination'"},
		{"GET", "/v1/connect/intentions/match?by=source&name=a/b/c", ``, 500, ""},
		{"GET", "/v1/connect/intentions/check?source=a", ``, 500, ""},
		{"GET", "/v1/connect/intentions/not-a-uuid", ``, 400, ""},
		{"GET", "/v1/connect/intentions/" + testCluster, ``, 404, "Intention not found"},
		{"PUT", "/v1/connect/intentions/" + testCluster, `{"SourceName":"a","DestinationName":"b","Action":"allow"}`, 404, ""},
		{"POST", "/v1/connect/intentions", `{"SourceName":"a"}`, 500, ""},
		{"PUT", "/v1/config", `{}`, 400, ""},
		{"PUT", "/v1/config", `{`, 400, "Request decoding failed: unexpected EOF"},
		{"PUT", "/v1/config", `{"Kind":"nope","Name":"x"}`, 400, ""},
		{"PUT", "/v1/config", `{"Kind":"service-intentions","Name":"db","Sources":[]}`, 500, ""},
		{"PUT", "/v1/config?cas=x", `{"Kind":"service-intentions","Name":"db","Sources":[]}`, 400, ""},
		{"GET", "/v1/config/", ``, 200, "[]"},
		{"GET", "/v1/config/nope", ``, 500, "invalid config entry kind: nope"},
		{"GET", "/v1/config/nope/x", ``, 500, "invalid config entry kind: nope"},
		{"GET", "/v1/config/service-intentions/none", ``, 404, `Config entry not found for "service-intentions" / "none"`},
		{"DELETE", "/v1/config/service-intentions", ``, 404, "Must provide both a kind and name to delete"},
		{"DELETE", "/v1/config/service-intentions/none", ``, 200, "{}"},
		{"GET", "/v1/config/service-intentions?filter=Zzz==1", ``, 500, `Failed to create boolean expression evaluator: Selector "Zzz" is not valid`},
		{"PUT", "/v1/connect/ca/configuration", ``, 400, "Request decode failed: EOF"},
		{"GET", "/v1/agent/connect/ca/leaf/", ``, 500, ""},
	} {
		t.Run(c.method+" "+c.path+" "+c.body, func(t *testing.T) {
			r.t = t
			r.want(r.do(c.method, c.path, c.body), c.status, c.text)
		})
	}
}

func TestRootsAsPEM(t *testing.T) {
	r := newRig(t)
	a := r.want(r.do("GET", "/v1/connect/ca/roots?pem=true", ""), 200, "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
	if ct := a.header.Get("Content-Type"); ct != "application/pem-certificate-chain" {
		t.Fatal(ct)
	}
}

func TestProxySnapshots(t *testing.T) {
	r := newRig(t)
	l := &catalog.Latest[*connect.Snapshot]{}
	r.snaps["p"] = l
	l.Set(5, &connect.Snapshot{Index: 5, Service: "web", Default: catalog.ActionDeny})
	r.want(r.do("GET", "/v1/agent/connect/proxy/none", ""), 404, "unknown proxy ID: none")
	r.want(r.do("PUT", "/v1/agent/connect/proxy/none", "{}"), 404, "unknown proxy ID: none")
	r.want(r.do("PUT", "/v1/agent/connect/proxy/p", "[]"), 400, "")
	r.want(r.do("PUT", "/v1/agent/connect/proxy/p", `{"Ready":true,"OfALaterVersion":1}`), 200, "true")
	if st := <-r.told; !st.Ready {
		t.Errorf("told: %+v", st)
	}
	r.want(r.do("PUT", "/v1/agent/connect/proxy/p", `{"Ready":true,"Metrics":{"Number":1,"Series":{}}}`), 200, "true")
	if st := <-r.told; !st.Ready {
		t.Errorf("told with metrics: %+v", st)
	}
	r.want(r.do("PUT", "/v1/agent/connect/proxy/p", `{"Ready":true,"Metrics":[]}`), 400, "")
	if st := <-r.told; !st.Ready {
		t.Errorf("told with metrics that cannot be read: %+v", st)
	}
	a := r.want(r.do("GET", "/v1/agent/connect/proxy/p", ""), 200, "")
	var snap connect.Snapshot
	if err := json.Unmarshal([]byte(a.body), &snap); err != nil || snap.Service != "web" || a.header.Get("X-Consul-Index") != "5" {
		t.Fatal(a, err)
	}
	next := make(chan answer, 1)
	go func() { next <- r.do("GET", "/v1/agent/connect/proxy/p?index=5&wait=30s", "") }()
	l.Set(6, &connect.Snapshot{Index: 6, Service: "web"})
	if a := <-next; a.header.Get("X-Consul-Index") != "6" {
		t.Fatal(a)
	}
	if a := r.do("GET", "/v1/agent/connect/proxy/p?index=6&wait=10ms", ""); a.status != 200 || a.header.Get("X-Consul-Index") != "6" {
		t.Fatal(a)
	}
}
