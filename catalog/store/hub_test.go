package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/weftmesh/weft/catalog"
)

func serviceQuery(name string) catalog.Query {
	return catalog.Query{Kind: catalog.QueryService, Name: name}
}

func registerOn(node, service string, port int) *catalog.Register {
	return &catalog.Register{
		Node:    &catalog.Node{Node: node, Address: "10.0.0.1"},
		Service: &catalog.Service{ID: service, Service: service, Port: port},
	}
}

func TestThousandWatchersCostOneView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, Config{})
		defer s.Close()
		apply(t, s, registerOn("n1", "web", 1))
		apply(t, s, registerOn("n1", "db", 1))
		const readers = 1000
		var wg sync.WaitGroup
		first := read(t, s, serviceQuery("web")).Index
		for range readers {
			wg.Go(func() {
				v, i, err := s.Watch(serviceQuery("web")).Next(t.Context(), first)
				if err != nil || i <= first || len(v.Instances) != 1 || v.Instances[0].Service.Port != 2 {
					t.Errorf("woken at %d with %v", i, err)
				}
			})
		}
		synctest.Wait()
		if n := s.hubs.count(); n != 1 {
			t.Fatalf("%d hubs", n)
		}
		before := s.views.Load()
		apply(t, s, registerOn("n1", "db", 2))
		time.Sleep(time.Second)
		if n := s.views.Load() - before; n != 0 {
			t.Fatalf("a change of db cost %d views of web", n)
		}
		apply(t, s, registerOn("n1", "web", 2))
		wg.Wait()
		if n := s.views.Load() - before; n != 1 {
			t.Fatalf("a change of web cost %d views", n)
		}
	})
}

func TestLeadingEdgeThenCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, Config{Coalesce: 20 * time.Millisecond})
		defer s.Close()
		w := s.Watch(serviceQuery("web"))
		_, index, err := w.Next(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		start := time.Now()
		for port := range 5 {
			apply(t, s, registerOn("n1", "web", port+1))
			if port > 0 {
				continue
			}
			if _, index, err = w.Next(t.Context(), index); err != nil || time.Since(start) != 0 {
				t.Fatalf("the first change came after %s: %v", time.Since(start), err)
			}
		}
		v, index, err := w.Next(t.Context(), index)
		if err != nil || time.Since(start) != 20*time.Millisecond || v.Instances[0].Service.Port != 5 || index != s.Index() {
			t.Fatalf("then port %d after %s: %v", v.Instances[0].Service.Port, time.Since(start), err)
		}
	})
}

func TestHubLingersThenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, Config{Linger: time.Minute, MaxHubs: 2})
		defer s.Close()
		next := func(name string) error {
			_, _, err := s.Watch(serviceQuery(name)).Next(t.Context(), 0)
			return err
		}
		if err := next("web"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second)
		if err := next("web"); err != nil || s.views.Load() != 1 {
			t.Fatalf("the hub did not linger: %d views, %v", s.views.Load(), err)
		}
		time.Sleep(61 * time.Second)
		if n := s.hubs.count(); n != 0 {
			t.Fatalf("%d hubs are left", n)
		}
		// At the limit a hub that nobody reads makes room; one that is read does not.
		for _, name := range []string{"a", "b", "c"} {
			if err := next(name); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for _, name := range []string{"held-1", "held-2"} {
			go func() { _, _, _ = s.Watch(serviceQuery(name)).Next(t.Context(), 1) }()
		}
		synctest.Wait()
		if err := next("one-more"); !errors.Is(err, catalog.ErrUnavailable) {
			t.Fatalf("over the limit: %v", err)
		}
		if _, _, err := s.WatchOwn(serviceQuery("one-more")).Next(t.Context(), 0); err != nil {
			t.Fatalf("the server itself: %v", err)
		}
		if err := next("held-1"); err != nil {
			t.Fatalf("a query that is watched already: %v", err)
		}
	})
}

func TestWatchRefusesWhatCannotBeAsked(t *testing.T) {
	s := newStore(t, Config{})
	if _, _, err := s.Watch(catalog.Query{Kind: "nope"}).Next(t.Context(), 0); !errors.Is(err, catalog.ErrInvalid) {
		t.Fatal(err)
	}
	if _, err := s.Read(serviceQuery("")); !errors.Is(err, catalog.ErrInvalid) {
		t.Fatal(err)
	}
	s.Close()
	if _, _, err := s.Watch(serviceQuery("web")).Next(t.Context(), 0); !errors.Is(err, catalog.ErrUnavailable) {
		t.Fatal(err)
	}
}

func TestCloseEndsWatches(t *testing.T) {
	s := newStore(t, Config{})
	done := make(chan error)
	w := s.Watch(serviceQuery("web"))
	_, i, err := w.Next(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _, err := w.Next(t.Context(), i); done <- err }()
	s.Close()
	if err := <-done; !errors.Is(err, catalog.ErrUnavailable) {
		t.Fatal(err)
	}
}

func TestRestoreAndWatches(t *testing.T) {
	s := sample(t)
	defer s.Close()
	var old bytes.Buffer
	if err := s.Backup().Write(&old); err != nil {
		t.Fatal(err)
	}
	q := serviceQuery("web")
	ahead := sample(t)
	apply(t, ahead, registerOn("n9", "web", 7))
	var caughtUp bytes.Buffer
	if err := ahead.Backup().Write(&caughtUp); err != nil {
		t.Fatal(err)
	}
	// Sent the state of a store further on, as one that lagged: the watch goes on.
	w := s.Watch(q)
	v, i, err := w.Next(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		v   *catalog.View
		i   uint64
		err error
	}
	woken := make(chan result, 1)
	wait := func(after uint64) {
		go func() { v, i, err := w.Next(t.Context(), after); woken <- result{v, i, err} }()
	}
	wait(i)
	if err := s.Restore(&caughtUp); err != nil {
		t.Fatal(err)
	}
	got := <-woken
	if got.err != nil || got.i <= i || len(got.v.Instances) != 2 || got.v.Epoch != v.Epoch {
		t.Fatalf("caught up: %+v", got)
	}
	// Set back to an old state: a reader from the future is woken and starts again.
	wait(got.i)
	if err := s.Restore(&old); err != nil {
		t.Fatal(err)
	}
	if stale := <-woken; !errors.Is(stale.err, catalog.ErrStale) {
		t.Fatalf("set back: %+v", stale)
	}
	if _, _, err := w.Next(t.Context(), 0); !errors.Is(err, catalog.ErrStale) {
		t.Fatalf("an old watch came back to life: %v", err)
	}
	now, _, err := s.Watch(q).Next(t.Context(), 0)
	if err != nil || now.Epoch == v.Epoch || len(now.Instances) != 1 || now.Index >= got.i {
		t.Fatalf("opened anew: %+v %v", now, err)
	}
}

// TestWatchModel has readers of random queries that cancel, pause and come back
// while random commands and restores go on. No index may fall within an epoch,
// and in the end every reader has what Read says.
func TestWatchModel(t *testing.T) {
	qs := queries()
	rapid.Check(t, func(t *rapid.T) {
		s := newStore(t, Config{Linger: time.Nanosecond, Coalesce: time.Nanosecond})
		defer s.Close()
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		readers := make([]*reading, 8)
		for i := range readers {
			readers[i] = &reading{store: s, query: qs[rapid.IntRange(0, len(qs)-1).Draw(t, "query")], rnd: rand.New(rand.NewPCG(uint64(i), 1))}
			wg.Go(func() { readers[i].run(ctx) })
		}
		var kept []byte
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 15).Draw(t, "backup or restore") {
			case 0:
				var b bytes.Buffer
				if err := s.Backup().Write(&b); err != nil {
					t.Fatalf("%v", err)
				}
				kept = b.Bytes()
			case 1:
				if kept != nil {
					if err := s.Restore(bytes.NewReader(kept)); err != nil {
						t.Fatalf("%v", err)
					}
				}
			}
			_, _ = s.Apply(s.Index()+2, drawCommand(t, 0))
		}
		deadline := time.Now().Add(20 * time.Second)
		for _, r := range readers {
			for !r.has(read(t, s, r.query)) && time.Now().Before(deadline) {
				time.Sleep(100 * time.Microsecond)
			}
			if !r.has(read(t, s, r.query)) {
				t.Fatalf("%s did not converge", r.query)
			}
		}
		cancel()
		wg.Wait()
		for _, r := range readers {
			if r.wrong != "" {
				t.Fatalf("%s: %s", r.query, r.wrong)
			}
		}
	})
}

// reading is one reader of TestWatchModel.
type reading struct {
	store *Store
	query catalog.Query
	rnd   *rand.Rand

	mu    sync.Mutex
	last  *catalog.View
	wrong string
}

func (r *reading) has(v *catalog.View) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last != nil && r.last.Index == v.Index && r.last.Epoch == v.Epoch
}

func (r *reading) take(v *catalog.View, index, after uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if index != v.Index || index <= after {
		r.wrong = fmt.Sprintf("got index %d of a view at %d after %d", index, v.Index, after)
	}
	if r.last != nil && r.last.Epoch == v.Epoch && v.Index < r.last.Index {
		r.wrong = fmt.Sprintf("the index fell from %d to %d in epoch %s", r.last.Index, v.Index, v.Epoch)
	}
	r.last = v
}

func (r *reading) run(ctx context.Context) {
	w, after := r.store.Watch(r.query), uint64(0)
	for ctx.Err() == nil {
		one, cancel := context.WithTimeout(ctx, time.Duration(r.rnd.IntN(3000))*time.Microsecond)
		v, i, err := w.Next(one, after)
		cancel()
		switch {
		case err == nil:
			r.take(v, i, after)
			after = i
		case errors.Is(err, catalog.ErrStale):
			w, after = r.store.Watch(r.query), 0
		}
		if r.rnd.IntN(10) == 0 {
			w, after = r.store.Watch(r.query), 0 // another connection, from the start
		}
	}
}
