package httpapi

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

func TestBlockingWakes(t *testing.T) {
	r := newRig(t)
	for _, target := range []string{"/v1/health/service/later", "/v1/catalog/service/later", "/v1/catalog/nodes"} {
		first := r.want(r.do("GET", target, ""), 200, "")
		index := first.header.Get("X-Consul-Index")
		woken := make(chan answer, 1)
		go func() { woken <- r.do("GET", target+"?wait=60s&index="+index, "") }()
		eventually(t, "the request waits", func() bool { return r.servers.waiting(index) })
		r.mustApply(&catalog.Register{
			Node:    &catalog.Node{Node: "n" + strconv.Itoa(len(target)), Address: "10.0.0.1"},
			Service: &catalog.Service{ID: target, Service: "later"},
		})
		select {
		case a := <-woken:
			if a.body == first.body || a.header.Get("X-Consul-Index") <= index && len(a.header.Get("X-Consul-Index")) <= len(index) {
				t.Fatalf("%s: woken with %s %s", target, a.header.Get("X-Consul-Index"), a.body)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: not woken", target)
		}
	}
}

// waiting tells whether somebody waits for an answer newer than index.
func (s *servers) waiting(index string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.reads {
		if strconv.FormatUint(r.MinIndex, 10) == index {
			return true
		}
	}
	return false
}

func TestBlockingTimesOut(t *testing.T) {
	r := newRig(t)
	index := r.do("GET", "/v1/catalog/nodes", "").header.Get("X-Consul-Index")
	start := time.Now()
	a := r.want(r.do("GET", "/v1/catalog/nodes?wait=50ms&index="+index, ""), 200, "")
	if d := time.Since(start); d < 50*time.Millisecond || a.header.Get("X-Consul-Index") != index {
		t.Fatal(d, a)
	}
}

func TestBlockingParameters(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		query string
		wait  time.Duration // the least that is granted; 0: not blocking
	}{
		{"", 0},
		{"index=0&wait=20s", 0},
		{"wait=20s", 0},
		{"index=9", 5 * time.Minute},
		{"index=9&wait=-5s", 5 * time.Minute},
		{"index=9&wait=0s", 5 * time.Minute},
		{"index=9&wait=1h", 10 * time.Minute},
		{"index=9&wait=16s", 16 * time.Second},
	} {
		cl := &call{r: mustRequest("/v1/catalog/nodes?" + c.query), route: &Route{params: paramsDiscovery}}
		if err := cl.parse(r.api.cfg); err != nil {
			t.Fatal(c.query, err)
		}
		if c.wait == 0 {
			if cl.opts.index != 0 {
				t.Errorf("%q blocks", c.query)
			}
			continue
		}
		if cl.opts.wait < c.wait || cl.opts.wait > c.wait+c.wait/16 {
			t.Errorf("%q waits %v, want %v and at most a sixteenth more", c.query, cl.opts.wait, c.wait)
		}
	}
	for query, want := range map[string]string{
		"index=x": "Invalid index", "index=-1": "Invalid index", "index=1&wait=x": "Invalid wait time", "wait=abc": "Invalid wait time",
		"index=1&wait=5": "Invalid wait time", "max_stale=x": `Invalid max_stale value "x"`,
		"stale&consistent": "Cannot specify ?stale with ?consistent, conflicting semantics.",
		"ns=default":       `Invalid query parameter: "ns" - Namespaces are a Consul Enterprise feature`,
		"partition=x":      `Invalid query parameter: "partition" - Partitions are a Consul Enterprise feature`,
	} {
		r.want(r.do("GET", "/v1/catalog/nodes?"+query, ""), 400, want)
	}
	r.want(r.do("GET", "/v1/catalog/nodes", "", "X-Consul-Namespace", "x"), 400, `Invalid header: "X-Consul-Namespace" - Namespaces are a Consul Enterprise feature`)
	r.want(r.do("GET", "/v1/catalog/nodes?dc=nowhere", ""), 500, "No path to datacenter")
	r.want(r.do("GET", "/v1/catalog/nodes?dc=dc1", ""), 200, "")
	r.want(r.do("GET", "/v1/agent/services?dc=nowhere", ""), 200, "{}")
	r.want(r.do("GET", "/v1/agent/service/x?index=x", ""), 400, "Invalid index")
	r.want(r.do("GET", "/v1/agent/service/x?index=1&wait=x", ""), 400, "Invalid wait time")
	r.want(r.do("GET", "/v1/catalog/services?cached", "", "Cache-Control", "max-age=junk"), 400, "Invalid Cache-Control header.")
}

func mustRequest(target string) *http.Request {
	req, err := http.NewRequest(http.MethodGet, target, nil)
	if err != nil {
		panic(err)
	}
	return req
}

func TestConsistency(t *testing.T) {
	r := newRig(t)
	for query, want := range map[string]struct {
		mode   wire.Consistency
		header string
		cache  string
	}{
		"": {wire.Default, "leader", ""}, "leader": {wire.Default, "leader", ""},
		"stale": {wire.Stale, "stale", ""}, "consistent": {wire.Consistent, "consistent", ""},
		"leader&stale": {wire.Stale, "stale", ""}, "cached&stale": {wire.Stale, "stale", "MISS"}, "cached": {wire.Stale, "leader", "HIT"},
	} {
		if query == "cached" {
			r.do("GET", "/v1/catalog/services?cached", "")
		}
		a := r.want(r.do("GET", "/v1/catalog/services?"+query, ""), 200, "")
		if got := a.header.Get("X-Consul-Effective-Consistency"); got != want.header {
			t.Errorf("%q: %s", query, got)
		}
		if got := a.header.Get("X-Cache"); got != want.cache && query != "cached&stale" {
			t.Errorf("%q: X-Cache %s", query, got)
		}
		if got := r.servers.reads[len(r.servers.reads)-1].Consistency; got != want.mode {
			t.Errorf("%q: asked for %q", query, got)
		}
	}
	// An answer older than the caller allows is asked for again.
	r.servers.meta.LastContact = 3 * time.Second
	a := r.do("GET", "/v1/catalog/nodes?stale&max_stale=1s", "")
	if a.header.Get("X-Consul-LastContact") != "3000" || r.servers.reads[len(r.servers.reads)-1].Consistency != wire.Default {
		t.Fatal(a.header)
	}
	if a := r.do("GET", "/v1/connect/ca/roots", ""); a.header.Get("X-Consul-Effective-Consistency") != "" {
		t.Fatal("a header where Consul has none")
	}
}

func TestDiscoveryMaxStale(t *testing.T) {
	r := newRig(t, func(c *Config) { c.DiscoveryMaxStale = 5 * time.Second })
	for target, want := range map[string]string{
		"/v1/catalog/services": "stale", "/v1/health/service/x": "stale", "/v1/catalog/services?leader": "leader", "/v1/catalog/services?consistent": "consistent",
	} {
		if got := r.do("GET", target, "").header.Get("X-Consul-Effective-Consistency"); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
}

func TestServiceHashBlocks(t *testing.T) {
	r := newRig(t)
	r.want(r.do("PUT", "/v1/agent/service/register", `{"Name":"web","Port":1}`), 200, "")
	hash := r.do("GET", "/v1/agent/service/web", "").header.Get("X-Consul-ContentHash")
	if a := r.do("GET", "/v1/agent/service/web?wait=30ms&hash="+hash, ""); a.status != 200 || a.header.Get("X-Consul-ContentHash") != hash {
		t.Fatal(a)
	}
	r.want(r.do("GET", "/v1/agent/service/web?wait=60s&hash=stale", ""), 200, "")
	woken := make(chan answer, 1)
	go func() { woken <- r.do("GET", "/v1/agent/service/web?wait=60s&hash="+hash, "") }()
	// Another service does not wake it.
	r.want(r.do("PUT", "/v1/agent/service/register", `{"Name":"other"}`), 200, "")
	r.want(r.do("PUT", "/v1/agent/service/register", `{"Name":"web","Port":2}`), 200, "")
	if a := <-woken; a.status != 200 || a.header.Get("X-Consul-ContentHash") == hash {
		t.Fatal(a)
	}
	gone := make(chan answer, 1)
	hash = r.do("GET", "/v1/agent/service/web", "").header.Get("X-Consul-ContentHash")
	go func() { gone <- r.do("GET", "/v1/agent/service/web?wait=60s&hash="+hash, "") }()
	r.want(r.do("PUT", "/v1/agent/service/deregister/web", ""), 200, "")
	if a := <-gone; a.status != 404 {
		t.Fatal(a)
	}
}

func TestLeafBlocks(t *testing.T) {
	r := newRig(t)
	a := r.want(r.do("GET", "/v1/agent/connect/ca/leaf/web?index=7&wait=20ms", ""), 200, "")
	if a.header.Get("X-Consul-Index") != "7" || a.header.Get("X-Cache") != "MISS" {
		t.Fatal(a.header)
	}
}

func TestServersDown(t *testing.T) {
	r := newRig(t)
	for err, want := range map[error]struct {
		status int
		text   string
	}{
		catalog.ErrNoLeader:         {500, "No cluster leader"},
		catalog.ErrUnavailable:      {500, "rpc error making call"},
		catalog.ErrDenied:           {403, "Permission denied"},
		catalog.NotFoundf("node x"): {404, "node x"},
		catalog.ErrTooLarge:         {413, "Request body too large"},
		catalog.Invalidf("odd"):     {400, "odd"},
	} {
		r.servers.err = err
		a := r.do("GET", "/v1/catalog/nodes", "")
		if a.status != want.status || len(a.body) < len(want.text) || a.body[:len(want.text)] != want.text {
			t.Errorf("%v: %d %q", err, a.status, a.body)
		}
	}
}
