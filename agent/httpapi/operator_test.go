package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/serf/coordinate"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// fakeOperators is a server for operators without Raft.
type fakeOperators struct {
	sick     bool
	archive  []byte
	breaks   bool // in the middle of an archive
	restored []byte
	changes  []wire.ChangeRaftRequest
}

func (f *fakeOperators) RaftPeers(context.Context, *wire.RaftPeersRequest) (*wire.RaftPeersReply, error) {
	return &wire.RaftPeersReply{Peers: []wire.RaftPeer{{ID: "i", Node: "n", Address: "a", Leader: true, Voter: true, ProtocolVersion: "3", LastIndex: 7}}}, nil
}

func (f *fakeOperators) ChangeRaft(_ context.Context, req *wire.ChangeRaftRequest) (*wire.ChangeRaftReply, error) {
	f.changes = append(f.changes, *req)
	if req.ID == "none" {
		return nil, catalog.NotFoundf("id %q was not found in the Raft configuration", req.ID)
	}
	return &wire.ChangeRaftReply{}, nil
}

func (f *fakeOperators) Autopilot(context.Context, *wire.AutopilotRequest) (*wire.AutopilotReply, error) {
	return &wire.AutopilotReply{Healthy: !f.sick, Leader: "i", Voters: []string{"i"}, Servers: []wire.ServerHealth{
		{ID: "i", Name: "n", NodeStatus: "alive", Status: "leader", Healthy: !f.sick, LastContact: 20 * time.Millisecond, Meta: map[string]string{"k": "v"}},
	}}, nil
}

func (f *fakeOperators) SaveSnapshot(_ context.Context, _ *wire.SaveSnapshotRequest, send func(*wire.SnapshotPiece) error) error {
	half := len(f.archive) / 2
	if err := send(&wire.SnapshotPiece{Data: f.archive[:half], Index: 9, Meta: wire.Meta{KnownLeader: true}}); err != nil {
		return err
	}
	if f.breaks {
		return errors.New("the disk failed")
	}
	return send(&wire.SnapshotPiece{Data: f.archive[half:]})
}

func (f *fakeOperators) RestoreSnapshot(_ context.Context, _ *wire.RestoreSnapshotRequest, next func() ([]byte, error)) (*wire.RestoreSnapshotReply, error) {
	f.restored = nil
	for {
		b, err := next()
		if errors.Is(err, io.EOF) {
			return &wire.RestoreSnapshotReply{}, nil
		}
		if err != nil {
			return nil, err
		}
		f.restored = append(f.restored, b...)
	}
}

func TestOperatorClient(t *testing.T) {
	f := &fakeOperators{archive: bytes.Repeat([]byte("snap"), 300_000)}
	r := newRig(t, func(c *Config) { c.Operators = f })
	op := r.client.Operator()
	if conf, err := op.RaftGetConfiguration(nil); err != nil || len(conf.Servers) != 1 || conf.Servers[0].LastIndex != 7 {
		t.Errorf("%+v %v", conf, err)
	}
	if rep, err := op.RaftLeaderTransfer("x", nil); err != nil || !rep.Success || !f.changes[0].TransferLeader || f.changes[0].ID != "x" {
		t.Errorf("%+v %v %+v", rep, err, f.changes)
	}
	if err := op.RaftRemovePeerByID("none", nil); err == nil || !strings.Contains(err.Error(), "500 (id \"none\" was not found") {
		t.Error(err)
	}
	if err := op.RaftRemovePeerByAddress("1.2.3.4:1", nil); err != nil || f.changes[2].Address != "1.2.3.4:1" {
		t.Error(err, f.changes)
	}
	if h, err := op.AutopilotServerHealth(nil); err != nil || !h.Healthy || h.Servers[0].LastContact.Duration() != 20*time.Millisecond || !h.Servers[0].Voter {
		t.Errorf("%+v %v", h, err)
	}
	f.sick = true
	if h, err := op.AutopilotServerHealth(nil); err != nil || h.Healthy {
		t.Errorf("%+v %v", h, err)
	}
	r.want(r.do("GET", "/v1/operator/autopilot/health", ""), http.StatusTooManyRequests, "")
	if st, err := op.AutopilotState(nil); err != nil || st.Servers["i"].Status != api.AutopilotServerLeader || st.Servers["i"].Meta["k"] != "v" {
		t.Errorf("%+v %v", st, err)
	}
	conf, err := op.AutopilotGetConfiguration(nil)
	if err != nil || conf.MaxTrailingLogs != 250 {
		t.Fatalf("%+v %v", conf, err)
	}
	conf.MinQuorum = 3
	if err := op.AutopilotSetConfiguration(conf, nil); err != nil {
		t.Fatal(err)
	}
	if conf, err = op.AutopilotGetConfiguration(nil); err != nil || conf.MinQuorum != 3 || conf.ModifyIndex == 0 {
		t.Fatalf("%+v %v", conf, err)
	}
	conf.ModifyIndex--
	if ok, err := op.AutopilotCASConfiguration(conf, nil); err != nil || ok {
		t.Error(ok, err)
	}

	body, meta, err := r.client.Snapshot().Save(nil)
	if err != nil {
		t.Fatal(err)
	}
	got := readAll(t, body)
	if got != string(f.archive) || meta.LastIndex != 9 {
		t.Errorf("%d bytes, index %d", len(got), meta.LastIndex)
	}
	if err := r.client.Snapshot().Restore(nil, strings.NewReader(got)); err != nil || string(f.restored) != got {
		t.Errorf("%d bytes, %v", len(f.restored), err)
	}
	f.breaks = true
	if body, _, err := r.client.Snapshot().Save(nil); err == nil {
		if _, err := io.ReadAll(body); err == nil {
			t.Error("half an archive looks whole")
		}
		_ = body.Close()
	}
}

type fakeKeyring struct {
	report catalog.KeyringReport
	err    error
	calls  []string
}

func (f *fakeKeyring) Keyring(_ context.Context, op catalog.KeyringOp, key string) (*catalog.KeyringReport, error) {
	f.calls = append(f.calls, strings.TrimSpace(string(op)+" "+key))
	return &f.report, f.err
}

func TestKeyring(t *testing.T) {
	f := &fakeKeyring{report: catalog.KeyringReport{Keys: map[string][]string{testNode: {"k1", "k2"}, "other": {"k1"}}}}
	r := newRig(t, func(c *Config) { c.Keyring = f })
	op := r.client.Operator()
	rings, err := op.KeyringList(nil)
	if err != nil || len(rings) != 2 || !rings[0].WAN || rings[0].NumNodes != 1 || rings[1].NumNodes != 2 ||
		rings[1].Keys["k1"] != 2 || rings[1].PrimaryKeys["k1"] != 2 || rings[1].PrimaryKeys["k2"] != 0 {
		t.Errorf("%+v %v", rings, err)
	}
	if err := errors.Join(op.KeyringInstall("a", nil), op.KeyringUse("b", nil), op.KeyringRemove("c", nil)); err != nil {
		t.Error(err)
	}
	if got := strings.Join(f.calls, ","); got != "list,install a,use b,remove c" {
		t.Error(got)
	}
	f.report.Errors = map[string]string{"other": "no answer"}
	if err := op.KeyringUse("b", nil); err == nil || !strings.Contains(err.Error(), "other: no answer") {
		t.Error(err)
	}
	f.err = catalog.Conflictf("the keyring is empty")
	for _, m := range []string{"GET", "PUT"} {
		r.want(r.do(m, "/v1/operator/keyring", `{"Key":"x"}`), 500, "the keyring is empty")
	}
	r.want(r.do("GET", "/v1/operator/keyring?relay-factor=9", ""), 400, "")
	r.want(r.do("PUT", "/v1/operator/keyring?local-only=1", `{"Key":"x"}`), 400, "")
}

func TestNearest(t *testing.T) {
	r := newRig(t)
	for i, n := range []string{"n1", "n2", "n3"} {
		r.mustApply(&catalog.Register{
			Node:    &catalog.Node{Node: n, Address: "10.0.0." + string(rune('1'+i))},
			Service: &catalog.Service{ID: "w", Service: "web"},
			Checks:  []*catalog.Check{{CheckID: "c", Name: "c", ServiceID: "w", Status: catalog.StatusPassing}},
		})
	}
	place := func(node string, at float64) {
		t.Helper()
		c := coordinate.NewCoordinate(coordinate.DefaultConfig())
		c.Vec[0] = at
		if _, err := r.client.Coordinate().Update(&api.CoordinateEntry{Node: node, Coord: c}, nil); err != nil {
			t.Fatal(err)
		}
	}
	place(testNode, 0)
	place("n1", 0.3)
	place("n2", 0.1)
	near := func(from string) *api.QueryOptions { return &api.QueryOptions{Near: from} }
	for from, want := range map[string]string{"_agent": "n2 n1 n3", "n1": "n1 n2 n3", "n3": "n1 n2 n3", "": "n1 n2 n3", "ghost": "n1 n2 n3"} {
		entries, _, err := r.client.Health().Service("web", "", false, near(from))
		if err != nil {
			t.Fatal(err)
		}
		instances, _, err := r.client.Catalog().Service("web", "", near(from))
		if err != nil {
			t.Fatal(err)
		}
		checks, _, err := r.client.Health().Checks("web", near(from))
		if err != nil {
			t.Fatal(err)
		}
		var a, b, c []string
		for i := range entries {
			a, b, c = append(a, entries[i].Node.Node), append(b, instances[i].Node), append(c, checks[i].Node)
		}
		for _, got := range [][]string{a, b, c} {
			if strings.Join(got, " ") != want {
				t.Errorf("near %q: %v, want %s", from, got, want)
			}
		}
	}
	nodes, _, err := r.client.Catalog().Nodes(near("n2"))
	if err != nil || nodes[0].Node != "n2" || nodes[1].Node != testNode || nodes[3].Node != "n3" {
		t.Errorf("%+v %v", nodes, err)
	}
	r.want(r.do("PUT", "/v1/coordinate/update", `{"Node":"n1","Coord":{"Vec":[1]}}`), 400, "")
	if all, _, err := r.client.Coordinate().Nodes(nil); err != nil || len(all) != 3 {
		t.Errorf("%+v %v", all, err)
	}
	r.mustApply(&catalog.Deregister{Node: "n1"})
	r.want(r.do("GET", "/v1/coordinate/node/n1", ""), 404, "")

	// A prepared query by the address of who asks.
	id, _, err := r.client.PreparedQuery().Create(&api.PreparedQueryDefinition{Name: "q", Service: api.ServiceQuery{Service: "web", Near: "_ip"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for from, first := range map[string]string{"10.0.0.2": "n2"} {
		a := r.do("GET", "/v1/query/"+id+"/execute?limit=1", "", "X-Forwarded-For", from+", 1.1.1.1")
		if !strings.Contains(a.body, `"Node":"`+first+`"`) || strings.Contains(a.body, `"Node":"n3"`) {
			t.Errorf("from %s: %s", from, a.body)
		}
	}
}

func TestPreparedQueryClient(t *testing.T) {
	r := newRig(t)
	r.want(r.do("PUT", "/v1/catalog/register", registerWeb), 200, "true")
	pq := r.client.PreparedQuery()
	def := &api.PreparedQueryDefinition{Name: "find", Service: api.ServiceQuery{Service: "web", Tags: []string{"v1"}}, DNS: api.QueryDNSOptions{TTL: "3s"}}
	id, _, err := pq.Create(def, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := pq.Create(def, nil); err == nil || !strings.Contains(err.Error(), "aliases an existing query name") {
		t.Error(err)
	}
	res, meta, err := pq.Execute("find", nil)
	if err != nil || len(res.Nodes) != 1 || res.Nodes[0].Service.ID != "web1" || res.DNS.TTL != "3s" || res.Datacenter != "dc1" || meta.LastIndex == 0 {
		t.Errorf("%+v %v", res, err)
	}
	def.ID, def.Service.Tags = id, []string{"!v1"}
	if _, err := pq.Update(def, nil); err != nil {
		t.Fatal(err)
	}
	if res, _, err = pq.Execute(id, nil); err != nil || len(res.Nodes) != 0 {
		t.Errorf("%+v %v", res, err)
	}
	if all, _, err := pq.List(nil); err != nil || len(all) != 1 || all[0].Service.Tags[0] != "!v1" {
		t.Errorf("%+v %v", all, err)
	}
	if _, _, err := pq.Get("find", nil); err == nil {
		t.Error("a query was read by its name")
	}
	if _, err := pq.Delete(id, nil); err != nil {
		t.Error(err)
	}
	for target, status := range map[string]int{
		"GET /v1/query/": 400, "GET /v1/query//execute": 400, "GET /v1/query/x%00/explain": 400, "DELETE /v1/query/nope": 500,
		"GET /v1/query/" + strings.Repeat("x", 600) + "/execute": 500,
	} {
		method, path, _ := strings.Cut(target, " ")
		if a := r.do(method, path, ""); a.status != status {
			t.Errorf("%.40s: %d %s, want %d", target, a.status, a.body, status)
		}
	}
	r.want(r.do("POST", "/v1/query", `{"Name":"x","Service":{"Service":"a","Namespace":"ns"}}`), 400, "")
	r.want(r.do("POST", "/v1/query", `{"Name":"x","Session":"s","Service":{"Service":"a"}}`), 500, "")
	r.want(r.do("POST", "/v1/query", `{"Name":"x","Service":{"Service":"a","Namespace":"default"}}`), 200, "")
}

// TestTopologyByIntentions: where the default is deny, who may talk is in the
// topology for the intention that lets them.
func TestTopologyByIntentions(t *testing.T) {
	r := newRig(t)
	for _, n := range []string{"api", "db", "web"} {
		r.mustApply(&catalog.Register{Node: &catalog.Node{Node: "n"}, Service: &catalog.Service{ID: n, Service: n, Connect: catalog.ServiceConnect{Native: true}}})
	}
	r.mustApply(&catalog.Register{Node: &catalog.Node{Node: "n"}, Service: &catalog.Service{
		ID: "p", Service: "web-sidecar-proxy", Kind: catalog.KindConnectProxy,
		Proxy: catalog.ConnectProxy{DestinationServiceName: "web", Mode: "transparent", Upstreams: []catalog.Upstream{{DestinationName: "api"}}},
	}})
	for _, p := range [][2]string{{"web", "db"}, {"*", "web"}} {
		r.mustApply(&catalog.SetIntention{Destination: p[1], Source: catalog.SourceIntention{Name: p[0], Action: catalog.ActionAllow}})
	}
	var out topologyView
	r.getJSON("/v1/internal/ui/service-topology/web?kind=", &out)
	show := func(edges []edgeView) string {
		var parts []string
		for _, e := range edges {
			allowed := "denied"
			if e.Intention.Allowed {
				allowed = "allowed"
			}
			parts = append(parts, e.Name+" "+e.Source+" "+allowed)
		}
		return strings.Join(parts, ", ")
	}
	if got := show(out.Upstreams); got != "api proxy-registration denied, db specific-intention allowed" {
		t.Error(got)
	}
	if got := show(out.Downstreams); got != "api wildcard-intention allowed, db wildcard-intention allowed" {
		t.Error(got)
	}
	if !out.TransparentProxy || out.Protocol != "tcp" {
		t.Errorf("%+v", out)
	}
	r.want(r.do("GET", "/v1/internal/ui/service-topology/web?kind=mesh-gateway", ""), 400, "")
	var overview struct{ Nodes, Services, Checks []tallyView }
	r.getJSON("/v1/internal/ui/catalog-overview", &overview)
	if len(overview.Services) != 4 || overview.Nodes[0].Total != 2 {
		t.Errorf("%+v", overview)
	}
}

func (r *rig) getJSON(target string, out any) {
	r.t.Helper()
	a := r.want(r.do("GET", target, ""), 200, "")
	if err := json.Unmarshal([]byte(a.body), out); err != nil {
		r.t.Fatalf("%s: %v in %s", target, err, a.body)
	}
}
