package httpapi

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// TestCachedWhereDocumented: ?cached is of effect, and shows, on the endpoints that Consul
// names, and nowhere else.
func TestCachedWhereDocumented(t *testing.T) {
	r := newRig(t)
	var query struct{ ID string }
	if err := json.Unmarshal([]byte(r.want(r.do("POST", "/v1/query", `{"Name":"q","Service":{"Service":"web"}}`), 200, "").body), &query); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/v1/catalog/datacenters", "/v1/catalog/services", "/v1/catalog/service/web", "/v1/catalog/connect/web", "/v1/health/service/web",
		"/v1/health/connect/web", "/v1/health/ingress/web", "/v1/discovery-chain/web", "/v1/connect/intentions/match?by=source&name=web", "/v1/query/q/execute",
	} {
		join := "?"
		if strings.Contains(path, "?") {
			join = "&"
		}
		for _, want := range []string{"MISS", "HIT"} {
			a := r.want(r.do("GET", path+join+"cached", ""), 200, "")
			if a.header.Get("X-Cache") != want || (a.header.Get("Age") == "0") != (want == "HIT") {
				t.Errorf("%s: X-Cache %q, Age %q; want %s", path, a.header.Get("X-Cache"), a.header.Get("Age"), want)
			}
		}
		if a := r.do("GET", path, ""); a.header.Get("X-Cache") != "" {
			t.Errorf("%s without ?cached: X-Cache %q", path, a.header.Get("X-Cache"))
		}
	}
	for _, path := range []string{
		"/v1/catalog/nodes", "/v1/catalog/node/n1", "/v1/catalog/node-services/n1", "/v1/health/state/any", "/v1/health/checks/web", "/v1/health/node/n1",
		"/v1/config/service-defaults", "/v1/connect/ca/roots", "/v1/connect/intentions", "/v1/query", "/v1/query/" + query.ID, "/v1/session/list", "/v1/kv/?recurse",
	} {
		join := "?"
		if strings.Contains(path, "?") {
			join = "&"
		}
		a := r.do("GET", path+join+"cached", "")
		if a.header.Get("X-Cache") != "" || a.header.Get("Age") != "" {
			t.Errorf("%s is not documented to be cached: %v", path, a.header)
		}
		if got := r.servers.reads[len(r.servers.reads)-1].Consistency; got != wire.Default {
			t.Errorf("%s was asked for with %q", path, got)
		}
	}
	r.want(r.do("GET", "/v1/catalog/services?cached&consistent", ""), 400, "Cannot specify ?cached with ?consistent, conflicting semantics.")
}

// TestCacheControl: clients of simple endpoints that want it now get it from the servers,
// and what the agent knows where these are gone and the client prefers that.
func TestCacheControl(t *testing.T) {
	r := newRig(t)
	const path = "/v1/catalog/services?cached"
	r.want(r.do("GET", path, ""), 200, "")
	for control, fresh := range map[string]bool{
		"": false, "max-age=5": false, "no-such=5, x": false, "must-revalidate": true, "max-age=0": true, "Must-Revalidate, stale-if-error=60": true,
	} {
		a := r.want(r.do("GET", path, "", "Cache-Control", control), 200, "")
		mode, cache := wire.Stale, "HIT"
		if fresh {
			mode, cache = wire.Default, "MISS"
		}
		if got := r.servers.reads[len(r.servers.reads)-1].Consistency; got != mode || a.header.Get("X-Cache") != cache {
			t.Errorf("%q: asked for %q, X-Cache %s", control, got, a.header.Get("X-Cache"))
		}
	}
	// A view that has not heard from the servers for long.
	r.servers.meta.LastContact = 65 * time.Second
	for control, anew := range map[string]bool{"": false, "max-age=90": false, "max-age=30": true, "max-age=30, stale-if-error=259200": true} {
		a := r.want(r.do("GET", path, "", "Cache-Control", control), 200, "")
		if got := r.servers.reads[len(r.servers.reads)-1].Consistency; (got == wire.Default) != anew || (a.header.Get("Age") == "65") == anew || (a.header.Get("X-Cache") == "HIT") == anew {
			t.Errorf("%q, 65 s old: asked for %q, %v", control, got, a.header)
		}
	}
	r.servers.meta.LastContact = 0
	for _, control := range []string{"max-age=junk", "max-age=-1", "max-age", "stale-if-error=x", "max-age=99999999999"} {
		r.want(r.do("GET", path, "", "Cache-Control", control), 400, "Invalid Cache-Control header.")
	}
	if a := r.do("GET", "/v1/health/service/web?cached", "", "Cache-Control", "must-revalidate"); a.status != 200 {
		t.Error(a)
	}
	if got := r.servers.reads[len(r.servers.reads)-1].Consistency; got != wire.Stale {
		t.Errorf("an endpoint that is kept current was asked for with %q", got)
	}
}

// TestAPIGatewayInUI: what an API gateway leads to is behind it, in all that a UI asks.
func TestAPIGatewayInUI(t *testing.T) {
	r := newRig(t)
	for _, e := range []catalog.ConfigEntry{
		&catalog.APIGateway{EntryHead: catalog.EntryHead{Name: "gw"}, Listeners: []catalog.APIGatewayListener{{Name: "l", Port: 80, Protocol: "tcp"}}},
		&catalog.TCPRoute{
			EntryHead: catalog.EntryHead{Name: "r"}, Parents: []catalog.ResourceReference{{Kind: catalog.KindAPIGatewayEntry, Name: "gw"}},
			Services: []catalog.TCPRouteService{{Name: "web"}},
		},
		&catalog.TCPRoute{EntryHead: catalog.EntryHead{Name: "unbound"}, Services: []catalog.TCPRouteService{{Name: "db"}}},
	} {
		r.mustApply(&catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: e}})
	}
	var route struct{ ModifyIndex uint64 }
	r.getJSON("/v1/config/tcp-route/r", &route)
	r.mustApply(&catalog.SetEntryStatus{ // as the leader does
		Kind: catalog.KindTCPRoute, Name: "r", Index: route.ModifyIndex, Status: catalog.EntryStatus{Conditions: []catalog.Condition{
			{Type: "Bound", Status: "True", Resource: catalog.ResourceReference{Kind: catalog.KindAPIGatewayEntry, Name: "gw"}},
		}},
	})
	for _, service := range []string{`{"Service":"web","Port":1}`, `{"Service":"db","Port":2}`, `{"Kind":"api-gateway","Service":"gw","Port":80}`} {
		r.want(r.do("PUT", "/v1/catalog/register", `{"Node":"n1","Address":"10.0.0.1","Service":`+service+`}`), 200, "true")
	}
	r.mustApply(&catalog.SetIntention{Destination: "web", Source: catalog.SourceIntention{Name: "gw", Action: catalog.ActionAllow, Type: "consul"}})
	var services []struct {
		Name                 string
		ConnectedWithGateway bool
		GatewayConfig        struct{ AssociatedServiceCount int }
	}
	r.getJSON("/v1/internal/ui/gateway-services-nodes/gw", &services)
	if len(services) != 1 || services[0].Name != "web" {
		t.Errorf("behind the gateway: %+v", services)
	}
	var intentions []struct{ DestinationName string }
	r.getJSON("/v1/internal/ui/gateway-intentions/gw", &intentions)
	if len(intentions) != 1 || intentions[0].DestinationName != "web" {
		t.Errorf("intentions behind the gateway: %+v", intentions)
	}
	r.getJSON("/v1/internal/ui/services", &services)
	for _, s := range services {
		if s.ConnectedWithGateway != (s.Name == "web") || (s.GatewayConfig.AssociatedServiceCount == 1) != (s.Name == "gw") {
			t.Errorf("%+v", s)
		}
	}
}
