// Package clients_test drives a mesh with the official Go client of Consul.
package clients_test

import (
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/cmd/meshtest"
	"github.com/weftmesh/weft/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh starts a mesh that takes short TTLs, and gives a client of it.
func mesh(t *testing.T) (*meshtest.Mesh, *api.Client) {
	t.Helper()
	m := meshtest.Start(t, meshtest.Options{Change: func(_ *agent.Config, s *server.Config) { s.MinSessionTTL = time.Millisecond }})
	m.Eventually("the node check", func() error {
		var checks []any
		m.Do("GET", "/v1/health/node/test-node", nil, &checks)
		if len(checks) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	return m, client(t, m)
}

func client(t *testing.T, m *meshtest.Mesh) *api.Client {
	t.Helper()
	c, err := api.NewClient(&api.Config{Address: m.Addr, Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func must[T any](t *testing.T) func(v T, _ any, err error) T {
	return func(v T, _ any, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestKeys(t *testing.T) {
	_, c := mesh(t)
	kv := c.KV()
	keys := []string{"app/a", "app/a b", "app/ünï/☃", "app/100%", "app/a%2Fb", "app//double", "app/?q&x=#y", "app/+plus", "app/semi;colon", "app/'\""}
	for i, k := range keys {
		if _, err := kv.Put(&api.KVPair{Key: k, Value: []byte(k), Flags: uint64(i)}, nil); err != nil {
			t.Fatalf("%q: %v", k, err)
		}
		p, meta, err := kv.Get(k, nil)
		if err != nil || p == nil || p.Key != k || string(p.Value) != k || p.Flags != uint64(i) || meta.LastIndex != p.ModifyIndex {
			t.Fatalf("%q: %+v, %+v, %v", k, p, meta, err)
		}
	}
	names := slices.Sorted(slices.Values(keys))
	if got, _, err := kv.Keys("app/", "", nil); err != nil || !slices.Equal(got, names) {
		t.Fatalf("%q: %v", got, err)
	}
	if got, _, err := kv.Keys("", "/", nil); err != nil || !slices.Equal(got, []string{"app/"}) {
		t.Fatalf("%q: %v", got, err)
	}
	if pairs, _, err := kv.List("app/a", nil); err != nil || len(pairs) != 3 {
		t.Fatalf("%d: %v", len(pairs), err)
	}
	if _, err := kv.DeleteTree("app/a", nil); err != nil {
		t.Fatal(err)
	}
	if p, _, err := kv.Get("app/a", nil); err != nil || p != nil {
		t.Fatalf("%+v, %v", p, err)
	}
	if got, _, err := kv.Keys("app/", "", nil); err != nil || len(got) != len(keys)-3 {
		t.Fatalf("%q: %v", got, err)
	}
	large := []byte(strings.Repeat("x", 512<<10))
	if _, err := kv.Put(&api.KVPair{Key: "large", Value: large}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(&api.KVPair{Key: "large", Value: append(large, 'x')}, nil); err == nil || !strings.Contains(err.Error(), "413") {
		t.Fatalf("one byte too many: %v", err)
	}
}

// TestCountingByCAS: of many who add to a number with check-and-set, none is lost.
func TestCountingByCAS(t *testing.T) {
	_, c := mesh(t)
	const workers, times = 8, 10
	var wg sync.WaitGroup
	var lost atomic.Int64
	for range workers {
		wg.Go(func() {
			for done := 0; done < times; {
				p, _, err := c.KV().Get("n", nil)
				if err != nil {
					t.Error(err)
					return
				}
				if p == nil {
					p = &api.KVPair{Key: "n"}
				}
				n, _ := strconv.Atoi(string(p.Value)) // 0 before the first
				p.Value = []byte(strconv.Itoa(n + 1))
				ok, _, err := c.KV().CAS(p, nil)
				switch {
				case err != nil:
					t.Error(err)
					return
				case ok:
					done++
				default:
					lost.Add(1)
				}
			}
		})
	}
	wg.Wait()
	p, _, err := c.KV().Get("n", nil)
	if err != nil || string(p.Value) != strconv.Itoa(workers*times) {
		t.Fatalf("counted %s: %v", p.Value, err)
	}
	if ok, _, err := c.KV().DeleteCAS(&api.KVPair{Key: "n", ModifyIndex: p.ModifyIndex - 1}, nil); err != nil || ok {
		t.Fatalf("deleted at a wrong index: %v", err)
	}
	if ok, _, err := c.KV().DeleteCAS(p, nil); err != nil || !ok {
		t.Fatalf("not deleted: %v", err)
	}
	t.Logf("%d writes lost to others and were made again", lost.Load())
}

// TestLock: one holder at a time, the next gets the lock when the first lets go,
// and who loses its session hears of it.
func TestLock(t *testing.T) {
	m, c := mesh(t)
	var holders, most, turns atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			l, err := client(t, m).LockOpts(&api.LockOptions{Key: "lock", Value: []byte("me"), LockDelay: time.Millisecond})
			if err != nil {
				t.Error(err)
				return
			}
			lost, err := l.Lock(nil)
			if err != nil || lost == nil {
				t.Errorf("lock: %v", err)
				return
			}
			most.Store(max(most.Load(), holders.Add(1)))
			turns.Add(1)
			holders.Add(-1)
			if err := l.Unlock(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 || turns.Load() != 4 {
		t.Fatalf("%d turns, %d held the lock at a time", turns.Load(), most.Load())
	}
	session := must[string](t)(c.Session().Create(&api.SessionEntry{Name: "mine", LockDelay: time.Millisecond}, nil))
	l, err := c.LockOpts(&api.LockOptions{Key: "lock", Session: session})
	if err != nil {
		t.Fatal(err)
	}
	lost, err := l.Lock(nil)
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := c.KV().Get("lock", nil)
	if err != nil || p.Session != session || p.LockIndex != 5 {
		t.Fatalf("%+v: %v", p, err)
	}
	if _, err := c.Session().Destroy(session, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-lost:
	case <-time.After(meshtest.Patience):
		t.Fatal("the loss of the lock was not told")
	}
	if p, _, err := c.KV().Get("lock", nil); err != nil || p.Session != "" {
		t.Fatalf("%+v: %v", p, err)
	}
}

func TestLockDelay(t *testing.T) {
	m, c := mesh(t)
	const delay = 2 * time.Second
	first := must[string](t)(c.Session().Create(&api.SessionEntry{LockDelay: delay}, nil))
	next := must[string](t)(c.Session().Create(&api.SessionEntry{LockDelay: delay}, nil))
	acquire := func(session string) bool {
		return must[bool](t)(c.KV().Acquire(&api.KVPair{Key: "d", Session: session}, nil))
	}
	if !acquire(first) {
		t.Fatal("could not lock")
	}
	if _, err := c.Session().Destroy(first, nil); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if acquire(next) {
		t.Fatal("locked during the delay")
	}
	m.Eventually("the lock after its delay", func() error {
		if !acquire(next) {
			return errors.New("held back")
		}
		return nil
	})
	if took := time.Since(begin); took < delay-50*time.Millisecond {
		t.Fatalf("the delay was over after %s", took)
	}
	// Who lets go by itself leaves no delay.
	if ok, _, err := c.KV().Release(&api.KVPair{Key: "d", Session: next}, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	if third := must[string](t)(c.Session().Create(nil, nil)); !acquire(third) {
		t.Fatal("a lock that was released could not be taken")
	}
	if _, _, err := c.KV().Acquire(&api.KVPair{Key: "d", Session: "11111111-2222-3333-4444-555555555555"}, nil); err == nil || !strings.Contains(err.Error(), "invalid session") {
		t.Fatalf("a session that is none: %v", err)
	}
}

func TestSemaphore(t *testing.T) {
	m, _ := mesh(t)
	const limit, contenders = 2, 5
	var holders, most atomic.Int64
	var wg sync.WaitGroup
	for range contenders {
		wg.Go(func() {
			s, err := client(t, m).SemaphoreOpts(&api.SemaphoreOptions{Prefix: "sem", Limit: limit})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := s.Acquire(nil); err != nil {
				t.Error(err)
				return
			}
			n := holders.Add(1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			holders.Add(-1)
			if err := s.Release(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n > limit {
		t.Fatalf("%d of %d held it at a time", n, limit)
	}
}

func TestSessions(t *testing.T) {
	m, c := mesh(t)
	s := c.Session()
	id := must[string](t)(s.Create(&api.SessionEntry{Name: "ttl", TTL: "300ms", Behavior: api.SessionBehaviorDelete, LockDelay: time.Nanosecond}, nil))
	if ok, _, err := c.KV().Acquire(&api.KVPair{Key: "ephemeral", Session: id}, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	stop := make(chan struct{})
	renewed := make(chan error, 1)
	go func() { renewed <- s.RenewPeriodic("200ms", id, nil, stop) }()
	time.Sleep(900 * time.Millisecond) // three TTLs
	if e, _, err := s.Info(id, nil); err != nil || e == nil || e.TTL != "300ms" {
		t.Fatalf("a session that is renewed ended: %+v, %v", e, err)
	}
	close(stop)
	if err := <-renewed; err != nil {
		t.Fatal(err)
	}
	// RenewPeriodic destroys it at its end; another is left to its fate.
	if e, _, err := s.Info(id, nil); err != nil || e != nil {
		t.Fatalf("%+v, %v", e, err)
	}
	if p, _, err := c.KV().Get("ephemeral", nil); err != nil || p != nil {
		t.Fatalf("the key of a session that deletes is still there: %+v, %v", p, err)
	}
	id = must[string](t)(s.Create(&api.SessionEntry{TTL: "50ms"}, nil))
	m.Eventually("the session to expire", func() error {
		e, _, err := s.Info(id, nil)
		if err == nil && e != nil {
			err = errors.New("it lives")
		}
		return err
	})
	if e, _, err := s.Renew(id, nil); err != nil || e != nil {
		t.Fatalf("renewed a session that ended: %+v, %v", e, err)
	}
	none := must[string](t)(s.CreateNoChecks(nil, nil))
	e, _, err := s.Info(none, nil)
	if err != nil || len(e.NodeChecks) != 0 || e.Behavior != api.SessionBehaviorRelease || e.LockDelay != 15*time.Second {
		t.Fatalf("%+v, %v", e, err)
	}
	list, _, err := s.Node("test-node", nil)
	all, _, err2 := s.List(nil)
	if err != nil || err2 != nil || len(list) != 1 || len(all) != 1 {
		t.Fatalf("%d on the node, %d in all: %v, %v", len(list), len(all), err, err2)
	}
}

// TestSessionsEndWithTheirHost: a check, a service, a node that goes takes the
// sessions along that rest on it.
func TestSessionsEndWithTheirHost(t *testing.T) {
	m, c := mesh(t)
	put := func(path string, body any) { m.Do("PUT", path, body, nil) }
	type object = map[string]any
	put("/v1/catalog/register", object{"Node": "ext", "Address": "10.0.0.9", "Service": object{"Service": "db"}, "Checks": []object{
		{"Name": "up", "CheckID": "up", "Status": "passing"}, {"Name": "db", "CheckID": "db-up", "ServiceID": "db", "Status": "warning"},
	}})
	create := func(checks, serviceChecks any) string {
		var out struct{ ID string } // the client cannot leave the node's own check out and name others
		m.Do("PUT", "/v1/session/create", object{"Node": "ext", "NodeChecks": checks, "ServiceChecks": serviceChecks}, &out)
		return out.ID
	}
	node := create([]string{}, nil)
	check := create([]string{"up"}, nil)
	service := create(nil, []object{{"ID": "db-up"}})
	lives := func(want ...string) {
		t.Helper()
		list, _, err := c.Session().Node("ext", nil)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range list {
			got = append(got, e.ID)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("live: %v, want %v", got, want)
		}
	}
	lives(node, check, service)
	put("/v1/catalog/register", object{"Node": "ext", "Address": "10.0.0.9", "Check": object{"Name": "up", "CheckID": "up", "Status": "critical"}})
	lives(node, service)
	if _, _, err := c.Session().Create(&api.SessionEntry{Node: "ext", NodeChecks: []string{"up"}}, nil); err == nil || !strings.Contains(err.Error(), "critical") {
		t.Fatalf("a session on a critical check: %v", err)
	}
	put("/v1/catalog/deregister", object{"Node": "ext", "ServiceID": "db"})
	lives(node)
	put("/v1/catalog/deregister", object{"Node": "ext"})
	lives()
}

func TestTransactions(t *testing.T) {
	_, c := mesh(t)
	session := must[string](t)(c.Session().Create(nil, nil))
	ok, res, _, err := c.KV().Txn(api.KVTxnOps{
		{Verb: api.KVSet, Key: "t/a", Value: []byte("1"), Flags: 1<<64 - 1},
		{Verb: api.KVLock, Key: "t/lock", Value: []byte("2"), Session: session},
		{Verb: api.KVGetTree, Key: "t/"},
	}, nil)
	if err != nil || !ok || len(res.Results) != 4 || res.Results[2].Flags != 1<<64-1 || string(res.Results[3].Value) != "2" || res.Results[3].Session != session {
		t.Fatalf("%v %+v %v", ok, res, err)
	}
	ok, res, _, err = c.KV().Txn(api.KVTxnOps{
		{Verb: api.KVDeleteTree, Key: "t/"},
		{Verb: api.KVCheckSession, Key: "t/lock", Session: session},
		{Verb: api.KVLock, Key: "t/new", Session: "none"},
	}, nil)
	if err != nil || ok || len(res.Errors) != 2 || res.Errors[0].OpIndex != 1 || res.Errors[1].OpIndex != 2 {
		t.Fatalf("%v %+v %v", ok, res, err)
	}
	if keys, _, err := c.KV().Keys("t/", "", nil); err != nil || len(keys) != 2 {
		t.Fatalf("what failed was not undone: %v %v", keys, err)
	}
	node := &api.Node{Node: "txn", Address: "10.1.1.1", Meta: map[string]string{"k": "v"}}
	ok, rows, _, err := c.Txn().Txn(api.TxnOps{
		{Node: &api.NodeTxnOp{Verb: api.NodeSet, Node: *node}},
		{Service: &api.ServiceTxnOp{Verb: api.ServiceSet, Node: "txn", Service: api.AgentService{ID: "s", Service: "svc", Port: 80, Tags: []string{"a"}}}},
		{Check: &api.CheckTxnOp{Verb: api.CheckSet, Check: api.HealthCheck{
			Node: "txn", CheckID: "c", Name: "c", Status: "passing", ServiceID: "s",
			Definition: api.HealthCheckDefinition{TCP: "10.1.1.1:80", IntervalDuration: 5 * time.Second},
		}}},
		{KV: &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: "t/none"}},
	}, nil)
	if err != nil || !ok || len(rows.Results) != 3 || rows.Results[2].Check.ServiceName != "svc" || rows.Results[2].Check.Definition.IntervalDuration != 5*time.Second {
		t.Fatalf("%v %+v %v", ok, rows, err)
	}
	index := rows.Results[0].Node.ModifyIndex
	node.ModifyIndex = index + 1
	ok, rows, _, err = c.Txn().Txn(api.TxnOps{{Node: &api.NodeTxnOp{Verb: api.NodeDeleteCAS, Node: *node}}}, nil)
	if err != nil || ok || !strings.Contains(rows.Errors[0].What, "index is stale") {
		t.Fatalf("%v %+v %v", ok, rows, err)
	}
	node.ModifyIndex = index
	if ok, rows, _, err = c.Txn().Txn(api.TxnOps{{Node: &api.NodeTxnOp{Verb: api.NodeDeleteCAS, Node: *node}}}, nil); err != nil || !ok {
		t.Fatalf("%v %+v %v", ok, rows, err)
	}
	var many api.KVTxnOps
	for i := range 129 {
		many = append(many, &api.KVTxnOp{Verb: api.KVSet, Key: fmt.Sprint(i)})
	}
	if _, _, _, err := c.KV().Txn(many, nil); err == nil || !strings.Contains(err.Error(), "too many operations (129 > 128)") {
		t.Fatalf("129 operations: %v", err)
	}
}

func TestEvents(t *testing.T) {
	m, c := mesh(t)
	m.Register(map[string]any{"Name": "web", "Tags": []string{"blue"}})
	fire := func(e *api.UserEvent) string { return must[string](t)(c.Event().Fire(e, nil)) }
	first := fire(&api.UserEvent{Name: "deploy", Payload: []byte("v1")})
	fire(&api.UserEvent{Name: "deploy", NodeFilter: "^other"})
	fire(&api.UserEvent{Name: "deploy", ServiceFilter: "^web$", TagFilter: "green"})
	last := fire(&api.UserEvent{Name: "deploy", ServiceFilter: "^w", TagFilter: "^bl", NodeFilter: "test"})
	list, meta, err := c.Event().List("deploy", nil)
	if err != nil || len(list) != 2 || list[0].ID != first || string(list[0].Payload) != "v1" || list[1].ID != last {
		t.Fatalf("%+v %v", list, err)
	}
	if meta.LastIndex != c.Event().IDToIndex(last) {
		t.Fatalf("index %d, the client makes %d of it", meta.LastIndex, c.Event().IDToIndex(last))
	}
	if _, _, err := c.Event().Fire(&api.UserEvent{Name: "big", Payload: make([]byte, 600)}, nil); err == nil || !strings.Contains(err.Error(), "413") {
		t.Fatalf("a large event: %v", err)
	}
	for i := range 300 {
		fire(&api.UserEvent{Name: "n" + strconv.Itoa(i)})
	}
	if list, _, err = c.Event().List("", nil); err != nil || len(list) != 256 || list[255].Name != "n299" {
		t.Fatalf("%d events are kept: %v", len(list), err)
	}
}

// TestWatchPlans runs the client's own watches, which a change must fire.
func TestWatchPlans(t *testing.T) {
	_, c := mesh(t)
	for _, w := range []struct {
		params map[string]any
		change func() error
		shows  func(any) bool
	}{
		{
			map[string]any{"type": "key", "key": "w/k"},
			func() error { _, err := c.KV().Put(&api.KVPair{Key: "w/k", Value: []byte("1")}, nil); return err },
			func(v any) bool { p, ok := v.(*api.KVPair); return ok && p != nil && string(p.Value) == "1" },
		},
		{
			map[string]any{"type": "keyprefix", "prefix": "w/p/"},
			func() error { _, err := c.KV().Put(&api.KVPair{Key: "w/p/1"}, nil); return err },
			func(v any) bool { p, ok := v.(api.KVPairs); return ok && len(p) == 1 },
		},
		{
			map[string]any{"type": "event", "name": "go"},
			func() error { _, _, err := c.Event().Fire(&api.UserEvent{Name: "go"}, nil); return err },
			func(v any) bool { e, ok := v.([]*api.UserEvent); return ok && len(e) == 1 },
		},
		{
			map[string]any{"type": "services"},
			func() error {
				return c.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "w1", Name: "web", Tags: []string{"t"}, Check: &api.AgentServiceCheck{CheckID: "w", TTL: "1h"}})
			},
			func(v any) bool { s, ok := v.(map[string][]string); return ok && len(s["web"]) == 1 },
		},
		{
			map[string]any{"type": "service", "service": "web", "tag": "t", "passingonly": true},
			func() error { return c.Agent().PassTTL("w", "") },
			func(v any) bool { e, ok := v.([]*api.ServiceEntry); return ok && len(e) == 1 },
		},
		{
			map[string]any{"type": "checks", "service": "web"},
			func() error { return c.Agent().FailTTL("w", "") },
			func(v any) bool {
				h, ok := v.([]*api.HealthCheck)
				return ok && len(h) == 1 && h[0].Status == api.HealthCritical
			},
		},
		{
			map[string]any{"type": "checks", "state": "warning"},
			func() error { return c.Agent().WarnTTL("w", "") },
			func(v any) bool { h, ok := v.([]*api.HealthCheck); return ok && len(h) == 1 },
		},
		{
			map[string]any{"type": "agent_service", "service_id": "w1"},
			func() error {
				return c.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "w1", Name: "web", Port: 9})
			},
			func(v any) bool { s, ok := v.(*api.AgentService); return ok && s.Port == 9 },
		},
		{
			map[string]any{"type": "nodes"},
			func() error {
				_, err := c.Catalog().Register(&api.CatalogRegistration{Node: "far", Address: "10.0.0.1"}, nil)
				return err
			},
			func(v any) bool { n, ok := v.([]*api.Node); return ok && len(n) == 2 },
		},
		{
			map[string]any{"type": "connect_leaf", "service": "web"},
			func() error { return rotate(c, 384) },
			func(v any) bool { l, ok := v.(*api.LeafCert); return ok && l.ServiceURI != "" },
		},
		{
			map[string]any{"type": "connect_roots"},
			func() error { return rotate(c, 521) },
			func(v any) bool { r, ok := v.(*api.CARootList); return ok && len(r.Roots) > 1 },
		},
	} {
		plan, err := watch.Parse(w.params)
		if err != nil {
			t.Fatal(err)
		}
		began, fired := make(chan struct{}, 1), make(chan struct{}, 1)
		plan.HybridHandler = func(_ watch.BlockingParamVal, v any) {
			at := began
			if w.shows(v) {
				at = fired
			}
			select {
			case at <- struct{}{}:
			default:
			}
		}
		ended := make(chan error, 1)
		go func() { ended <- plan.RunWithClientAndHclog(c, hclog.NewNullLogger()) }()
		select {
		case <-began:
		case <-time.After(500 * time.Millisecond): // a key that is not there tells nobody
		}
		if err := w.change(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-fired:
		case <-time.After(meshtest.Patience):
			t.Errorf("the watch of %v was not fired", w.params)
		}
		plan.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// rotate makes the certificate authority go on with a new key.
func rotate(c *api.Client, bits int) error {
	conf, _, err := c.Connect().CAGetConfig(nil)
	if err != nil {
		return err
	}
	conf.Config["PrivateKeyType"], conf.Config["PrivateKeyBits"] = "ec", bits
	_, err = c.Connect().CASetConfig(conf, nil)
	return err
}

// TestKeysSurviveARestart: keys, locks and sessions are kept, and what ends by time
// still ends.
func TestKeysSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	start := func() (*meshtest.Mesh, *api.Client) {
		m := meshtest.Start(t, meshtest.Options{DataDir: dir, Change: func(_ *agent.Config, s *server.Config) { s.MinSessionTTL = time.Millisecond }})
		return m, client(t, m)
	}
	m, c := start()
	create := func(e api.SessionEntry) string { return must[string](t)(c.Session().CreateNoChecks(&e, nil)) }
	m.Eventually("the node", func() error {
		_, _, err := c.Session().CreateNoChecks(nil, nil)
		return err
	})
	stays, ends := create(api.SessionEntry{Name: "stays"}), create(api.SessionEntry{TTL: "400ms", LockDelay: 200 * time.Millisecond})
	for _, lock := range [][2]string{{"lost", ends}, {"held", stays}} { // the short session first
		if ok, _, err := c.KV().Acquire(&api.KVPair{Key: lock[0], Session: lock[1], Value: []byte("v"), Flags: 3}, nil); err != nil || !ok {
			t.Fatal(ok, err)
		}
	}
	before, _, err := c.KV().Get("held", nil)
	if err != nil {
		t.Fatal(err)
	}
	m.Stop()
	m, c = start()
	after, meta, err := c.KV().Get("held", nil)
	if err != nil || !reflect.DeepEqual(before, after) || meta.LastIndex != before.ModifyIndex {
		t.Fatalf("%+v before, %+v after, index %d: %v", before, after, meta.LastIndex, err)
	}
	m.Eventually("the session to end and its key to be free", func() error {
		ok, _, err := c.KV().Acquire(&api.KVPair{Key: "lost", Session: stays}, nil)
		if err == nil && !ok {
			err = errors.New("held")
		}
		return err
	})
}
