package agent_test

import (
	"fmt"
	"testing"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/meshtest"
	"github.com/weftmesh/weft/connect"
)

// An upstream may be a prepared query, which is followed when it changes, or a list
// of instances.
func TestUpstreamsOfOtherKinds(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{})
	pair(t, m)
	m.Intend("*", "db", catalog.ActionAllow)
	var made struct{ ID string }
	m.Do("POST", "/v1/query", map[string]any{"Name": "near-db", "Service": map[string]any{"Service": "nobody"}}, &made)
	var proxies []connect.Status
	m.Do("GET", "/v1/agent/connect/proxies", nil, &proxies)
	inbound := ""
	for _, p := range proxies {
		if p.Service == "db" {
			inbound = p.Inbound.Addr
		}
	}
	byQuery, byList := meshtest.FreePort(t), meshtest.FreePort(t)
	m.Register(map[string]any{"Name": "shop", "Port": meshtest.Echo(t, "shop"), "Connect": map[string]any{"SidecarService": map[string]any{
		"Proxy": map[string]any{"Upstreams": []any{
			map[string]any{"DestinationType": "prepared_query", "DestinationName": "near-db", "LocalBindPort": byQuery},
			map[string]any{"DestinationName": "db", "LocalBindPort": byList, "Config": map[string]any{"instances": []string{"127.0.0.1:1", inbound}}},
		}},
	}}})
	_ = eventuallyPasses(t, m, byList, "explicit instances").Close()
	mustRefuse(t, byQuery, "where the query finds nobody")
	m.Do("PUT", "/v1/query/"+made.ID, map[string]any{"Name": "near-db", "Service": map[string]any{"Service": "db"}}, nil)
	_ = eventuallyPasses(t, m, byQuery, "the query to lead to db").Close()
}

// Maintenance lets what runs finish, and cuts the rest at the end of the grace.
func TestMaintenanceDrains(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{})
	upstream := meshtest.FreePort(t)
	m.Register(map[string]any{"Name": "db", "Port": meshtest.Echo(t, "db"), "Connect": map[string]any{"SidecarService": map[string]any{
		"Proxy": map[string]any{"Config": map[string]any{"drain_timeout_ms": 300}},
	}}})
	m.Register(map[string]any{"Name": "web", "Port": meshtest.Echo(t, "web"), "Connect": map[string]any{"SidecarService": map[string]any{
		"Proxy": map[string]any{"Upstreams": []any{map[string]any{"DestinationName": "db", "LocalBindPort": upstream}}},
	}}})
	m.Intend("web", "db", catalog.ActionAllow)
	live := eventuallyPasses(t, m, upstream, "the intention to be enforced")
	m.Do("PUT", "/v1/agent/service/maintenance/db?enable=true&reason=test", nil, nil)
	mustBeCut(t, live)
	m.Eventually("new ones to go elsewhere, which is nowhere", func() error {
		if c, err := call(upstream, "db"); err == nil {
			_ = c.Close()
			return fmt.Errorf("a connection passed")
		}
		return nil
	})
	m.Do("PUT", "/v1/agent/service/maintenance/db?enable=false", nil, nil)
	_ = eventuallyPasses(t, m, upstream, "it to serve again").Close()
}
