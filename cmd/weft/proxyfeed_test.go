package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/connect"
)

// clientOf gives a client of srv, as the flags of a command would.
func clientOf(t *testing.T, srv *httptest.Server) *client {
	t.Helper()
	var cl *client
	s := streams{in: strings.NewReader(""), out: io.Discard, err: io.Discard, env: func(string) string { return "" }}
	app := newApp(s)
	app.Commands = []*cli.Command{spec{name: "x", usage: "x", flags: clientFlags(), action: func(c *cli.Context) (err error) {
		cl, err = newClient(c, s)
		return err
	}}.build()}
	if err := app.Run([]string{"weft", "x", "-http-addr", srv.URL}); err != nil {
		t.Fatal(err)
	}
	return cl
}

// The indexes of an agent that was restarted begin anew; those of the watch go on.
func TestSnapshotFeed(t *testing.T) {
	var step atomic.Int32
	var asked [4]string
	answers := []struct {
		index int
		code  int
	}{{7, 200}, {7, 200}, {0, 503}, {3, 200}} // then, wait over, agent gone, agent back
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := step.Add(1) - 1
		asked[n] = r.URL.Path + "?index=" + r.URL.Query().Get("index")
		w.Header().Set("X-Consul-Index", fmt.Sprint(answers[n].index))
		w.WriteHeader(answers[n].code)
		fmt.Fprintf(w, `{"Index":%d,"Service":"web"}`, answers[n].index)
	}))
	defer srv.Close()
	src := &httpSource{client: clientOf(t, srv), proxy: "p"}

	snap, index, err := src.Next(t.Context(), 0)
	if err != nil || index != 1 || snap.Index != 7 {
		t.Fatalf("first: %v %d %v", snap, index, err)
	}
	if _, _, err = src.Next(t.Context(), index); err == nil {
		t.Fatal("an agent that is gone must be an error")
	}
	snap, index, err = src.Next(t.Context(), index)
	if err != nil || index != 2 || snap.Index != 3 {
		t.Fatalf("after a restart: %v %d %v", snap, index, err)
	}
	if again, same, err := src.Next(t.Context(), 1); err != nil || same != 2 || again != snap {
		t.Fatalf("a version that is there: %v %d %v", again, same, err)
	}
	want := [4]string{"/v1/agent/connect/proxy/p?index=0", "/v1/agent/connect/proxy/p?index=7", "/v1/agent/connect/proxy/p?index=7", "/v1/agent/connect/proxy/p?index=0"}
	if asked != want {
		t.Errorf("asked %q", asked)
	}
}

// A proxy says how it is, again and again, also while it drains, and never too much.
func TestProxyTellsTheAgent(t *testing.T) {
	heard := make(chan told)
	metrics := connect.NewMetrics(nil)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var st told
		if r.Method != http.MethodPut || r.URL.Path != "/v1/agent/connect/proxy/p" {
			t.Errorf("%s %s", r.Method, r.URL.Path)
		}
		if r.ContentLength > maxTold+maxCounts {
			t.Errorf("%d bytes", r.ContentLength)
		}
		if err := json.NewDecoder(r.Body).Decode(&st); err != nil {
			t.Error(err)
		}
		heard <- st
		fmt.Fprint(w, "true")
	}))
	defer srv.Close()
	src := &httpSource{client: clientOf(t, srv), proxy: "p"}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	many := connect.UpstreamStatus{Instances: make([]connect.InstanceStatus, 20000)}
	go func() {
		defer close(done)
		src.tell(ctx, func() connect.Status {
			return connect.Status{Ready: true, Applied: 4, Upstreams: []connect.UpstreamStatus{many}}
		}, metrics.Counts, slog.New(slog.DiscardHandler))
	}()
	tells := func(number uint64) {
		t.Helper()
		st := <-heard
		counts, err := connect.ReadCounts(st.Metrics)
		if err != nil || !st.Ready || st.Applied != 4 || counts == nil || counts.Number != number || counts.Samples() == 0 {
			t.Errorf("%+v, %+v, %v", st, counts, err)
		}
	}
	tells(1)
	tells(2)
	cancel()
	tells(3) // what it has counted since
	<-done
}

func TestSignerSendsTheRequestAsPEM(t *testing.T) {
	var got []byte
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if p, _ := pem.Decode(b); p != nil && p.Type == "CERTIFICATE REQUEST" && r.Method == http.MethodPut {
			got = p.Bytes
		}
		fmt.Fprint(w, `{}`)
	}))
	defer srv.Close()
	_, err := (&httpSigner{client: clientOf(t, srv), service: "web"}).Sign(t.Context(), []byte("request"))
	if err == nil || err.Error() != errNoCertificate.Error() {
		t.Errorf("an answer without a certificate: %v", err)
	}
	if string(got) != "request" {
		t.Errorf("sent %q", got)
	}
}

// A proxy that the agent has forgotten registers again, and deregisters at its end.
func TestHeartbeat(t *testing.T) {
	known := false
	var registered, gone int
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/agent/service/register"):
			registered++
			known = true
		case strings.HasPrefix(r.URL.Path, "/v1/agent/service/deregister"):
			gone++
		case !known:
			http.Error(w, `Unknown check ID "p:process"`, http.StatusNotFound)
		}
	}))
	defer srv.Close()
	h := &heartbeat{client: clientOf(t, srv), registration: &api.AgentServiceRegistration{ID: "p"}, log: slog.New(slog.DiscardHandler)}
	for range 2 {
		if err := h.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if registered != 1 {
		t.Errorf("registered %d times", registered)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	h.run(ctx)
	if gone != 1 {
		t.Errorf("deregistered %d times", gone)
	}
}

func TestAdHocProxy(t *testing.T) {
	var body string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body = string(b)
		http.Error(w, "no cluster leader", http.StatusInternalServerError)
	}))
	defer srv.Close()
	code, _, errs := call(nil, "connect", "proxy", "-http-addr", srv.URL, "-service=web", "-upstream=db:9191", "-listen=:8443", "-service-addr=127.0.0.1:80")
	if code != exitFailure || !strings.Contains(errs, "no cluster leader") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	for _, want := range []string{
		`"Kind":"connect-proxy"`, `"ID":"web-proxy"`, `"Port":8443`, `"DestinationServiceName":"web"`, `"LocalServicePort":80`,
		`"external":true`, `"DestinationName":"db"`, `"LocalBindPort":9191`, `"TTL":"30s"`, `"DeregisterCriticalServiceAfter":"1m0s"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the registration lacks %s: %s", want, body)
		}
	}
	call(nil, "connect", "proxy", "-http-addr", srv.URL, "-service=web", "-upstream=db:9191", "-register", "-register-id=two", "-log-json")
	if !strings.Contains(body, `"ID":"web-proxy-two"`) || !strings.Contains(body, `"Name":"web-proxy"`) {
		t.Errorf("with -register-id: %s", body)
	}
}

func TestClientTrustsTheNamedAuthorityOnly(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `["dc1"]`) }))
	defer srv.Close()
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	ca := t.TempDir() + "/ca.pem"
	writeFile(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	addr := srv.Listener.Addr().String()
	for _, tc := range []struct {
		env  map[string]string
		code int
		err  string
	}{
		{map[string]string{"WEFT_HTTP_ADDR": "https://" + addr, "WEFT_CACERT": ca}, exitOK, ""},
		{map[string]string{"WEFT_HTTP_ADDR": addr, "CONSUL_HTTP_SSL": "1", "CONSUL_CACERT": ca}, exitOK, ""},
		{map[string]string{"WEFT_HTTP_ADDR": addr, "WEFT_HTTP_SSL": "1", "WEFT_HTTP_SSL_VERIFY": "false"}, exitOK, ""},
		{map[string]string{"WEFT_HTTP_ADDR": "https://" + addr}, exitFailure, "certificate signed by unknown authority"},
		{map[string]string{"WEFT_HTTP_ADDR": "https://" + addr, "WEFT_CACERT": ca, "WEFT_TLS_SERVER_NAME": "other"}, exitFailure, "not other"},
	} {
		code, _, errs := call(tc.env, "catalog", "datacenters")
		if code != tc.code || !strings.Contains(errs, tc.err) {
			t.Errorf("%v: exit code %d, %s", tc.env, code, errs)
		}
	}
}
