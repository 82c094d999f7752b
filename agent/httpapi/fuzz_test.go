package httpapi

import (
	"bufio"
	"bytes"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// documented are the refusals that are 5xx because Consul's clients know them so.
func documented(status int, body string) bool {
	if status != http.StatusInternalServerError {
		return false
	}
	for _, words := range []string{
		"No path to datacenter", "Failed to create boolean expression evaluator", "Must provide", "required query parameter", "is invalid",
		"must not be specified", "must be", "invalid config entry kind", "Invalid ", "invalid", "is required", "cannot", "is not", "does not",
		"Scripts are disabled", "at least one source", "At least one source", "should", "defines", "unknown CA provider", "no provider",
		"Network segments", "No node found", "URI must be", "missing", "State is read-only", "has an intention", "more than once", "rpc error making call: timed out",
		"allowed", "empty", "already", "must provide PeerName", "Cannot modify non-existent", "Bad limit", "was not found in the Raft", "Missing check",
	} {
		if strings.Contains(body, words) {
			return true
		}
	}
	return false
}

// send passes a request through the whole handler, and reports what must not be.
func send(t testing.TB, h http.Handler, log *lockedBuffer, method, target, body string, headers map[string]string) {
	req, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		return // no server would have read it
	}
	req.Host, req.RemoteAddr = "localhost", "127.0.0.1:1"
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	if rec.Code >= 500 && rec.Code != http.StatusNotImplemented && !documented(rec.Code, rec.Body.String()) {
		t.Errorf("%s %s %q: %d %s", method, target, body, rec.Code, rec.Body)
	}
	if strings.Contains(log.String(), "panicked") {
		t.Fatalf("%s %s %q panicked: %s", method, target, body, log.String())
	}
}

var (
	oddBodies = []string{
		``, ` `, `{`, `}`, `[]`, `null`, `true`, `0`, `""`, `{}`, `{}{}`, `{"":""}`, `{"Name":null}`, `{"Name":{}}`, `{"Name":["a"]}`, `{"Name":1e999}`,
		`{"ID":"x","Name":"` + strings.Repeat("y", 5000) + `"}`, `{"Node":"a","Address":"b","Service":[]}`, `{"Node":"a","Address":"b","Checks":{}}`,
		`{"Node":"a","Address":"b","Checks":[null]}`, `{"Node":"a","Address":"b","Check":{"Name":"c","Definition":{"Interval":"x"}}}`,
		`{"Kind":"service-intentions"}`, `{"Kind":"service-intentions","Name":"*","Sources":[null]}`, `{"Kind":5}`,
		`{"Kind":"service-intentions","Name":"a","Sources":[{"Name":"b","Permissions":[{"Action":"allow","HTTP":{"PathRegex":"("}}]}]}`,
		`{"Action":"allow","Permissions":[null]}`, `{"Provider":"consul","Config":[]}`, `{"Status":5}`, "\x00\xff", `{"\ud800":1}`, `{"Name":"a"} x`,
		strings.Repeat(`{"a":`, 200) + `1` + strings.Repeat(`}`, 200), strings.Repeat(`[`, 10000),
		`{"name":"a","connect":{"sidecar_service":{"checks":[1,{"args":[]}]}}}`, `{"Name":"a","Proxy":{"Upstreams":[{}]}}`, `{"Target":"a","ClientCertURI":"spiffe://"}`,
		`[{"KV":{"Verb":"set","Key":"k","Value":"?"}}]`, `[{"KV":{"Verb":"lock","Key":"k"}},{"Node":{"Verb":"x"}},{"Service":{}},{"Check":{}},null]`, `[{}]x`,
		`{"LockDelay":-1e300,"TTL":"-1s","NodeChecks":[""]}`, `{"ServiceChecks":[{"ID":"a","Namespace":"b"}],"Checks":null}`,
		`-----BEGIN CERTIFICATE REQUEST-----` + "\nAAAA\n" + `-----END CERTIFICATE REQUEST-----`,
	}
	oddQueries = []string{
		"", "?", "?index=x", "?index=99999999999999999999", "?wait=x", "?wait=10ms&index=1", "?filter=(", "?filter=Name==1", "?filter=" + strings.Repeat("%28", 300),
		"?dc=x", "?ns=x", "?partition=x", "?cas=x", "?cas=-1", "?passing=maybe", "?enable=perhaps", "?enable=true", "?stale&consistent", "?max_stale=x", "?%zz", "?a=%", "?token=" + strings.Repeat("t", 3000),
		"?source=a&destination=b", "?source=a/b/c/d&destination=*", "?by=source&name=*", "?by=x&name=", "?node-meta=", "?tag=&tag=&near=_agent", "?pretty=&cached", "?format=prometheus", "?pem=x",
		"?recurse", "?keys&separator=%00", "?keys&" + oldSeparator + "=/", "?raw", "?recurse&cas=1", "?flags=-1", "?acquire=x", "?release=%00", "?acquire=a&release=b", "?service=(&tag=[", "?hash=x&wait=1ms",
	}
	oddTails = []string{"", "x", "a/b", "%00", "%0A", "..", "../..", "%2e%2e%2f", "*", strings.Repeat("n", 2000), "%F0%9F%98%80", "%zz", " ", "?", "#", ";", "exact/", "{}", "%ff"}
)

// newFuzzRig keeps the waits of odd requests short, and of the log only errors.
func newFuzzRig(t testing.TB) (*rig, *lockedBuffer) {
	log := &lockedBuffer{}
	return newRig(t, fastConfig, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelError}))
	}), log
}

func fastConfig(c *Config) {
	c.DefaultQueryTime, c.MaxQueryTime = 5*time.Millisecond, 5*time.Millisecond
	c.Control, c.Monitor = nil, nil // orders and streams are not what is tried here
}

func TestMalformedRequestsAreRefusedCleanly(t *testing.T) {
	r, log := newFuzzRig(t)
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(from []string) string { return from[rng.IntN(len(from))] }
	methods := []string{"GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"}
	sent := 0
	for _, rt := range Routes() {
		path, _, prefix := strings.Cut(rt.Path, ":")
		for range 16 {
			target, method := path, rt.Method
			if prefix {
				target += pick(oddTails)
			}
			if rng.IntN(8) == 0 {
				method = pick(methods)
			}
			headers := map[string]string{}
			if rng.IntN(4) == 0 {
				headers["Cache-Control"], headers["Accept-Encoding"], headers["Authorization"] = "max-age=-1,=,;", "gzip;q=x,,", "Bearer"
			}
			send(t, r.api.Handler(), log, method, target+pick(oddQueries), pick(oddBodies), headers)
			sent++
		}
	}
	if sent < 500 {
		t.Fatalf("only %d requests", sent)
	}
	r.want(r.do("GET", "/v1/status/leader", ""), 200, "")
}

func FuzzRequests(f *testing.F) {
	for i, b := range oddBodies {
		rt := Routes()[i%len(Routes())]
		f.Add(rt.Method, rt.Path+oddQueries[i%len(oddQueries)], b)
	}
	f.Add("PUT", "/v1/agent/service/register", `{"Name":"web","Connect":{"SidecarService":{}},"Check":{"TTL":"1h"}}`)
	f.Add("PUT", "/v1/config", `{"Kind":"service-intentions","Name":"db","Sources":[{"Name":"web","Action":"allow"}]}`)
	f.Add("GET", `/v1/health/service/web?filter=Checks.Status%20==%20critical`, "")
	f.Add("PUT", "/v1/catalog/register", registerWeb)
	r, log := newFuzzRig(f)
	f.Fuzz(func(t *testing.T, method, target, body string) {
		if !strings.HasPrefix(target, "/") || len(target) > 4096 || len(body) > 1<<16 {
			return
		}
		send(t, r.api.Handler(), log, method, target, body, nil)
	})
}

func FuzzFilter(f *testing.F) {
	f.Add(`Checks.Status == critical`)
	f.Add(`any Checks as c { c.Status == x } or not Deep.More.Name in "a"`)
	f.Add("`x` in Tags and Meta[\"a\"] != 1")
	item := filterItem{Name: "web", Meta: map[string]string{"a": "b"}, Checks: []filterCheck{{Status: "x"}}, Deep: &filterDeep{}}
	f.Fuzz(func(t *testing.T, expr string) {
		c, err := newFilter[filterItem](expr)
		if err != nil {
			return
		}
		_, _ = c.match(item)
	})
}

// FuzzRouter reads requests as they come from the wire, headers included, and passes
// them through guard, router and handlers.
func FuzzRouter(f *testing.F) {
	for i, h := range []string{
		"", "Host: evil.example\r\n", "Origin: null\r\nSec-Fetch-Site: cross-site\r\n", "X-Consul-Token: \xff\r\n", "Authorization: Bearer\r\nAuthorization: Bearer a b\r\n",
		"Cache-Control: max-age=-1, stale-if-error=99999999999999999999\r\n", "Accept-Encoding: gzip;q=nan,gzip;q=\r\n", "Content-Type: application/x-www-form-urlencoded\r\n", "Transfer-Encoding: chunked\r\n",
	} {
		rt := Routes()[i*7%len(Routes())]
		f.Add([]byte(rt.Method + " " + rt.Path + oddQueries[i] + " HTTP/1.1\r\nHost: localhost\r\n" + h + "Content-Length: 2\r\n\r\n{}"))
	}
	f.Add([]byte("GET //v1/./kv/%2e%2e/..;/ HTTP/1.0\r\n\r\n"))
	f.Add([]byte("OPTIONS * HTTP/1.1\r\nHost: [::1%25lo]:8500\r\n\r\n"))
	f.Add([]byte("GET http://evil.example/v1/agent/self HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	r, log := newFuzzRig(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<16 {
			return
		}
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return // the server answers 400 itself
		}
		req.RemoteAddr = "127.0.0.1:1"
		rec := httptest.NewRecorder()
		r.api.Handler().ServeHTTP(rec, req)
		if rec.Code >= 500 && rec.Code != http.StatusNotImplemented && !documented(rec.Code, rec.Body.String()) {
			t.Errorf("%q: %d %s", raw, rec.Code, rec.Body)
		}
		if strings.Contains(log.String(), "panicked") {
			t.Fatalf("%q panicked: %s", raw, log.String())
		}
		if req.Method == http.MethodPut && req.Header.Get("Sec-Fetch-Site") == "cross-site" && rec.Code < 400 {
			t.Fatalf("%q: a page of another site wrote", raw)
		}
	})
}
