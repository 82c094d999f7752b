package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// run serves until the test ends, or stop is called; stop gives the error of Run.
func (r *rig) run() (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.api.Run(ctx) }()
	stopped := false
	var err error
	stop = func() error {
		if !stopped {
			stopped = true
			cancel()
			err = <-done
		}
		return err
	}
	r.t.Cleanup(func() {
		if err := stop(); err != nil {
			r.t.Error(err)
		}
	})
	return stop
}

func TestRunServesTCPAndUnix(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "weft.sock")
	r := newRig(t, func(c *Config) {
		c.Addrs = []string{"127.0.0.1:0", "unix://" + sock}
		c.Unix = UnixSockets{Mode: 0o660, UID: -1, GID: os.Getgid()}
	})
	stop := r.run()
	if info, err := os.Stat(sock); err != nil || info.Mode().Perm() != 0o660 {
		t.Fatal(info, err)
	}
	dial := func(network, addr string) *http.Client {
		tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	for _, c := range []*http.Client{dial("tcp", r.api.Addrs()[0].String()), dial("unix", sock)} {
		resp, err := c.Get("http://localhost/v1/catalog/datacenters")
		if err != nil {
			t.Fatal(err)
		}
		if body := readAll(t, resp.Body); body != `["dc1"]` {
			t.Fatal(body)
		}
		_ = resp.Body.Close()
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(sock); !os.IsNotExist(err) {
		t.Fatal("the socket file stays behind", err)
	}
}

// deadlines records how long a client has for its request.
type deadlines struct {
	*httptest.ResponseRecorder
	set []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.set = append(d.set, t)
	return nil
}

// TestOnlyBodiesHaveADeadline: a write without one may take its time, as one that waits
// until it is in force everywhere does.
func TestOnlyBodiesHaveADeadline(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		method, target, body string
		want                 int
	}{
		{"DELETE", "/v1/connect/intentions/exact?source=web&destination=db", "", 0},
		{"PUT", "/v1/agent/maintenance?enable=false", "", 0},
		{"PUT", "/v1/connect/intentions/exact?source=web&destination=db", `{"Action":"allow"}`, 2}, // set, and taken back
	} {
		rec := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		req := httptest.NewRequest(c.method, c.target, strings.NewReader(c.body))
		req.Host = "127.0.0.1:8500"
		r.api.Handler().ServeHTTP(rec, req)
		if rec.Code != http.StatusOK || len(rec.set) != c.want || c.want > 0 && !rec.set[c.want-1].IsZero() {
			t.Errorf("%s %s: %d %s, deadlines %v", c.method, c.target, rec.Code, rec.Body, rec.set)
		}
	}
}

func TestBindRefusals(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	live := filepath.Join(dir, "live")
	l, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for addr, want := range map[string]string{
		"unix://" + file: "is no socket", "unix://" + live: "another process serves", taken.Addr().String(): "in use", "nonsense": "nonsense",
	} {
		if _, err := listen(addr, UnixSockets{Mode: 0o600, UID: -1, GID: -1}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", addr, err, want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "data" {
		t.Fatal("a file was touched")
	}
	// What a killed agent left behind is no obstacle.
	stale := filepath.Join(dir, "stale")
	s, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	s.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = s.Close()
	again, err := listen("unix://"+stale, UnixSockets{Mode: 0o600, UID: -1, GID: -1})
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

func TestConfigIsValidated(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Fatal("nothing is enough")
	}
	r := newRig(t)
	cfg := r.api.cfg
	cfg.Registerer = nil
	cfg.Addrs = []string{"127.0.0.1:0", "256.0.0.1:1"}
	if _, err := New(cfg); err == nil {
		t.Fatal("an impossible address was bound")
	}
}

// Blocked queries must not hold up the end of the agent.
func TestShutdownEndsBlockedQueries(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Addrs = []string{"127.0.0.1:0"}; c.ShutdownGrace = 10 * time.Second })
	stop := r.run()
	index := r.do("GET", "/v1/catalog/nodes", "").header.Get("X-Consul-Index")
	answered := make(chan int, 1)
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	go func() {
		resp, err := (&http.Client{Transport: tr}).Get("http://" + r.api.Addrs()[0].String() + "/v1/catalog/nodes?wait=9m&index=" + index)
		if err != nil {
			answered <- 0
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		answered <- resp.StatusCode
	}()
	eventually(t, "the request waits", func() bool { return r.servers.waiting(index) })
	start := time.Now()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; got != http.StatusServiceUnavailable {
		t.Fatalf("answered %d", got)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Fatalf("the end took %v", d)
	}
}

func TestConnectionsPerClient(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Addrs = []string{"127.0.0.1:0"}; c.MaxConnsPerClient = 2 })
	r.run()
	addr := r.api.Addrs()[0].String()
	ask := func(c net.Conn) string {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, "GET /v1/status/leader HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			return "refused: " + err.Error()
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return "refused: " + err.Error()
		}
		return line
	}
	open := func() net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	a, b := open(), open()
	if got := ask(a); !strings.Contains(got, "200") {
		t.Fatal(got)
	}
	if got := ask(b); !strings.Contains(got, "200") {
		t.Fatal(got)
	}
	c := open()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if line, _ := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, "429") {
		t.Fatalf("the third connection got %q", line)
	}
	r.api.SetMaxConnsPerClient(3)
	if got := ask(open()); !strings.Contains(got, "200") {
		t.Fatalf("with a higher limit: %s", got)
	}
	r.api.SetMaxConnsPerClient(2)
	_ = a.Close()
	_ = b.Close()
	eventually(t, "a place is free again", func() bool { return strings.Contains(ask(open()), "200") })
}

func TestMonitorStreams(t *testing.T) {
	r := newRig(t)
	r.want(r.do("GET", "/v1/agent/monitor?loglevel=bogus", ""), 400, "Unknown log level: bogus")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/v1/agent/monitor?loglevel=debug&logjson=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || !strings.Contains(lines.Text(), "log monitor attached") {
		t.Fatalf("first line %q", lines.Text())
	}
	r.api.cfg.Logger.With("service", "web").WithGroup("g").Debug("hello", "err", "x")
	for lines.Scan() {
		var rec map[string]any
		if err := json.Unmarshal(lines.Bytes(), &rec); err != nil {
			t.Fatal(err)
		}
		if rec["msg"] == "hello" {
			if rec["service"] != "web" || rec["g"].(map[string]any)["err"] != "x" {
				t.Fatal(rec)
			}
			return
		}
	}
	t.Fatal("the record did not come")
}
