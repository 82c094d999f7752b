package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testNode    = "node1"
	testCluster = "11111111-2222-3333-4444-555555555555"
	testDomain  = testCluster + ".consul"
)

// servers is a server without Raft: commands go to the store one by one.
type servers struct {
	mu    sync.Mutex
	index uint64
	store *store.Store
	err   error // when set, what every call answers
	sign  func(*wire.SignRequest) (*wire.SignReply, error)
	meta  wire.Meta
	reads []wire.ReadRequest
}

func (s *servers) apply(cmd catalog.Command) (any, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index++
	v, err := s.store.Apply(s.index, cmd)
	return v, s.index, err
}

func (s *servers) Read(ctx context.Context, req *wire.ReadRequest) (*wire.ReadReply, error) {
	s.mu.Lock()
	err, meta := s.err, s.meta
	s.reads = append(s.reads, *req)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := req.Query.Validate(); err != nil {
		return nil, err
	}
	if req.MinIndex > 0 {
		wait, cancel := context.WithTimeout(ctx, req.MaxWait)
		defer cancel()
		v, _, err := s.store.Watch(req.Query).Next(wait, req.MinIndex)
		if err == nil {
			return &wire.ReadReply{View: v, Meta: meta}, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	v, err := s.store.Read(req.Query)
	if err != nil {
		return nil, err
	}
	return &wire.ReadReply{View: v, Meta: meta}, nil
}

func (s *servers) Apply(_ context.Context, req *wire.ApplyRequest) (*wire.ApplyReply, error) {
	if s.err != nil {
		return nil, s.err
	}
	v, index, err := s.apply(req.Command.Command)
	if err != nil {
		return nil, err
	}
	if set, is := v.(catalog.VirtualIPsSet); is {
		return &wire.ApplyReply{Index: index, OK: set.Found, Names: set.TakenFrom}, nil
	}
	ok, isBool := v.(bool)
	return &wire.ApplyReply{Index: index, OK: ok || !isBool}, nil
}

func (s *servers) Sign(_ context.Context, req *wire.SignRequest) (*wire.SignReply, error) {
	if s.sign == nil {
		return nil, catalog.ErrUnavailable
	}
	return s.sign(req)
}

func (s *servers) SetCAConfig(_ context.Context, req *wire.SetCAConfigRequest) (*wire.SetCAConfigReply, error) {
	if req.Config.Provider != "consul" {
		return nil, catalog.Invalidf("could not initialize provider: unknown CA provider %q", req.Config.Provider)
	}
	_, index, err := s.apply(&catalog.SetCAConfig{Config: req.Config})
	return &wire.SetCAConfigReply{Index: index}, err
}

func (s *servers) Status(context.Context, *wire.StatusRequest) (*wire.StatusReply, error) {
	if s.err != nil {
		return nil, s.err
	}
	return &wire.StatusReply{Leader: "127.0.0.1:8300", Peers: []string{"127.0.0.1:8300"}, Stats: map[string]map[string]string{"raft": {"state": "Leader"}}}, nil
}

func (s *servers) Txn(_ context.Context, req *wire.TxnRequest) (*wire.TxnReply, error) {
	if s.err != nil {
		return nil, s.err
	}
	if refused := req.Txn.Refused(); len(refused) > 0 {
		return &wire.TxnReply{Result: catalog.TxnResult{Errors: refused}}, nil
	}
	if req.Txn.ReadOnly() {
		res, index, err := s.store.ReadTxn(&req.Txn)
		if err != nil {
			return nil, err
		}
		return &wire.TxnReply{Result: *res, Index: index, Meta: s.meta}, nil
	}
	v, index, err := s.apply(&req.Txn)
	if err != nil {
		return nil, err
	}
	return &wire.TxnReply{Result: *v.(*catalog.TxnResult), Index: index, Meta: s.meta}, nil
}

func (s *servers) RenewSession(_ context.Context, req *wire.RenewSessionRequest) (*wire.RenewSessionReply, error) {
	v, err := s.store.Read(catalog.Query{Kind: catalog.QuerySession, Name: req.ID})
	if err != nil || len(v.Sessions) == 0 {
		return nil, catalog.NotFoundf("Session id '%s' not found", req.ID)
	}
	return &wire.RenewSessionReply{Session: v.Sessions[0]}, nil
}

// Sync implements local.Syncer.
func (s *servers) Sync(_ context.Context, want catalog.NodeState) (uint64, error) {
	_, index, err := s.apply(&catalog.SyncNode{State: want})
	return index, err
}

type members []catalog.Member

func (m members) Members() []catalog.Member { return m }

type fakeControl struct {
	calls chan string
	err   error
}

func (f *fakeControl) did(what string) error { f.calls <- what; return f.err }

func (f *fakeControl) Reload(context.Context) error { return f.did("reload") }
func (f *fakeControl) Leave(context.Context) error  { return f.did("leave") }
func (f *fakeControl) Join(_ context.Context, addr string, _ bool) error {
	return f.did("join " + addr)
}

func (f *fakeControl) ForceLeave(_ context.Context, node string, prune bool) error {
	return f.did("force-leave " + node)
}

type fakeProxies struct {
	snaps map[string]*catalog.Latest[*connect.Snapshot]
	told  chan connect.Status
}

func (f fakeProxies) Status() []connect.Status {
	return []connect.Status{{Proxy: "web-sidecar-proxy", Service: "web", Ready: true}}
}

func (f fakeProxies) Snapshot(id string) catalog.Watch[*connect.Snapshot] {
	if l, ok := f.snaps[id]; ok {
		return l
	}
	l := &catalog.Latest[*connect.Snapshot]{}
	l.Close(catalog.NotFoundf("proxy %s", id))
	return l
}

func (f fakeProxies) Tell(id string, st connect.Status, _ *connect.Counts) error {
	if _, ok := f.snaps[id]; !ok {
		return catalog.NotFoundf("proxy %s", id)
	}
	f.told <- st
	return nil
}

type fakeLeaves struct{ index uint64 }

func (f *fakeLeaves) Leaf(ctx context.Context, service, _ string, after uint64) (*catalog.Leaf, string, error) {
	if after >= f.index {
		<-ctx.Done()
		return nil, "", context.Cause(ctx)
	}
	return &catalog.Leaf{SerialNumber: "0a:0b", CertPEM: "cert\n", Service: service, ModifyIndex: f.index, CreateIndex: f.index}, "key\n", nil
}

// lockedBuffer collects a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rig is an agent's API over a real store and a real local state.
type rig struct {
	t       testing.TB
	servers *servers
	local   *local.State
	control *fakeControl
	snaps   map[string]*catalog.Latest[*connect.Snapshot]
	told    chan connect.Status
	log     *lockedBuffer
	api     *Server
	url     string
	client  *api.Client
}

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	st, err := store.New(store.Config{Linger: time.Millisecond, Coalesce: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	r := &rig{
		t: t, servers: &servers{store: st, meta: wire.Meta{KnownLeader: true}}, log: &lockedBuffer{},
		control: &fakeControl{calls: make(chan string, 8)}, snaps: map[string]*catalog.Latest[*connect.Snapshot]{},
		told: make(chan connect.Status, 1),
	}
	node := &catalog.Node{ID: "40e4a748-2192-161a-0510-9bf59fe950b5", Node: testNode, Address: "127.0.0.1", Datacenter: "dc1"}
	if r.local, err = local.New(local.Config{Node: node, Syncer: r.servers}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.local.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("local: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	if err := r.local.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
	r.mustApply(&catalog.SetCAConfig{Config: catalog.CAConfig{ClusterID: testCluster, Provider: "consul", Config: map[string]any{"LeafCertTTL": "72h", "PrivateKey": "secret"}}})
	r.mustApply(&catalog.SetRoots{Roots: []*catalog.Root{{ID: "aa:bb", Name: "root", Active: true, RootCert: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", SealedKey: []byte("sealed")}}})

	level := slog.LevelDebug
	tap := NewLogTap(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: level}))
	reg := prometheus.NewRegistry()
	cfg := Config{
		Self:  Self{Datacenter: "dc1", NodeName: testNode, NodeID: node.ID, Server: true, Version: "1.2.3"},
		Local: r.local, Servers: r.servers, Members: members{{Name: testNode, Addr: "127.0.0.1", Port: 8301, Status: catalog.MemberAlive}},
		Proxies: fakeProxies{r.snaps, r.told}, Leaves: &fakeLeaves{index: 7}, Control: r.control, Monitor: tap,
		Logger: slog.New(tap), Registerer: reg, Gatherer: reg,
	}
	for _, f := range change {
		f(&cfg)
	}
	if r.api, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r.api.Handler())
	t.Cleanup(srv.Close)
	r.url = srv.URL
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	if r.client, err = api.NewClient(&api.Config{Address: srv.URL, HttpClient: &http.Client{Transport: transport}}); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) mustApply(cmd catalog.Command) {
	r.t.Helper()
	if _, _, err := r.servers.apply(cmd); err != nil {
		r.t.Fatalf("apply %T: %v", cmd, err)
	}
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request straight to the handler.
func (r *rig) do(method, target, body string, headers ...string) answer {
	r.t.Helper()
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	req.Host = "127.0.0.1:8500"
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		} else {
			req.Header.Set(headers[i], headers[i+1])
		}
	}
	rec := httptest.NewRecorder()
	r.api.Handler().ServeHTTP(rec, req)
	return answer{rec.Code, rec.Header(), rec.Body.String()}
}

// want checks status and, where not empty, body.
func (r *rig) want(a answer, status int, body string) answer {
	r.t.Helper()
	if a.status != status || (body != "" && a.body != body) {
		r.t.Fatalf("got %d %q, want %d %q", a.status, a.body, status, body)
	}
	return a
}

// eventually repeats f until it is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if f() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func readAll(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
