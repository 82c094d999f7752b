package remote

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// TestKnownAfterRestart: what was read or watched is known, and marked as old, to an
// agent that starts a week later with no server; keys are not, nor what another token saw.
func TestKnownAfterRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "views")
	keep := func(c *Config) { c.KeepDir = dir }
	key := catalog.Query{Kind: catalog.QueryKey, Name: "secret"}
	synctest.Test(t, func(t *testing.T) {
		read := func(r *Remote, q catalog.Query, token string, after uint64) (*wire.ReadReply, error) {
			return r.Read(t.Context(), &wire.ReadRequest{Query: q, Token: token, Consistency: wire.Stale, MinIndex: after, MaxWait: time.Second})
		}
		f := newFake(5)
		r := inProcess(t, f, keep)
		next(t, r.Watch(dbQuery), 0)
		if _, err := read(r, key, "", 0); err != nil {
			t.Fatal(err)
		}
		if _, err := read(r, dbQuery, "one", 0); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(7 * 24 * time.Hour)

		f = newFake(0)
		f.setFail(catalog.ErrUnavailable)
		r = inProcess(t, f, keep)
		for _, token := range []string{"", "one"} {
			for _, after := range []uint64{0, 4} {
				rep, err := read(r, dbQuery, token, after)
				if err != nil {
					t.Fatalf("token %q, after %d: %v", token, after, err)
				}
				if rep.View.Index != 5 || len(rep.View.Nodes) != 1 || rep.Meta.KnownLeader || rep.Meta.LastContact < 7*24*time.Hour {
					t.Errorf("token %q: %+v, %+v", token, rep.View, rep.Meta)
				}
			}
		}
		for q, token := range map[catalog.Query]string{key: "", dbQuery: "two", {Kind: catalog.QueryConnect, Name: "web"}: ""} {
			if _, err := read(r, q, token, 0); !errors.Is(err, catalog.ErrUnavailable) {
				t.Errorf("%s as %q: %v", q, token, err)
			}
		}
		if _, err := r.Read(t.Context(), &wire.ReadRequest{Query: dbQuery}); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("a default read is answered from disk: %v", err)
		}
		_ = r.Close()
	})
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, e := range files {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

// TestDamagedShelf: a file cut or changed at any place is passed over.
func TestDamagedShelf(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	s := openShelf(dir, log)
	k := viewKey{query: dbQuery}
	s.put(k, viewAt(5, "e1"))
	s.flush()
	path := filepath.Join(dir, shelfName(k))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := openShelf(dir, log).get(k); !ok {
		t.Fatal("a good file is not read")
	}
	for i := range good {
		changed := append([]byte{}, good...)
		changed[i] ^= 1
		for name, bad := range map[string][]byte{"cut": good[:i], "changed": changed} {
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if a, ok := openShelf(dir, log).get(k); ok {
				t.Fatalf("%s at %d: %+v", name, i, a.view)
			}
		}
	}
}

// found is an answer with something in it.
func found(q catalog.Query) *catalog.View {
	return &catalog.View{Query: q, Index: 1, Instances: []*catalog.Instance{{Node: &catalog.Node{Node: "n"}, Service: &catalog.Service{ID: "s", Service: "s"}}}}
}

// TestNamesThatDoNotExistCostNoFile: anybody may ask for any number of them.
func TestNamesThatDoNotExistCostNoFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "views")
	s := openShelf(dir, slog.New(slog.DiscardHandler))
	files := func() int {
		s.flush()
		list, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return len(list)
	}
	for _, kind := range []catalog.QueryKind{
		catalog.QueryService, catalog.QueryConnect, catalog.QueryIngress, catalog.QueryNode, catalog.QueryNodeChecks, catalog.QueryServiceChecks,
		catalog.QueryPreparedQuery, catalog.QueryConfigEntry, catalog.QueryChain,
	} {
		q := catalog.Query{Kind: kind, Name: "none"}
		s.put(viewKey{query: q}, &catalog.View{Query: q, Index: 7})
	}
	q := catalog.Query{Kind: catalog.QueryChain, Name: "none"}
	s.put(viewKey{query: q}, &catalog.View{Query: q, Chain: &catalog.Chain{ServiceName: "none", Default: true}})
	if n := files(); n != 0 {
		t.Errorf("%d files", n)
	}

	key := viewKey{query: catalog.Query{Kind: catalog.QueryService, Name: "web"}}
	s.put(key, found(key.query))
	if n := files(); n != 1 {
		t.Fatalf("%d files", n)
	}
	s.put(key, &catalog.View{Query: key.query, Index: 8}) // the last instance went
	if _, ok := s.get(key); ok {
		t.Error("what is gone is still known")
	}
	if n := files(); n != 0 {
		t.Errorf("%d files", n)
	}
	s.put(key, found(key.query))
	s.put(key, &catalog.View{Query: key.query, Index: 9})
	s.put(key, found(key.query))
	if n := files(); n != 1 {
		t.Errorf("%d files", n)
	}
	if _, ok := s.get(key); !ok {
		t.Error("what came back is not known")
	}
}

// TestNamesThatDoNotExistTakeNoRoom: they put no answer out of memory that says something.
func TestNamesThatDoNotExistTakeNoRoom(t *testing.T) {
	s := &views{held: map[viewKey]heldAnswer{}}
	key := func(name string) viewKey {
		return viewKey{query: catalog.Query{Kind: catalog.QueryService, Name: name}}
	}
	web := key("web")
	s.hold(web, heldAnswer{view: found(web.query)})
	for i := range 10 * maxHeld {
		k := key(fmt.Sprint("no", i))
		s.hold(k, heldAnswer{view: &catalog.View{Query: k.query}})
	}
	if _, ok := s.held[web]; !ok || len(s.held) > maxHeld {
		t.Errorf("web is held: %v, of %d", ok, len(s.held))
	}
}

// TestAnswersThatSayLittleAreKept: that a service has no checks, and nothing but the
// default chain, is known after a restart, in whatever order that was heard.
func TestAnswersThatSayLittleAreKept(t *testing.T) {
	dir := t.TempDir()
	s := openShelf(dir, slog.New(slog.DiscardHandler))
	key := func(kind catalog.QueryKind, name string) viewKey {
		return viewKey{query: catalog.Query{Kind: kind, Name: name}, token: "t"}
	}
	put := func(k viewKey) {
		v := &catalog.View{Query: k.query, Index: 1}
		switch k.query.Kind {
		case catalog.QueryChain:
			v.Chain = &catalog.Chain{ServiceName: k.query.Name, Default: true}
		case catalog.QueryConnect:
			v = found(k.query)
		}
		s.put(k, v)
	}
	put(key(catalog.QueryChain, "web"))
	put(key(catalog.QueryConnect, "web"))
	s.flush()
	put(key(catalog.QueryServiceChecks, "web"))
	for i := range 2 * maxAside {
		put(key(catalog.QueryChain, fmt.Sprint("none", i)))
	}
	s.flush()
	if n := len(s.aside); n > maxAside {
		t.Errorf("%d are set aside", n)
	}
	again := openShelf(dir, slog.New(slog.DiscardHandler))
	for _, kind := range []catalog.QueryKind{catalog.QueryChain, catalog.QueryConnect, catalog.QueryServiceChecks} {
		if _, ok := again.get(key(kind, "web")); !ok {
			t.Errorf("%s is not kept", kind)
		}
	}
	if len(again.rows) != 3 {
		t.Errorf("%d answers are kept", len(again.rows))
	}
}

// TestShelfIsBounded: the answers heard longest ago give way.
func TestShelfIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := openShelf(dir, slog.New(slog.DiscardHandler))
	for i := range maxShelved + 10 {
		q := catalog.Query{Kind: catalog.QueryConnect, Name: fmt.Sprint(i)}
		s.put(viewKey{query: q}, found(q))
		if i%100 == 0 {
			s.flush()
		}
	}
	s.flush()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) > maxShelved || len(files) < maxShelved/2 {
		t.Errorf("%d files, %v", len(files), err)
	}
	if _, ok := s.get(viewKey{query: catalog.Query{Kind: catalog.QueryConnect, Name: "0"}}); ok {
		t.Error("the oldest is still there")
	}
	big := catalog.Query{Kind: catalog.QueryConnect, Name: "big"}
	large := found(big)
	large.Problem = strings.Repeat("x", maxShelvedView)
	s.put(viewKey{query: big}, large)
	s.flush()
	if _, ok := s.get(viewKey{query: big}); ok {
		t.Error("an answer that is too large was kept")
	}
}

// TestSecretsAreNotShelved: neither the keys of certificates nor the tokens of prepared
// queries are written.
func TestSecretsAreNotShelved(t *testing.T) {
	s := openShelf(t.TempDir(), slog.New(slog.DiscardHandler))
	for _, k := range []catalog.QueryKind{catalog.QueryConfigEntries, catalog.QueryConfigEntry} {
		s.put(viewKey{query: catalog.Query{Kind: k, Name: catalog.KindInlineCertificate}}, &catalog.View{})
	}
	query := catalog.Query{Kind: catalog.QueryPreparedQuery, Name: "q"}
	s.put(viewKey{query: query}, &catalog.View{Queries: []*catalog.PreparedQuery{{Name: "q", Token: "secret"}}})
	if len(s.due) != 0 {
		t.Errorf("%d answers are to be written", len(s.due))
	}
	s.put(viewKey{query: query}, &catalog.View{Queries: []*catalog.PreparedQuery{{Name: "q"}}})
	s.put(viewKey{query: catalog.Query{Kind: catalog.QueryConfigEntries, Name: catalog.KindMesh}}, &catalog.View{})
	if len(s.due) != 2 {
		t.Errorf("%d answers are to be written, not 2", len(s.due))
	}
}

// TestShelfTriesAgain: a file that cannot be written costs no other, and is written once
// it can be.
func TestShelfTriesAgain(t *testing.T) {
	dir := t.TempDir()
	var log strings.Builder
	s := openShelf(dir, slog.New(slog.NewTextHandler(&log, nil)))
	var keys []viewKey
	for i := range 20 {
		q := catalog.Query{Kind: catalog.QueryConnect, Name: fmt.Sprint(i)}
		keys = append(keys, viewKey{query: q})
		s.put(keys[i], found(q))
	}
	blocked := filepath.Join(dir, shelfName(keys[7]))
	if err := os.MkdirAll(filepath.Join(blocked, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.flush()
	for i, k := range keys {
		if _, ok := s.get(k); ok != (i != 7) {
			t.Errorf("answer %d is kept: %v", i, ok)
		}
	}
	if err := os.RemoveAll(blocked); err != nil {
		t.Fatal(err)
	}
	s.flush()
	if _, ok := s.get(keys[7]); !ok {
		t.Error("what failed was not written again")
	}
	if out := log.String(); strings.Count(out, "cannot be kept") != 1 || !strings.Contains(out, "is kept again") {
		t.Error(out)
	}
}
