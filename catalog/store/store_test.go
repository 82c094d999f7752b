package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/catalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func newStore(t fataler, cfg Config) *Store {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return s
}

// content prints a view without its index; with Raft indexes of rows.
func content(t fataler, v *catalog.View) string {
	t.Helper()
	type shown struct {
		Nodes      []*catalog.Node           `json:",omitempty"`
		Services   []*catalog.ServiceSummary `json:",omitempty"`
		Instances  []*catalog.Instance       `json:",omitempty"`
		Checks     []*catalog.Check          `json:",omitempty"`
		Intentions catalog.Intentions        `json:",omitempty"`
		Entries    []catalog.Entry           `json:",omitempty"`
		Roots      []*catalog.Root           `json:",omitempty"`
		CAConfig   *catalog.CAConfig         `json:",omitempty"`
		Pairs      []*catalog.KVPair         `json:",omitempty"`
		Keys       []string                  `json:",omitempty"`
		Delays     []*catalog.KeyDelay       `json:",omitempty"`
		Sessions   []*catalog.Session        `json:",omitempty"`
		Revoked    []*catalog.CertRevocation `json:",omitempty"`
		VirtualIPs []*catalog.VirtualIP      `json:",omitempty"`
	}
	b, err := json.Marshal(shown{
		v.Nodes, v.Services, v.Instances, v.Checks, v.Intentions, v.Entries, v.Roots, v.CAConfig,
		v.Pairs, v.Keys, v.Delays, v.Sessions, v.RevokedCerts, v.VirtualIPs,
	})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return string(bytes.ReplaceAll(b, []byte("null"), []byte("[]")))
}

func read(t fataler, s *Store, q catalog.Query) *catalog.View {
	t.Helper()
	v, err := s.Read(q)
	if err != nil {
		t.Fatalf("Read %s: %v", q, err)
	}
	return v
}

// TestModel applies random commands to the store and to plain maps. After each,
// every answer must agree; an answer that changed must have this index, one that
// did not must keep its own, unless it is about what does not exist.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { runModel(t, queries(), rapid.IntRange(1, 15).Draw(t, "steps"), drawCommand) })
}

// TestModelOfKeys is TestModel with a host and sessions to begin with, and then
// mostly keys.
func TestModelOfKeys(t *testing.T) {
	host := &catalog.Register{
		Node:   &catalog.Node{Node: nodeNames[0]},
		Checks: []*catalog.Check{{CheckID: checkIDs[0], Status: catalog.StatusPassing}},
	}
	rapid.Check(t, func(t *rapid.T) {
		begin := []catalog.Command{host}
		for _, id := range sessionIDs {
			begin = append(begin, &catalog.CreateSession{Session: catalog.Session{
				ID: id, Node: nodeNames[0], Behavior: pick(t, []string{catalog.SessionRelease, catalog.SessionDelete}, "behavior"),
				LockDelay: time.Duration(rapid.IntRange(0, 1).Draw(t, "delay")) * time.Second, NodeChecks: checkIDs[:rapid.IntRange(0, 1).Draw(t, "checks")],
			}})
		}
		runModel(t, kvQueries(), rapid.IntRange(3, 40).Draw(t, "steps"), func(t *rapid.T, at uint64) catalog.Command {
			if len(begin) > 0 {
				cmd := begin[0]
				begin = begin[1:]
				return cmd
			}
			if rapid.IntRange(0, 9).Draw(t, "other") == 0 {
				return drawCommand(t, at)
			}
			return drawKVCommand(t, at)
		})
	})
}

func runModel(t *rapid.T, qs []catalog.Query, steps int, draw func(t *rapid.T, at uint64) catalog.Command) {
	s, m := newStore(t, Config{}), newModel()
	twin := newStore(t, Config{})
	last := make(map[catalog.Query]*catalog.View, len(qs))
	shown := make(map[catalog.Query]string, len(qs))
	for _, q := range qs {
		last[q] = read(t, s, q)
		shown[q] = content(t, last[q])
		if last[q].Index != 1 {
			t.Fatalf("%s: the empty store has index %d", q, last[q].Index)
		}
	}
	empty := content(t, &catalog.View{})
	var entries []Entry
	var results []Result
	for step := range steps {
		index := uint64(10 + step)
		cmd := draw(t, drawCASIndex(t, m))
		if err := cmd.Validate(); err != nil {
			t.Fatalf("drew an invalid %T: %v", cmd, err)
		}
		sync, isSync := cmd.(*catalog.SyncNode)
		_, isTxn := cmd.(*catalog.Txn)
		equal := isSync && s.Equal(sync.State)
		var wantRes any
		var wantErr error
		m, wantRes, wantErr = m.apply(index, cmd)
		res, err := s.Apply(index, cmd)
		entries, results = append(entries, Entry{index, cmd}), append(results, Result{res, err})
		if (wantErr == nil) != (err == nil) || (wantErr != nil && !errors.Is(err, wantErr)) {
			t.Fatalf("%+v: error %v, the model has %v", cmd, err, wantErr)
		}
		if err == nil && !sameResult(res, wantRes) {
			t.Fatalf("%+v: result %v, the model has %v", cmd, res, wantRes)
		}
		if _, err2 := twin.Apply(index, cmd); (err2 == nil) != (err == nil) {
			t.Fatalf("twins answer %v and %v", err, err2)
		}
		changed := false
		for _, q := range qs {
			now := read(t, s, q)
			got, want := content(t, now), content(t, m.view(q))
			if got != want {
				t.Fatalf("%s after %+v:\n got %s\nwant %s", q, cmd, got, want)
			}
			switch was := shown[q]; {
			case got != was:
				changed = true
				if now.Index != index {
					t.Fatalf("%s changed at %d and has index %d", q, index, now.Index)
				}
			case was == empty:
				if now.Index < last[q].Index || now.Index > index {
					t.Fatalf("%s: the index went from %d to %d at %d", q, last[q].Index, now.Index, index)
				}
			case now.Index != last[q].Index && q.Kind != catalog.QueryPreparedQuery && q.Kind != catalog.QueryServices && q.Kind != catalog.QueryKeyNames && !isTxn: // a list may stay as it is while its members change, a transaction may undo itself
				t.Fatalf("%s did not change but its index went from %d to %d at %+v", q, last[q].Index, now.Index, cmd)
			}
			last[q], shown[q] = now, got
		}
		if equal && changed {
			t.Fatalf("Equal said that %+v changes nothing", sync.State)
		}
		if isSync && err == nil && !s.Equal(sync.State) {
			t.Fatalf("not Equal after it was applied: %+v", sync.State)
		}
	}
	if s.Fingerprint() != twin.Fingerprint() {
		t.Fatalf("two stores fed one log differ")
	}
	checkBatches(t, s, entries, results)
	checkBackup(t, s, qs)
}

// checkBatches feeds the log of s to another store, in batches.
func checkBatches(t *rapid.T, s *Store, entries []Entry, want []Result) {
	other := newStore(t, Config{})
	for len(entries) > 0 {
		n := rapid.IntRange(1, len(entries)).Draw(t, "batch")
		for i, r := range other.ApplyBatch(entries[:n]) {
			if fmt.Sprint(r.Err) != fmt.Sprint(want[i].Err) || !reflect.DeepEqual(r.Value, want[i].Value) {
				t.Fatalf("%+v: in a batch %v, %v, else %v, %v", entries[i].Command, r.Value, r.Err, want[i].Value, want[i].Err)
			}
		}
		if got, last := other.Index(), entries[n-1].Index; got != last {
			t.Fatalf("after a batch up to %d the index is %d", last, got)
		}
		entries, want = entries[n:], want[n:]
	}
	if s.Fingerprint() != other.Fingerprint() {
		t.Fatalf("the state of batches is another")
	}
}

func drawCASIndex(t *rapid.T, m *model) uint64 {
	from := []uint64{0, m.rootsAt}
	if m.ca != nil {
		from = append(from, m.ca.ModifyIndex)
	}
	for _, n := range policyNames {
		from = append(from, m.dests[n].ModifyIndex)
	}
	for _, k := range keyNames {
		from = append(from, m.pairs[k].ModifyIndex, m.delays[k].ModifyIndex)
	}
	return pick(t, from, "CAS index")
}

// checkBackup restores a backup into a fresh store, which must then be equal.
func checkBackup(t fataler, s *Store, qs []catalog.Query) {
	t.Helper()
	var b bytes.Buffer
	if err := s.Backup().Write(&b); err != nil {
		t.Fatalf("Write: %v", err)
	}
	r := newStore(t, Config{})
	if err := r.Restore(bytes.NewReader(b.Bytes())); err != nil {
		t.Fatalf("Restore: %v", err)
	}
	if r.Fingerprint() != s.Fingerprint() || r.Index() != s.Index() || r.Epoch() != s.Epoch() {
		t.Fatalf("restored: index %d epoch %s, want %d %s, or another fingerprint", r.Index(), r.Epoch(), s.Index(), s.Epoch())
	}
	for _, q := range qs {
		a, b := read(t, s, q), read(t, r, q)
		if a.Index != b.Index || content(t, a) != content(t, b) {
			t.Fatalf("%s differs after restoring: index %d and %d", q, a.Index, b.Index)
		}
	}
	var again bytes.Buffer
	if err := r.Backup().Write(&again); err != nil {
		t.Fatalf("Write: %v", err)
	}
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Fatalf("a backup of the restored store differs from the one it came from")
	}
}

func sample(t fataler) *Store {
	t.Helper()
	s := newStore(t, Config{Epoch: "e"})
	for i, c := range []catalog.Command{
		&catalog.SyncNode{State: catalog.NodeState{
			Node:     &catalog.Node{Node: "n1", ID: "id-1", Address: "10.0.0.1", Meta: map[string]string{"a": "b"}},
			Services: []*catalog.Service{{ID: "web", Service: "web", Tags: []string{"x"}, EnableTagOverride: true}},
			Checks:   []*catalog.Check{{CheckID: "c", ServiceID: "web", Status: catalog.StatusPassing}},
		}},
		&catalog.SetIntention{Destination: "db", Source: catalog.SourceIntention{Name: "web", Action: catalog.ActionAllow}},
		&catalog.SetCAConfig{Config: catalog.CAConfig{ClusterID: "u", Provider: "consul", Config: map[string]any{"n": int64(3), "f": 1.5}}},
		&catalog.SetRoots{Index: 4, Roots: []*catalog.Root{{ID: "r", Active: true, SealedKey: []byte{1, 2}, SerialNumber: 1<<63 + 1}}},
	} {
		if _, err := s.Apply(uint64(i+2), c); err != nil {
			t.Fatalf("%T: %v", c, err)
		}
	}
	return s
}

func TestRestoreRefusesEveryDamage(t *testing.T) {
	s := sample(t)
	checkBackup(t, s, queries())
	var b bytes.Buffer
	if err := s.Backup().Write(&b); err != nil {
		t.Fatal(err)
	}
	target := sample(t)
	before := target.state.Load()
	try := func(what string, r io.Reader) {
		if err := target.Restore(r); !errors.Is(err, catalog.ErrInvalid) {
			t.Fatalf("%s: restored with %v", what, err)
		}
		if target.state.Load() != before {
			t.Fatalf("%s: a refused backup changed the store", what)
		}
	}
	for i := range b.Bytes() {
		for _, bit := range []byte{1, 64} {
			bad := bytes.Clone(b.Bytes())
			bad[i] ^= bit
			try(fmt.Sprintf("byte %d bit %d", i, bit), bytes.NewReader(bad))
		}
		try(fmt.Sprintf("cut at %d", i), bytes.NewReader(b.Bytes()[:i]))
	}
	try("appended", bytes.NewReader(append(bytes.Clone(b.Bytes()), 0)))
	broken := errors.New("disk")
	if err := target.Restore(io.MultiReader(bytes.NewReader(b.Bytes()[:40]), errReader{broken})); !errors.Is(err, broken) {
		t.Fatalf("a read error became %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

type errWriter struct{}

func (errWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestBackupReportsWriteErrors(t *testing.T) {
	if err := sample(t).Backup().Write(errWriter{}); !errors.Is(err, io.ErrShortWrite) {
		t.Fatalf("got %v", err)
	}
}

func TestBackupIsOfItsMoment(t *testing.T) {
	s := sample(t)
	b, want := s.Backup(), s.Fingerprint()
	apply(t, s, &catalog.Deregister{Node: "n1"})
	var buf bytes.Buffer
	if err := b.Write(&buf); err != nil {
		t.Fatal(err)
	}
	r := newStore(t, Config{})
	if err := r.Restore(&buf); err != nil {
		t.Fatal(err)
	}
	if r.Fingerprint() != want || b.Index() != r.Index() {
		t.Fatal("the backup took up what came after it")
	}
}

func TestEpochs(t *testing.T) {
	backup := func(s *Store) []byte {
		var b bytes.Buffer
		if err := s.Backup().Write(&b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	restore := func(s *Store, b []byte) {
		t.Helper()
		if err := s.Restore(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	leader, follower := sample(t), sample(t)
	old := backup(leader)
	apply(t, leader, &catalog.Deregister{Node: "n1"})
	restore(follower, backup(leader))
	if follower.Epoch() != "e.0" || follower.Index() != leader.Index() {
		t.Fatalf("catching up began epoch %s at %d", follower.Epoch(), follower.Index())
	}
	restore(follower, old)
	if follower.Epoch() != "e.1" {
		t.Fatalf("going back left the epoch at %s", follower.Epoch())
	}
	// As consensus does it: rebased once, then given to all, wherever they are.
	var rebased bytes.Buffer
	if err := leader.Rebase(bytes.NewReader(old), &rebased, 1000); err != nil {
		t.Fatal(err)
	}
	behind, fresh := sample(t), newStore(t, Config{Epoch: "other"})
	for _, s := range []*Store{leader, behind, fresh} {
		restore(s, rebased.Bytes())
		if s.Epoch() != "e.1" || s.Index() != 1000 {
			t.Fatalf("epoch %s, index %d", s.Epoch(), s.Index())
		}
	}
	if err := leader.Rebase(bytes.NewReader(old[:len(old)-1]), io.Discard, 0); !errors.Is(err, catalog.ErrInvalid) {
		t.Fatalf("rebased a damaged backup: %v", err)
	}
}

// TestRebaseKeepsRevocations: who was shut out since a backup is not let in by it, and
// who was when it was made is shut out again.
func TestRebaseKeepsRevocations(t *testing.T) {
	const then, since = "b5e2f1c0-0000-4000-8000-000000000001", "b5e2f1c0-0000-4000-8000-000000000002"
	s := sample(t)
	shut := func(id, name string) {
		apply(t, s, &catalog.Revoke{Revocation: catalog.Revocation{Kind: catalog.RevokedNode, ID: id, Node: name, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}})
	}
	shut(then, "then")
	var old bytes.Buffer
	if err := s.Backup().Write(&old); err != nil {
		t.Fatal(err)
	}
	shut(since, "since")
	apply(t, s, &catalog.SetCertRevocation{Revocation: catalog.CertRevocation{Serial: "0a:1b", Description: "stolen", RevokedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}})
	for _, allowed := range []bool{false, true} {
		if allowed {
			apply(t, s, &catalog.Allow{Kind: catalog.RevokedNode, ID: then})
		}
		var rebased bytes.Buffer
		if err := s.Rebase(bytes.NewReader(old.Bytes()), &rebased, 1000); err != nil {
			t.Fatal(err)
		}
		fresh := newStore(t, Config{})
		if err := fresh.Restore(&rebased); err != nil {
			t.Fatal(err)
		}
		v, err := fresh.Read(catalog.Query{Kind: catalog.QueryRevocations})
		if err != nil || len(v.Revocations) != 2 || !v.Revoked(catalog.RevokedNode, then) || !v.Revoked(catalog.RevokedNode, since) || v.Revocations[1].Node != "since" {
			t.Errorf("allowed %t: %v, %+v", allowed, err, v.Revocations)
		}
		certs, err := fresh.Read(catalog.Query{Kind: catalog.QueryCertRevocations})
		if err != nil || len(certs.RevokedCerts) != 1 || certs.RevokedCerts[0].Description != "stolen" {
			t.Errorf("%v, %+v", err, certs)
		}
	}
}

// apply applies cmd at the next index.
func apply(t fataler, s *Store, cmd catalog.Command) any {
	t.Helper()
	if err := cmd.Validate(); err != nil {
		t.Fatalf("%T: %v", cmd, err)
	}
	res, err := s.Apply(max(s.Index()+1, 2), cmd)
	if err != nil {
		t.Fatalf("%T: %v", cmd, err)
	}
	return res
}

type unknownCommand struct{ catalog.SyncNode }

func TestApplyRefuses(t *testing.T) {
	s := sample(t)
	refuse := func(name string, cmd catalog.Command, want error, text string) {
		t.Helper()
		i := s.Index() + 1
		_, err := s.Apply(i, cmd)
		if !errors.Is(err, want) || err.Error() != text {
			t.Errorf("%s: %v", name, err)
		}
		if s.Index() != i {
			t.Errorf("%s: the index is %d, want %d", name, s.Index(), i)
		}
	}
	refuse("unknown type", &unknownCommand{}, catalog.ErrInvalid, "command *store.unknownCommand is not known to this version")
	refuse("no such service", &catalog.Register{Node: &catalog.Node{Node: "n1"}, Checks: []*catalog.Check{{CheckID: "x", ServiceID: "nope", Status: "passing"}}},
		catalog.ErrNotFound, `check "x": the service ID "nope" is not registered on node n1`)
	refuse("create twice", &catalog.SetIntention{Destination: "db", CreateOnly: true, Source: catalog.SourceIntention{Name: "web", Action: "allow"}},
		catalog.ErrConflict, `Sources[1] defines "web" more than once`)
	apply(t, s, &catalog.Register{Node: &catalog.Node{Node: "n1"}, SkipNodeUpdate: true, Checks: []*catalog.Check{{CheckID: catalog.NodeCheckID, Status: "passing"}}})
	refuse("a clone", &catalog.SyncNode{State: catalog.NodeState{Node: &catalog.Node{Node: "n1", ID: "id-2"}}}, catalog.ErrConflict,
		"node n1: the name is held by a live host with ID id-1; give the host with ID id-2 another node_name")
	if _, err := newStore(t, Config{}).Apply(1, &catalog.Deregister{Node: "n1"}); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("index 1: %v", err)
	}
	if _, err := s.Apply(s.Index(), &catalog.Deregister{Node: "n1"}); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("an index applied twice: %v", err)
	}
	if v := read(t, s, catalog.Query{Kind: catalog.QueryService, Name: "web"}); len(v.Instances) != 1 {
		t.Errorf("a refused command changed something: %d instances", len(v.Instances))
	}
}

func TestTagsThatOthersSetStay(t *testing.T) {
	s := newStore(t, Config{})
	web := func(tags ...string) *catalog.Service {
		return &catalog.Service{ID: "web", Service: "web", Tags: tags, EnableTagOverride: true}
	}
	state := func(tags ...string) catalog.NodeState {
		return catalog.NodeState{Node: &catalog.Node{Node: "n1", ID: "i"}, Services: []*catalog.Service{web(tags...)}}
	}
	want := func(tag string) {
		t.Helper()
		v := read(t, s, catalog.Query{Kind: catalog.QueryService, Name: "web"})
		if got := v.Instances[0].Service.Tags; len(got) != 1 || got[0] != tag {
			t.Fatalf("tags are %v, want %s", got, tag)
		}
	}
	apply(t, s, &catalog.SyncNode{State: state("own")})
	want("own")
	apply(t, s, &catalog.Register{Node: &catalog.Node{Node: "n1"}, SkipNodeUpdate: true, Service: web("external")})
	want("external")
	if !s.Equal(state("own")) {
		t.Fatal("the agent's old statement would undo what others set")
	}
	apply(t, s, &catalog.SyncNode{State: state("own")})
	want("external")
	apply(t, s, &catalog.SyncNode{State: state("new")})
	want("new")
}

func TestIndexRowsDoNotGrow(t *testing.T) {
	s := newStore(t, Config{})
	rows := func() int { return len(all[any](s.state.Load().read(), tableIndex, byID)) }
	for i := range 1000 {
		n := &catalog.Node{Node: fmt.Sprintf("n%d", i)}
		svc := &catalog.Service{ID: "s", Service: fmt.Sprintf("s%d", i), Connect: catalog.ServiceConnect{Native: true}}
		apply(t, s, &catalog.Register{Node: n, Service: svc, Checks: []*catalog.Check{{CheckID: "c", ServiceID: "s", Status: "passing"}}})
		apply(t, s, &catalog.Deregister{Node: n.Node})
	}
	if n := rows(); n > 6*extinctBuckets+10 {
		t.Fatalf("%d index rows are left of nothing", n)
	}
}

func TestWaitIndex(t *testing.T) {
	s := sample(t)
	if err := s.WaitIndex(t.Context(), s.Index()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- s.WaitIndex(ctx, 1000) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	next := s.Index() + 1
	go func() { done <- s.WaitIndex(t.Context(), next) }()
	apply(t, s, &catalog.Deregister{Node: "nobody"})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// A restore in between is not the end of waiting.
	go func() { done <- s.WaitIndex(t.Context(), 50) }()
	var b bytes.Buffer
	if err := sample(t).Backup().Write(&b); err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(&b); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(60, &catalog.Deregister{Node: "nobody"}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestSecretsStayInside(t *testing.T) {
	s := sample(t)
	if r := s.Roots(); len(r) != 1 || len(r[0].SealedKey) != 2 {
		t.Fatalf("Roots gives %+v", r)
	}
	v := read(t, s, catalog.Query{Kind: catalog.QueryRoots})
	if len(v.Roots) != 1 || v.Roots[0].SealedKey != nil || v.CAConfig.ClusterID != "u" || v.CAConfig.Config != nil {
		t.Fatalf("the view shows %+v %+v", v.Roots[0], v.CAConfig)
	}
}

func TestAgentsDoNotSpeakForTheLeader(t *testing.T) {
	s := newStore(t, Config{})
	node := &catalog.Node{Node: "n1", ID: "i"}
	server := &catalog.Service{ID: catalog.ServerService, Service: catalog.ServerService, Port: 8300}
	apply(t, s, &catalog.Register{Node: node, Service: server, Checks: []*catalog.Check{{CheckID: catalog.NodeCheckID, Status: catalog.StatusCritical}}})
	claim := catalog.NodeState{
		Node:     node,
		Services: []*catalog.Service{{ID: catalog.ServerService, Service: catalog.ServerService, Port: 6666}},
		Checks:   []*catalog.Check{{CheckID: catalog.NodeCheckID, Status: catalog.StatusPassing}},
	}
	if !s.Equal(claim) {
		t.Error("a statement about the leader's rows counts")
	}
	apply(t, s, &catalog.SyncNode{State: claim})
	apply(t, s, &catalog.SyncNode{State: catalog.NodeState{Node: node}})
	v := read(t, s, serviceQuery(catalog.ServerService))
	if len(v.Instances) != 1 || v.Instances[0].Service.Port != 8300 || v.Instances[0].Checks[0].Status != catalog.StatusCritical {
		t.Errorf("an agent changed the leader's rows: %+v", v.Instances)
	}
}

func TestLegacyIntentions(t *testing.T) {
	s := newStore(t, Config{DefaultIntention: catalog.ActionAllow})
	all := catalog.Query{Kind: catalog.QueryIntentions}
	for _, src := range []string{"web", "api"} {
		apply(t, s, &catalog.SetIntention{Destination: "db", Source: catalog.SourceIntention{Name: src, Action: "allow", LegacyID: "id-" + src}})
	}
	v := read(t, s, all)
	if len(v.Intentions) != 2 || v.Intentions[0].ID != "id-api" || v.Default != catalog.ActionAllow {
		t.Fatalf("%+v", v)
	}
	apply(t, s, &catalog.DeleteIntention{ID: "id-web"})
	apply(t, s, &catalog.DeleteIntention{ID: "id-web"})
	if v := read(t, s, all); len(v.Intentions) != 1 || v.Intentions[0].ID != "id-api" || v.Index != 4 {
		t.Fatalf("%+v", v)
	}
	apply(t, s, &catalog.DeleteIntention{ID: "id-api"})
	if v := read(t, s, catalog.Query{Kind: catalog.QueryConfigEntry, Name: catalog.KindServiceIntentions, Sub: "db"}); len(v.Entries) != 0 {
		t.Fatal("the entry outlived its last source")
	}
}

// What Apply is given stays the caller's: other stores may apply it too.
func TestApplyLeavesCommandsAlone(t *testing.T) {
	e := &catalog.ServiceIntentions{Name: "db", Sources: []*catalog.SourceIntention{
		{Name: "*", Action: "deny"}, {Name: "web", Permissions: []*catalog.IntentionPermission{{Action: "allow", HTTP: &catalog.IntentionHTTP{Methods: []string{"get"}}}}},
	}}
	set := &catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: e}}
	src := &catalog.SetIntention{Destination: "db", Source: catalog.SourceIntention{Name: "x", Permissions: e.Sources[1].Permissions}}
	want := fmt.Sprintf("%+v %+v %+v", *e, *e.Sources[1].Permissions[0].HTTP, *src)
	s := newStore(t, Config{})
	apply(t, s, &catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: &catalog.ServiceDefaults{
		EntryHead: catalog.EntryHead{Name: "db"}, Protocol: "http",
	}}})
	apply(t, s, set)
	apply(t, s, src)
	if got := fmt.Sprintf("%+v %+v %+v", *e, *e.Sources[1].Permissions[0].HTTP, *src); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
