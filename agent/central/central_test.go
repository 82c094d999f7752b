package central

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// servers are the views that tests answer.
type servers struct {
	mu    sync.Mutex
	views map[catalog.Query]*catalog.Latest[*catalog.View]
	index uint64
}

func (s *servers) Watch(q catalog.Query) catalog.Watch[*catalog.View] { return s.latest(q) }

func (s *servers) latest(q catalog.Query) *catalog.Latest[*catalog.View] {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.views == nil {
		s.views = map[catalog.Query]*catalog.Latest[*catalog.View]{}
	}
	if s.views[q] == nil {
		s.views[q] = &catalog.Latest[*catalog.View]{}
	}
	return s.views[q]
}

func (s *servers) say(kind, name string, e catalog.ConfigEntry) {
	q := catalog.Query{Kind: catalog.QueryConfigEntry, Name: kind, Sub: name}
	w := s.latest(q)
	s.mu.Lock()
	s.index++
	i := s.index
	s.mu.Unlock()
	v := &catalog.View{Query: q, Index: i}
	if e != nil {
		v.Entries = []catalog.Entry{{ConfigEntry: e}}
	}
	w.Set(i, v)
}

func protocol(name, p string) *catalog.ServiceDefaults {
	return &catalog.ServiceDefaults{EntryHead: catalog.EntryHead{Name: name}, Protocol: p}
}

func hostWith(upstreams ...string) *local.Host {
	proxy := &catalog.Service{
		Kind: catalog.KindConnectProxy, ID: "p", Service: "web-proxy",
		Proxy: catalog.ConnectProxy{DestinationServiceName: "web"},
	}
	for _, u := range upstreams {
		proxy.Proxy.Upstreams = append(proxy.Proxy.Upstreams, catalog.Upstream{DestinationName: u})
	}
	return &local.Host{
		Node:     &catalog.Node{Node: "n"},
		Services: map[string]*catalog.Service{"web": {ID: "web", Service: "web"}, "p": proxy},
	}
}

// run starts a merger and ends it with the test.
func run(t *testing.T, m *Merger, hosts *catalog.Latest[*local.Host], changed func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, hosts, changed) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// until waits for a merged host that is as wanted.
func until(t *testing.T, m *Merger, what string, ok func(*catalog.Service) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for after := uint64(0); ; {
		h, index, err := m.Watch().Next(ctx, after)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if ok(h.Services["p"]) {
			return
		}
		after = index
	}
}

func TestHostFollowsEntries(t *testing.T) {
	s := &servers{}
	m, err := New(Config{Views: s.Watch})
	if err != nil {
		t.Fatal(err)
	}
	changes := make(chan struct{}, 100)
	hosts := &catalog.Latest[*local.Host]{}
	hosts.Publish(hostWith("db"))
	run(t, m, hosts, func() { changes <- struct{}{} })
	until(t, m, "as registered", func(p *catalog.Service) bool { return p.Proxy.Config == nil })
	s.say(catalog.KindServiceDefaults, "web", protocol("web", "http"))
	until(t, m, "its own", func(p *catalog.Service) bool { return p.Proxy.Config["protocol"] == "http" })
	<-changes
	s.say(catalog.KindServiceDefaults, "db", protocol("db", "grpc"))
	until(t, m, "its upstream", func(p *catalog.Service) bool { return p.Proxy.Upstreams[0].Config["protocol"] == "grpc" })
	<-changes
	s.say(catalog.KindServiceDefaults, "web", nil)
	until(t, m, "the entry went", func(p *catalog.Service) bool { return p.Proxy.Config == nil })
	<-changes
	// Another upstream, another entry; a registration is seen at once by Merge.
	hosts.Publish(hostWith("api"))
	s.say(catalog.KindServiceDefaults, "api", protocol("api", "http2"))
	until(t, m, "the other upstream", func(p *catalog.Service) bool {
		return p.Proxy.Upstreams[0].Config["protocol"] == "http2"
	})
	if h := m.Merge(hostWith("api")); h.Services["p"].Proxy.Upstreams[0].Config["protocol"] != "http2" || h.Services["web"].Service != "web" {
		t.Errorf("%+v", h.Services["p"])
	}
	if m.Merge(nil) != nil {
		t.Error("a host came from nowhere")
	}
}

// statements records what was stated.
type statements chan catalog.NodeState

func (s statements) Sync(_ context.Context, want catalog.NodeState) (uint64, error) {
	s <- want
	return 1, nil
}

func TestStatementsWaitForEntries(t *testing.T) {
	s := &servers{}
	m, err := New(Config{Views: s.Watch, Patience: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	h := hostWith()
	hosts := &catalog.Latest[*local.Host]{}
	hosts.Publish(h)
	run(t, m, hosts, func() {})
	out := make(statements, 1)
	done := make(chan error, 1)
	go func() {
		_, err := m.Syncer(out).Sync(t.Context(), catalog.NodeState{Node: h.Node, Services: []*catalog.Service{h.Services["web"], h.Services["p"]}})
		done <- err
	}()
	s.say(catalog.KindProxyDefaults, "global", nil)
	select {
	case got := <-out:
		t.Fatalf("stated before all was known: %+v", got)
	default:
	}
	s.say(catalog.KindServiceDefaults, "web", protocol("web", "http"))
	got := <-out
	if err := <-done; err != nil || got.Services[1].Proxy.Config["protocol"] != "http" || got.Services[0] != h.Services["web"] {
		t.Errorf("%v %+v", err, got.Services)
	}
	if h.Services["p"].Proxy.Config != nil {
		t.Error("the registration was changed")
	}

	// Nobody waits for ever: without a server, it is stated as it is.
	late, err := New(Config{Views: s.Watch, Patience: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.Syncer(out).Sync(t.Context(), catalog.NodeState{Node: h.Node, Services: []*catalog.Service{h.Services["p"]}}); err != nil {
		t.Fatal(err)
	}
	if got := <-out; got.Services[0].Proxy.Config != nil {
		t.Errorf("%+v", got.Services[0])
	}
}

func TestEntriesOutliveARestart(t *testing.T) {
	dir := t.TempDir()
	s := &servers{}
	m, err := New(Config{Views: s.Watch, DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	hosts := &catalog.Latest[*local.Host]{}
	hosts.Publish(hostWith())
	run(t, m, hosts, func() {})
	s.say(catalog.KindServiceDefaults, "web", protocol("web", "http"))
	file := filepath.Join(dir, "central.json")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		again, err := New(Config{Views: (&servers{}).Watch, DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if again.Merge(hostWith()).Services["p"].Proxy.Config["protocol"] == "http" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what was known is not on disk")
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	for _, bad := range []string{"", "{", `{"Version":2}`, `{"Version":1,"Entries":[{"Kind":"x"}]}`} {
		other := t.TempDir()
		if err := os.WriteFile(filepath.Join(other, "central.json"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Config{Views: s.Watch, DataDir: other}); err != nil {
			t.Errorf("%q ends the agent: %v", bad, err)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("no Views was accepted")
	}
}
