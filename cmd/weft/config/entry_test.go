package config

import (
	"encoding/json"
	"strings"
	"testing"
)

// The forms in which entries are written for Consul, and what they say.
func TestEntriesInHCL(t *testing.T) {
	for doc, want := range map[string]string{
		`Kind = "service-defaults"
		 Name = "web"
		 Protocol = "http"
		 MeshGateway { Mode = "local" }
		 UpstreamConfig {
		   Defaults { ConnectTimeoutMs = 500, Limits { MaxConnections = 3 } }
		   Overrides = [ { Name = "db", PassiveHealthCheck { Interval = "30s", MaxFailures = 10 } }, { Name = "api", Protocol = "grpc" } ]
		 }`: `{"Name":"web","CreateIndex":0,"ModifyIndex":0,"Protocol":"http","TransparentProxy":{},"MeshGateway":{"Mode":"local"},"Expose":{},` +
			`"UpstreamConfig":{"Overrides":[{"Name":"db","Peer":"","PassiveHealthCheck":{"Interval":30000000000,"MaxFailures":10},"MeshGateway":{}},` +
			`{"Name":"api","Peer":"","Protocol":"grpc","MeshGateway":{}}],"Defaults":{"Peer":"","ConnectTimeoutMs":500,"Limits":{"MaxConnections":3},"MeshGateway":{}}}}`,
		`kind = "proxy-defaults"
		 name = "global"
		 config { protocol = "http", local_connect_timeout_ms = 1000, deep { x = [1, "a"] } }
		 access_logs { enabled = true, type = "file", path = "/l" }`: `{"Name":"global","CreateIndex":0,"ModifyIndex":0,` +
			`"Config":{"deep":{"x":[1,"a"]},"local_connect_timeout_ms":1000,"protocol":"http"},"TransparentProxy":{},"MeshGateway":{},"Expose":{},"AccessLogs":{"Enabled":true,"Type":"file","Path":"/l"}}`,
		`Kind = "service-router"
		 Name = "web"
		 Routes = [
		   { Match { HTTP { PathPrefix = "/admin", Header = [ { Name = "x", Exact = "1" } ] } }
		     Destination { Service = "admin", RequestTimeout = "15s", RequestHeaders { Add { "x-a" = "b" } } } },
		   { Match { HTTP { Methods = ["get"] } } }
		 ]`: `{"Name":"web","CreateIndex":0,"ModifyIndex":0,"Routes":[{"Match":{"HTTP":{"PathPrefix":"/admin","Header":[{"Name":"x","Exact":"1"}]}},` +
			`"Destination":{"RequestTimeout":"15s","Service":"admin","RequestHeaders":{"Add":{"x-a":"b"}}}},{"Match":{"HTTP":{"Methods":["GET"]}}}]}`,
		`kind = "service-splitter"
		 name = "web"
		 splits { weight = 90.5, service_subset = "v1" }
		 splits { weight = 9.5 }`: `{"Name":"web","CreateIndex":0,"ModifyIndex":0,"Splits":[{"Weight":90.5,"ServiceSubset":"v1"},{"Weight":9.5}]}`,
		`Kind = "service-resolver"
		 Name = "web"
		 DefaultSubset = "v1"
		 ConnectTimeout = "15s"
		 Subsets = {
		   "v1" = { Filter = "Service.Meta.version == v1" }
		   "v2" = { OnlyPassing = true }
		 }
		 Failover = { "*" = { Datacenters = ["dc3", "dc4"] } }
		 LoadBalancer = { Policy = "maglev", HashPolicies = [ { Field = "header", FieldValue = "x" } ] }`: `{"Name":"web","CreateIndex":0,"ModifyIndex":0,` +
			`"DefaultSubset":"v1","Subsets":{"v1":{"Filter":"Service.Meta.version == v1"},"v2":{"OnlyPassing":true}},"Failover":{"*":{"Datacenters":["dc3","dc4"]}},` +
			`"ConnectTimeout":"15s","LoadBalancer":{"Policy":"maglev","HashPolicies":[{"Field":"header","FieldValue":"x"}]}}`,
		`kind = "service-resolver"
		 name = "web"
		 subsets "v1" { filter = "Service.Meta.version == v1" }
		 subsets "v2" { only_passing = true }
		 redirect { service = "api" }`: `{"Name":"web","CreateIndex":0,"ModifyIndex":0,"Subsets":{"v1":{"Filter":"Service.Meta.version == v1"},"v2":{"OnlyPassing":true}},"Redirect":{"Service":"api"}}`,
		`Kind = "mesh"
		 TLS { Incoming { TLSMinVersion = "TLSv1_2" } }`: `{"TransparentProxy":{"MeshDestinationsOnly":false},"TLS":{"Incoming":{"TLSMinVersion":"TLSv1_2"}},"CreateIndex":0,"ModifyIndex":0}`,
		`Kind = "jwt-provider"
		 Name = "okta"
		 Issuer = "okta"
		 JSONWebKeySet = { Remote = { URI = "https://x.test/keys", CacheDuration = "30m" } }
		 Locations = [ { QueryParam = { Name = "token" } } ]`: `{"Name":"okta","CreateIndex":0,"ModifyIndex":0,"JSONWebKeySet":{"Remote":{"URI":"https://x.test/keys","CacheDuration":1800000000000}},` +
			`"Issuer":"okta","Locations":[{"QueryParam":{"Name":"token"}}],"ClockSkewSeconds":30}`,
		`Kind = "terminating-gateway"
		 Name = "gw"
		 Services = [ { Name = "*", CAFile = "/ca" } ]`: `{"Name":"gw","CreateIndex":0,"ModifyIndex":0,"Services":[{"Name":"*","CAFile":"/ca"}]}`,
		`Kind = "ingress-gateway"
		 Name = "gw"
		 Listeners = [ { Port = 80, Protocol = "http", Services = [ { Name = "web", Hosts = ["a.test"] } ] } ]`: `{"Name":"gw","CreateIndex":0,"ModifyIndex":0,` +
			`"TLS":{"Enabled":false},"Listeners":[{"Port":80,"Protocol":"http","Services":[{"Name":"web","Hosts":["a.test"]}]}]}`,
		`Kind = "http-route"
		 Name = "r"
		 Rules = [ { Services = [ { Name = "web" } ], Matches = [ { Path { Match = "prefix", Value = "/" } } ] } ]
		 Parents = [ { Name = "gw" } ]`: `{"Name":"r","CreateIndex":0,"ModifyIndex":0,"Parents":[{"Kind":"api-gateway","Name":"gw","SectionName":""}],` +
			`"Rules":[{"Filters":{"Headers":null,"URLRewrite":null,"RetryFilter":null,"TimeoutFilter":null,"JWT":null},"ResponseFilters":{"Headers":null},` +
			`"Matches":[{"Headers":null,"Method":"","Path":{"Match":"prefix","Value":"/"},"Query":null}],"Services":[{"Name":"web","Weight":1,` +
			`"Filters":{"Headers":null,"URLRewrite":null,"RetryFilter":null,"TimeoutFilter":null,"JWT":null},"ResponseFilters":{"Headers":null}}]}],"Hostnames":null,"Status":{"Conditions":null}}`,
		`Kind = "exported-services"
		 Name = "default"
		 Services = [ { Name = "web", Consumers = [ { PeerName = "east" } ] } ]`: `{"Name":"default","CreateIndex":0,"ModifyIndex":0,"Services":[{"Name":"web","Consumers":[{"Peer":"east"}]}]}`,
	} {
		e, err := Entry("entry.hcl", []byte(doc))
		if err != nil {
			t.Errorf("%s\n%v", doc, err)
			continue
		}
		got, err := json.Marshal(e)
		if err != nil || string(got) != want {
			t.Errorf("%s\ngot  %s\nwant %s", doc, got, want)
		}
	}
	for doc, want := range map[string]string{
		"Kind = \"service-router\"\nName = \"web\"\nRoutes = [{ Match { HTTP { PathPrefx = \"/\" } } }]": `entry.hcl:3`,
		"Kind = \"service-splitter\"\nName = \"web\"\nSplits { Weight = 50 }":                            "the sum of all split weights must be 100",
		"Kind = \"service-resolver\"\nName = \"web\"\nSubsets \"v\" {}\nSubsets \"v\" {}":                `"v" is given more than once`,
		"Kind = \"mesh\"\nName = \"mesh\"":                                                               `unknown key`,
		"Kind = \"sameness-group\"\nName = \"x\"":                                                        "enterprise-only",
		"Kind = \"control-plane-request-limit\"\nName = \"x\"":                                           "invalid config entry kind: control-plane-request-limit",
		"Kind = \"service-splitter\"\nName = \"w\"\nSplits { Weight = \"x\" }":                           "Weight",
	} {
		if _, err := Entry("entry.hcl", []byte(doc)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %s", doc, err, want)
		}
	}
}
