package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/ca"
	"github.com/weftmesh/weft/connect/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	nodeID   = "11111111-1111-4111-8111-111111111111"
	patience = 20 * time.Second
)

func config(dir string) Config {
	return Config{
		NodeName: "s1", NodeID: nodeID, Datacenter: "dc1", Addr: "127.0.0.1:8300", DataDir: dir, Dev: dir == "",
		Bootstrap: true, Version: "1.2.3",
	}
}

// rig is a server that runs, and a client of it.
type rig struct {
	t      testing.TB
	server *Server
	wire.Servers
	stop func() error
}

func start(t testing.TB, cfg Config) *rig {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	cc, err := grpc.NewClient("passthrough:///server", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.Dial(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, server: s, Servers: wire.NewClient(cc)}
	r.stop = sync.OnceValue(func() error {
		cancel()
		err := <-done
		return errors.Join(err, cc.Close())
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error("stop:", err)
		}
	})
	return r
}

// watch gives the first view of q that ok accepts.
func (r *rig) watch(q catalog.Query, ok func(*catalog.View) bool) *catalog.View {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var got, last *catalog.View
	found := errors.New("found")
	err := r.Watch(ctx, &wire.WatchRequest{Query: q}, func(e *wire.WatchEvent) error {
		if e.View == nil {
			return nil
		}
		if last = e.View; ok(e.View) {
			got = e.View
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		r.t.Fatalf("watch %s: %v; last seen: %+v", q, err, last)
	}
	return got
}

func (r *rig) roots() *catalog.View {
	r.t.Helper()
	return r.watch(catalog.Query{Kind: catalog.QueryRoots}, func(v *catalog.View) bool {
		return len(v.Roots) > 0 && v.CAConfig != nil
	})
}

func (r *rig) apply(cmd catalog.Command) *wire.ApplyReply {
	r.t.Helper()
	rep, err := r.Apply(context.Background(), &wire.ApplyRequest{Command: wire.Command{Command: cmd}})
	if err != nil {
		r.t.Fatal(err)
	}
	return rep
}

func (r *rig) sign(service string) (*catalog.Leaf, error) {
	key, err := identity.NewKey()
	if err != nil {
		r.t.Fatal(err)
	}
	id := identity.ServiceID{TrustDomain: catalog.TrustDomain(r.roots().CAConfig.ClusterID), Datacenter: "dc1", Service: service}
	csr, err := identity.NewCSR(key, id)
	if err != nil {
		r.t.Fatal(err)
	}
	rep, err := r.Sign(context.Background(), &wire.SignRequest{CSR: csr})
	if err != nil {
		return nil, err
	}
	return &rep.Leaf, nil
}

// TestServes: a new server has a leader, a CA and its own rows within a second.
func TestServes(t *testing.T) {
	begin := time.Now()
	cfg := config("")
	cfg.Registerer = prometheus.NewRegistry()
	r := start(t, cfg)
	roots := r.roots()
	if d := time.Since(begin); d > patience {
		t.Errorf("serving took %v", d)
	} else {
		t.Logf("serving after %v", d)
	}
	if len(roots.Roots) != 1 || !roots.Roots[0].Active || len(roots.Roots[0].SealedKey) != 0 {
		t.Errorf("%+v", roots.Roots[0])
	}
	v := r.watch(catalog.Query{Kind: catalog.QueryService, Name: "consul"}, func(v *catalog.View) bool { return len(v.Instances) == 1 })
	i := v.Instances[0]
	if i.Service.ID != "consul" || i.Service.Port != 8300 || i.Service.Meta["version"] != "1.2.3" || i.Node.ID != nodeID || i.Node.Address != "127.0.0.1" {
		t.Errorf("%+v %+v", i.Service, i.Node)
	}
	if len(i.Checks) != 1 || i.Checks[0].CheckID != catalog.NodeCheckID || i.Checks[0].Status != catalog.StatusPassing || i.Checks[0].Output != catalog.NodeCheckAlive {
		t.Errorf("%+v", i.Checks)
	}
	st, err := r.Status(t.Context(), &wire.StatusRequest{})
	if err != nil || st.Leader != "127.0.0.1:8300" || !st.LeaderSelf || fmt.Sprint(st.Peers) != "[127.0.0.1:8300]" || st.Stats["raft"]["state"] != "Leader" {
		t.Error(st, err)
	}
	leaf, err := r.sign("web")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := identity.ParseChain([]byte(leaf.CertPEM))
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := identity.NewBundle(catalog.TrustDomain(roots.CAConfig.ClusterID), []string{roots.Roots[0].RootCert})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := bundle.VerifyPeer(chain.Certificates(), time.Now()); err != nil || id.Service != "web" {
		t.Error(id, err)
	}
	if leaf.Service != "web" || leaf.ModifyIndex == 0 || leaf.ModifyIndex != leaf.CreateIndex {
		t.Errorf("%+v", leaf)
	}
}

// TestAgentAndLeaderAgree: the agent's statement of the host and the leader's rows
// stand side by side; neither undoes the other's, and nobody goes on writing.
func TestAgentAndLeaderAgree(t *testing.T) {
	r := start(t, config(""))
	r.roots() // by then the leader has written what a new cluster needs
	state := catalog.NodeState{
		Node: &catalog.Node{
			ID: nodeID, Node: "s1", Address: "127.0.0.1", Datacenter: "dc1",
			TaggedAddresses: map[string]string{"lan": "127.0.0.1"}, Meta: map[string]string{"consul-version": "1.2.3"},
		},
		Services: []*catalog.Service{{ID: "web", Service: "web", Port: 80}},
		Checks:   []*catalog.Check{{CheckID: "c", ServiceID: "web", Status: catalog.StatusPassing}},
	}
	first, err := r.Sync(t.Context(), &wire.SyncRequest{State: state})
	if err != nil {
		t.Fatal(err)
	}
	v := r.watch(catalog.Query{Kind: catalog.QueryNode, Name: "s1"}, func(v *catalog.View) bool { return len(v.Instances) == 2 })
	if v.Nodes[0].TaggedAddresses["lan"] != "127.0.0.1" || v.Nodes[0].Meta["consul-version"] != "1.2.3" {
		t.Errorf("%+v", v.Nodes[0])
	}
	if err := r.server.leader.members.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := r.server.store.Index()
	again, err := r.Sync(t.Context(), &wire.SyncRequest{State: state})
	if err != nil || again.Index < first.Index {
		t.Error(again, err)
	}
	if now := r.server.store.Index(); now != at {
		t.Errorf("an equal statement moved the index from %d to %d", at, now)
	}
}

// TestLeaderIntroducesAHost: the leader makes the row of a host and its check, and
// only then is the host's own statement taken, whoever comes first.
func TestLeaderIntroducesAHost(t *testing.T) {
	q := catalog.Query{Kind: catalog.QueryNode, Name: "s1"}
	state := catalog.NodeState{Node: &catalog.Node{
		ID: nodeID, Node: "s1", Address: "127.0.0.1", Datacenter: "dc1", Meta: map[string]string{"consul-version": "1.2.3"},
	}}
	for range 5 {
		r := start(t, config(""))
		var err error
		for end := time.Now().Add(patience); time.Now().Before(end); { // until there is a leader
			if _, err = r.Sync(t.Context(), &wire.SyncRequest{State: state}); !errors.Is(err, catalog.ErrNoLeader) {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		v := r.watch(q, func(v *catalog.View) bool { return len(v.Nodes) > 0 && v.Nodes[0].Meta["consul-version"] != "" })
		if n := v.Nodes[0]; n.CreateIndex >= n.ModifyIndex {
			t.Errorf("the host made its own row: created at %d, changed at %d", n.CreateIndex, n.ModifyIndex)
		}
		if c, err := r.server.leader.members.read("s1"); err != nil || c.check == nil {
			t.Errorf("no check of the node: %v", err)
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	}
	// Of a host that gossip does not know there is nothing to say.
	r := start(t, config(""))
	r.roots()
	state.Node = &catalog.Node{ID: "22222222-2222-4222-8222-222222222222", Node: "other", Address: "127.0.0.2", Datacenter: "dc1"}
	if _, err := r.Sync(t.Context(), &wire.SyncRequest{State: state}); err != nil {
		t.Error(err)
	}
}

func TestIntentionsAndWatch(t *testing.T) {
	r := start(t, config(""))
	q := catalog.Query{Kind: catalog.QueryIntentionsDest, Name: "db"}
	if v := r.watch(q, func(*catalog.View) bool { return true }); v.Default != catalog.ActionDeny {
		t.Errorf("default %q", v.Default)
	}
	r.roots()
	set := r.apply(&catalog.SetIntention{Destination: "db", Source: catalog.SourceIntention{Name: "web", Action: catalog.ActionAllow}})
	v := r.watch(q, func(v *catalog.View) bool { return len(v.Intentions) == 1 })
	if v.Index != set.Index || v.Intentions[0].Precedence != 9 {
		t.Errorf("view at %d, written at %d: %+v", v.Index, set.Index, v.Intentions[0])
	}
	rep, err := r.Read(t.Context(), &wire.ReadRequest{Query: q, MinIndex: v.Index, MaxWait: 10 * time.Millisecond})
	if err != nil || rep.View.Index != v.Index || !rep.Meta.KnownLeader {
		t.Error(rep, err)
	}
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	r := start(t, config(dir))
	before := r.roots()
	r.apply(&catalog.SetIntention{Destination: "db", Source: catalog.SourceIntention{Name: "web", Action: catalog.ActionAllow}})
	if _, err := r.sign("web"); err != nil {
		t.Fatal(err)
	}
	print := r.server.store.Fingerprint()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, config(dir))
	if after := r.roots(); after.Roots[0].ID != before.Roots[0].ID || after.CAConfig.ClusterID != before.CAConfig.ClusterID {
		t.Error("another CA")
	}
	if err := r.server.leader.members.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.server.store.Fingerprint() != print {
		t.Error("the state differs after a restart")
	}
	if _, err := r.sign("web"); err != nil {
		t.Error(err)
	}
}

func TestSeal(t *testing.T) {
	dir := t.TempDir()
	r := start(t, config(dir))
	r.roots()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, sealFile)
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() != 32 {
		t.Fatal(info, err)
	}
	seal, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte, mode os.FileMode) {
		if err := errors.Join(os.WriteFile(file, b, mode), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		bytes []byte
		mode  os.FileMode
		want  string
	}{
		"open to others": {seal, 0o644, "chmod 600"},
		"cut":            {seal[:31], 0o600, "31 bytes"},
		"empty":          {nil, 0o600, "0 bytes"},
		"zeros":          {make([]byte, 32), 0o600, "zeros"},
	} {
		write(c.bytes, c.mode)
		if _, err := New(config(dir)); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := append([]byte(nil), seal...)
	other[0] ^= 1
	write(other, 0o600)
	r = start(t, config(dir))
	if _, err := r.sign("web"); err == nil || !strings.Contains(err.Error(), file) {
		t.Error("a leaf under a seal that does not fit:", err)
	}
	if err := r.server.authority.Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), file) {
		t.Error("the leader does not say that its seal does not fit:", err)
	}
	// The way out that the error names.
	cfg := ca.DefaultConfig()
	cfg.Config["PrivateKeyBits"], cfg.ForceWithoutCrossSigning = 384, true
	if _, err := r.SetCAConfig(t.Context(), &wire.SetCAConfigRequest{Config: cfg}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.sign("web"); err != nil {
		t.Error(err)
	}
}

func TestSetCAConfig(t *testing.T) {
	r := start(t, config(""))
	old := r.roots()
	ctx := t.Context()
	set := func(c catalog.CAConfig) error {
		_, err := r.SetCAConfig(ctx, &wire.SetCAConfigRequest{Config: c})
		return err
	}
	if err := set(catalog.CAConfig{Provider: "nope"}); !errors.Is(err, catalog.ErrInvalid) || err.Error() != `could not initialize provider: unknown CA provider "nope"` {
		t.Error(err)
	}
	short := catalog.CAConfig{Provider: "consul", Config: map[string]any{"LeafCertTTL": "1m"}}
	if err := set(short); !errors.Is(err, catalog.ErrInvalid) || err.Error() != "error configuring provider: leaf cert TTL must be greater or equal than 1h0m0s" {
		t.Error(err)
	}
	if err := set(catalog.CAConfig{Provider: "consul", Config: map[string]any{"LeafCertTTL": "24h", "CSRMaxPerSecond": 100.0}}); err != nil {
		t.Fatal(err)
	}
	q := catalog.Query{Kind: catalog.QueryCAConfig}
	rep, err := r.Read(ctx, &wire.ReadRequest{Query: q})
	if err != nil || fmt.Sprint(rep.View.CAConfig.Config) != "map[CSRMaxPerSecond:100 LeafCertTTL:24h]" || rep.View.CAConfig.ClusterID != old.CAConfig.ClusterID {
		t.Error(rep, err)
	}
	leaf, err := r.sign("web")
	if err != nil {
		t.Fatal(err)
	}
	if life := leaf.ValidBefore.Sub(leaf.ValidAfter); life > 25*time.Hour {
		t.Errorf("a leaf lives for %v", life)
	}
	if err := set(catalog.CAConfig{Provider: "consul", Config: map[string]any{"PrivateKeyType": "rsa"}}); err != nil {
		t.Fatal(err)
	}
	rotated := r.watch(catalog.Query{Kind: catalog.QueryRoots}, func(v *catalog.View) bool { return len(v.Roots) == 2 })
	if active := ca.Active(rotated.Roots); active.PrivateKeyType != "rsa" || len(active.IntermediateCerts) != 1 {
		t.Errorf("%+v", active)
	}
	// Peers who know only the old root accept the new leaf, by the cross-signature.
	if leaf, err = r.sign("web"); err != nil {
		t.Fatal(err)
	}
	chain, err := identity.ParseChain([]byte(leaf.CertPEM))
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := identity.NewBundle(catalog.TrustDomain(old.CAConfig.ClusterID), []string{old.Roots[0].RootCert})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.VerifyPeer(chain.Certificates(), time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := r.Apply(ctx, &wire.ApplyRequest{Command: wire.Command{Command: &catalog.SetRoots{Roots: rotated.Roots}}}); !errors.Is(err, catalog.ErrDenied) {
		t.Error("anybody may set the roots:", err)
	}
}

func TestConfigOfFirstCA(t *testing.T) {
	cfg := config("")
	cfg.CA.Config = map[string]any{"leaf_cert_ttl": "5h"}
	r := start(t, cfg)
	r.roots()
	rep, err := r.Read(t.Context(), &wire.ReadRequest{Query: catalog.Query{Kind: catalog.QueryCAConfig}})
	if err != nil || fmt.Sprint(rep.View.CAConfig.Config) != "map[IntermediateCertTTL:8760h LeafCertTTL:5h RootCertTTL:87600h]" {
		t.Error(rep, err)
	}
	for name, c := range map[string]catalog.CAConfig{
		"unknown CA provider": {Provider: "vault"},
		"leaf cert TTL":       {Config: map[string]any{"leaf_cert_ttl": "1m"}},
		"unknown key":         {Config: map[string]any{"leaf_ttl": "72h"}},
	} {
		cfg.CA = c
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Error(name, err)
		}
	}
	cfg.CA = catalog.CAConfig{Config: map[string]any{"LeafCertTTL": "8760h"}}
	r = start(t, cfg)
	r.roots()
}

func TestStopEndsWaits(t *testing.T) {
	r := start(t, config(""))
	at := r.roots().Index
	q := catalog.Query{Kind: catalog.QueryRoots}
	waits := make(chan error, 2)
	var streaming sync.WaitGroup
	streaming.Add(1)
	go func() {
		var once sync.Once
		waits <- r.Watch(context.Background(), &wire.WatchRequest{Query: q}, func(*wire.WatchEvent) error {
			once.Do(streaming.Done)
			return nil
		})
	}()
	go func() {
		_, err := r.Read(context.Background(), &wire.ReadRequest{Query: q, MinIndex: at + 1000})
		waits <- err
	}()
	streaming.Wait()
	begin := time.Now()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > stopGrace/2 {
		t.Errorf("stopping took %v", d)
	}
	for range 2 {
		if err := <-waits; !errors.Is(err, catalog.ErrUnavailable) {
			t.Error(err)
		}
	}
	if _, err := r.server.Dial(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestRefusedConfig(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"NodeName":          func(c *Config) { c.NodeName = "" },
		"data directory":    func(c *Config) { c.DataDir, c.Dev = "", false },
		"default intention": func(c *Config) { c.DefaultIntention = "maybe" },
	} {
		cfg := config("")
		spoil(&cfg)
		if _, err := New(cfg); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Error(name, err)
		}
	}
	dir := t.TempDir()
	s, err := New(config(dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(config(dir)); err == nil || !strings.Contains(err.Error(), "another process holds it") {
		t.Error(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

// BenchmarkRead: what a read through the in-process connection costs.
func BenchmarkRead(b *testing.B) {
	r := start(b, config(""))
	r.roots()
	for _, c := range []wire.Consistency{wire.Default, wire.Stale} {
		name := string(c)
		if name == "" {
			name = "default"
		}
		b.Run(name, func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := r.Read(context.Background(), &wire.ReadRequest{Query: catalog.Query{Kind: catalog.QueryServices}, Consistency: c}); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkIntention: from a write until every one of 64 watchers has the new view.
func BenchmarkIntention(b *testing.B) {
	r := start(b, config(""))
	r.roots()
	const readers = 64
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	seen := make(chan uint64, readers)
	for range readers {
		go func() {
			_ = r.Watch(ctx, &wire.WatchRequest{Query: catalog.Query{Kind: catalog.QueryIntentionsDest, Name: "db"}}, func(e *wire.WatchEvent) error {
				if e.View != nil {
					seen <- e.View.Index
				}
				return nil
			})
		}()
	}
	for range readers {
		<-seen
	}
	actions := []catalog.Action{catalog.ActionAllow, catalog.ActionDeny}
	for i := 0; b.Loop(); i++ {
		index := r.apply(&catalog.SetIntention{Destination: "db", Source: catalog.SourceIntention{Name: "web", Action: actions[i%2]}}).Index
		for n := 0; n < readers; {
			if <-seen >= index {
				n++
			}
		}
	}
}
