package httpapi

import (
	"compress/gzip"
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/weftmesh/weft/catalog/acl"
)

func TestForeignHostsAreRefused(t *testing.T) {
	r := newRig(t, func(c *Config) { c.AllowedHosts = []string{"mesh.example.com"}; c.Domain = "consul." })
	for host, ok := range map[string]bool{
		"127.0.0.1:8500": true, "[::1]:8500": true, "10.1.2.3": true, "localhost:8500": true, "a.localhost": true, "LOCALHOST": true,
		testNode: true, "consul-server:8500": true, "consul.service.consul:8500": true, "mesh.example.com.": true, "": true,
		"evil.example.com": false, "evil.example.com:8500": false, "127.0.0.1.nip.io": false, "localhost.evil.com": false,
		"consul.evil.com": false, "evilconsul.com": false, "1.2.3": false,
	} {
		a := r.do("GET", "/v1/agent/version", "", "Host", host)
		if (a.status == 200) != ok {
			t.Errorf("Host %q: %d %s", host, a.status, a.body)
		}
	}
	// Over a Unix socket no page can come, and clients name anything.
	req := httptest.NewRequest(http.MethodGet, "/v1/agent/version", nil)
	req.Host = "any.example.com"
	rec := httptest.NewRecorder()
	r.api.Handler().ServeHTTP(rec, req.WithContext(context.WithValue(req.Context(), connKey{}, "unix")))
	if rec.Code != 200 {
		t.Fatal(rec.Code)
	}
}

func TestCrossSiteWritesAreRefused(t *testing.T) {
	r := newRig(t)
	body := `{"Name":"web"}`
	for name, c := range map[string]struct {
		headers []string
		ok      bool
	}{
		"no browser":        {nil, true},
		"same origin":       {[]string{"Sec-Fetch-Site", "same-origin", "Origin", "http://127.0.0.1:8500"}, true},
		"typed by hand":     {[]string{"Sec-Fetch-Site", "none"}, true},
		"same host, old":    {[]string{"Origin", "http://127.0.0.1:8500"}, true},
		"another site":      {[]string{"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"}, false},
		"another port":      {[]string{"Sec-Fetch-Site", "same-site", "Origin", "http://127.0.0.1:3000"}, false},
		"old browser":       {[]string{"Origin", "https://evil.example"}, false},
		"sandboxed page":    {[]string{"Origin", "null"}, false},
		"a form":            {[]string{"Sec-Fetch-Site", "cross-site", "Content-Type", "text/plain"}, false},
		"lies about origin": {[]string{"Sec-Fetch-Site", "cross-site", "Origin", "http://127.0.0.1:8500"}, false},
	} {
		a := r.do("PUT", "/v1/agent/service/register", body, c.headers...)
		if (a.status == 200) != c.ok || (!c.ok && a.status != 403) {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	// Preflights are not answered with permission.
	a := r.do("OPTIONS", "/v1/agent/service/register", "", "Origin", "https://evil.example", "Access-Control-Request-Method", "PUT")
	for h := range a.header {
		if strings.HasPrefix(h, "Access-Control") {
			t.Errorf("%s is sent", h)
		}
	}
}

func TestEveryAnswerIsProtected(t *testing.T) {
	r := newRig(t)
	for _, target := range []string{"/v1/agent/self", "/v1/nope", "/", "/ui/", "/v1/catalog/nodes?index=x", "/v1/agent/metrics?format=prometheus"} {
		h := r.do("GET", target, "").header
		if h.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", target, h)
		}
		if strings.Contains(h.Get("Content-Security-Policy"), "unsafe") {
			t.Errorf("%s: %v", target, h)
		}
	}
}

func TestPathsAndMethods(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		method, path string
		status       int
		body, allow  string
	}{
		{"GET", "/v1/nope", 404, textNoRoute, ""},
		{"GET", "/v1/agent/services/", 404, textNoRoute, ""},
		{"GET", "/v1/catalog/services/extra", 404, textNoRoute, ""},
		{"GET", "/v1/catalog", 404, textNoRoute, ""},
		{"GET", "/v1/", 404, textNoRoute, ""},
		{"GET", "/v1", 404, textNotAPI, ""},
		{"GET", "/nope", 404, textNotAPI, ""},
		{"GET", "/v2/kv/x", 404, textNotAPI, ""},
		{"GET", "/v1/agent/../agent/self", 404, textNoRoute, ""},
		{"GET", "//v1/agent/self", 404, textNotAPI, ""},
		{"DELETE", "/v1/catalog/nodes", 405, "method DELETE not allowed", "OPTIONS,GET"},
		{"POST", "/v1/catalog/register", 405, "method POST not allowed", "OPTIONS,PUT"},
		{"PATCH", "/v1/config", 405, "method PATCH not allowed", "OPTIONS,PUT"},
		{"POST", "/v1/connect/intentions/exact", 405, "method POST not allowed", "OPTIONS,GET,PUT,DELETE"},
		{"POST", "/v1/connect/ca/configuration", 405, "method POST not allowed", "OPTIONS,GET,PUT"},
		{"GET", "/v1/agent/service/register", 405, "method GET not allowed", "OPTIONS,PUT"},
		{"GET", "/v1/agent/service/deregister/x", 405, "method GET not allowed", "OPTIONS,PUT"},
		{"HEAD", "/v1/agent/self", 405, "", "OPTIONS,GET"},
		{"OPTIONS", "/v1/connect/intentions", 200, "", "OPTIONS,GET,POST"},
		{"GET", "/v1/kv/a%00b", 400, "", ""},
		{"GET", "/v1/catalog/node/a%0Ab", 400, "", ""},
		{"GET", "/v1/catalog/service/%F0%9F%98%80", 200, "[]", ""},
		{"GET", "/v1/catalog/service/a%2Fb", 200, "[]", ""},
		{"GET", "/v1/catalog/nodes?%zz=1", 400, "", ""},
	} {
		a := r.do(c.method, c.path, "")
		if a.status != c.status || c.body != "" && a.body != c.body || a.header.Get("Allow") != c.allow {
			t.Errorf("%s %s: %d %q Allow %q", c.method, c.path, a.status, a.body, a.header.Get("Allow"))
		}
	}
	if a := r.do("GET", "/", ""); a.status != 301 || a.header.Get("Location") != "/ui/" {
		t.Error(a)
	}
}

func TestBodiesAreBounded(t *testing.T) {
	r := newRig(t)
	for _, rt := range Routes() {
		path := rt.Path
		if i := strings.Index(path, ":"); i >= 0 {
			path = path[:i] + "x"
		}
		path += "?source=a&destination=b&enable=true"
		if rt.MaxBody == bodySnapshot { // too long to be sent here
			req := httptest.NewRequest(rt.Method, path, strings.NewReader(""))
			req.Host, req.ContentLength = "localhost", rt.MaxBody+1
			rec := httptest.NewRecorder()
			if r.api.Handler().ServeHTTP(rec, req); rec.Code != http.StatusRequestEntityTooLarge {
				t.Errorf("%s %s: %d with a body over the limit", rt.Method, rt.Path, rec.Code)
			}
			continue
		}
		big := strings.Repeat(" ", int(rt.MaxBody)+1)
		for _, announced := range []bool{true, false} {
			req := httptest.NewRequest(rt.Method, path, strings.NewReader(big))
			req.Host = "localhost"
			if !announced {
				req.ContentLength = -1
			}
			ctx, cancel := context.WithCancel(req.Context())
			cancel() // of what streams or waits, only the body matters here
			rec := httptest.NewRecorder()
			r.api.Handler().ServeHTTP(rec, req.WithContext(ctx))
			if announced && rec.Code != http.StatusRequestEntityTooLarge {
				t.Errorf("%s %s: %d with a body over the limit", rt.Method, rt.Path, rec.Code)
			}
			if !announced && rt.Body != "" && rec.Code != http.StatusRequestEntityTooLarge {
				t.Errorf("%s %s: %d %s with an unannounced body over the limit", rt.Method, rt.Path, rec.Code, rec.Body)
			}
		}
	}
	for len(r.control.calls) > 0 {
		<-r.control.calls
	}
}

func TestRoutesAreDocumented(t *testing.T) {
	seen := map[string]bool{}
	for _, rt := range Routes() {
		key := rt.Method + " " + rt.Path
		if seen[key] {
			t.Errorf("%s is there twice", key)
		}
		seen[key] = true
		if rt.Summary == "" || rt.MaxBody <= 0 || rt.MaxBody > 8<<20 && rt.MaxBody != bodySnapshot || rt.handle == nil {
			t.Errorf("%s lacks a summary, a body limit or a handler", key)
		}
		if !strings.HasPrefix(rt.Path, "/v1/") || strings.HasSuffix(rt.Summary, ".") {
			t.Errorf("%s: odd path or summary", key)
		}
		if rt.Method != http.MethodGet && rt.Permission.Resource == "" && rt.Summary != "says that ACLs are off" {
			t.Errorf("%s changes something and needs no permission", key)
		}
		for _, p := range rt.Params {
			if p.Name == "" || p.Summary == "" {
				t.Errorf("%s: a parameter without name or summary", key)
			}
		}
	}
	if len(seen) < 60 {
		t.Errorf("only %d routes", len(seen))
	}
	if len(CommonParams()) == 0 {
		t.Error("no common parameters")
	}
}

func TestSecretsStayOutOfTheLog(t *testing.T) {
	r := newRig(t)
	r.do("GET", "/v1/agent/self?token=s3cret-query&x=1", "", "X-Consul-Token", "s3cret-header", "Authorization", "Bearer s3cret-bearer")
	r.do("GET", "/v1/agent/self?Token=s3cret-odd&%zz", "")
	r.do("GET", "/v1/agent/connect/ca/leaf/web", "")
	r.do("PUT", "/v1/agent/service/register?token=s3cret-query", `{"Name":"x","Token":"s3cret-body","Bogus":"s3cret-bogus"}`)
	log := r.log.String()
	if strings.Contains(log, "s3cret") || strings.Contains(log, "key\n") {
		t.Fatal(log)
	}
	if !strings.Contains(log, "x=1") || !strings.Contains(log, "certificate with its key handed out") {
		t.Fatal("the log lacks the requests: " + log)
	}
}

func TestTokens(t *testing.T) {
	for want, req := range map[string]*http.Request{
		"q": withHeaders("/?token=q", "X-Consul-Token", "h", "Authorization", "Bearer b"),
		"h": withHeaders("/", "X-Consul-Token", "h", "Authorization", "Bearer b"),
		"b": withHeaders("/", "Authorization", "bearer b"),
		"":  withHeaders("/", "Authorization", "Basic b"),
	} {
		if got := tokenOf(req, req.URL.Query()); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func withHeaders(target string, headers ...string) *http.Request {
	req := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

// only allows what it names.
type only map[string]bool

func (o only) Allowed(v acl.Verb, res acl.Resource, name string) bool {
	return o[string(v)+" "+string(res)+" "+name]
}

func TestLocalRoutesAskForPermission(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Authorize = func(token string) (acl.Authorizer, error) {
			if token == "web" {
				return only{"write service web": true}, nil
			}
			return only{}, nil
		}
	})
	r.want(r.do("PUT", "/v1/agent/service/register?token=web", `{"Name":"web"}`), 200, "")
	a := r.do("PUT", "/v1/agent/service/register?token=web", `{"Name":"db"}`)
	if a.status != 403 || !strings.HasPrefix(a.body, "Permission denied") {
		t.Fatal(a)
	}
	r.want(r.do("GET", "/v1/agent/version", ""), 200, "")
	for _, rt := range Routes() {
		if !rt.local || rt.Permission.Resource == "" {
			continue
		}
		path := strings.NewReplacer(":id", "x", ":service", "x", ":name", "x", ":node", "x", ":address", "x").Replace(rt.Path)
		if a := r.do(rt.Method, path, "{}"); a.status != 403 {
			t.Errorf("%s %s: %d without a token", rt.Method, path, a.status)
		}
	}
}

func TestPanicsEndOneRequest(t *testing.T) {
	r := newRig(t)
	r.api.cfg.Logger.Debug("x")
	h := r.api.handler
	h.router.exact["/v1/agent/version"].routes["GET"].handle = func(*call) (any, error) { panic("boom") }
	a := r.do("GET", "/v1/agent/version", "")
	if a.status != 500 || strings.Contains(a.body, "boom") {
		t.Fatal(a)
	}
	if log := r.log.String(); !strings.Contains(log, "boom") || !strings.Contains(log, "guard_test.go") {
		t.Fatal("no stack: " + log)
	}
	r.want(r.do("GET", "/v1/status/leader", ""), 200, "")
}

func TestPrettyAndGzip(t *testing.T) {
	r := newRig(t)
	if a := r.do("GET", "/v1/catalog/datacenters?pretty", ""); a.body != "[\n    \"dc1\"\n]\n" {
		t.Fatalf("%q", a.body)
	}
	if a := newRig(t, func(c *Config) { c.Dev = true }).do("GET", "/v1/catalog/datacenters", ""); a.body != "[\n    \"dc1\"\n]\n" {
		t.Fatalf("%q", a.body)
	}
	for i := range 20 {
		r.want(r.do("PUT", "/v1/agent/service/register", `{"Name":"service`+strings.Repeat("x", i)+`"}`), 200, "")
	}
	plain := r.do("GET", "/v1/agent/services", "")
	for accept, want := range map[string]bool{"gzip": true, "deflate, GZIP;q=0.5": true, "gzip;q=0": false, "br": false, "": false} {
		a := r.do("GET", "/v1/agent/services", "", "Accept-Encoding", accept)
		if got := a.header.Get("Content-Encoding") == "gzip"; got != want {
			t.Errorf("%q: %v", accept, got)
			continue
		}
		if !want {
			continue
		}
		z, err := gzip.NewReader(strings.NewReader(a.body))
		if err != nil {
			t.Fatal(err)
		}
		if readAll(t, z) != plain.body || a.header.Get("Vary") != "Accept-Encoding" {
			t.Error("another answer when compressed")
		}
	}
}

func TestConfiguredRestrictions(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.BlockEndpoints = []string{"/v1/agent/host"}
		c.AllowWriteFrom = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		c.ResponseHeaders = map[string]string{"X-Own": "1", "Content-Security-Policy": "default-src 'self'"}
	})
	r.want(r.do("GET", "/v1/agent/host", ""), 403, "Endpoint is blocked by agent configuration")
	a := r.want(r.do("GET", "/v1/agent/services", ""), 200, "")
	if a.header.Get("X-Own") != "1" || a.header.Get("Content-Security-Policy") != "default-src 'self'" {
		t.Fatal(a.header)
	}
	for from, want := range map[string]int{"10.1.2.3:5": 200, "[::ffff:10.1.2.3]:5": 200, "192.0.2.1:5": 403, "garbage": 403} {
		req := httptest.NewRequest(http.MethodPut, "/v1/agent/service/register", strings.NewReader(`{"Name":"x"}`))
		req.Host, req.RemoteAddr = "localhost", from
		rec := httptest.NewRecorder()
		r.api.Handler().ServeHTTP(rec, req)
		if rec.Code != want {
			t.Errorf("%s: %d %s", from, rec.Code, rec.Body)
		}
	}
}

func TestReference(t *testing.T) {
	var b strings.Builder
	if err := Reference(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"## agent", "## connect", "`GET /v1/health/service/:service`", "`max_stale`", "service:write"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page lacks %s", want)
		}
	}
}
