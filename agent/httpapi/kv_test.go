package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/agent/events"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

func TestKeysOverHTTP(t *testing.T) {
	r := newRig(t, func(c *Config) { c.KVMaxValueSize = 100 })
	long := strings.Repeat("k", catalog.MaxKey+1)
	for _, tc := range []struct {
		method, target, body string
		status               int
		want                 string // contained
	}{
		{"PUT", "/v1/kv/a%2Fb", "1", 200, "true"},
		{"GET", "/v1/kv/a/b?raw", "", 200, "1"},
		{"PUT", "/v1/kv/with%20space/%C3%BC", "2", 200, "true"},
		{"GET", "/v1/kv/with%20space/%C3%BC?raw", "", 200, "2"},
		{"GET", "/v1/kv/?keys&" + oldSeparator + "=/", "", 200, `["a/","with space/"]`},
		{"GET", "/v1/kv/?keys&separator=e%20", "", 200, `["a/b","with space/ü"]`},
		{"GET", "/v1/kv/a?keys&recurse", "", 200, `["a/b"]`},
		{"GET", "/v1/kv/%FF", "", 400, "not UTF-8"},
		{"PUT", "/v1/kv/%FF", "x", 400, "not UTF-8"},
		{"PUT", "/v1/kv/a%0Ab", "x", 400, ""},
		{"PUT", "/v1/kv/" + long, "x", 400, "at most 16384 are allowed"},
		{"PUT", "/v1/kv/a?cas=1&acquire=x", "", 400, "Conflicting flags"},
		{"DELETE", "/v1/kv/a?recurse&cas=1", "", 400, "Conflicting flags"},
		{"PUT", "/v1/kv/a?acquire=nobody", "", 500, `invalid session "nobody"`},
		{"PUT", "/v1/kv/a?acquire=", "", 500, "no session is named"},
		{"PUT", "/v1/kv/a?release=nobody", "", 200, "false"},
		{"PUT", "/v1/kv/big", strings.Repeat("x", 100), 200, "true"},
		{"PUT", "/v1/kv/big", strings.Repeat("x", 101), 413, "100 bytes"},
		{"PUT", "/v1/txn", `[{"KV":{"Verb":"set","Key":"b","Value":"` + strings.Repeat("eHh4", 34) + `"}}]`, 413, `Value for key "b" is too large (102 > 100 bytes)`},
		{"PUT", "/v1/kv/empty", "", 200, "true"},
		{"GET", "/v1/kv/empty", "", 200, `"Value":null`},
		{"DELETE", "/v1/kv/empty?cas=0", "", 200, "false"},
		{"DELETE", "/v1/kv/none?cas=0", "", 200, "true"},
		{"DELETE", "/v1/kv/with%20space/%C3%BC", "", 200, "true"},
		{"GET", "/v1/kv/with%20space/%C3%BC", "", 404, ""},
	} {
		a := r.do(tc.method, tc.target, tc.body)
		if a.status != tc.status || !strings.Contains(a.body, tc.want) || (tc.want == "" && a.body != "") {
			t.Errorf("%s %.60s: %d %s", tc.method, tc.target, a.status, a.body)
		}
	}
	// What somebody stored is never run or guessed at by a browser.
	r.want(r.do("PUT", "/v1/kv/page", "<script>alert(1)</script>"), 200, "true")
	a := r.do("GET", "/v1/kv/page?raw", "")
	if a.header.Get("Content-Type") != "text/plain" || a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("Content-Security-Policy") != "sandbox" {
		t.Errorf("%v", a.header)
	}
	if a := r.do("GET", "/v1/kv/none", ""); a.header.Get("Content-Type") != "" || a.header.Get("X-Consul-Index") == "" {
		t.Errorf("%v", a.header)
	}
}

func TestSessionsOverHTTP(t *testing.T) {
	r := newRig(t)
	r.mustApply(&catalog.Register{SkipNodeUpdate: true, Node: &catalog.Node{Node: testNode}, Checks: []*catalog.Check{
		{CheckID: catalog.NodeCheckID, Status: catalog.StatusPassing}, {CheckID: "other", Status: catalog.StatusPassing},
	}})
	show := func(body string) string {
		t.Helper()
		a := r.want(r.do("PUT", "/v1/session/create", body), 200, "")
		var made struct{ ID string }
		if err := json.Unmarshal([]byte(a.body), &made); err != nil {
			t.Fatal(err)
		}
		info := r.want(r.do("GET", "/v1/session/info/"+made.ID, ""), 200, "")
		return strings.ReplaceAll(info.body, made.ID, "ID")
	}
	for body, want := range map[string]string{
		"":                                      `"LockDelay":15000000000,"Behavior":"release","TTL":"","NodeChecks":["serfHealth"],"ServiceChecks":null`,
		`{"NodeChecks":[]}`:                     `"NodeChecks":null`,
		`{"NodeChecks":null}`:                   `"NodeChecks":null`,
		`{"node_checks":["other"]}`:             `"NodeChecks":["other"]`,
		`{"Checks":["other"]}`:                  `"NodeChecks":["other"]`,
		`{"ServiceChecks":[{"ID":"other"}]}`:    `"NodeChecks":["serfHealth"],"ServiceChecks":[{"ID":"other","Namespace":""}]`,
		`{"LockDelay":999}`:                     `"LockDelay":999000000000`,
		`{"LockDelay":1000}`:                    `"LockDelay":1000,`,
		`{"LockDelay":-3}`:                      `"LockDelay":0`,
		`{"LockDelay":1e300}`:                   `"LockDelay":86400000000000`,
		`{"TTL":"0s"}`:                          `"TTL":"0s"`,
		`{"ID":"mine","CreateIndex":3}`:         `"ID":"ID"`,
		`{"Behavior":"delete","Name":"a name"}`: `"Name":"a name"`,
	} {
		if got := show(body); !strings.Contains(got, want) {
			t.Errorf("%s: %s", body, got)
		}
	}
	for body, want := range map[string]struct {
		status int
		text   string
	}{
		`{"LockDelay":true}`:                          {400, "neither a duration nor a number"},
		`{"TTL":"25h"}`:                               {500, "must be between"},
		`{"TTL":"-1s"}`:                               {500, "must be between"},
		`{"Nope":1}`:                                  {400, `unknown field "Nope"`},
		`{"Namespace":"x"}`:                           {400, "Namespace"},
		`{"Datacenter":"x"}`:                          {500, "No path to datacenter"},
		`{"ServiceChecks":[{"ID":"none"}]}`:           {500, "Missing check 'none' registration"},
		`{"Node":"none"}`:                             {500, "Missing node registration"},
		`{"Name":"` + strings.Repeat("n", 600) + `"}`: {500, "at most 512"},
	} {
		a := r.do("PUT", "/v1/session/create", body)
		if a.status != want.status || !strings.Contains(a.body, want.text) {
			t.Errorf("%.60s: %d %s", body, a.status, a.body)
		}
	}
	for target, want := range map[string]string{
		"/v1/session/info/":                            "Missing session",
		"/v1/session/node/":                            "Missing node name",
		"/v1/session/info/" + strings.Repeat("x", 600): "at most 512",
	} {
		if a := r.do("GET", target, ""); a.status != 400 || !strings.Contains(a.body, want) {
			t.Errorf("%.60s: %d %s", target, a.status, a.body)
		}
	}
}

func TestTransactionsOverHTTP(t *testing.T) {
	r := newRig(t)
	many := strings.Repeat(`{"KV":{"Verb":"get-or-empty","Key":"k"}},`, 129)
	for body, want := range map[string]struct {
		status int
		text   string
	}{
		`[`:     {400, "Failed to parse body"},
		`[1]`:   {400, "Failed to parse body"},
		`[{}]x`: {400, "after the list"},
		`[{"KV":{"Verb":"set","Key":"k","Value":"!"}}]`:     {400, "illegal base64"},
		`[{"KV":{"Verb":"set","Key":"k","Bogus":1}}]`:       {400, `unknown field "Bogus"`},
		`[{"KV":{"Verb":"set","Key":"k","Flags":-1}}]`:      {400, "Failed to parse body"},
		`[{"KV":{"Verb":"set","Key":"k","Namespace":"x"}}]`: {400, "Namespace"},
		`[` + many + `{}]`: {413, "too many operations"},
		`[` + strings.TrimSuffix(many[:41*128], ",") + `]`:                 {200, `"Errors":null`},
		`[{"KV":{"Verb":"set","Key":"a\u0000b"}}]`:                         {409, "control characters"},
		`[{"KV":{"Verb":"get","Key":"x"},"Check":{"Verb":"get"}}]`:         {409, "exactly one"},
		`[{"KV":{"Verb":"lock","Key":"k","Session":"nobody"}}]`:            {409, `invalid session \"nobody\"`},
		`[{"Node":{"Verb":"lock","Node":{"Node":"n"}}}]`:                   {409, "unknown Node operation: lock"},
		`[{"Check":{"Verb":"set","Check":{"Node":"none","CheckID":"c"}}}]`: {409, "Missing node registration"},
		`[{"KV":{"Verb":"set","Key":"k","Flags":18446744073709551615}}]`:   {200, `"Flags":18446744073709551615`},
		`[ null , {} ]`: {200, `"Results":[]`},
	} {
		a := r.do("PUT", "/v1/txn", body)
		if a.status != want.status || !strings.Contains(a.body, want.text) {
			t.Errorf("%.70s: %d %.300s", body, a.status, a.body)
		}
	}
}

func TestEventsOverHTTP(t *testing.T) {
	own, err := events.New(events.Config{NodeName: testNode})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) { c.Events = own })
	empty := r.want(r.do("GET", "/v1/event/list", ""), 200, "[]")
	if empty.header.Get("X-Consul-Index") != "1" {
		t.Fatalf("%v", empty.header)
	}
	r.want(r.do("GET", "/v1/event/list?index=1&wait=10ms", ""), 200, "[]")
	answered := make(chan answer, 1)
	go func() { answered <- r.do("GET", "/v1/event/list?index=1&wait=1m&name=b", "") }()
	for i := range 3 {
		r.want(r.do("PUT", "/v1/event/fire/a", fmt.Sprint(i)), 200, "")
	}
	select {
	case a := <-answered:
		t.Fatalf("woken by an event of another name: %s", a.body)
	case <-time.After(20 * time.Millisecond):
	}
	r.want(r.do("PUT", "/v1/event/fire/b", strings.Repeat("x", 400)), 200, "")
	if a := <-answered; strings.Count(a.body, `"Name":"b"`) != 1 || strings.Contains(a.body, `"Name":"a"`) {
		t.Fatalf("%s", a.body)
	}
	r.want(r.do("PUT", "/v1/event/fire/b", strings.Repeat("x", 512)), 413, "")
	r.want(r.do("PUT", "/v1/event/fire/b?node="+strings.Repeat("x", 512), ""), 413, "")
	r.want(r.do("PUT", "/v1/event/fire/b?dc=other", ""), 500, "No path to datacenter")
}

// keysOf may touch what is named.
type keysOf map[string]bool

func (k keysOf) Allowed(_ acl.Verb, res acl.Resource, name string) bool {
	return k[string(res)+" "+name]
}

func TestEventsAreForWhoMayReadThem(t *testing.T) {
	own, err := events.New(events.Config{NodeName: testNode})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if err := own.Fire(context.Background(), &catalog.UserEvent{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	r := newRig(t, func(c *Config) {
		c.Events = own
		c.Authorize = func(string) (acl.Authorizer, error) { return keysOf{"event a": true}, nil }
	})
	if a := r.do("GET", "/v1/event/list", ""); a.status != 200 || strings.Contains(a.body, `"b"`) || !strings.Contains(a.body, `"a"`) {
		t.Fatalf("%d %s", a.status, a.body)
	}
	r.want(r.do("PUT", "/v1/event/fire/a", ""), 200, "")
	r.want(r.do("PUT", "/v1/event/fire/b", ""), 403, "")
}
