package clients_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest"
)

func TestAgentServices(t *testing.T) {
	m, c := mesh(t)
	a := c.Agent()
	must1(t, a.ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID: "web1", Name: "web", Port: 80, Address: "10.0.0.1", Tags: []string{"v1"}, Meta: map[string]string{"k": "v"},
		TaggedAddresses: map[string]api.ServiceAddress{"wan": {Address: "192.0.2.1", Port: 8080}}, EnableTagOverride: true,
		Weights: &api.AgentWeights{Passing: 5, Warning: 2},
		Checks:  api.AgentServiceChecks{{CheckID: "ttl", TTL: "1h"}, {CheckID: "second", TTL: "1h", Status: api.HealthPassing}},
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{}},
	}, api.ServiceRegisterOpts{ReplaceExistingChecks: true}))
	must1(t, a.ServiceRegister(&api.AgentServiceRegistration{Name: "ports", Ports: api.ServicePorts{{Name: "http", Port: 80, Default: true}, {Name: "admin", Port: 81}}}))
	one, _, err := a.Service("web1", nil)
	must1(t, err)
	if one.Port != 80 || one.TaggedAddresses["wan"].Port != 8080 || one.Weights.Passing != 5 || !one.EnableTagOverride || one.Meta["k"] != "v" || one.ContentHash == "" {
		t.Fatalf("%+v", one)
	}
	changed, blocked := make(chan *api.AgentService, 1), error(nil)
	go func() {
		var s *api.AgentService
		s, _, blocked = a.Service("web1", &api.QueryOptions{WaitHash: one.ContentHash, WaitTime: meshtest.Patience})
		changed <- s
	}()
	for id, set := range map[string]func(string, string) error{"ttl": a.PassTTL, "second": a.WarnTTL} {
		must1(t, set(id, "note"))
	}
	if status, info, err := a.AgentHealthServiceByID("web1"); err != nil || status != api.HealthWarning || len(info.Checks) != 2 {
		t.Fatalf("%s %+v %v", status, info, err)
	}
	must1(t, a.FailTTL("second", "bad"))
	if status, infos, err := a.AgentHealthServiceByName("web"); err != nil || status != api.HealthCritical || len(infos) != 1 {
		t.Fatalf("%s %+v %v", status, infos, err)
	}
	must1(t, a.UpdateTTL("second", "well", api.HealthPassing))
	if some, err := a.ServicesWithFilter(`"v1" in Tags`); err != nil || len(some) != 2 {
		t.Fatalf("%v %v", some, err)
	}
	if some, err := a.ChecksWithFilter(`Status == passing and ServiceName == web`); err != nil || len(some) != 2 {
		t.Fatalf("%v %v", some, err)
	}
	if p, _, err := a.Service("ports", nil); err != nil || len(p.Ports) != 2 || !p.Ports.HasDefault() {
		t.Fatalf("%+v %v", p, err)
	}
	must1(t, a.ServiceRegister(&api.AgentServiceRegistration{ID: "web1", Name: "web", Port: 82}))
	select {
	case s := <-changed:
		if s == nil || s.Port != 82 {
			t.Fatalf("%+v, %v", s, blocked)
		}
	case <-time.After(meshtest.Patience):
		t.Fatal("the blocked read did not wake")
	}
	must1(t, a.CheckRegister(&api.AgentCheckRegistration{Name: "disk", AgentServiceCheck: api.AgentServiceCheck{TTL: "1h"}}))
	must1(t, a.CheckDeregister("disk"))
	must1(t, a.EnableNodeMaintenance("power"))
	m.Eventually("the maintenance of the node", func() error {
		checks, _, err := c.Health().Node("test-node", nil)
		if err == nil && checks.AggregatedStatus() != api.HealthMaint {
			err = errors.New(checks.AggregatedStatus())
		}
		return err
	})
	must1(t, a.DisableNodeMaintenance())
	must1(t, a.EnableServiceMaintenance("web1", "why"))
	must1(t, a.DisableServiceMaintenance("web1"))
	must1(t, a.ServiceDeregister("web1"))
	if _, _, err := a.Service("web1", nil); err == nil {
		t.Fatal("it is still there")
	}
}

func TestAgentItself(t *testing.T) {
	_, c := mesh(t)
	a := c.Agent()
	if name, err := a.NodeName(); err != nil || name != "test-node" {
		t.Fatal(name, err)
	}
	if h, err := a.Host(); err != nil || h["Memory"] == nil {
		t.Fatalf("%v %v", h, err)
	}
	if v, err := a.Version(); err != nil || v["HumanVersion"] == "" {
		t.Fatalf("%v %v", v, err)
	}
	if info, err := a.Metrics(); err != nil || len(info.Gauges) == 0 {
		t.Fatalf("%+v %v", info, err)
	}
	members, err := a.MembersOpts(api.MembersOpts{Segment: api.AllSegments})
	if err != nil || len(members) != 1 || !members[0].IsConsulServer() {
		t.Fatalf("%+v %v", members, err)
	}
	must1(t, a.Join("127.0.0.1:1", false), "refused")
	must1(t, a.ForceLeave("nobody"), "refused")
	if peers, err := c.Status().Peers(); err != nil || len(peers) != 1 {
		t.Fatal(peers, err)
	}
}

func TestCatalog(t *testing.T) {
	m, c := mesh(t)
	cat := c.Catalog()
	for i := range 3 {
		_, err := cat.Register(&api.CatalogRegistration{
			ID: fmt.Sprintf("00000000-0000-0000-0000-00000000000%d", i), Node: fmt.Sprint("far", i), Address: fmt.Sprint("10.0.0.", i+1), NodeMeta: map[string]string{"rack": fmt.Sprint(i % 2)},
			Service: &api.AgentService{ID: "db", Service: "db", Port: 5432 + i, Tags: []string{"all", fmt.Sprint("n", i)}, Weights: api.AgentWeights{Passing: 1, Warning: 1}},
			Checks:  api.HealthChecks{{Node: fmt.Sprint("far", i), CheckID: "up", Name: "up", Status: []string{"passing", "warning", "critical"}[i], ServiceID: "db"}},
		}, nil)
		must1(t, err)
	}
	q := &api.QueryOptions{}
	if nodes, _, err := cat.Nodes(&api.QueryOptions{NodeMeta: map[string]string{"rack": "0"}, Filter: `Address != "10.0.0.1"`}); err != nil || len(nodes) != 1 || nodes[0].Node != "far2" {
		t.Fatalf("%v %v", nodes, err)
	}
	if services, _, err := cat.Services(q); err != nil || len(services["db"]) != 4 {
		t.Fatalf("%v %v", services, err)
	}
	if rows, _, err := cat.ServiceMultipleTags("db", []string{"all", "n1"}, q); err != nil || len(rows) != 1 || rows[0].ServicePort != 5433 {
		t.Fatalf("%v %v", rows, err)
	}
	if list, _, err := cat.NodeServiceList("far1", q); err != nil || len(list.Services) != 1 || list.Node.Address != "10.0.0.2" {
		t.Fatalf("%v %v", list, err)
	}
	if n, _, err := cat.Node("far1", q); err != nil || n.Services["db"].Port != 5433 {
		t.Fatalf("%v %v", n, err)
	}
	h := c.Health()
	for what, tc := range map[string]struct {
		tag     string
		passing bool
		filter  string
		want    []string
	}{
		"all":     {want: []string{"far0", "far1", "far2"}},
		"passing": {passing: true, want: []string{"far0"}},
		"tag":     {tag: "n1", want: []string{"far1"}},
		"filter":  {filter: "Node.Meta.rack == 0", want: []string{"far0", "far2"}},
	} {
		entries, _, err := h.Service("db", tc.tag, tc.passing, &api.QueryOptions{Filter: tc.filter})
		must1(t, err)
		var got []string
		for _, e := range entries {
			got = append(got, e.Node.Node)
		}
		if slices.Sort(got); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v", what, got)
		}
	}
	if checks, _, err := h.Checks("db", q); err != nil || len(checks) != 3 {
		t.Fatalf("%v %v", checks, err)
	}
	if checks, _, err := h.State(api.HealthWarning, q); err != nil || len(checks) != 1 {
		t.Fatalf("%v %v", checks, err)
	}
	for name, o := range map[string]*api.QueryOptions{"stale": {AllowStale: true}, "consistent": {RequireConsistent: true}, "cached": {UseCache: true, MaxAge: time.Minute}} {
		rows, meta, err := h.Service("db", "", false, o)
		if err != nil || len(rows) != 3 || meta.LastIndex == 0 || (!o.UseCache && !meta.KnownLeader) {
			t.Errorf("%s: %d rows, %+v, %v", name, len(rows), meta, err)
		}
	}
	// A cached read sees the change soon, without being told to ask the servers.
	_, err := cat.Deregister(&api.CatalogDeregistration{Node: "far2"}, nil)
	must1(t, err)
	m.Eventually("the cached read to follow", func() error {
		rows, meta, err := h.Service("db", "", false, &api.QueryOptions{UseCache: true})
		if err == nil && (len(rows) != 2 || !meta.CacheHit) {
			err = fmt.Errorf("%d rows, hit %t", len(rows), meta.CacheHit)
		}
		return err
	})
}

// TestBlocking: a read that waits wakes with its own change, not with others', its
// index never goes back, and it comes back by its deadline.
func TestBlocking(t *testing.T) {
	m, c := mesh(t)
	register := func(name, status string) {
		_, err := c.Catalog().Register(&api.CatalogRegistration{
			Node: "far", Address: "10.0.0.1", Service: &api.AgentService{ID: name, Service: name},
			Checks: api.HealthChecks{{Node: "far", CheckID: name, Name: name, Status: status, ServiceID: name}},
		}, nil)
		must1(t, err)
	}
	register("mine", api.HealthPassing)
	register("other", api.HealthPassing)
	_, meta, err := c.Health().Service("mine", "", false, nil)
	must1(t, err)
	type answer struct {
		rows []*api.ServiceEntry
		meta *api.QueryMeta
		err  error
	}
	woken := make(chan answer, 1)
	wait := func(index uint64, d time.Duration) {
		rows, meta, err := client(t, m).Health().Service("mine", "", false, &api.QueryOptions{WaitIndex: index, WaitTime: d})
		woken <- answer{rows, meta, err}
	}
	go wait(meta.LastIndex, meshtest.Patience)
	register("other", api.HealthCritical)
	select {
	case a := <-woken:
		t.Fatalf("another service woke it: %+v", a)
	case <-time.After(100 * time.Millisecond): // that it rests cannot be seen otherwise
	}
	register("mine", api.HealthCritical)
	a := <-woken
	if a.err != nil || a.meta.LastIndex <= meta.LastIndex || a.rows[0].Checks.AggregatedStatus() != api.HealthCritical {
		t.Fatalf("%+v after index %d", a, meta.LastIndex)
	}
	begin := time.Now()
	wait(a.meta.LastIndex, 50*time.Millisecond)
	if b := <-woken; b.err != nil || b.meta.LastIndex != a.meta.LastIndex || time.Since(begin) < 50*time.Millisecond {
		t.Fatalf("%+v after %s", b, time.Since(begin))
	}
	if _, none, err := c.Health().Service("nothing", "", false, nil); err != nil || none.LastIndex == 0 {
		t.Fatalf("the index of nothing is %d: %v", none.LastIndex, err)
	}
}

// must1 fails the test on an error; with a word, on any error but one.
func must1(t *testing.T, err error, want ...string) {
	t.Helper()
	if (err != nil) != (len(want) > 0) {
		t.Fatal(err)
	}
}
