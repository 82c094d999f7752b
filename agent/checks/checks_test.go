package checks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/weftmesh/weft/catalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// once runs a check a single time, without the wait before.
func once(t *testing.T, def *catalog.CheckDefinition) (catalog.Status, string) {
	t.Helper()
	if def.Interval == 0 {
		def.Interval = time.Hour
	}
	var rec recorder
	r, err := New(def, Options{Report: rec.report})
	if err != nil {
		t.Fatal(err)
	}
	r.(*periodic).once(context.Background())
	return rec.take()
}

func TestHTTP(t *testing.T) {
	var seen *http.Request
	var body string
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen, body = r, string(b)
		fmt.Fprint(w, "fine")
	})
	mux.HandleFunc("/busy", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTooManyRequests) })
	mux.HandleFunc("/bad", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "broken", http.StatusInternalServerError) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusFound) })
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	mux.HandleFunc("/kept", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusTemporaryRedirect) })
	mux.HandleFunc("/long", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Repeat("x", 10000)) })
	mux.HandleFunc("/cut", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, "part")
	})
	stream := func(first string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, first)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}
	mux.HandleFunc("/stream", stream("tick"))
	mux.HandleFunc("/endless", stream(strings.Repeat("x", 5000)))
	srv := httptest.NewServer(mux)
	defer srv.Close()

	for _, c := range []struct {
		path   string
		edit   func(*catalog.CheckDefinition)
		status catalog.Status
		output string
	}{
		{"/ok", nil, "passing", "HTTP GET " + srv.URL + "/ok: 200 OK Output: fine"},
		{"/busy", nil, "warning", "429 Too Many Requests"},
		{"/bad", nil, "critical", "500 Internal Server Error Output: broken"},
		{"/away", nil, "passing", "200 OK Output: fine"},
		{"/away", func(d *catalog.CheckDefinition) { d.DisableRedirects = true }, "critical", "302 Found"},
		{"/kept", nil, "passing", "200 OK Output: fine"},
		{"/kept", func(d *catalog.CheckDefinition) { d.Method = http.MethodPut }, "critical", "307 Temporary Redirect"},
		{"/round", nil, "critical", "stopped after 10 redirects"},
		{"/cut", nil, "passing", "200 OK Output: part"},
		{"/stream", func(d *catalog.CheckDefinition) { d.Timeout = time.Second }, "passing", "200 OK Output: tick"},
		{"/endless", func(d *catalog.CheckDefinition) { d.Timeout = time.Hour }, "passing", " ... (captured 4096 of 5000 bytes)"},
		{"/long", nil, "passing", " ... (captured 4096 of 10000 bytes)"},
		{"/ok", func(d *catalog.CheckDefinition) { d.HTTP = strings.Replace(d.HTTP, "127.0.0.1", "[127.0.0.1]", 1) }, "passing", "200 OK"},
		{"/long", func(d *catalog.CheckDefinition) { d.OutputMaxSize = 10 }, "passing", "xxxxxxxxxx ... (captured 10 of 10000 bytes)"},
	} {
		def := &catalog.CheckDefinition{HTTP: srv.URL + c.path}
		if c.edit != nil {
			c.edit(def)
		}
		def.Interval = time.Second
		if _, err := Validate(def); err != nil {
			t.Errorf("%s: %v", c.path, err)
		}
		if status, output := once(t, def); status != c.status || !strings.Contains(output, c.output) {
			t.Errorf("%s: %s, %s", c.path, status, output)
		}
	}
	once(t, &catalog.CheckDefinition{
		HTTP: srv.URL + "/ok", Method: http.MethodPut, Body: "ping",
		Header: map[string][]string{"Host": {"web.example"}, "X-A": {"b", "c"}},
	})
	if seen.Method != http.MethodPut || body != "ping" || seen.Host != "web.example" || len(seen.Header["X-A"]) != 2 ||
		seen.UserAgent() != UserAgent || !seen.Close {
		t.Errorf("request: %s %q %v %+v", seen.Method, body, seen.Host, seen.Header)
	}
}

func TestHTTPSecretsStayOut(t *testing.T) {
	_, output := once(t, &catalog.CheckDefinition{HTTP: "http://user:hunter2@127.0.0.1:1/"})
	if strings.Contains(output, "hunter2") {
		t.Errorf("the output has the password: %s", output)
	}
	_, err := Validate(&catalog.CheckDefinition{HTTP: "http://user:hunter2@h:bad/", Interval: time.Second})
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}

func TestTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	for name, c := range map[string]struct {
		def    catalog.CheckDefinition
		status catalog.Status
	}{
		"http unverified":   {catalog.CheckDefinition{HTTP: srv.URL}, "critical"},
		"http skip":         {catalog.CheckDefinition{HTTP: srv.URL, TLSSkipVerify: true}, "passing"},
		"tcp plain":         {catalog.CheckDefinition{TCP: addr}, "passing"},
		"tcp unverified":    {catalog.CheckDefinition{TCP: addr, TCPUseTLS: true}, "critical"},
		"tcp skip":          {catalog.CheckDefinition{TCP: addr, TCPUseTLS: true, TLSSkipVerify: true}, "passing"},
		"h2ping skip":       {catalog.CheckDefinition{H2PING: addr, H2PingUseTLS: true, TLSSkipVerify: true}, "passing"},
		"h2ping unverified": {catalog.CheckDefinition{H2PING: addr, H2PingUseTLS: true}, "critical"},
	} {
		if status, output := once(t, &c.def); status != c.status {
			t.Errorf("%s: %s, %s", name, status, output)
		}
	}
}

func TestTCPAndUDP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if status, output := once(t, &catalog.CheckDefinition{TCP: addr}); status != "passing" || output != "TCP connect "+addr+": Success" {
		t.Errorf("%s, %s", status, output)
	}
	_ = ln.Close()
	if status, output := once(t, &catalog.CheckDefinition{TCP: addr}); status != "critical" || !strings.Contains(output, "refused") {
		t.Errorf("%s, %s", status, output)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = pc.LocalAddr().String()
	if status, output := once(t, &catalog.CheckDefinition{UDP: addr, Timeout: 50 * time.Millisecond}); status != "passing" {
		t.Errorf("silence: %s, %s", status, output)
	}
	_ = pc.Close()
	if status, output := once(t, &catalog.CheckDefinition{UDP: addr}); status != "critical" || !strings.Contains(output, "refused") {
		t.Errorf("refusal: %s, %s", status, output)
	}
}

func TestGRPC(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	hs := health.NewServer()
	hs.SetServingStatus("up", healthpb.HealthCheckResponse_SERVING)
	hs.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(srv, hs)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	defer func() { srv.Stop(); <-done }()
	addr := ln.Addr().String()
	for target, want := range map[string]catalog.Status{
		addr: "passing", addr + "/up": "passing", addr + "/down": "critical", addr + "/unknown": "critical", "127.0.0.1:1": "critical",
	} {
		if status, output := once(t, &catalog.CheckDefinition{GRPC: target, Timeout: 5 * time.Second}); status != want {
			t.Errorf("%s: %s, %s", target, status, output)
		}
	}
}

func TestThresholds(t *testing.T) {
	for _, c := range []struct {
		name    string
		def     catalog.CheckDefinition
		results string // p, w, c
		want    string // the status after each; - for none yet
	}{
		{"none", catalog.CheckDefinition{}, "pcwpc", "pcwpc"},
		{"first counts, bad", catalog.CheckDefinition{SuccessBeforePassing: 3, FailuresBeforeCritical: 3}, "cppp", "cccp"},
		{"first counts, good", catalog.CheckDefinition{SuccessBeforePassing: 3, FailuresBeforeCritical: 3}, "pcccp", "pppcc"},
		{"in a row", catalog.CheckDefinition{FailuresBeforeCritical: 2}, "pcpcpcc", "ppppppc"},
		{"warning between", catalog.CheckDefinition{FailuresBeforeWarning: 1, FailuresBeforeCritical: 3}, "pcccp", "pwwcp"},
		{"warnings are successes", catalog.CheckDefinition{SuccessBeforePassing: 2}, "cwww", "ccww"},
	} {
		now := "-"
		th := newThresholds(&c.def, func(s catalog.Status, _ string) { now = s[:1] })
		got := ""
		for _, r := range c.results {
			th.result(map[rune]string{'p': "passing", 'w': "warning", 'c': "critical"}[r], "")
			got += now
		}
		if got != c.want {
			t.Errorf("%s: %s gave %s, want %s", c.name, c.results, got, c.want)
		}
	}
}

func TestTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		start := time.Now()
		p := &periodic{
			interval: 10 * time.Second,
			timeout:  3 * time.Second,
			judge:    newThresholds(&catalog.CheckDefinition{}, func(catalog.Status, string) {}),
			probe: func(ctx context.Context) (catalog.Status, string) {
				at = append(at, time.Since(start))
				if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) != 3*time.Second {
					t.Error("the probe has no deadline")
				}
				return catalog.StatusPassing, ""
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		go p.Run(ctx)
		time.Sleep(61 * time.Second)
		cancel()
		synctest.Wait()
		if len(at) < 6 || len(at) > 7 {
			t.Fatalf("%d runs in a minute", len(at))
		}
		if at[0] >= firstRunWithin || at[1]-at[0] < 5*time.Second || at[1]-at[0] >= 10*time.Second || at[2]-at[1] != 10*time.Second {
			t.Errorf("runs at %v", at)
		}
	})
}

func TestStoppedProbeSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &periodic{
			interval: time.Second,
			timeout:  time.Hour,
			judge:    newThresholds(&catalog.CheckDefinition{}, func(s catalog.Status, _ string) { t.Errorf("reported %s", s) }),
			probe: func(ctx context.Context) (catalog.Status, string) {
				<-ctx.Done()
				return catalog.StatusCritical, "stopped"
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		go p.Run(ctx)
		time.Sleep(10 * time.Second)
		cancel()
		synctest.Wait()
	})
}

// recorder keeps the last verdict.
type recorder struct {
	mu     sync.Mutex
	status catalog.Status
	output string
}

func (r *recorder) report(s catalog.Status, o string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status, r.output = s, o
}

func (r *recorder) take() (catalog.Status, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, o := r.status, r.output
	r.status = ""
	return s, o
}

func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rec recorder
		def := &catalog.CheckDefinition{TTL: 10 * time.Second}
		ttl := NewTTL(def, rec.report, 4*time.Second, "old")
		ctx, cancel := context.WithCancel(t.Context())
		go ttl.Run(ctx)
		expect := func(after time.Duration, s, o string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if status, output := rec.take(); status != s || output != o {
				t.Errorf("after %s: %s, %q; want %s, %q", after, status, output, s, o)
			}
		}
		expect(3*time.Second, "", "")
		expect(2*time.Second, "critical", "TTL expired (last output before timeout follows): old")
		if shown, expires := ttl.Update("passing", ""); shown != "" || time.Until(expires) != 10*time.Second {
			t.Errorf("%q %s", shown, expires)
		}
		expect(9*time.Second, "passing", "")
		ttl.Update("warning", "")
		expect(9*time.Second, "warning", "")
		expect(2*time.Second, "critical", "TTL expired")
		expect(time.Hour, "", "TTL expired") // said once
		cancel()
		synctest.Wait()
	})
}

func TestAlias(t *testing.T) {
	check := func(name, status, service string) *catalog.Check {
		return &catalog.Check{Name: name, Status: status, ServiceID: service, Output: "out"}
	}
	for _, c := range []struct {
		target Target
		status catalog.Status
		output string
	}{
		{Target{}, "critical", "X could not be found."},
		{Target{Exists: true}, "passing", "No checks found."},
		{Target{Exists: true, Checks: []*catalog.Check{check("a", "passing", "s")}}, "passing", "All checks passing."},
		{Target{Exists: true, Checks: []*catalog.Check{check("a", "critical", "s"), check("b", "warning", "s")}}, "critical", `Aliased check "a" failing: out`},
		{Target{Exists: true, Checks: []*catalog.Check{check("b", "warning", ""), check("a", "passing", "s")}}, "warning", `Aliased check "b" failing: out`},
		{Target{Exists: true, Checks: []*catalog.Check{{Type: TypeAlias, Status: "critical"}}}, "passing", "No checks found."},
	} {
		if status, output := AliasStatus("X", c.target); status != c.status || output != c.output {
			t.Errorf("%+v: %s, %q", c.target, status, output)
		}
	}
}

func TestAliasRunner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var src catalog.Latest[Target]
		var rec recorder
		r, err := New(&catalog.CheckDefinition{AliasNode: "n2", AliasService: "web"}, Options{
			Target: &src,
			Report: rec.report,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go r.Run(ctx)
		for _, step := range []struct {
			target Target
			status string
		}{{Target{Exists: true}, "passing"}, {Target{}, "critical"}} {
			src.Publish(step.target)
			synctest.Wait()
			if status, _ := rec.take(); status != step.status {
				t.Errorf("%+v: %s", step.target, status)
			}
		}
		src.Close(errors.New("gone"))
		synctest.Wait()
		if status, output := rec.take(); status != "critical" || !strings.Contains(output, "gone") {
			t.Errorf("%s, %s", status, output)
		}
		cancel()
		synctest.Wait()
	})
	if _, err := New(&catalog.CheckDefinition{AliasNode: "n2"}, Options{}); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("without a target: %v", err)
	}
}

func TestValidate(t *testing.T) {
	sec := time.Second
	for words, def := range map[string]catalog.CheckDefinition{
		"one kind":                            {HTTP: "http://x", TCP: "x:1", Interval: sec},
		"TTL must be > 0":                     {Interval: sec},
		"Interval must be > 0":                {GRPC: "x"},
		"both be specified":                   {TTL: sec, Interval: sec, HTTP: "http://x"},
		"Interval cannot be set for alias":    {AliasService: "x", Interval: sec},
		"TTL cannot be set for alias":         {AliasService: "x", TTL: sec},
		"can't be higher":                     {TTL: sec, FailuresBeforeWarning: 2, FailuresBeforeCritical: 1},
		"OutputMaxSize cannot be negative":    {TTL: sec, OutputMaxSize: -1},
		"Timeout cannot be negative":          {TTL: sec, Timeout: -1},
		"want http://":                        {HTTP: "ftp://x", Interval: sec},
		"no HTTP method":                      {HTTP: "http://x", Method: "G T", Interval: sec},
		"no header name":                      {HTTP: "http://x", Header: map[string][]string{"a b": nil}, Interval: sec},
		"no header can carry":                 {HTTP: "http://x", Header: map[string][]string{"a": {"b\n"}}, Interval: sec},
		`TCP "x": want host:port`:             {TCP: "x", Interval: sec},
		"host:port[/service]":                 {GRPC: "/svc", Interval: sec},
		"type docker are not supported":       {DockerContainerID: "x", Interval: sec},
		"there is one tenancy":                {TTL: sec, Namespace: "x"},
		"shell is for checks of type docker,": {TTL: sec, Shell: "/bin/sh"},
	} {
		_, err := Validate(&def)
		if !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
	for _, def := range []catalog.CheckDefinition{
		{TTL: 1},
		{AliasNode: "n"},
		{AliasService: "s"},
		{HTTP: "https://x:1/y?z", Interval: sec},
		{TCP: "[::1]:1", Interval: sec},
		{GRPC: "h:1/s", Interval: sec},
		{TTL: sec, Namespace: "default"},
	} {
		if w, err := Validate(&def); err != nil || len(w) != 0 {
			t.Errorf("%+v: %v %v", def, w, err)
		}
	}
}

func TestTruncate(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"abc", 3, "abc"},
		{"abcd", 3, "abc ... (captured 3 of 4 bytes)"},
		{"a\xffb", 10, "a\uFFFDb"},
		{"aé", 2, "a\uFFFD ... (captured 2 of 3 bytes)"},
		{strings.Repeat("x", 4096), 0, strings.Repeat("x", 4096)},
	} {
		if got := Truncate(c.in, c.limit); got != c.want {
			t.Errorf("%q cut to %d: %q", c.in, c.limit, got)
		}
	}
}
