package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// fakeAgent answers with fixed bodies and remembers what it was asked.
type fakeAgent struct {
	*httptest.Server
	answers map[string]string // "GET /path" or "GET /path?query" to "body" or "404 body"

	mu   sync.Mutex
	seen []string // "METHOD path?query body"
}

func newFakeAgent(t *testing.T, answers map[string]string) *fakeAgent {
	t.Helper()
	f := &fakeAgent{answers: answers}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	line := r.Method + " " + r.URL.RequestURI()
	f.mu.Lock()
	f.seen = append(f.seen, strings.TrimSpace(line+" "+string(b)))
	f.mu.Unlock()
	answer, ok := f.answers[line]
	if !ok {
		answer, ok = f.answers[r.Method+" "+r.URL.Path]
	}
	if !ok {
		http.Error(w, "nothing here", http.StatusNotFound)
		return
	}
	var code int
	if n, _ := fmt.Sscanf(answer, "%d ", &code); n == 1 && code >= 300 && code < 600 {
		http.Error(w, answer[4:], code)
		return
	}
	w.Header().Set("X-Consul-Index", "7")
	fmt.Fprint(w, answer)
}

func (f *fakeAgent) asked() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.seen, "\n")
}

func (f *fakeAgent) env() map[string]string {
	return map[string]string{"WEFT_HTTP_ADDR": f.Listener.Addr().String()}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Flags come before WEFT_* and those before CONSUL_*.
func TestWhereTheAgentIs(t *testing.T) {
	answers := map[string]string{"GET /v1/catalog/datacenters": `["dc1"]`}
	f := newFakeAgent(t, answers)
	addr := f.Listener.Addr().String()
	const nowhere = "127.0.0.1:1"
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		env  map[string]string
		args []string
		code int
		err  string
	}{
		{"flag first", map[string]string{"WEFT_HTTP_ADDR": nowhere}, []string{"-http-addr", addr}, 0, ""},
		{"weft before consul", map[string]string{"WEFT_HTTP_ADDR": addr, "CONSUL_HTTP_ADDR": nowhere}, nil, 0, ""},
		{"consul last", map[string]string{"CONSUL_HTTP_ADDR": addr}, nil, 0, ""},
		{"URL", nil, []string{"-http-addr", "http://" + addr + "/"}, 0, ""},
		{"TLS to a plain port", map[string]string{"WEFT_HTTP_ADDR": addr, "CONSUL_HTTP_SSL": "true"}, nil, 1, "speaks plain HTTP"},
		{"bad switch", map[string]string{"WEFT_HTTP_SSL": "maybe"}, nil, 2, `"maybe" is neither true nor false`},
		{"bad scheme", map[string]string{"WEFT_HTTP_ADDR": "ftp://x"}, nil, 2, "begins with neither"},
		{"missing token file", map[string]string{"WEFT_HTTP_ADDR": addr, "WEFT_HTTP_TOKEN_FILE": token + "x"}, nil, 2, "token file: "},
		{"missing certificate", map[string]string{"WEFT_HTTP_ADDR": addr, "WEFT_CACERT": token + "x"}, nil, 2, "TLS settings: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, _, errs := call(tc.env, append([]string{"catalog", "datacenters"}, tc.args...)...)
			if code != tc.code || !strings.Contains(errs, tc.err) {
				t.Errorf("exit code %d, stderr %q", code, errs)
			}
		})
	}
}

func TestToken(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("X-Consul-Token")
		fmt.Fprint(w, `["dc1"]`)
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		env  map[string]string
		args []string
		want string
	}{
		{nil, nil, ""},
		{map[string]string{"CONSUL_HTTP_TOKEN": "c"}, nil, "c"},
		{map[string]string{"CONSUL_HTTP_TOKEN": "c", "WEFT_HTTP_TOKEN": "w"}, nil, "w"},
		{map[string]string{"WEFT_HTTP_TOKEN": "w"}, []string{"-token=t"}, "t"},
		{map[string]string{"WEFT_HTTP_TOKEN": "w"}, []string{"-token-file", file}, "from-file"},
		{map[string]string{"WEFT_HTTP_TOKEN_FILE": file}, nil, "from-file"},
	} {
		args := append([]string{"catalog", "datacenters", "-http-addr", srv.URL}, tc.args...)
		if code, _, errs := call(tc.env, args...); code != exitOK || got != tc.want {
			t.Errorf("%v %v: code %d, token %q, want %q; %s", tc.env, tc.args, code, got, tc.want, errs)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `["dc1"]`)
	})}}
	srv.Start()
	defer srv.Close()
	if code, out, errs := call(nil, "catalog", "datacenters", "-http-addr", "unix://"+path); code != exitOK || out != "dc1\n" {
		t.Errorf("code %d, out %q, err %q", code, out, errs)
	}
}

func TestValidate(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.hcl"), []byte("datacenter = \"x\"\nraft_protocol = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := call(nil, "validate", "-dev", dir)
	if code != exitOK || out != "Configuration is valid!\n" || !strings.Contains(errs, "a.hcl:2: raft_protocol is ignored: ") {
		t.Errorf("code %d, out %q, err %q", code, out, errs)
	}
	for src, want := range map[string]string{
		`connect { ca_config { leaf_cert_ttl = "1s" } }`:                      "-hcl:1: connect.ca_config: ",
		`connect { ca_config { nope = "1s" } }`:                               "nope",
		`check { name = "c" }`:                                                "c",
		`service { name = "a" connect { sidecar_service { port = 99999 } } }`: "99999",
	} {
		code, _, errs = call(nil, "validate", "-dev", "-hcl", src, dir)
		if code != exitFailure || !strings.Contains(errs, want) {
			t.Errorf("%s: code %d, err %q", src, code, errs)
		}
	}
	code, out, errs = call(nil, "validate", "-dev", "-hcl", `service { name = "a_b" port = 1 }`, dir)
	if code != exitOK || out == "" || !strings.Contains(errs, "a_b") {
		t.Errorf("a name that DNS cannot carry: code %d, out %q, err %q", code, out, errs)
	}
	code, _, errs = call(nil, "validate", "-dev", "-hcl", "nope = 1", dir)
	if code != exitFailure || !strings.Contains(errs, "-hcl:1: nope: unknown key") {
		t.Errorf("code %d, err %q", code, errs)
	}
}
