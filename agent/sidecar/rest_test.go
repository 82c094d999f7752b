package sidecar

import (
	"testing"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
)

func TestRestOf(t *testing.T) {
	proxy := &catalog.Service{ID: "web-proxy", Proxy: catalog.ConnectProxy{DestinationServiceName: "web", DestinationServiceID: "web1"}}
	check := func(id, service, status string) *catalog.Check {
		return &catalog.Check{CheckID: id, ServiceID: service, Status: status}
	}
	for name, tc := range map[string]struct {
		checks []*catalog.Check
		want   string
	}{
		"well":                    {[]*catalog.Check{check("a", "web1", "passing"), check("b", "", "warning")}, ""},
		"its own check":           {[]*catalog.Check{check("a", "web1", "critical")}, restCritical},
		"the host's":              {[]*catalog.Check{check("a", "", "critical")}, restCritical},
		"another's":               {[]*catalog.Check{check("a", "db1", "critical")}, ""},
		"the proxy's":             {[]*catalog.Check{check("a", "web-proxy", "critical")}, ""},
		"maintenance":             {[]*catalog.Check{check("_service_maintenance:web1", "web1", "critical"), check("a", "web1", "critical")}, restMaintenance},
		"maintenance of the host": {[]*catalog.Check{check("_node_maintenance", "", "critical")}, restMaintenance},
	} {
		h := &local.Host{Checks: map[string]*catalog.Check{}}
		for _, c := range tc.checks {
			h.Checks[c.CheckID] = c
		}
		if got := restOf(h, proxy); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestResolveQuery(t *testing.T) {
	w := newWorld()
	const name = queryPrefix + "geo-db"
	p := &problems{}
	if w.known(name, "dc1") {
		t.Error("known before a server said anything")
	}
	w.learn(catalog.Query{Kind: catalog.QueryPreparedQuery, Name: "geo-db"}, &catalog.View{})
	if eps, _ := w.resolve(name, "dc1", p); len(eps) != 0 || len(p.list) != 1 {
		t.Errorf("no such query: %+v %v", eps, p.list)
	}
	q := &catalog.PreparedQuery{Name: "geo-", Template: catalog.QueryTemplate{Type: catalog.TemplatePrefix}}
	q.Service = catalog.ServiceQuery{Service: "${name.suffix}", IgnoreCheckIDs: []string{"flaky"}, ServiceMeta: map[string]string{"v": "1"}}
	w.learn(catalog.Query{Kind: catalog.QueryPreparedQuery, Name: "geo-db"}, &catalog.View{Queries: []*catalog.PreparedQuery{q}})
	if got := w.services(name, "dc1"); len(got) != 1 || got[0] != "db" || w.known(name, "dc1") {
		t.Fatalf("services %v", got)
	}
	flaky := instance("c", "1", catalog.StatusCritical)
	flaky.Checks[0].CheckID = "flaky"
	w.learn(catalog.Query{Kind: catalog.QueryConnect, Name: "db"}, &catalog.View{Instances: []*catalog.Instance{
		instance("a", "1", catalog.StatusPassing), instance("b", "2", catalog.StatusPassing), flaky, instance("d", "1", catalog.StatusCritical),
	}})
	p = &problems{}
	eps, _ := w.resolve(name, "dc1", p)
	if len(eps) != 2 || eps[0].ID != "a" || eps[1].ID != "c" || eps[0].Service != "db" || len(p.list) != 0 {
		t.Errorf("%+v %v", eps, p.list)
	}
}
