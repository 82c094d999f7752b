package server

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
)

// directLog applies commands at once, as a log of one would.
type directLog struct {
	store *store.Store
	fail  error
	count int
}

func (l *directLog) Apply(_ context.Context, cmd catalog.Command) (uint64, any, error) {
	if l.fail != nil {
		return 0, nil, l.fail
	}
	if err := cmd.Validate(); err != nil {
		return 0, nil, err
	}
	l.count++
	index := max(2, l.store.Index()+1) // Raft keeps the first for itself
	res, err := l.store.Apply(index, cmd)
	return index, res, err
}

// field is a reconciler with a clock and members of its own.
type field struct {
	*reconciler
	t    *testing.T
	log  *directLog
	list []catalog.Member
	at   time.Time
}

const reapAfter = 24 * time.Hour

func newField(t *testing.T) *field {
	t.Helper()
	s, err := store.New(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	f := &field{t: t, log: &directLog{store: s}, at: time.Unix(1e9, 0)}
	f.reconciler = &reconciler{
		store: s, raft: f.log, members: func() []catalog.Member { return f.list }, self: "s1", datacenter: "dc1",
		now: func() time.Time { return f.at }, reapAfter: reapAfter, log: slog.New(slog.DiscardHandler),
	}
	f.begin()
	return f
}

func (f *field) do() {
	f.t.Helper()
	if err := f.reconcile(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	before := f.log.count
	if err := f.reconcile(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	if f.log.count != before {
		f.t.Errorf("done twice, the second time wrote %d entries", f.log.count-before)
	}
}

func (f *field) rows(node string) rows {
	f.t.Helper()
	r, err := f.read(node)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func host(name, id string, status catalog.MemberStatus, server bool) catalog.Member {
	m := catalog.Member{Name: name, ID: id, Addr: "10.0.0.1", Status: status, Tags: map[string]string{"role": "node", "build": "1.2.3"}}
	if server {
		m.Tags["role"], m.Tags["port"] = "consul", "8300"
	}
	return m
}

func TestReconcile(t *testing.T) {
	f := newField(t)
	f.list = []catalog.Member{host("s1", "id1", catalog.MemberAlive, true), host("a1", "id2", catalog.MemberAlive, false)}
	f.do()
	if r := f.rows("s1"); r.server == nil || r.server.Port != 8300 || r.check.Status != catalog.StatusPassing || r.node.Datacenter != "dc1" {
		t.Errorf("%+v", r)
	}
	if r := f.rows("a1"); r.server != nil || r.check.Output != catalog.NodeCheckAlive || r.node.ID != "id2" {
		t.Errorf("%+v", r)
	}
	// The agent's own statement of its node is not overwritten.
	stated := &catalog.Node{ID: "id2", Node: "a1", Address: "10.9.9.9", Datacenter: "dc1", Meta: map[string]string{"k": "v"}}
	if _, _, err := f.log.Apply(t.Context(), &catalog.SyncNode{State: catalog.NodeState{Node: stated}}); err != nil {
		t.Fatal(err)
	}
	f.list[1].Status = catalog.MemberFailed
	f.do()
	if r := f.rows("a1"); r.check.Status != catalog.StatusCritical || r.check.Output != catalog.NodeCheckFailed || r.node.Address != "10.9.9.9" || r.node.Meta["k"] != "v" {
		t.Errorf("%+v %+v", r.check, r.node)
	}
	f.at = f.at.Add(reapAfter - time.Second)
	f.do()
	f.list[1].Status = catalog.MemberAlive // back: the time starts anew
	f.do()
	f.list[1].Status = catalog.MemberFailed
	f.do()
	f.at = f.at.Add(reapAfter - time.Second)
	f.do()
	if f.rows("a1").node == nil {
		t.Error("reaped too early")
	}
	f.at = f.at.Add(time.Second)
	f.do()
	if f.rows("a1").node != nil {
		t.Error("not reaped")
	}
}

// TestFormerNameInGossip: a host that has another name now keeps what its agent has stated
// under that, while gossip still holds the former name for alive.
func TestFormerNameInGossip(t *testing.T) {
	f := newField(t)
	f.list = []catalog.Member{host("s1", "id1", catalog.MemberAlive, true), host("former", "id2", catalog.MemberAlive, false)}
	f.do()
	state := func(name string) {
		t.Helper()
		if err := f.introduce(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		node := &catalog.Node{ID: "id2", Node: name, Address: "10.9.9.9", Datacenter: "dc1"}
		db := &catalog.Service{ID: "db", Service: "db", Port: 1}
		if _, _, err := f.log.Apply(t.Context(), &catalog.SyncNode{State: catalog.NodeState{Node: node, Services: []*catalog.Service{db}}}); err != nil {
			t.Fatal(err)
		}
	}
	stands := func(when, name, other string) {
		t.Helper()
		f.do()
		v, err := f.store.Read(catalog.Query{Kind: catalog.QueryNode, Name: name})
		if err != nil || len(v.Instances) != 1 || f.rows(name).check == nil || f.rows(other).node != nil {
			t.Errorf("%s: %s has %+v, %v; %s is %+v", when, name, v, err, other, f.rows(other).node)
		}
	}
	state("former")
	f.list = append(f.list, host("new", "id2", catalog.MemberAlive, false))
	stands("gossip knows both names", "former", "new")
	state("new")
	stands("the agent has stated the new one", "new", "former")
	f.list[1].Status = catalog.MemberFailed
	stands("gossip knows that the former one is over", "new", "former")
}

// TestReapOverChangesOfLeader: the time since a host is missed goes on where another
// server leads, and one that gossip is told to forget is gone at once.
func TestReapOverChangesOfLeader(t *testing.T) {
	f := newField(t)
	self := host("s1", "id1", catalog.MemberAlive, true)
	f.list = []catalog.Member{self, host("a1", "id2", catalog.MemberFailed, false), host("a2", "id3", catalog.MemberFailed, false)}
	for _, m := range f.list[1:] {
		old := nodeCheck(m.Name, catalog.StatusCritical, catalog.NodeCheckFailed) // of an earlier version: since when is not said
		cmd := &catalog.Register{Node: &catalog.Node{ID: m.ID, Node: m.Name, Address: m.Addr}, Checks: []*catalog.Check{old}}
		if _, _, err := f.log.Apply(t.Context(), cmd); err != nil {
			t.Fatal(err)
		}
	}
	f.do()
	for range 3 {
		f.at = f.at.Add(reapAfter / 4)
		f.begin()
		f.do()
	}
	if f.rows("a1").node == nil || f.rows("a2").node == nil {
		t.Fatal("reaped too early")
	}
	f.list = f.list[:2]
	f.do()
	if f.rows("a2").node != nil {
		t.Error("gossip has forgotten it, the catalog has not")
	}
	f.at = f.at.Add(reapAfter / 4)
	f.begin() // or a backup of long ago was restored
	f.do()
	if f.rows("a1").node == nil {
		t.Error("reaped by a leader that has missed it just now")
	}
	f.at = f.at.Add(settle)
	f.do()
	if f.rows("a1").node != nil {
		t.Error("not reaped, as the leader changed")
	}
	if f.rows("s1").node == nil {
		t.Error("the leader removed itself")
	}
}

// TestCrashOutlivesLeader: a host that crashed does not pass again because another
// leads, which has heard nothing of it from gossip yet. It does when it answers.
func TestCrashOutlivesLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newField(t)
		var knocks []error // what comes of them, in turn
		queue := make(chan suspect, 10)
		f.doubts = &doubts{
			members: f.members, changed: f.look, log: f.reconciler.log, hosts: map[suspect]bool{}, clear: map[suspect]bool{},
			probe: func(context.Context, string) (err error) { err, knocks = knocks[0], knocks[1:]; return err },
		}
		f.suspect = func(s suspect) bool { queue <- s; return true }
		status := func() catalog.Status { return f.rows("a1").check.Status }
		f.list = []catalog.Member{host("a1", "id2", catalog.MemberAlive, false)}
		f.do()
		f.list[0].Status = catalog.MemberFailed
		f.do()
		f.list[0].Status = catalog.MemberAlive
		f.do()
		if status() != catalog.StatusPassing || len(queue) > 0 {
			t.Error("gossip has missed it and sees it again, and it is not believed")
		}
		f.list[0].Status = catalog.MemberFailed
		f.do()
		f.list[0].Status = catalog.MemberAlive // as the next leader sees it
		f.begin()
		f.do()
		if status() != catalog.StatusCritical {
			t.Error("it passes, and nobody has asked it")
		}
		knocks = []error{syscall.ECONNREFUSED, syscall.ECONNREFUSED, nil}
		begin := time.Now()
		f.doubts.check(t.Context(), <-queue)
		if status() != catalog.StatusPassing || time.Since(begin) < probeTimeout {
			t.Errorf("it is %s after %v, and answered after two knocks", status(), time.Since(begin))
		}
		if f.do(); status() != catalog.StatusPassing {
			t.Error("it does not stay so")
		}
		f.list[0].Status = catalog.MemberFailed
		f.do()
		f.list[0].Status = catalog.MemberAlive
		f.begin()
		f.do()
		knocks, f.log.fail = []error{nil}, errors.New("no leader for a moment")
		f.doubts.changed = func(ctx context.Context, node string) error {
			defer func() { f.log.fail = nil }()
			return f.look(ctx, node)
		}
		f.doubts.check(t.Context(), <-queue)
		if status() != catalog.StatusPassing || len(f.doubts.clear) > 0 {
			t.Errorf("it answered, and is %s as the first write failed", status())
		}
	})
}

func TestReconcileLeft(t *testing.T) {
	f := newField(t)
	f.list = []catalog.Member{host("s1", "id1", catalog.MemberAlive, true), host("a1", "id2", catalog.MemberAlive, true)}
	f.do()
	f.list[1].Tags["role"] = "node" // a server no more
	f.do()
	if r := f.rows("a1"); r.server != nil || r.check == nil {
		t.Errorf("%+v", r)
	}
	f.list[0].Status, f.list[1].Status = catalog.MemberLeaving, catalog.MemberLeft
	f.do()
	if f.rows("a1").node != nil {
		t.Error("left, and still there")
	}
	if f.rows("s1").node == nil {
		t.Error("the leader removed itself")
	}
}

// TestStrangers: hosts that gossip does not know are given time, and hosts that
// never had an agent are left alone.
func TestStrangers(t *testing.T) {
	f := newField(t)
	f.list = []catalog.Member{host("s1", "id1", catalog.MemberAlive, true), host("a1", "id2", catalog.MemberAlive, false)}
	f.do()
	if _, _, err := f.log.Apply(t.Context(), &catalog.Register{Node: &catalog.Node{Node: "external", Address: "10.0.0.9"}}); err != nil {
		t.Fatal(err)
	}
	f.list = f.list[:1]
	f.begin() // a new leader, that has not met a1 yet
	f.do()
	if r := f.rows("a1"); r.check.Status != catalog.StatusPassing {
		t.Error("believed gone at once")
	}
	f.at = f.at.Add(settle)
	f.do()
	if r := f.rows("a1"); r.check.Status != catalog.StatusCritical {
		t.Error("still believed alive")
	}
	f.at = f.at.Add(reapAfter)
	f.do()
	if f.rows("a1").node != nil || f.rows("external").node == nil {
		t.Error("reaped the wrong one")
	}
}

func TestReconcileOtherHost(t *testing.T) {
	f := newField(t)
	f.list = []catalog.Member{host("a1", "11111111-1111-4111-8111-111111111111", catalog.MemberAlive, false)}
	f.do()
	f.list[0].ID = "22222222-2222-4222-8222-222222222222"
	f.do()
	if r := f.rows("a1"); r.node.ID != f.list[0].ID || r.check.Status != catalog.StatusPassing {
		t.Errorf("%+v %+v", r.node, r.check)
	}
}

// TestReconcileGoesOn: one host that cannot be written does not keep the others.
func TestReconcileGoesOn(t *testing.T) {
	f := newField(t)
	f.list = []catalog.Member{host("", "", catalog.MemberAlive, false), host("a1", "id2", catalog.MemberAlive, false)}
	if err := f.reconcile(t.Context()); !errors.Is(err, catalog.ErrInvalid) {
		t.Error(err)
	}
	if f.rows("a1").check == nil {
		t.Error("stopped at the first")
	}
	f.log.fail = catalog.ErrNoLeader
	f.list[1].Status = catalog.MemberFailed
	if err := f.reconcile(t.Context()); !errors.Is(err, catalog.ErrNoLeader) {
		t.Error(err)
	}
}
