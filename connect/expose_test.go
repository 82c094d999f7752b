package connect

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestExposedPaths: an exposed path is answered to anybody, exactly as it is written,
// and nothing beside it.
func TestExposedPaths(t *testing.T) {
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Saw", r.Proto+" "+r.Host+" "+r.Header.Get("X-Forwarded-Client-Cert"))
		_, _ = io.WriteString(w, "at "+r.URL.RequestURI())
	}))
	app.Config.Protocols = new(http.Protocols)
	app.Config.Protocols.SetHTTP1(true)
	app.Config.Protocols.SetUnencryptedHTTP2(true)
	app.Start()
	defer app.Close()
	local := app.Listener.Addr().String()
	ca := newTestCA(t, testDomain)
	open := func(list ...Exposed) func(*Snapshot) { return func(s *Snapshot) { s.Expose = list } }
	const at = "127.0.0.1:0"
	web := startSidecar(t, ca, "web", open(
		Exposed{Listen: at, Path: "/health", Local: local}, Exposed{Listen: at, Path: "/two", Local: local, HTTP2: true},
		Exposed{Listen: at, Path: "/gone", Local: "127.0.0.1:1"},
	))
	addr := ""
	eventually(t, "a listener", func() bool {
		for _, x := range web.Status().Exposed {
			if x.Listening {
				addr = x.Addr
			}
		}
		return addr != ""
	})
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func(method, path string) (int, string, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr, nil)
		must(t, err)
		req.URL.Opaque = path // as it is written
		req.Host, req.Header = "app.example", http.Header{"X-Forwarded-Client-Cert": {"forged"}}
		res, err := client.Do(req)
		must(t, err)
		defer func() { _ = res.Body.Close() }()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		return res.StatusCode, strings.TrimSpace(string(b)), res.Header.Get("X-Saw")
	}
	for _, c := range []struct {
		path   string
		status int
		body   string
		saw    string
	}{
		{"/health", 200, "at /health", "HTTP/1.1 app.example"},
		{"/health?deep=1", 200, "at /health?deep=1", "HTTP/1.1 app.example"},
		{"/two", 200, "at /two", "HTTP/2.0 app.example"},
		{"/gone", 502, "the application does not answer", ""},
		{"/", 404, "this path is not exposed", ""},
		{"/health/", 404, "this path is not exposed", ""},
		{"/healthy", 404, "this path is not exposed", ""},
		{"/admin/../health", 404, "this path is not exposed", ""},
		{"/%68ealth", 404, "this path is not exposed", ""},
		{"//health", 404, "this path is not exposed", ""},
	} {
		if status, body, saw := ask(http.MethodGet, c.path); status != c.status || body != c.body || saw != c.saw {
			t.Errorf("%s: %d %q (%q), want %d %q (%q)", c.path, status, body, saw, c.status, c.body, c.saw)
		}
	}
	web.update(open(Exposed{Listen: at, Path: "/other", Local: local}))
	eventually(t, "other paths", func() bool {
		status, _, _ := ask(http.MethodGet, "/other")
		return status == http.StatusOK
	})
	if status, _, _ := ask(http.MethodGet, "/health"); status != http.StatusNotFound {
		t.Errorf("a path that is not exposed any more: %d", status)
	}
	web.update(open())
	eventually(t, "the listener to go", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err != nil && len(web.Status().Exposed) == 0
	})
}

// TestExposedConnectionsAreBounded: strangers who connect and say nothing leave no more
// than so many descriptors in use.
func TestExposedConnectionsAreBounded(t *testing.T) {
	ca := newTestCA(t, testDomain)
	web := startSidecar(t, ca, "web", func(s *Snapshot) {
		s.Expose = []Exposed{{Listen: "127.0.0.1:0", Path: "/", Local: "127.0.0.1:1"}}
	})
	eventually(t, "a listener", func() bool {
		st := web.Status().Exposed
		return len(st) == 1 && st[0].Listening
	})
	addr := web.Status().Exposed[0].Addr
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var silent []net.Conn
	defer func() {
		for _, c := range silent {
			_ = c.Close()
		}
	}()
	for range maxExposedConns {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		must(t, err)
		silent = append(silent, c)
	}
	// One more finds no place, and is told at once.
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return // before it had the connection in hand
	}
	silent = append(silent, c)
	_ = c.SetReadDeadline(time.Now().Add(exposedHeaderTime / 2))
	if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the one too many was taken: %v", err)
	}
}

// TestExposedToSome: what is exposed for some is not served to others, who cannot take
// places either.
func TestExposedToSome(t *testing.T) {
	some := Exposed{From: []string{"127.0.0.1", "10.0.0.1"}}
	for from, want := range map[string]bool{
		"127.0.0.1:5": true, "127.9.9.9:5": true, "[::1]:5": true, "10.0.0.1:5": true, "[::ffff:10.0.0.1]:5": true,
		"10.0.0.2:5": false, "[2001:db8::1]:5": false, "nowhere": false,
	} {
		x := &exposure{}
		x.paths.Store(&map[string]Exposed{"/": some})
		if got := x.admits(from); got != want {
			t.Errorf("%s: %t", from, got)
		}
		x.paths.Store(&map[string]Exposed{"/": some, "/open": {}})
		if !x.admits(from) {
			t.Errorf("%s is turned away from a port with a path for everybody", from)
		}
	}
}
