package httpapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/weftmesh/weft/catalog"
)

// TestP28BrowserCannotDriveTheAPI tries every route as a page in a browser could make
// its visitor's browser do: under a name that resolves to this host (rebinding), from
// another site, by a form, after a preflight. None may change anything, answer what a
// page may read, or say that one may.
func TestP28BrowserCannotDriveTheAPI(t *testing.T) {
	r := newRig(t)
	r.want(r.do("PUT", "/v1/kv/k", "before"), 200, "true")
	r.want(r.do("PUT", "/v1/agent/service/register", `{"Name":"<script>alert(1)</script>"}`), 200, "")
	eventually(t, "the registration is in the catalog", func() bool {
		return strings.Contains(r.do("GET", "/v1/catalog/services", "").body, "script")
	})
	state := func() (uint64, string) {
		r.servers.mu.Lock()
		index := r.servers.index
		r.servers.mu.Unlock()
		return index, r.do("GET", "/v1/agent/services", "").body + r.do("GET", "/v1/agent/checks", "").body
	}
	index, here := state()
	attacks := map[string][]string{
		"rebinding":              {"Host", "evil.example:8500"},
		"rebinding, its own":     {"Host", "evil.example:8500", "Origin", "http://evil.example:8500", "Sec-Fetch-Site", "same-origin"},
		"a name that begins so":  {"Host", "localhost.evil.example"},
		"nip.io":                 {"Host", "127.0.0.1.nip.io:8500"},
		"fetch of another site":  {"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"},
		"a neighbour's port":     {"Origin", "http://127.0.0.1:3000", "Sec-Fetch-Site", "same-site"},
		"a neighbour, old":       {"Origin", "http://127.0.0.1:3000"},
		"form":                   {"Origin", "https://evil.example", "Content-Type", "application/x-www-form-urlencoded"},
		"form with files":        {"Origin", "https://evil.example", "Content-Type", "multipart/form-data; boundary=x"},
		"form of plain text":     {"Sec-Fetch-Site", "cross-site", "Content-Type", "text/plain"},
		"sandboxed frame":        {"Origin", "null"},
		"with the right address": {"Host", "127.0.0.1:8500", "Origin", "http://evil.example", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"},
	}
	tries := 0
	for _, rt := range Routes() {
		path, _, tail := strings.Cut(rt.Path, ":")
		if tail {
			path += "k"
		}
		for name, headers := range attacks {
			method := rt.Method
			read := method == http.MethodGet
			if rt.stream && read {
				continue // it ends when its reader does, which this one never does
			}
			a := r.do(method, path+"?enable=true&source=a&destination=b", `{"Name":"x","ID":"x","Node":"x","Address":"127.0.0.1"}`, headers...)
			tries++
			if (!read || headers[0] == "Host" && headers[1] != "127.0.0.1:8500") && a.status != http.StatusForbidden {
				t.Errorf("%s: %s %s: %d %s", name, method, path, a.status, a.body)
			}
			unreadable(t, name+": "+method+" "+path, a)
		}
		for _, how := range [][]string{
			{"Origin", "https://evil.example", "Access-Control-Request-Method", rt.Method, "Access-Control-Request-Headers", "x-consul-token"},
			{"Origin", "https://evil.example", "Access-Control-Request-Method", rt.Method, "Access-Control-Request-Private-Network", "true"},
		} {
			unreadable(t, "preflight of "+path, r.do(http.MethodOptions, path, "", how...))
		}
	}
	if i, now := state(); i != index || now != here {
		t.Errorf("the state went from index %d and %s to %d and %s", index, here, i, now)
	}
	if v, err := r.servers.store.Read(catalog.Query{Kind: catalog.QueryKey, Name: "k"}); err != nil || len(v.Pairs) != 1 || string(v.Pairs[0].Value) != "before" {
		t.Errorf("%+v, %v", v, err)
	}
	t.Logf("%d attempts at %d routes: 0 changes", tries, len(Routes()))
}

// unreadable demands that no page may read, run, frame or mistake an answer.
func unreadable(t *testing.T, what string, a answer) {
	t.Helper()
	for name, values := range a.header {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("%s: it lets pages of other sites in: %s: %v", what, name, values)
		}
	}
	csp := a.header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe-") {
		t.Errorf("%s: Content-Security-Policy %q", what, csp)
	}
	if a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("Cross-Origin-Resource-Policy") != "same-origin" {
		t.Errorf("%s: %v", what, a.header)
	}
	if strings.HasPrefix(a.header.Get("Content-Type"), "text/html") && strings.Contains(a.body, "<script>") {
		t.Errorf("%s: a name is answered as HTML", what)
	}
}
