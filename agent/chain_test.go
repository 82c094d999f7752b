package agent_test

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/meshtest"
	"github.com/weftmesh/weft/server"
)

func consulClient(t *testing.T, m *meshtest.Mesh) *api.Client {
	t.Helper()
	transport := api.DefaultConfig().Transport
	transport.DisableKeepAlives = true
	c, err := api.NewClient(&api.Config{Address: m.Addr, Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// meshService registers a service that greets with what, with a sidecar.
func meshService(t *testing.T, m *meshtest.Mesh, id, name, version, what string) {
	t.Helper()
	m.Register(map[string]any{
		"ID": id, "Name": name, "Port": meshtest.Echo(t, what), "Meta": map[string]string{"version": version},
		"Connect": map[string]any{"SidecarService": map[string]any{}},
	})
}

// TestUpstreamsFollowConfigEntries: a listener leads where config entries, written
// by Consul's own client, say that the name leads to.
func TestUpstreamsFollowConfigEntries(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{DefaultIntention: catalog.ActionAllow})
	entries := consulClient(t, m).ConfigEntries()
	set := func(e api.ConfigEntry) {
		t.Helper()
		if ok, _, err := entries.Set(e, nil); err != nil || !ok {
			t.Fatalf("%s %s: %v %v", e.GetKind(), e.GetName(), ok, err)
		}
	}
	meshService(t, m, "db-1", "db", "1", "one")
	meshService(t, m, "db-2", "db", "2", "two")
	meshService(t, m, "backup", "backup", "1", "backup")
	upstream := meshtest.FreePort(t)
	m.Register(map[string]any{"Name": "web", "Port": meshtest.Echo(t, "web"), "Connect": map[string]any{"SidecarService": map[string]any{
		"Proxy": map[string]any{"Upstreams": []any{map[string]any{"DestinationName": "db", "LocalBindPort": upstream}}},
	}}})
	// reaches waits until connections get to name, and then always.
	reaches := func(name, when string) {
		t.Helper()
		m.Eventually("connections to reach "+name+" "+when, func() error {
			for range 5 {
				c, err := call(upstream, name)
				if err != nil {
					return err
				}
				_ = c.Close()
			}
			return nil
		})
	}
	resolver := func(change func(*api.ServiceResolverConfigEntry)) {
		e := &api.ServiceResolverConfigEntry{
			Kind: api.ServiceResolver, Name: "db", ConnectTimeout: 3 * time.Second,
			Subsets: map[string]api.ServiceResolverSubset{"v1": {Filter: "Service.Meta.version == 1"}, "v2": {Filter: "Service.Meta.version == 2"}},
		}
		change(e)
		set(e)
	}
	resolver(func(e *api.ServiceResolverConfigEntry) { e.DefaultSubset = "v2" })
	reaches("two", "by the default subset")
	resolver(func(e *api.ServiceResolverConfigEntry) { e.DefaultSubset = "v1" })
	reaches("one", "by another default subset")
	resolver(func(e *api.ServiceResolverConfigEntry) {
		e.DefaultSubset, e.Failover = "v1", map[string]api.ServiceResolverFailover{"v1": {Targets: []api.ServiceResolverFailoverTarget{{Service: "backup"}}}}
	})
	m.Deregister("db-1")
	reaches("backup", "by failover")
	meshService(t, m, "db-1", "db", "1", "one")
	reaches("one", "again, once it is back")
	resolver(func(e *api.ServiceResolverConfigEntry) { e.Redirect = &api.ServiceResolverRedirect{Service: "backup"} })
	reaches("backup", "by redirect")

	set(&api.ProxyConfigEntry{Kind: api.ProxyDefaults, Name: "global", Config: map[string]any{"protocol": "http"}})
	resolver(func(*api.ServiceResolverConfigEntry) {})
	set(&api.ServiceSplitterConfigEntry{Kind: api.ServiceSplitter, Name: "db", Splits: []api.ServiceSplit{{Weight: 100, ServiceSubset: "v2"}}})
	reaches("two", "by a splitter")

	set(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "db", Protocol: "http", MaxInboundConnections: 1})
	m.Eventually("the limit of service-defaults to be enforced", func() error {
		first, err := call(upstream, "two")
		if err != nil {
			return err
		}
		defer func() { _ = first.Close() }()
		second, err := call(upstream, "two")
		if err == nil {
			_ = second.Close()
			return errors.New("a second connection passed")
		}
		return nil
	})
	var shown struct {
		Proxy struct{ Config map[string]any }
	}
	m.Eventually("the agent to show the proxy with it", func() error {
		m.Do("GET", "/v1/agent/service/db-2-sidecar-proxy", nil, &shown)
		if c := shown.Proxy.Config; c["protocol"] != "http" || c["max_inbound_connections"] != 1.0 {
			return fmt.Errorf("%v", c)
		}
		return nil
	})
}

// TestConfigEntriesByConsulsClient: every kind is written, read, listed, guarded by
// its index and deleted by the official client.
func TestConfigEntriesByConsulsClient(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{DefaultIntention: catalog.ActionAllow})
	client := consulClient(t, m)
	entries := client.ConfigEntries()
	interval := 10 * time.Second
	for _, e := range []api.ConfigEntry{
		&api.ProxyConfigEntry{Kind: api.ProxyDefaults, Name: "global", Config: map[string]any{"protocol": "http"}, MeshGateway: api.MeshGatewayConfig{Mode: "local"}},
		&api.ServiceConfigEntry{
			Kind: api.ServiceDefaults, Name: "web", Protocol: "http", LocalConnectTimeoutMs: 5,
			UpstreamConfig: &api.UpstreamConfiguration{Overrides: []*api.UpstreamConfig{{Name: "db", PassiveHealthCheck: &api.PassiveHealthCheck{Interval: interval}}}},
		},
		&api.ServiceResolverConfigEntry{
			Kind: api.ServiceResolver, Name: "web", ConnectTimeout: 3 * time.Second, RequestTimeout: 4 * time.Second,
			Subsets:  map[string]api.ServiceResolverSubset{"v1": {OnlyPassing: true}},
			Failover: map[string]api.ServiceResolverFailover{"*": {Datacenters: []string{"dc2"}}},
			LoadBalancer: &api.LoadBalancer{Policy: "ring_hash", HashPolicies: []api.HashPolicy{
				{Field: "cookie", FieldValue: "c", CookieConfig: &api.CookieConfig{TTL: time.Minute}},
			}},
		},
		&api.ServiceSplitterConfigEntry{Kind: api.ServiceSplitter, Name: "web", Splits: []api.ServiceSplit{{Weight: 90.5, ServiceSubset: "v1"}, {Weight: 9.5}}},
		&api.ServiceRouterConfigEntry{Kind: api.ServiceRouter, Name: "web", Routes: []api.ServiceRoute{{
			Match:       &api.ServiceRouteMatch{HTTP: &api.ServiceRouteHTTPMatch{PathPrefix: "/a"}},
			Destination: &api.ServiceRouteDestination{Service: "web", RequestTimeout: 5 * time.Second, NumRetries: 2},
		}}},
		&api.JWTProviderConfigEntry{Kind: api.JWTProvider, Name: "okta", Issuer: "i", JSONWebKeySet: &api.JSONWebKeySet{
			Remote: &api.RemoteJWKS{URI: "https://x.test/keys", CacheDuration: time.Minute, JWKSCluster: &api.JWKSCluster{ConnectTimeout: time.Second}},
		}},
		&api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: "web", Sources: []*api.SourceIntention{{
			Name: "api", Permissions: []*api.IntentionPermission{{
				Action: "allow", HTTP: &api.IntentionHTTPPermission{PathPrefix: "/"},
				JWT: &api.IntentionJWTRequirement{Providers: []*api.IntentionJWTProvider{{Name: "okta"}}},
			}},
		}}},
		&api.MeshConfigEntry{TLS: &api.MeshTLSConfig{Incoming: &api.MeshDirectionalTLSConfig{TLSMinVersion: "TLSv1_2"}}},
		&api.ExportedServicesConfigEntry{Name: "default", Services: []api.ExportedService{{Name: "web", Consumers: []api.ServiceConsumer{{Peer: "p"}}}}},
		&api.TerminatingGatewayConfigEntry{Kind: api.TerminatingGateway, Name: "tgw", Services: []api.LinkedService{{Name: "ext", SNI: "s"}}},
		&api.IngressGatewayConfigEntry{Kind: api.IngressGateway, Name: "igw", Listeners: []api.IngressListener{{Port: 80, Protocol: "http", Services: []api.IngressService{{Name: "web"}}}}},
		&api.FileSystemCertificateConfigEntry{Kind: api.FileSystemCertificate, Name: "cert", Certificate: "/c", PrivateKey: "/k"},
		&api.APIGatewayConfigEntry{Kind: api.APIGateway, Name: "agw", Listeners: []api.APIGatewayListener{
			{Name: "http", Port: 8080, Protocol: "http", TLS: api.APIGatewayTLSConfiguration{Certificates: []api.ResourceReference{{Kind: api.FileSystemCertificate, Name: "cert"}}}},
			{Name: "tcp", Port: 8081, Protocol: "tcp"},
		}},
		&api.HTTPRouteConfigEntry{
			Kind: api.HTTPRoute, Name: "hr", Parents: []api.ResourceReference{{Kind: api.APIGateway, Name: "agw", SectionName: "http"}},
			Rules: []api.HTTPRouteRule{{
				Filters: api.HTTPFilters{TimeoutFilter: &api.TimeoutFilter{RequestTimeout: time.Second}},
				Matches: []api.HTTPMatch{{Path: api.HTTPPathMatch{Match: "prefix", Value: "/"}}}, Services: []api.HTTPService{{Name: "web", Weight: 1}},
			}},
		},
		&api.TCPRouteConfigEntry{Kind: api.TCPRoute, Name: "tr", Parents: []api.ResourceReference{{Kind: api.APIGateway, Name: "none"}}, Services: []api.TCPService{{Name: "db"}}},
	} {
		kind, name := e.GetKind(), e.GetName()
		if exported, ok := e.(*api.ExportedServicesConfigEntry); ok {
			kind, name = api.ExportedServices, exported.Name
		}
		ok, _, err := entries.CAS(e, 0, nil)
		if err != nil || !ok {
			t.Errorf("%s: %v %v", kind, ok, err)
			continue
		}
		if ok, _, err := entries.CAS(e, 0, nil); err != nil || ok {
			t.Errorf("%s: a lost check-and-set: %v %v", kind, ok, err)
		}
		got, _, err := entries.Get(kind, name, nil)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		list, _, err := entries.List(kind, nil)
		if err != nil || len(list) != 1 || list[0].GetName() != name {
			t.Errorf("%s: %v %v", kind, list, err)
		}
		// What was read can be written again and changes nothing.
		if ok, _, err := entries.CAS(got, got.GetModifyIndex(), nil); err != nil || !ok {
			if again, _, err2 := entries.Get(kind, name, nil); err2 != nil || again.GetModifyIndex() == got.GetModifyIndex() {
				t.Errorf("%s: written back: %v %v", kind, ok, err)
			}
		}
	}
	m.Eventually("the gateway and its route to be bound", func() error {
		got, _, err := entries.Get(api.HTTPRoute, "hr", nil)
		if err != nil {
			return err
		}
		r := got.(*api.HTTPRouteConfigEntry)
		for _, c := range r.Status.Conditions {
			if c.Type == "Bound" && c.Status == "True" {
				return api.ValidateRouteConditionReason(api.RouteConditionType(c.Type), c.Status, api.RouteConditionReason(c.Reason))
			}
		}
		return fmt.Errorf("%+v", r.Status)
	})
	chain, _, err := client.DiscoveryChain().Get("web", &api.DiscoveryChainOptions{OverrideConnectTimeout: 7 * time.Second}, nil)
	if err != nil || chain.Chain.StartNode != "router:web.default.default" || chain.Chain.Targets["v1.web.default.default.dc1"].ConnectTimeout != 7*time.Second {
		t.Errorf("%+v %v", chain, err)
	}
	read, _, err := entries.Get(api.ServiceResolver, "web", nil)
	if r, ok := read.(*api.ServiceResolverConfigEntry); err != nil || !ok || r.RequestTimeout != 4*time.Second || r.LoadBalancer.HashPolicies[0].CookieConfig.TTL != time.Minute {
		t.Errorf("%+v %v", read, err)
	}
	if _, err := entries.Delete(api.JWTProvider, "okta", nil); err == nil {
		t.Error("a provider that an intention needs was deleted")
	}
	for _, k := range []string{api.ServiceIntentions, api.ServiceRouter, api.ServiceSplitter, api.JWTProvider} {
		name := "web"
		if k == api.JWTProvider {
			name = "okta"
		}
		if _, err := entries.Delete(k, name, nil); err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
}

// TestAgentKeepsRegistrationsWhenAsked: with enable_central_service_config off, entries leave proxies alone.
func TestAgentKeepsRegistrationsWhenAsked(t *testing.T) {
	for _, off := range []bool{false, true} {
		m := meshtest.Start(t, meshtest.Options{Change: func(c *agent.Config, _ *server.Config) { c.NoCentralConfig = off }})
		m.Do("PUT", "/v1/config", `{"Kind":"service-defaults","Name":"web","Protocol":"http"}`, nil)
		meshService(t, m, "web", "web", "1", "web")
		var list []struct {
			Service struct {
				Proxy struct{ Config map[string]any }
			}
		}
		want := map[string]any{"protocol": "http"}
		if off {
			want = nil
		}
		m.Eventually("the proxy in the catalog", func() error {
			m.Do("GET", "/v1/health/connect/web", nil, &list)
			if len(list) != 1 || !reflect.DeepEqual(list[0].Service.Proxy.Config, want) {
				return fmt.Errorf("%+v", list)
			}
			return nil
		})
		m.Do("GET", "/v1/health/connect/web?merge-central-config", nil, &list)
		if len(list) != 1 || list[0].Service.Proxy.Config["protocol"] != "http" {
			t.Errorf("merged on demand: %+v", list)
		}
		m.Stop()
	}
}
