package rpc

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/ca"
	"github.com/weftmesh/weft/connect/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeLog applies at once, as a log of one server would, and leads unless told not to.
type fakeLog struct {
	store *store.Store
	mu    sync.Mutex
	other atomic.Pointer[string] // address of another leader, "" for none
	count atomic.Int64
}

func (l *fakeLog) Apply(_ context.Context, cmd catalog.Command) (uint64, any, error) {
	if _, self, err := l.Leader(); err != nil || !self {
		return 0, nil, catalog.ErrNoLeader
	}
	// As the log does: the store gets a copy of its own.
	b, err := wire.EncodeEntry(cmd)
	if err != nil {
		return 0, nil, err
	}
	if cmd, err = wire.DecodeEntry(b); err != nil {
		return 0, nil, err
	}
	l.count.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	index := max(2, l.store.Index()+1) // Raft keeps the first for itself
	res, err := l.store.Apply(index, cmd)
	return index, res, err
}

func (l *fakeLog) ReadIndex(context.Context) (uint64, error) {
	if _, self, err := l.Leader(); err != nil || !self {
		return 0, catalog.ErrNoLeader
	}
	return l.store.Index(), nil
}

func (l *fakeLog) Leader() (string, bool, error) {
	switch other := l.other.Load(); {
	case other == nil:
		return "self:8300", true, nil
	case *other == "":
		return "", false, catalog.ErrNoLeader
	default:
		return *other, false, nil
	}
}

func (l *fakeLog) lead(addr string)           { l.other.Store(&addr) }
func (l *fakeLog) LastContact() time.Duration { return 3 * time.Millisecond }
func (l *fakeLog) Peers() ([]string, error)   { return []string{"self:8300"}, nil }

type fakeCA struct{}

func (fakeCA) Sign(_ context.Context, req *ca.Request) (*catalog.Leaf, error) {
	return &catalog.Leaf{ServiceURI: req.ID.String()}, nil
}

func (fakeCA) Configure(context.Context, catalog.CAConfig) (uint64, error) { return 77, nil }

type rig struct {
	*Handler
	log   *fakeLog
	store *store.Store
}

func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	s, err := store.New(store.Config{Coalesce: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	l := &fakeLog{store: s}
	cfg := Config{
		Store: s, Log: l, CA: fakeCA{}, Registerer: prometheus.NewRegistry(),
		Stats: func() map[string]map[string]string { return map[string]map[string]string{"raft": {"state": "Leader"}} },
	}
	if change != nil {
		change(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{Handler: h, log: l, store: s}
}

func (r *rig) apply(t testing.TB, cmd catalog.Command) *wire.ApplyReply {
	t.Helper()
	rep, err := r.Apply(t.Context(), &wire.ApplyRequest{Command: wire.Command{Command: cmd}})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func allow(source, destination string) catalog.Command {
	return &catalog.SetIntention{Destination: destination, Source: catalog.SourceIntention{Name: source, Action: catalog.ActionAllow}}
}

func csr(t testing.TB, service string) []byte {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	b, err := identity.NewCSR(key, identity.ServiceID{TrustDomain: "11111111-1111-4111-8111-111111111111.consul", Datacenter: "dc1", Service: service})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func hostState(name string) catalog.NodeState {
	return catalog.NodeState{
		Node:     &catalog.Node{Node: name, Address: "10.0.0.1"},
		Services: []*catalog.Service{{ID: "web1", Service: "web"}},
		Checks:   []*catalog.Check{{CheckID: "c", ServiceID: "web1", ServiceName: "web", Status: catalog.StatusPassing}},
	}
}

var intentions = catalog.Query{Kind: catalog.QueryIntentionsDest, Name: "db"}

// asked records what an authorizer was asked, and answers the same to all.
type asked struct {
	mu   sync.Mutex
	list []string
	yes  bool
}

func (a *asked) Allowed(v acl.Verb, r acl.Resource, name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, fmt.Sprintf("%s:%s:%s", r, v, name))
	return a.yes
}

func (a *asked) take() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := strings.Join(a.list, " ")
	a.list = nil
	return s
}

// calls makes one request of each method; a method without one fails the test.
func calls(t *testing.T, r *rig) map[string]func(token string) error {
	ctx := t.Context()
	return map[string]func(string) error{
		"Sync": func(tok string) error {
			_, err := r.Sync(ctx, &wire.SyncRequest{Token: tok, State: hostState("n")})
			return err
		},
		"Apply": func(tok string) error {
			_, err := r.Apply(ctx, &wire.ApplyRequest{Token: tok, Command: wire.Command{Command: allow("web", "db")}})
			return err
		},
		"Read": func(tok string) error {
			_, err := r.Read(ctx, &wire.ReadRequest{Token: tok, Query: intentions})
			return err
		},
		"Watch": func(tok string) error {
			err := r.Watch(ctx, &wire.WatchRequest{Token: tok, Query: intentions}, func(*wire.WatchEvent) error { return errEnough })
			if errors.Is(err, errEnough) {
				return nil
			}
			return err
		},
		"Sign": func(tok string) error {
			_, err := r.Sign(ctx, &wire.SignRequest{Token: tok, CSR: csr(t, "web")})
			return err
		},
		"Txn": func(tok string) error {
			op := catalog.TxnOp{KV: &catalog.KVOp{Verb: catalog.TxnGetTree, Pair: catalog.KVPair{Key: "app/"}}}
			_, err := r.Txn(ctx, &wire.TxnRequest{Token: tok, Txn: catalog.Txn{Ops: []catalog.TxnOp{op}}})
			return err
		},
		"RenewSession": func(tok string) error {
			_, err := r.RenewSession(ctx, &wire.RenewSessionRequest{Token: tok, ID: "live"})
			return err
		},
		"SetCAConfig": func(tok string) error { _, err := r.SetCAConfig(ctx, &wire.SetCAConfigRequest{Token: tok}); return err },
		"Status":      func(tok string) error { _, err := r.Status(ctx, &wire.StatusRequest{Token: tok}); return err },
	}
}

var errEnough = errors.New("enough")

// TestEveryMethodAsks lists the methods by reflection: each refuses a token that
// nobody knows, asks what its bearer may do, and is refused when that is nothing.
func TestEveryMethodAsks(t *testing.T) {
	a := &asked{}
	r := newRig(t, func(c *Config) {
		c.Authorizer = func(token string) (acl.Authorizer, error) {
			if token != "good" {
				return nil, fmt.Errorf("token: %w", catalog.ErrDenied)
			}
			return a, nil
		}
	})
	want := map[string]string{
		"Sync": "node:write:n service:write:web service:write:web", "Apply": "intention:write:db", "Read": "intention:read:db",
		"Watch": "intention:read:db", "Sign": "service:write:web", "SetCAConfig": "operator:write:", "Status": "agent:read:",
		"Txn": "key:read:app/", "RenewSession": "session:write:n",
	}
	live := catalog.Session{ID: "live", Node: "n", Behavior: catalog.SessionRelease}
	for _, c := range []catalog.Command{&catalog.SyncNode{State: catalog.NodeState{Node: &catalog.Node{Node: "n"}}}, &catalog.CreateSession{Session: live}} {
		if _, _, err := r.log.Apply(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	r.log.count.Store(0)
	call := calls(t, r)
	servers := reflect.TypeFor[wire.Servers]()
	for i := range servers.NumMethod() {
		name := servers.Method(i).Name
		do, ok := call[name]
		if !ok {
			t.Errorf("%s: no request to try it with", name)
			continue
		}
		if err := do("bad"); !errors.Is(err, catalog.ErrDenied) {
			t.Errorf("%s with an unknown token: %v", name, err)
		}
		if got := a.take(); got != "" {
			t.Errorf("%s with an unknown token asked %s", name, got)
		}
		a.yes = false
		err := do("good")
		if name == "Status" { // who leads is for everybody; the counters are not
			if err != nil {
				t.Errorf("Status: %v", err)
			}
		} else if !errors.Is(err, catalog.ErrDenied) || r.log.count.Load() != 0 {
			t.Errorf("%s without rights: %v", name, err)
		}
		a.take()
		a.yes = true
		if err := do("good"); err != nil {
			t.Errorf("%s with all rights: %v", name, err)
		}
		if got := a.take(); got != want[name] {
			t.Errorf("%s asked %q, want %q", name, got, want[name])
		}
		r.log.count.Store(0)
	}
}

// TestEveryCommandHasARule: a command that is added must be given one.
func TestEveryCommandHasARule(t *testing.T) {
	r := newRig(t, nil)
	r.apply(t, &catalog.SyncNode{State: hostState("n")})
	legacy := &catalog.SetIntention{Destination: "db", Source: catalog.SourceIntention{Name: "web", Action: catalog.ActionAllow, LegacyID: "id1"}}
	r.apply(t, legacy)
	session := catalog.Session{ID: "live", Node: "n", Behavior: catalog.SessionRelease}
	r.apply(t, &catalog.CreateSession{Session: session})
	want := map[catalog.Command]string{
		&catalog.Register{Node: &catalog.Node{Node: "n"}, Service: &catalog.Service{Service: "web"}}: "[{write node n} {write service web}]",
		&catalog.Deregister{Node: "n"}:                                                                     "[{write node n}]",
		&catalog.Deregister{Node: "n", ServiceID: "web1"}:                                                  "[{write service web}]",
		&catalog.Deregister{Node: "n", CheckID: "c"}:                                                       "[{write service web}]",
		&catalog.Deregister{Node: "n", CheckID: "none"}:                                                    "[{write node n}]",
		&catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: &catalog.ServiceIntentions{Name: "db"}}}: "[{write intention db}]",
		&catalog.DeleteConfigEntry{Kind: catalog.KindServiceIntentions, Name: "db"}:                        "[{write intention db}]",
		&catalog.DeleteConfigEntry{Kind: "proxy-defaults", Name: "global"}:                                 "[{write mesh }]",
		&catalog.DeleteIntention{ID: "id1"}:                                                                "[{write intention db}]",
		&catalog.DeleteIntention{ID: "none"}:                                                               "[{write intention }]",
		&catalog.SyncNode{State: hostState("n")}:                                                           "[{write node n} {write service web} {write service web}]",
		&catalog.SetPreparedQuery{Query: catalog.PreparedQuery{ID: "i", Name: "q"}}:                        "[{write query q}]",
		&catalog.DeletePreparedQuery{ID: "none"}:                                                           "[{write query }]",
		&catalog.SetCoordinates{Updates: []*catalog.NodeCoordinate{{Node: "n"}, {Node: "m"}}}:              "[{write node n} {write node m}]",
		&catalog.Revoke{}:                                                            "[{write operator }]",
		&catalog.Allow{}:                                                             "[{write operator }]",
		&catalog.SetAutopilot{}:                                                      "[{write operator }]",
		&catalog.SetVirtualIPs{Service: "web"}:                                       "[{write mesh }]",
		&catalog.SetKey{Pair: catalog.KVPair{Key: "app/k"}}:                          "[{write key app/k}]",
		&catalog.DeleteKey{Key: "app/k"}:                                             "[{write key app/k}]",
		&catalog.DeleteKeys{Prefix: "app/"}:                                          "[{write key app/}]",
		&catalog.LockKey{Pair: catalog.KVPair{Key: "app/k"}}:                         "[{write key app/k}]",
		&catalog.UnlockKey{Pair: catalog.KVPair{Key: "app/k"}}:                       "[{write key app/k}]",
		&catalog.CreateSession{Session: session}:                                     "[{write session n}]",
		&catalog.DestroySessions{IDs: []string{"live", "no"}}:                        "[{write session n}]",
		&catalog.SetCertRevocation{Revocation: catalog.CertRevocation{Serial: "01"}}: "[{write operator }]",
		&catalog.DeleteCertRevocation{Serial: "01"}:                                  "[{write operator }]",
		legacy: "[{write intention db}]",
	}
	seen := map[catalog.CommandType]bool{catalog.CmdSetCAConfig: true, catalog.CmdSetRoots: true, catalog.CmdSetEntryStatus: true, catalog.CmdEndKeyDelays: true, catalog.CmdPruneCertRevocations: true, catalog.CmdTxn: true} // the leader's own, and what has rules for its parts
	for cmd, needs := range want {
		seen[cmd.CommandType()] = true
		got, err := r.needsOf(cmd)
		if err != nil || fmt.Sprint(got) != needs {
			t.Errorf("%T %+v: %v %v, want %v", cmd, cmd, got, err, needs)
		}
	}
	for ct := range catalog.CommandType(1000) {
		cmd, err := catalog.NewCommand(ct)
		if err == nil && !seen[ct] {
			t.Errorf("%T is not in this test", cmd)
		}
	}
	for _, cmd := range []catalog.Command{&catalog.SetRoots{Roots: []*catalog.Root{{ID: "a", Active: true}}}, &catalog.SetCAConfig{Config: catalog.CAConfig{Provider: "consul"}}, &catalog.EndKeyDelays{}, &catalog.PruneCertRevocations{Before: time.Unix(1, 0)}} {
		if _, err := r.Apply(t.Context(), &wire.ApplyRequest{Command: wire.Command{Command: cmd}}); !errors.Is(err, catalog.ErrDenied) {
			t.Errorf("%T from outside: %v", cmd, err)
		}
	}
}

func TestSyncWritesOnlyWhatIsNew(t *testing.T) {
	r := newRig(t, nil)
	first, err := r.Sync(t.Context(), &wire.SyncRequest{State: hostState("n")})
	if err != nil || first.Index != 2 {
		t.Fatal(first, err)
	}
	again, err := r.Sync(t.Context(), &wire.SyncRequest{State: hostState("n")})
	if err != nil || again.Index != first.Index || r.log.count.Load() != 1 {
		t.Error(again, err, r.log.count.Load())
	}
	other := hostState("n")
	other.Checks[0].Status = catalog.StatusCritical
	if rep, err := r.Sync(t.Context(), &wire.SyncRequest{State: other}); err != nil || rep.Index != 3 {
		t.Error(rep, err)
	}
}

// TestSyncPassesOverTheServersRow: one service in a host's statement that is not the
// host's to make must not keep the others out of the catalog.
func TestSyncPassesOverTheServersRow(t *testing.T) {
	r := newRig(t, nil)
	state := hostState("n")
	state.Services = append(state.Services, &catalog.Service{ID: catalog.ServerService, Service: "x"})
	state.Checks = append(state.Checks, &catalog.Check{CheckID: "of it", ServiceID: catalog.ServerService, Status: catalog.StatusPassing})
	if _, err := r.Sync(t.Context(), &wire.SyncRequest{State: state}); err != nil {
		t.Fatal(err)
	}
	v, err := r.store.Read(catalog.Query{Kind: catalog.QueryNode, Name: "n"})
	if err != nil || len(v.Instances) != 1 || v.Instances[0].Service.ID != "web1" || len(v.Instances[0].Checks) != 1 {
		t.Errorf("%+v %v", v, err)
	}
	if len(state.Services) != 2 || len(state.Checks) != 2 {
		t.Errorf("the statement itself was changed: %+v", state)
	}
}

func TestApplyCompletesAndRefuses(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := newRig(t, func(c *Config) { c.Now = func() time.Time { return at } })
	r.apply(t, &catalog.SetIntention{Destination: "db", Source: catalog.SourceIntention{Name: "web", Action: catalog.ActionAllow, LegacyID: "x"}})
	entry := &catalog.ServiceIntentions{Name: "api", Sources: []*catalog.SourceIntention{
		{Name: "*", Action: catalog.ActionDeny}, {Name: "web", Action: catalog.ActionAllow},
	}}
	if rep := r.apply(t, &catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: entry}}); !rep.OK {
		t.Error(rep)
	}
	v, err := r.store.Read(catalog.Query{Kind: catalog.QueryIntentions})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range v.Intentions {
		if i.Precedence == 0 {
			t.Errorf("not normalized: %+v", i)
		}
		if i.ID == "x" && (i.CreatedAt == nil || !i.CreatedAt.Equal(at) || !i.UpdatedAt.Equal(at)) {
			t.Errorf("%+v", i)
		}
	}
	if rep := r.apply(t, &catalog.DeleteConfigEntry{Kind: catalog.KindServiceIntentions, Name: "api", CAS: true, Index: 999}); rep.OK {
		t.Error("a lost check-and-set is OK")
	}
	for name, cmd := range map[string]catalog.Command{
		"none": nil, "no node": &catalog.Register{}, "nil service": &catalog.SyncNode{State: catalog.NodeState{Node: &catalog.Node{Node: "n"}, Services: []*catalog.Service{nil}}},
		"no entry": &catalog.SetConfigEntry{}, "no source": &catalog.SetIntention{Destination: "db"},
		"nil source": &catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: &catalog.ServiceIntentions{Name: "a", Sources: []*catalog.SourceIntention{nil}}}},
	} {
		if _, err := r.Apply(t.Context(), &wire.ApplyRequest{Command: wire.Command{Command: cmd}}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.Sync(t.Context(), &wire.SyncRequest{}); !errors.Is(err, catalog.ErrInvalid) {
		t.Error(err)
	}
	if _, err := r.Sign(t.Context(), &wire.SignRequest{CSR: []byte("junk")}); !errors.Is(err, catalog.ErrInvalid) {
		t.Error(err)
	}
}

func TestReadModes(t *testing.T) {
	r := newRig(t, nil)
	index := r.apply(t, allow("web", "db")).Index
	for _, c := range []wire.Consistency{wire.Default, wire.Consistent, wire.Stale} {
		rep, err := r.Read(t.Context(), &wire.ReadRequest{Query: intentions, Consistency: c})
		if err != nil || rep.View.Index != index || !rep.Meta.KnownLeader {
			t.Error(c, rep, err)
		}
	}
	if _, err := r.Read(t.Context(), &wire.ReadRequest{Query: intentions, Consistency: "odd"}); !errors.Is(err, catalog.ErrInvalid) {
		t.Error(err)
	}
	if _, err := r.Read(t.Context(), &wire.ReadRequest{Query: catalog.Query{Kind: "odd"}}); !errors.Is(err, catalog.ErrInvalid) {
		t.Error(err)
	}
	for _, addr := range []string{"", "other:8300"} {
		r.log.lead(addr)
		for name, call := range calls(t, r) {
			err := call("")
			if ok := name == "Watch" || name == "Status"; ok != (err == nil) || (!ok && !errors.Is(err, catalog.ErrNoLeader)) {
				t.Errorf("%s with leader %q: %v", name, addr, err)
			}
		}
		rep, err := r.Read(t.Context(), &wire.ReadRequest{Query: intentions, Consistency: wire.Stale})
		if err != nil || rep.View.Index != index || rep.Meta.KnownLeader != (addr != "") || rep.Meta.LastContact == 0 {
			t.Error(addr, rep, err)
		}
	}
}

func TestForward(t *testing.T) {
	leader := newRig(t, nil)
	follower := newRig(t, func(c *Config) {
		c.Forward = func(addr string) (wire.Servers, error) {
			if addr != "other:8300" {
				return nil, fmt.Errorf("%s: %w", addr, catalog.ErrUnavailable)
			}
			return leader.Handler, nil
		}
	})
	follower.log.lead("other:8300")
	for _, name := range []string{"Sync", "Apply", "Read", "Sign", "SetCAConfig"} {
		if err := calls(t, follower)[name](""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if leader.log.count.Load() != 2 || follower.log.count.Load() != 0 {
		t.Error(leader.log.count.Load(), follower.log.count.Load())
	}
	follower.log.lead("gone:8300")
	if err := calls(t, follower)["Read"](""); !errors.Is(err, catalog.ErrUnavailable) {
		t.Error(err)
	}
}

func TestBlockingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		index := r.apply(t, allow("web", "db")).Index
		answers := make(chan *wire.ReadReply, 1)
		read := func(wait time.Duration) {
			rep, err := r.Read(t.Context(), &wire.ReadRequest{Query: intentions, MinIndex: index, MaxWait: wait})
			if err != nil {
				t.Error(err)
			}
			answers <- rep
		}
		start := time.Now()
		read(30 * time.Second)
		if rep := <-answers; rep.View.Index != index || time.Since(start) != 30*time.Second {
			t.Error(rep, time.Since(start))
		}
		go read(0)
		synctest.Wait()
		r.apply(t, allow("web", "other")) // not its concern
		synctest.Wait()
		select {
		case rep := <-answers:
			t.Error("woken by another destination:", rep.View)
		default:
		}
		next := r.apply(t, allow("api", "db")).Index
		if rep := <-answers; rep.View.Index != next || len(rep.View.Intentions) != 2 {
			t.Error(rep)
		}
		start = time.Now()
		index = next
		go read(time.Hour)
		if <-answers; time.Since(start) != 10*time.Minute {
			t.Error("waited for", time.Since(start))
		}
		r.store.Close()
	})
}

// TestWatchConverges: a reader that is slow, goes away and comes back always ends
// up with the last state, and its index never falls.
func TestWatchConverges(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Progress = 5 * time.Millisecond })
	const writes = 60
	var readers sync.WaitGroup
	last := make(chan uint64, 1)
	var lastIndex atomic.Uint64
	for n := range 8 {
		readers.Go(func() {
			req := &wire.WatchRequest{Query: intentions}
			for rounds := 0; ; rounds++ {
				done := false
				events := 0
				err := r.Watch(t.Context(), req, func(e *wire.WatchEvent) error {
					if e.View != nil {
						if e.View.Index <= req.After {
							t.Errorf("the index fell from %d to %d", req.After, e.View.Index)
						}
						req.After, req.Epoch = e.View.Index, e.View.Epoch
					}
					if e.Current < req.After {
						t.Errorf("current %d is behind the view's %d", e.Current, req.After)
					}
					if end := lastIndex.Load(); end != 0 && e.Current >= end {
						done = true
						return errEnough
					}
					if events++; events > n+1 {
						return errEnough // come back with what is held
					}
					return nil
				})
				if !errors.Is(err, errEnough) {
					t.Error(err)
					return
				}
				if done {
					if req.After != lastIndex.Load() {
						t.Errorf("reader %d knows everything up to %d and has the view of %d", n, lastIndex.Load(), req.After)
					}
					return
				}
			}
		})
	}
	go func() {
		var index uint64
		for i := range writes {
			index = r.apply(t, allow(fmt.Sprintf("s%d", i), "db")).Index
			if i%3 == 0 {
				r.apply(t, allow("web", "other"))
			}
		}
		lastIndex.Store(index)
		r.apply(t, allow("web", "another")) // moves Current beyond
		last <- index
	}()
	<-last
	readers.Wait()
}

// TestWatchAfterRestore: a backup that is restored resets every reader.
func TestWatchAfterRestore(t *testing.T) {
	r := newRig(t, nil)
	r.apply(t, allow("web", "db"))
	var old strings.Builder
	if err := r.store.Backup().Write(&old); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		r.apply(t, allow(fmt.Sprintf("s%d", i), "db"))
	}
	events := make(chan *wire.WatchEvent, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- r.Watch(ctx, &wire.WatchRequest{Query: intentions}, func(e *wire.WatchEvent) error {
			if e.View != nil {
				events <- e
			}
			return nil
		})
	}()
	first := <-events
	if len(first.View.Intentions) != 6 {
		t.Fatal(first.View)
	}
	if err := r.store.Restore(strings.NewReader(old.String())); err != nil {
		t.Fatal(err)
	}
	second := <-events
	if len(second.View.Intentions) != 1 || second.Epoch == first.Epoch || second.View.Index >= first.View.Index {
		t.Errorf("%+v after %+v", second, first)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestWatchSpeaksFirstAndTellsOfLeader(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Progress = 5 * time.Millisecond })
	index := r.apply(t, allow("web", "db")).Index
	metas := []bool{}
	err := r.Watch(t.Context(), &wire.WatchRequest{Query: intentions, After: index, Epoch: r.store.Epoch()}, func(e *wire.WatchEvent) error {
		if e.View != nil {
			t.Error("sent what the reader has")
		}
		if e.Current != index {
			t.Error(e.Current)
		}
		metas = append(metas, e.Meta.KnownLeader)
		r.log.lead("")
		if len(metas) == 3 {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || !slices.Equal(metas, []bool{true, false, false}) {
		t.Error(metas, err)
	}
}

func TestWaitingIsBounded(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Waiting = 1 })
	ctx, cancel := context.WithCancel(t.Context())
	in, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		var once sync.Once
		ended <- r.Watch(ctx, &wire.WatchRequest{Query: intentions}, func(*wire.WatchEvent) error {
			once.Do(func() { close(in) })
			return nil
		})
	}()
	<-in
	if err := r.Watch(ctx, &wire.WatchRequest{Query: intentions}, nil); !errors.Is(err, catalog.ErrUnavailable) {
		t.Error(err)
	}
	if _, err := r.Read(ctx, &wire.ReadRequest{Query: intentions, MinIndex: 9}); !errors.Is(err, catalog.ErrUnavailable) {
		t.Error(err)
	}
	if _, err := r.Read(ctx, &wire.ReadRequest{Query: intentions}); err != nil {
		t.Error("a read that does not wait:", err)
	}
	cancel()
	<-ended
}

func TestNewRefuses(t *testing.T) {
	s := newRig(t, nil)
	for name, cfg := range map[string]Config{
		"store": {}, "log": {Store: s.store}, "certificate authority": {Store: s.store, Log: s.log},
	} {
		if _, err := New(cfg); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
