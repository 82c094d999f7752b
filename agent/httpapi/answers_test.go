package httpapi

import (
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
)

func TestWaitersShareOneAnswer(t *testing.T) {
	a, built := newAnswers(prometheus.NewCounter(prometheus.CounterOpts{Name: "x"})), atomic.Int64{}
	view := &catalog.View{Index: 2}
	build := func() (any, error) { return []int64{built.Add(1)}, nil }
	ask := func(v *catalog.View, tail, params string, index uint64) any {
		query, err := url.ParseQuery(params)
		if err != nil {
			t.Fatal(err)
		}
		got, err := a.shared(&call{route: &Route{Path: "/p"}, tail: tail, query: query, opts: queryOptions{index: index}}, v, false, build)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := ask(view, "web", "", 1)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if ask(view, "web", "wait=5s&index=1&token=x", 1) != first {
				t.Error("another answer")
			}
		})
	}
	wg.Wait()
	if built.Load() != 1 {
		t.Fatalf("built %d times", built.Load())
	}
	for _, other := range []any{
		ask(view, "db", "", 1), ask(view, "web", "tag=a", 1), ask(view, "web", "filter=Node==a", 1), ask(&catalog.View{Index: 3}, "web", "", 1),
	} {
		if other == first {
			t.Error("an answer to another question")
		}
	}
	if _, isValue := ask(view, "web", "", 0).([]int64); !isValue {
		t.Error("an answer that nobody waited for was kept")
	}
	for i := range 3 * maxAnswers {
		ask(view, strconv.Itoa(i), "", 1)
	}
	if len(a.kept) > maxAnswers {
		t.Errorf("%d answers are kept", len(a.kept))
	}
}

func BenchmarkSharedAnswer(b *testing.B) {
	r := newRig(b)
	for i := range 50 {
		n := strconv.Itoa(i)
		r.mustApply(&catalog.Register{Node: &catalog.Node{Node: "n" + n, Address: "10.0.0.1"}, Service: &catalog.Service{ID: "s" + n, Service: "big"}})
	}
	for b.Loop() {
		r.want(r.do("GET", "/v1/health/service/big?index=1&wait=1s", "", "Accept-Encoding", "gzip"), 200, "")
	}
}
