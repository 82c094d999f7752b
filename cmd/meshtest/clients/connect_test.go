package clients_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest"
)

func TestConfigEntries(t *testing.T) {
	_, c := mesh(t)
	ce := c.ConfigEntries()
	timeout := 3 * time.Second
	entries := []api.ConfigEntry{
		&api.ProxyConfigEntry{Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal, Config: map[string]any{"protocol": "http"}, Meta: map[string]string{"a": "b"}},
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "web", Protocol: "http", MaxInboundConnections: 7},
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "api", Protocol: "http"},
		&api.ServiceResolverConfigEntry{Kind: api.ServiceResolver, Name: "web", DefaultSubset: "v1", Subsets: map[string]api.ServiceResolverSubset{"v1": {Filter: "Service.Meta.v == 1"}, "v2": {OnlyPassing: true}}, ConnectTimeout: timeout, PrioritizeByLocality: &api.ServiceResolverPrioritizeByLocality{Mode: "failover"}},
		&api.ServiceSplitterConfigEntry{Kind: api.ServiceSplitter, Name: "web", Splits: []api.ServiceSplit{{Weight: 90, ServiceSubset: "v1"}, {Weight: 10, ServiceSubset: "v2"}}},
		&api.ServiceRouterConfigEntry{Kind: api.ServiceRouter, Name: "web", Routes: []api.ServiceRoute{{Match: &api.ServiceRouteMatch{HTTP: &api.ServiceRouteHTTPMatch{PathPrefix: "/api"}}, Destination: &api.ServiceRouteDestination{Service: "api"}}}},
		&api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: "web", Sources: []*api.SourceIntention{{Name: "api", Action: api.IntentionActionAllow}}},
		&api.IngressGatewayConfigEntry{Kind: api.IngressGateway, Name: "edge", Listeners: []api.IngressListener{{Port: 8080, Protocol: "http", Services: []api.IngressService{{Name: "web"}}}}},
		&api.TerminatingGatewayConfigEntry{Kind: api.TerminatingGateway, Name: "exit", Services: []api.LinkedService{{Name: "billing"}}},
		&api.MeshConfigEntry{TransparentProxy: api.TransparentProxyMeshConfig{MeshDestinationsOnly: true}},
		&api.ExportedServicesConfigEntry{Name: "default", Services: []api.ExportedService{{Name: "web", Consumers: []api.ServiceConsumer{{Peer: "east"}}}}},
		&api.JWTProviderConfigEntry{Kind: api.JWTProvider, Name: "okta", Issuer: "x", JSONWebKeySet: &api.JSONWebKeySet{Local: &api.LocalJWKS{JWKS: "eyJrZXlzIjpbXX0="}}},
	}
	for _, e := range entries {
		if ok, _, err := ce.Set(e, nil); err != nil || !ok {
			t.Fatalf("%s %s: %t, %v", e.GetKind(), e.GetName(), ok, err)
		}
		got, meta, err := ce.Get(e.GetKind(), e.GetName(), nil)
		if err != nil || got.GetName() != e.GetName() || got.GetModifyIndex() == 0 || meta.LastIndex < got.GetModifyIndex() {
			t.Fatalf("%s: %+v, %v", e.GetKind(), got, err)
		}
		if list, _, err := ce.List(e.GetKind(), nil); err != nil || len(list) == 0 {
			t.Fatalf("%s: %v %v", e.GetKind(), list, err)
		}
	}
	r, _, err := ce.Get(api.ServiceResolver, "web", nil)
	must1(t, err)
	if got := r.(*api.ServiceResolverConfigEntry); got.ConnectTimeout != timeout || got.Subsets["v1"].Filter == "" || got.PrioritizeByLocality == nil {
		t.Fatalf("%+v", got)
	}
	chain, _, err := c.DiscoveryChain().Get("web", nil, nil)
	must1(t, err)
	if chain.Chain.Protocol != "http" || !strings.HasPrefix(chain.Chain.StartNode, "router:web") || len(chain.Chain.Targets) != 3 {
		t.Fatalf("%+v", chain.Chain)
	}
	chain, _, err = c.DiscoveryChain().Get("api", &api.DiscoveryChainOptions{OverrideConnectTimeout: timeout, OverrideProtocol: "tcp"}, nil)
	if err != nil || chain.Chain.CustomizationHash == "" {
		t.Fatalf("%+v, %v", chain, err)
	}
	e := entries[1].(*api.ServiceConfigEntry)
	e.MaxInboundConnections = 8
	if ok, _, err := ce.CAS(e, 1, nil); err != nil || ok {
		t.Fatalf("a wrong index was taken: %v", err)
	}
	now, _, err := ce.Get(e.Kind, e.Name, nil)
	must1(t, err)
	if ok, _, err := ce.CAS(e, now.GetModifyIndex(), nil); err != nil || !ok {
		t.Fatalf("the right index was refused: %v", err)
	}
	// What others rest on is not taken from under them.
	if _, err := ce.Delete(api.ServiceResolver, "web", nil); err == nil {
		t.Fatal("the resolver went although a splitter uses its subsets")
	}
	if ok, _, err := ce.DeleteCAS(api.JWTProvider, "okta", 1, nil); err != nil || ok {
		t.Fatalf("deleted at a wrong index: %v", err)
	}
	for _, e := range slices.Backward(entries) {
		if _, err := ce.Delete(e.GetKind(), e.GetName(), nil); err != nil {
			t.Fatalf("%s %s: %v", e.GetKind(), e.GetName(), err)
		}
		if _, _, err := ce.Get(e.GetKind(), e.GetName(), nil); err == nil || !strings.Contains(err.Error(), "404") {
			t.Fatalf("%s %s: %v", e.GetKind(), e.GetName(), err)
		}
	}
}

func TestIntentions(t *testing.T) {
	_, c := mesh(t)
	con := c.Connect()
	_, err := con.IntentionUpsert(&api.Intention{SourceName: "web", DestinationName: "db", Action: api.IntentionActionAllow, Description: "d"}, nil)
	must1(t, err)
	id, _, err := con.IntentionCreate(&api.Intention{SourceName: "*", DestinationName: "db", Action: api.IntentionActionDeny}, nil) //nolint:staticcheck // deprecated, and still called by old clients
	must1(t, err)
	check := func(source string, want bool) {
		t.Helper()
		if ok, _, err := con.IntentionCheck(&api.IntentionCheck{Source: source, Destination: "db", SourceType: api.IntentionSourceConsul}, nil); err != nil || ok != want {
			t.Fatalf("%s: %t, %v", source, ok, err)
		}
	}
	check("web", true)
	check("api", false)
	i, _, err := con.IntentionGet(id, nil) //nolint:staticcheck // deprecated, and still called by old clients
	if err != nil || i.SourceName != "*" || i.Precedence != 8 {
		t.Fatalf("%+v %v", i, err)
	}
	i.Action = api.IntentionActionAllow
	_, err = con.IntentionUpdate(i, nil) //nolint:staticcheck // deprecated, and still called by old clients
	must1(t, err)
	check("api", true)
	match, _, err := con.IntentionMatch(&api.IntentionMatch{By: api.IntentionMatchDestination, Names: []string{"db"}}, nil)
	if err != nil || len(match["db"]) != 2 || match["db"][0].SourceName != "web" {
		t.Fatalf("%+v %v", match, err)
	}
	if one, _, err := con.IntentionGetExact("web", "db", nil); err != nil || one.Description != "d" {
		t.Fatalf("%+v %v", one, err)
	}
	if none, _, err := con.IntentionGetExact("nobody", "db", nil); err != nil || none != nil {
		t.Fatalf("%+v %v", none, err)
	}
	_, err = con.IntentionDelete(id, nil) //nolint:staticcheck // deprecated, and still called by old clients
	must1(t, err)
	_, err = con.IntentionDeleteExact("web", "db", nil)
	must1(t, err)
	if all, _, err := con.Intentions(nil); err != nil || len(all) != 0 {
		t.Fatalf("%+v %v", all, err)
	}
	check("web", false)
}

// TestPartialWildcards: names that end in the wildcard are written, listed, matched and
// judged as others are, below the exact ones.
func TestPartialWildcards(t *testing.T) {
	_, c := mesh(t)
	con := c.Connect()
	for _, i := range []api.Intention{
		{SourceName: "job-*", DestinationName: "db", Action: api.IntentionActionAllow},
		{SourceName: "job-bad", DestinationName: "db", Action: api.IntentionActionDeny},
		{SourceName: "job-b*", DestinationName: "db-*", Action: api.IntentionActionAllow},
		{SourceName: "*", DestinationName: "db-*", Action: api.IntentionActionDeny},
	} {
		_, err := con.IntentionUpsert(&i, nil)
		must1(t, err)
	}
	for pair, want := range map[[2]string]bool{
		{"job-1", "db"}: true, {"job-bad", "db"}: false, {"jobs", "db"}: false,
		{"job-b1", "db-1"}: true, {"job-1", "db-1"}: false, {"job-b1", "dbs"}: false,
	} {
		if ok, _, err := con.IntentionCheck(&api.IntentionCheck{Source: pair[0], Destination: pair[1]}, nil); err != nil || ok != want {
			t.Errorf("%v: %t %v, want %t", pair, ok, err, want)
		}
	}
	for name, want := range map[string]string{"db": "job-bad 9, job-* 8", "db-2": "job-b* 7, * 7", "other": ""} {
		got, _, err := con.IntentionMatch(&api.IntentionMatch{By: api.IntentionMatchDestination, Names: []string{name}}, nil)
		must1(t, err)
		var list []string
		for _, i := range got[name] {
			list = append(list, fmt.Sprint(i.SourceName, " ", i.Precedence))
		}
		if strings.Join(list, ", ") != want {
			t.Errorf("%s is matched by %v, want %s", name, list, want)
		}
	}
	got, _, err := con.IntentionMatch(&api.IntentionMatch{By: api.IntentionMatchSource, Names: []string{"job-b2"}}, nil)
	if err != nil || len(got["job-b2"]) != 3 {
		t.Errorf("%+v %v", got, err)
	}
	if one, _, err := con.IntentionGetExact("job-b*", "db-*", nil); err != nil || one == nil || one.Precedence != 7 {
		t.Errorf("%+v %v", one, err)
	}
	if _, err := con.IntentionUpsert(&api.Intention{SourceName: "*-job", DestinationName: "db", Action: api.IntentionActionAllow}, nil); err == nil || !strings.Contains(err.Error(), "at the end") {
		t.Error(err)
	}
	_, err = con.IntentionDeleteExact("job-*", "db", nil)
	must1(t, err)
	if ok, _, err := con.IntentionCheck(&api.IntentionCheck{Source: "job-1", Destination: "db"}, nil); err != nil || ok {
		t.Error(ok, err)
	}
}

func TestCertificateAuthority(t *testing.T) {
	m, c := mesh(t)
	roots, _, err := c.Agent().ConnectCARoots(nil)
	must1(t, err)
	leaf, meta, err := c.Agent().ConnectCALeaf("web", nil)
	must1(t, err)
	pair, err := tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM))
	must1(t, err)
	verify := func(pemRoots string, cert []byte) error {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(pemRoots))
		parsed, err := x509.ParseCertificate(cert)
		must1(t, err)
		_, err = parsed.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		return err
	}
	must1(t, verify(roots.Roots[0].RootCertPEM, pair.Certificate[0]))
	if want := fmt.Sprintf("spiffe://%s/ns/default/dc/dc1/svc/web", roots.TrustDomain); leaf.ServiceURI != want {
		t.Fatalf("%s, want %s", leaf.ServiceURI, want)
	}
	for client, want := range map[string]bool{"web": false} {
		auth, err := c.Agent().ConnectAuthorize(&api.AgentAuthorizeParams{Target: "db", ClientCertURI: strings.Replace(leaf.ServiceURI, "web", client, 1), ClientCertSerial: leaf.SerialNumber})
		if err != nil || auth.Authorized != want || auth.Reason == "" {
			t.Fatalf("%+v %v", auth, err)
		}
	}
	// Another key type makes a new root; a leaf that was waited for is renewed under it.
	renewed := make(chan *api.LeafCert, 1)
	go func() {
		next, _, err := client(t, m).Agent().ConnectCALeaf("web", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: meshtest.Patience})
		if err != nil {
			t.Error(err)
		}
		renewed <- next
	}()
	conf, _, err := c.Connect().CAGetConfig(nil)
	must1(t, err)
	conf.Config["PrivateKeyType"], conf.Config["PrivateKeyBits"] = "ec", 384
	_, err = c.Connect().CASetConfig(conf, nil)
	must1(t, err)
	after, _, err := c.Connect().CARoots(nil)
	if err != nil || len(after.Roots) != 2 || after.ActiveRootID == roots.ActiveRootID {
		t.Fatalf("%+v %v", after, err)
	}
	next := <-renewed
	if next == nil || next.SerialNumber == leaf.SerialNumber {
		t.Fatalf("%+v", next)
	}
}

func TestPreparedQueries(t *testing.T) {
	_, c := mesh(t)
	for i, status := range []string{"passing", "critical"} {
		_, err := c.Catalog().Register(&api.CatalogRegistration{
			Node: fmt.Sprint("far", i), Address: "10.0.0.1", Service: &api.AgentService{ID: "db", Service: "db", Port: 1},
			Checks: api.HealthChecks{{Node: fmt.Sprint("far", i), CheckID: "up", Name: "up", Status: status, ServiceID: "db"}},
		}, nil)
		must1(t, err)
	}
	pq := c.PreparedQuery()
	id, _, err := pq.Create(&api.PreparedQueryDefinition{Name: "find", Service: api.ServiceQuery{Service: "db", OnlyPassing: true}, DNS: api.QueryDNSOptions{TTL: "7s"}}, nil)
	must1(t, err)
	for _, by := range []string{id, "find"} {
		res, _, err := pq.Execute(by, nil)
		if err != nil || len(res.Nodes) != 1 || res.DNS.TTL != "7s" || res.Service != "db" {
			t.Fatalf("%s: %+v %v", by, res, err)
		}
	}
	defs, _, err := pq.Get(id, nil)
	if err != nil || len(defs) != 1 || defs[0].Name != "find" {
		t.Fatalf("%+v %v", defs, err)
	}
	defs[0].Service.IgnoreCheckIDs = []string{"up"}
	_, err = pq.Update(defs[0], nil)
	must1(t, err)
	if res, _, err := pq.Execute("find", nil); err != nil || len(res.Nodes) != 2 {
		t.Fatalf("%+v %v", res, err)
	}
	if list, _, err := pq.List(nil); err != nil || len(list) != 1 {
		t.Fatalf("%+v %v", list, err)
	}
	_, err = pq.Delete(id, nil)
	must1(t, err)
	if _, _, err := pq.Execute("find", nil); err == nil {
		t.Fatal("a query that is gone was executed")
	}
}

// TestTerminatingGateway: a gateway that an entry binds to a service is among the
// instances that speak the mesh's mTLS for it, wherever they are asked for.
func TestTerminatingGateway(t *testing.T) {
	m, c := mesh(t)
	for _, s := range []*api.AgentService{
		{ID: "exit", Service: "exit", Kind: api.ServiceKindTerminatingGateway, Port: 8443, Meta: map[string]string{"zone": "a"}},
		{ID: "billing", Service: "billing", Port: 80},
	} {
		_, err := c.Catalog().Register(&api.CatalogRegistration{
			Node: "edge-" + s.ID, Address: "192.0.2.7", Service: s,
			Checks: api.HealthChecks{{Node: "edge-" + s.ID, CheckID: "up-" + s.ID, Name: "up", Status: api.HealthPassing, ServiceID: s.ID}},
		}, nil)
		must1(t, err)
	}
	_, meta, err := c.Health().Connect("billing", "", true, nil)
	must1(t, err)
	woken := make(chan []*api.ServiceEntry, 1)
	go func() {
		list, _, err := client(t, m).Health().Connect("billing", "", true, &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: meshtest.Patience})
		if err != nil {
			t.Error(err)
		}
		woken <- list
	}()
	for _, services := range [][]api.LinkedService{
		{{Name: "billing", CAFile: "/etc/ca.pem", SNI: "billing.example.com"}}, {{Name: "*"}},
	} {
		_, _, err := c.ConfigEntries().Set(&api.TerminatingGatewayConfigEntry{Kind: api.TerminatingGateway, Name: "exit", Services: services}, nil)
		must1(t, err)
		list, _, err := c.Health().Connect("billing", "", true, nil)
		if err != nil || len(list) != 1 || list[0].Service.Kind != api.ServiceKindTerminatingGateway || list[0].Service.ID != "exit" || len(list[0].Checks) != 1 {
			t.Fatalf("%v: %+v %v", services, list, err)
		}
		if list, _, err := c.Catalog().Connect("billing", "", &api.QueryOptions{Filter: `ServiceKind == "terminating-gateway" and ServiceMeta.zone == a`}); err != nil || len(list) != 1 || list[0].ServicePort != 8443 {
			t.Fatalf("%v: %+v %v", services, list, err)
		}
		if list, _, err := c.Health().Connect("billing", "", true, &api.QueryOptions{Filter: `Service.Kind != "terminating-gateway"`}); err != nil || len(list) != 0 {
			t.Fatalf("%v: %+v %v", services, list, err)
		}
		if linked, _, err := c.Catalog().GatewayServices("exit", nil); err != nil || len(linked) != 1 || linked[0].Service.Name != "billing" || linked[0].FromWildcard != (services[0].Name == "*") {
			t.Fatalf("%v: %+v %v", services, linked, err)
		}
		if got := resolve(t, m.DNS, "billing.connect.consul"); !slices.Equal(got, []string{"192.0.2.7"}) {
			t.Fatalf("%v: %v", services, got)
		}
	}
	if list := <-woken; len(list) != 1 {
		t.Fatalf("who waited was told of %+v", list)
	}
	// Whom it knows by name alone has a virtual address all the same.
	_, _, err = c.ConfigEntries().Set(&api.TerminatingGatewayConfigEntry{Kind: api.TerminatingGateway, Name: "exit", Services: []api.LinkedService{{Name: "far"}}}, nil)
	must1(t, err)
	if got := resolve(t, m.DNS, "far.virtual.consul"); len(got) != 1 || !strings.HasPrefix(got[0], "240.") {
		t.Fatal(got)
	}
}

// resolve asks the mesh's DNS for the addresses of a name.
func resolve(t *testing.T, server, name string) []string {
	t.Helper()
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server)
	}}
	ips, err := r.LookupHost(t.Context(), name)
	must1(t, err)
	return ips
}
