package sidecar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeViews are the servers' answers, set by the test.
type fakeViews struct {
	mu   sync.Mutex
	by   map[catalog.Query]*catalog.Latest[*catalog.View]
	next uint64
	// noChains leaves the question for a chain without an answer.
	noChains bool
}

// chainView answers the question for a chain.
func chainView(q catalog.Query, entries ...catalog.ConfigEntry) *catalog.View {
	v := &catalog.View{Query: q}
	o, err := q.ChainOptions()
	if err == nil {
		v.Chain, err = catalog.CompileChain(catalog.EntrySet(entries), q.Name, o)
	}
	if err != nil {
		v.Problem = err.Error()
	}
	return v
}

func (f *fakeViews) setChain(name string, entries ...catalog.ConfigEntry) {
	f.set(chainView(catalog.ChainOptions{Datacenter: "dc1"}.Query(name), entries...))
}

func (f *fakeViews) latest(q catalog.Query) *catalog.Latest[*catalog.View] {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.by == nil {
		f.by = map[catalog.Query]*catalog.Latest[*catalog.View]{}
	}
	if f.by[q] == nil {
		f.by[q] = &catalog.Latest[*catalog.View]{}
		if q.Kind == catalog.QueryChain && !f.noChains {
			// Servers always have one, if only that the name leads to itself.
			f.next++
			f.by[q].Set(f.next, chainView(q))
		}
	}
	return f.by[q]
}

func (f *fakeViews) Watch(q catalog.Query) catalog.Watch[*catalog.View] { return f.latest(q) }

func (f *fakeViews) set(v *catalog.View) {
	l := f.latest(v.Query)
	f.mu.Lock()
	f.next++
	v.Index = f.next
	f.mu.Unlock()
	l.Set(v.Index, v)
}

func (f *fakeViews) setRoots(pems ...string) {
	v := &catalog.View{Query: catalog.Query{Kind: catalog.QueryRoots}, CAConfig: &catalog.CAConfig{ClusterID: "11111111-2222-3333-4444-555555555555"}}
	for i, p := range pems {
		v.Roots = append(v.Roots, &catalog.Root{RootCert: p, Active: i == len(pems)-1})
	}
	f.set(v)
}

func (f *fakeViews) setIntentions(dest string, list ...*catalog.Intention) {
	f.set(&catalog.View{Query: catalog.Query{Kind: catalog.QueryIntentionsDest, Name: dest}, Intentions: list, Default: catalog.ActionDeny})
}

func (f *fakeViews) setInstances(name string, addrs ...string) {
	v := &catalog.View{Query: catalog.Query{Kind: catalog.QueryConnect, Name: name}}
	for _, a := range addrs {
		v.Instances = append(v.Instances, &catalog.Instance{
			Node:    &catalog.Node{Node: "n1"},
			Service: &catalog.Service{ID: a, Service: name, Address: a, Port: 1},
		})
	}
	f.set(v)
}

// fakeProxy records the snapshots that it is given.
type fakeProxy struct {
	cfg     connect.ProxyConfig
	fail    error
	drain   time.Duration
	mu      sync.Mutex
	snaps   []*connect.Snapshot
	running bool
}

func (p *fakeProxy) Run(ctx context.Context, src catalog.Watch[*connect.Snapshot]) error {
	if p.fail != nil {
		return p.fail
	}
	p.mu.Lock()
	p.running = true
	p.mu.Unlock()
	var after uint64
	for {
		snap, i, err := src.Next(ctx, after)
		if err != nil {
			time.Sleep(p.drain)
			p.mu.Lock()
			p.running = false
			p.mu.Unlock()
			return nil //nolint:nilerr // told to end
		}
		after = i
		p.mu.Lock()
		p.snaps = append(p.snaps, snap)
		p.mu.Unlock()
	}
}

func (p *fakeProxy) last() *connect.Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.snaps) == 0 {
		return nil
	}
	return p.snaps[len(p.snaps)-1]
}

func (p *fakeProxy) Status() connect.Status {
	st := connect.Status{Proxy: p.cfg.ID}
	if s := p.last(); s != nil {
		st.Applied, st.Ready = s.Index, true
		st.Inbound = &connect.ListenerStatus{Addr: s.Inbound, Listening: true}
	}
	return st
}

type rig struct {
	host    catalog.Latest[*local.Host]
	views   fakeViews
	logs    bytes.Buffer
	logMu   sync.Mutex
	m       *Manager
	mu      sync.Mutex
	proxies []*fakeProxy
	fail    error
	listens map[string]string
	stop    func()
}

func (r *rig) Write(b []byte) (int, error) {
	r.logMu.Lock()
	defer r.logMu.Unlock()
	return r.logs.Write(b)
}

func (r *rig) logged() string {
	r.logMu.Lock()
	defer r.logMu.Unlock()
	return r.logs.String()
}

func (r *rig) setHost(services ...*catalog.Service) {
	h := &local.Host{Services: map[string]*catalog.Service{}}
	for _, s := range services {
		h.Services[s.ID] = s
	}
	r.host.Publish(h)
}

func (r *rig) proxy(i int) *fakeProxy {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i >= len(r.proxies) {
		return nil
	}
	return r.proxies[i]
}

func newRig(t *testing.T, dataDir string, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{listens: map[string]string{}}
	cfg := Config{
		Host: &r.host, Views: r.views.Watch, Datacenter: "dc1", DataDir: dataDir,
		Signer: NewSigner(nil), Logger: slog.New(slog.NewTextHandler(r, nil)),
		Listening: func(id string, on bool, out string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.listens[id] = out
		},
		start: func(pc connect.ProxyConfig) (proxy, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			p := &fakeProxy{cfg: pc, fail: r.fail}
			r.proxies = append(r.proxies, p)
			return p, nil
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.m = m
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func withUpstream(name string) func(*catalog.Service) {
	return func(s *catalog.Service) {
		s.Proxy.Upstreams = append(s.Proxy.Upstreams, catalog.Upstream{DestinationName: name, LocalBindPort: 9000 + len(s.Proxy.Upstreams)})
	}
}

func TestProxyFollowsHostAndServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		r.setHost(sidecarService(withUpstream("db")), &catalog.Service{ID: "web", Service: "web"})
		synctest.Wait()
		p := r.proxy(0)
		if p == nil || p.last() != nil {
			t.Fatal("a proxy must run, and have no policy before a server said one")
		}
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		synctest.Wait()
		if p.last() != nil {
			t.Fatal("the first snapshot did not wait for the upstream")
		}
		if len(r.listens) != 0 {
			t.Errorf("a proxy that starts was reported: %v; a check that passes would flap", r.listens)
		}
		r.views.setInstances("db", "10.0.0.1")
		synctest.Wait()
		if s := p.last(); s == nil || s.Index != 1 || len(s.Upstreams) != 1 || len(s.Upstreams[0].Instances) != 1 || s.Default != catalog.ActionDeny {
			t.Fatalf("first snapshot: %+v", s)
		}
		time.Sleep(2 * watchOften)
		r.mu.Lock()
		said := r.listens["web-sidecar-proxy"]
		r.mu.Unlock()
		if !strings.Contains(said, "listens on 0.0.0.0:21000") {
			t.Errorf("listening was reported as %q", said)
		}

		r.views.setIntentions("web", &catalog.Intention{SourceName: "a", DestinationName: "web", Action: catalog.ActionAllow})
		synctest.Wait()
		if s := p.last(); s.Index != 2 || len(s.Intentions) != 1 {
			t.Fatalf("after the intention: %+v", s)
		}
		r.views.setInstances("db", "10.0.0.1") // the same again
		synctest.Wait()
		if s := p.last(); s.Index != 2 {
			t.Errorf("an answer that says nothing new made snapshot %d", s.Index)
		}
		r.views.setInstances("db")
		r.views.set(&catalog.View{Query: catalog.Query{Kind: catalog.QueryRoots}}) // a server without authority
		synctest.Wait()
		if s := p.last(); s.Index != 3 || len(s.Roots) != 1 {
			t.Errorf("after the last instance went: %+v", s)
		}
		if strings.Contains(r.logged(), "no healthy instance") {
			t.Error("the empty upstream was named before it had time to start")
		}
		time.Sleep(time.Minute)
		if n := strings.Count(r.logged(), "no healthy instance of an upstream"); n != 1 {
			t.Errorf("the empty upstream was named %d times:\n%s", n, r.logged())
		}

		r.setHost(sidecarService(withUpstream("cache"), withUpstream("db")))
		synctest.Wait()
		if s := p.last(); len(s.Upstreams) != 2 || r.proxy(1) != nil {
			t.Errorf("a changed registration: %+v", s)
		}
		watch := r.m.Snapshot("web-sidecar-proxy")
		r.setHost()
		synctest.Wait()
		if p.running || len(r.m.Status()) != 0 {
			t.Error("a deregistered proxy runs on")
		}
		if _, _, err := watch.Next(t.Context(), 99); !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("its watch: %v", err)
		}
		r.stop()
	})
}

func TestUpstreamNobodyAnswersForDoesNotHoldTheProxyBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		r.setHost(sidecarService(withUpstream("db")))
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		synctest.Wait()
		time.Sleep(2 * time.Second)
		if s := r.proxy(0).last(); s == nil || len(s.Upstreams) != 1 {
			t.Fatalf("after the grace: %+v", s)
		}
		r.stop()
	})
}

// TestP14LastPolicySurvivesARestartWithoutServers: what was known is enforced
// again, under the settings that are registered now.
func TestP14LastPolicySurvivesARestartWithoutServers(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, dir)
		r.setHost(sidecarService(withUpstream("db")))
		r.views.setRoots("R1")
		r.views.setIntentions("web", &catalog.Intention{SourceName: "a", DestinationName: "web", Action: catalog.ActionAllow})
		r.views.setInstances("db", "10.0.0.1")
		synctest.Wait()
		r.stop()
	})
	file := filepath.Join(dir, "proxies", "web-sidecar-proxy", "snapshot.json")
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("snapshot on disk: %v, %v", info, err)
	}
	orphan := filepath.Join(dir, "proxies", "gone")
	if err := os.Mkdir(orphan, 0o700); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, dir)
		r.setHost(sidecarService(withUpstream("db"), func(s *catalog.Service) { s.Port = 21007 }))
		time.Sleep(2 * time.Second) // servers get their chance
		s := r.proxy(0).last()
		if s == nil || len(s.Intentions) != 1 || len(s.Roots) != 1 || len(s.Upstreams[0].Instances) != 1 || s.Inbound != "0.0.0.0:21007" {
			t.Fatalf("without servers: %+v", s)
		}
		if s.Index != 2 {
			t.Errorf("the index is %d: it must go on from 1", s.Index)
		}
		if p := r.proxy(0).cfg; p.KeyFile != filepath.Join(dir, "proxies", "web-sidecar-proxy", keyName) {
			t.Errorf("key file %q", p.KeyFile)
		}
		r.views.setIntentions("web") // the servers are back, and the intention is gone
		synctest.Wait()
		if s = r.proxy(0).last(); len(s.Intentions) != 0 {
			t.Errorf("with servers: %+v", s)
		}
		r.setHost()
		synctest.Wait()
		r.stop()
	})
	if _, err := os.Stat(orphan); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files of a proxy that is not registered any more stay: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(file)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files of a deregistered proxy stay: %v", err)
	}
}

func TestUnreadableSnapshotFailsClosed(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "proxies", "web-sidecar-proxy")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"cut off":          `{"Version":1,"Snapshot":{"Ser`,
		"another version":  `{"Version":99,"Snapshot":{"Service":"web"}}`,
		"another identity": `{"Version":1,"Snapshot":{"Service":"db","Datacenter":"dc1","TrustDomain":"t","Roots":["R"],"Default":"allow"}}`,
		"no roots":         `{"Version":1,"Snapshot":{"Service":"web","Datacenter":"dc1","TrustDomain":"t","Default":"allow"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(at, snapshotName), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, dir)
				r.setHost(sidecarService())
				time.Sleep(5 * time.Second)
				if s := r.proxy(0).last(); s != nil {
					t.Errorf("got a policy: %+v", s)
				}
				r.stop()
			})
		})
	}
}

func TestFailedProxyIsStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		r.mu.Lock()
		r.fail = errors.New("no file descriptors left")
		r.mu.Unlock()
		r.setHost(sidecarService())
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		time.Sleep(3 * time.Second)
		if st := r.m.Status(); len(st) != 1 || st[0].Ready || !strings.Contains(st[0].Problem, "no file descriptors left") || st[0].Proxy != "web-sidecar-proxy" {
			t.Errorf("status: %+v", st)
		}
		r.mu.Lock()
		if said := r.listens["web-sidecar-proxy"]; !strings.Contains(said, "no file descriptors left") {
			t.Errorf("listening was reported as %q", said)
		}
		r.fail = nil
		tries := len(r.proxies)
		r.mu.Unlock()
		if tries < 3 || tries > 6 {
			t.Errorf("%d tries in 3 s: there is no back-off", tries)
		}
		time.Sleep(time.Minute)
		if st := r.m.Status(); len(st) != 1 || !st[0].Ready || st[0].Problem != "" {
			t.Errorf("status afterwards: %+v", st)
		}
		r.stop()
	})
}

func TestExternalProxyIsFedAndNotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "", func(cfg *Config) { cfg.AccessLog.Skip = 0.5 })
		r.setHost(sidecarService(func(s *catalog.Service) { s.Proxy.Config = map[string]any{"external": true} }))
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		synctest.Wait()
		snap, _, err := r.m.Snapshot("web-sidecar-proxy").Next(t.Context(), 0)
		if err != nil || snap.Service != "web" {
			t.Fatalf("%+v, %v", snap, err)
		}
		if r.proxy(0) != nil {
			t.Error("an external proxy was started")
		}
		if l := snap.AccessLog; l == nil || l.Skip != 0.5 {
			t.Errorf("the agent's access log for it: %+v", l)
		}
		shows := func(what string, ready bool, problem string) {
			t.Helper()
			st := r.m.Status()
			if len(st) != 1 || !st[0].External || st[0].Ready != ready || st[0].Proxy != "web-sidecar-proxy" || st[0].Service != "web" ||
				!strings.Contains(st[0].Problem, problem) {
				t.Errorf("%s: %+v", what, st)
			}
		}
		shows("before it said anything", false, "has not heard of it")
		asking, stop := context.WithCancel(t.Context())
		go func() {
			for after := uint64(1); asking.Err() == nil; {
				wait, end := context.WithTimeout(asking, time.Minute)
				_, _, _ = r.m.Snapshot("web-sidecar-proxy").Next(wait, after)
				end()
			}
		}()
		time.Sleep(silentAfter - time.Second)
		shows("while it may be starting", false, "has not heard of it")
		time.Sleep(2 * time.Minute)
		shows("when it follows and says nothing", false, "older version")
		if !r.m.Status()[0].Untold {
			t.Error("it counts as one that is not ready")
		}
		stop()
		time.Sleep(silentAfter + time.Second)
		shows("when it follows no more", false, "has not heard of it")
		if err := r.m.Tell("web-sidecar-proxy", connect.Status{Proxy: "x", Ready: true, Applied: 3}, nil); err != nil {
			t.Error(err)
		}
		shows("what it said", true, "")
		many := connect.Status{Ready: true, Inbound: &connect.ListenerStatus{Addr: "a"}, Upstreams: []connect.UpstreamStatus{
			{Instances: make([]connect.InstanceStatus, maxToldRows-1)},
		}}
		for _, more := range []bool{false, true} {
			if more {
				many.Inbound.Refused = make([]connect.ErrorStatus, 1)
			}
			if err := r.m.Tell("web-sidecar-proxy", many, nil); err != nil {
				t.Error(err)
			}
			if st := r.m.Status()[0]; !st.Ready || st.Inbound.Addr != "a" || (st.Upstreams == nil) != more || rows(st) > maxToldRows {
				t.Errorf("too much %v: ready %v with %d rows", more, st.Ready, rows(st))
			}
		}
		time.Sleep(silentAfter + time.Second)
		shows("when it is silent", false, "11s ago")
		if err := r.m.Tell("nope", connect.Status{}, nil); !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("told of an unknown proxy: %v", err)
		}
		if _, _, err := r.m.Snapshot("nope").Next(t.Context(), 0); !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("an unknown proxy: %v", err)
		}
		r.setHost(sidecarService()) // now the agent is to run it
		synctest.Wait()
		if p := r.proxy(0); p == nil || p.last() == nil {
			t.Error("the proxy was not taken over")
		}
		if err := r.m.Tell("web-sidecar-proxy", connect.Status{}, nil); !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("told of a proxy that the agent runs: %v", err)
		}
		r.stop()
	})
}

// TestOutsideCounts: what a proxy outside the agent has counted is shown for as long as it
// is registered, never goes back, and is bounded for all of them together.
func TestOutsideCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		external := func(id string) *catalog.Service {
			return sidecarService(func(s *catalog.Service) {
				s.ID, s.Service, s.Proxy.Config = id, id, map[string]any{"external": true}
			})
		}
		r.setHost(external("p"), external("q"))
		synctest.Wait()
		reg := prometheus.NewRegistry()
		reg.MustRegister(r.m)
		began := time.Now()
		tell := func(id string, began time.Time, number uint64, value int, more ...string) error {
			t.Helper()
			text := fmt.Sprintf(`{"Began":%q,"Number":%d,"Series":{"weft_proxy_connections_open":[{"Labels":["inbound","web","db"],"Value":%d}],
				"weft_proxy_connections_total":[{"Labels":["inbound","web","db","ok"],"Value":%[3]d}%[4]s]}}`,
				began.Format(time.RFC3339Nano), number, value, strings.Join(more, ""))
			c, err := connect.ReadCounts([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			return r.m.Tell(id, connect.Status{Ready: true}, c)
		}
		shows := func(what, want string) {
			t.Helper()
			families, err := reg.Gather()
			if err != nil {
				t.Error(err)
			}
			var got []string
			for _, f := range families {
				for _, m := range f.GetMetric() {
					for _, l := range m.GetLabel() {
						if l.GetName() == "proxy" {
							got = append(got, fmt.Sprint(l.GetValue(), ":", f.GetType(), ":", m.GetGauge().GetValue()+m.GetCounter().GetValue()))
						}
					}
				}
			}
			if all := strings.Join(got, " "); all != want {
				t.Errorf("%s: %s, want %s", what, all, want)
			}
		}
		shows("before anything is told", "")
		_ = tell("p", began, 2, 5)
		_ = tell("p", began, 1, 4)
		shows("late news", "p:GAUGE:5 p:COUNTER:5")
		_ = tell("p", began.Add(time.Second), 1, 1)
		_ = tell("p", began, 3, 6) // it drains
		shows("another process", "p:GAUGE:1 p:COUNTER:1")
		time.Sleep(silentAfter + time.Second)
		shows("a silent one", "p:COUNTER:1")
		_ = tell("p", began.Add(-time.Hour), 1, 9)
		shows("one after that whose clock is behind", "p:GAUGE:9 p:COUNTER:9")

		var many strings.Builder
		for i := range 15 << 10 {
			fmt.Fprintf(&many, `,{"Labels":["","","","%d"]}`, i)
		}
		refused := 0
		var all []*catalog.Service
		for i := range 8 {
			all = append(all, external(fmt.Sprint("many-", i)))
		}
		r.setHost(append(all, external("p"))...)
		synctest.Wait()
		for _, s := range all {
			if err := tell(s.ID, began, 1, 1, many.String()); errors.Is(err, catalog.ErrInvalid) {
				refused++
			} else if err != nil {
				t.Error(err)
			}
		}
		if refused != 4 {
			t.Errorf("%d of %d were refused", refused, len(all))
		}
		r.setHost(external("p"))
		synctest.Wait()
		shows("once the others are gone", "p:GAUGE:9 p:COUNTER:9")
		r.setHost(sidecarService(func(s *catalog.Service) { s.ID = "p" }))
		synctest.Wait()
		shows("when the agent runs it", "")
		r.setHost()
		r.setHost(external("p"))
		synctest.Wait()
		shows("when it is registered again", "")
		r.stop()
	})
}

// TestSameIDWaitsForTheDrain: ports and files have one owner at a time.
func TestSameIDWaitsForTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, t.TempDir())
		r.setHost(sidecarService())
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		synctest.Wait()
		old := r.proxy(0)
		old.drain = 4 * time.Second
		r.setHost()
		r.setHost(sidecarService(func(s *catalog.Service) { s.Proxy.DestinationServiceName = "api" }))
		r.views.setIntentions("api")
		time.Sleep(3 * time.Second)
		if r.proxy(1) != nil {
			t.Fatal("two proxies of one ID at the same time")
		}
		time.Sleep(2 * time.Second)
		if p := r.proxy(1); p == nil || p.last() == nil || p.last().Service != "api" {
			t.Fatal("the new proxy does not run")
		}
		r.stop()
	})
}

func TestConfigIsValidated(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a manager of nothing was made")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var v fakeViews
	_, err := New(Config{Host: &catalog.Latest[*local.Host]{}, Views: v.Watch, Signer: NewSigner(nil), Datacenter: "dc1", DataDir: file})
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file as data directory: %v", err)
	}
}

// TestDenyDuringARestartHoldsAtOnce: with servers there, what was enforced before
// the agent restarted is never enforced again.
func TestDenyDuringARestartHoldsAtOnce(t *testing.T) {
	dir := t.TempDir()
	for _, intentions := range [][]*catalog.Intention{
		{{SourceName: "api", DestinationName: "web", Action: catalog.ActionAllow}}, nil,
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, dir)
			r.setHost(sidecarService())
			time.Sleep(100 * time.Millisecond) // until the servers are found
			r.views.setRoots("R1")
			r.views.setIntentions("web", intentions...)
			time.Sleep(2 * time.Second)
			p := r.proxy(0)
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, s := range p.snaps {
				if len(s.Intentions) != len(intentions) {
					t.Errorf("%d intentions were enforced for a while, there are %d", len(s.Intentions), len(intentions))
				}
			}
			if len(p.snaps) == 0 {
				t.Error("nothing is enforced")
			}
		})
	}
}

// TestAProxyThatEndedDoesNotListen: the next registration of its ID must not find
// it passing. A restart of the agent, though, is no news.
func TestAProxyThatEndedDoesNotListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		said := func() string {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.listens["web-sidecar-proxy"]
		}
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		for range 2 {
			r.setHost(sidecarService())
			time.Sleep(time.Second)
			if !strings.Contains(said(), "listens on") {
				t.Fatalf("the proxy does not run: %q", said())
			}
			r.setHost()
			time.Sleep(time.Second)
			if said() != errDeregistered.Error() {
				t.Errorf("of a deregistered proxy it is said: %q", said())
			}
		}
		r.setHost(sidecarService())
		time.Sleep(time.Second)
		r.stop()
		if !strings.Contains(said(), "listens on") {
			t.Errorf("a restart of the agent makes the host sick: %q", said())
		}
	})
}

// TestSnapshotIsWrittenAgain: after a disk that was full, what is on it is the
// policy of now, though nothing changed since.
func TestSnapshotIsWrittenAgain(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, dir)
		r.setHost(sidecarService())
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		time.Sleep(time.Second)
		f := newSnapshotFile(dir, "web-sidecar-proxy")
		kept := func() int {
			snap, err := f.load()
			if err != nil || snap == nil {
				return -1
			}
			return len(snap.Intentions)
		}
		if n := kept(); n != 0 {
			t.Fatalf("kept %d", n)
		}
		// A file in place of the directory is a disk that takes nothing.
		aside := f.dir + ".aside"
		if err := errors.Join(os.Rename(f.dir, aside), os.WriteFile(f.dir, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		r.views.setIntentions("web", &catalog.Intention{SourceName: "api", DestinationName: "web", Action: catalog.ActionDeny, Precedence: 9})
		time.Sleep(time.Minute)
		if n := strings.Count(r.logged(), "cannot be kept"); n != 1 {
			t.Errorf("told %d times", n)
		}
		if err := errors.Join(os.Remove(f.dir), os.Rename(aside, f.dir)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * saveAgain)
		if n := kept(); n != 1 {
			t.Errorf("the deny is not on disk: %d intentions", n)
		}
		r.stop()
	})
}
