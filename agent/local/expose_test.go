package local

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func webWithChecks(defs ...*catalog.CheckDefinition) *catalog.ServiceRegistration {
	return &catalog.ServiceRegistration{Name: "web", Port: 8080, Checks: defs}
}

func httpCheck(id, url string) *catalog.CheckDefinition {
	return &catalog.CheckDefinition{CheckID: id, HTTP: url, Interval: time.Hour}
}

func exposedRange(low, high int) func(*Config) {
	return func(c *Config) { c.ExposeMinPort, c.ExposeMaxPort = low, high }
}

// TestExposedChecksGetPorts: checks of exposed services get ports that stay, those that
// cannot go through a proxy get none, and all of it ends with the exposure.
func TestExposedChecksGetPorts(t *testing.T) {
	low := freePort(t)
	s, _ := open(t, "", exposedRange(low, low+20))
	reg := webWithChecks(
		httpCheck("b", "http://localhost:8080/ready?deep=1"), httpCheck("tls", "https://localhost:8443/"),
		&catalog.CheckDefinition{CheckID: "c", GRPC: "127.0.0.1:9090/api", Interval: time.Hour},
		&catalog.CheckDefinition{CheckID: "tcp", TCP: "127.0.0.1:8080", Interval: time.Hour},
	)
	register := func(reg *catalog.ServiceRegistration) {
		t.Helper()
		if _, err := s.Register(context.Background(), reg, RegisterOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	register(reg)
	if got := s.Host().Exposed; got != nil {
		t.Errorf("exposed before anybody asked: %+v", got)
	}
	s.ExposeChecks(map[string]string{"web": "127.0.0.1"})
	host := s.Host()
	first := host.Exposed["web"]
	want := []ExposedCheck{
		{CheckID: "b", Port: host.Checks["b"].ExposedPort, Path: "/ready", Local: "localhost:8080"},
		{CheckID: "c", Port: host.Checks["c"].ExposedPort, Path: grpcHealthPath, Local: "127.0.0.1:9090", HTTP2: true},
	}
	if !reflect.DeepEqual(first, want) || want[0].Port < low || want[1].Port <= want[0].Port {
		t.Errorf("%+v, want %+v", first, want)
	}
	if host.Checks["tls"].ExposedPort != 0 || host.Checks["tcp"].ExposedPort != 0 {
		t.Error("checks that no proxy can pass on have ports")
	}
	register(webWithChecks(append(reg.Checks, httpCheck("a", "http://127.0.0.1/"))...))
	now := s.Host().Exposed["web"]
	if len(now) != 3 || !reflect.DeepEqual(now[1:], first) || now[0].Path != "/" || now[0].Local != "127.0.0.1:80" || now[0].Port <= first[1].Port {
		t.Errorf("another check moved them: %+v", now)
	}
	s.ExposeChecks(nil)
	if host := s.Host(); host.Exposed != nil || host.Checks["b"].ExposedPort != 0 {
		t.Errorf("still exposed: %+v", host.Exposed)
	}
}

// TestExposedChecksWithoutPorts: when the range is used up, the others are made directly.
func TestExposedChecksWithoutPorts(t *testing.T) {
	low := freePort(t)
	s, _ := open(t, "", exposedRange(low, low))
	if _, err := s.Register(context.Background(), webWithChecks(httpCheck("a", "http://localhost/"), httpCheck("b", "http://localhost/")), RegisterOptions{}); err != nil {
		t.Fatal(err)
	}
	s.ExposeChecks(map[string]string{"web": "127.0.0.1"})
	if c := s.Host().Checks; c["a"].ExposedPort != low || c["b"].ExposedPort != 0 {
		t.Errorf("ports %d and %d", c["a"].ExposedPort, c["b"].ExposedPort)
	}
}

// TestExposedCheckAsksTheProxy: the check goes to the port of the proxy, and the name that
// it asks for stays that of the application.
func TestExposedCheckAsksTheProxy(t *testing.T) {
	low := freePort(t)
	s, _ := open(t, "", exposedRange(low, low))
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Host+r.URL.String())
	}))
	stop := run(t, s)
	defer stop()
	if _, err := s.Register(context.Background(), webWithChecks(&catalog.CheckDefinition{
		CheckID: "a", HTTP: "http://app.invalid:8080/ready?deep=1", Interval: time.Second,
	}), RegisterOptions{}); err != nil {
		t.Fatal(err)
	}
	s.ExposeChecks(map[string]string{"web": "127.0.0.1"})
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Host().Checks["a"].ExposedPort)))
	if err != nil {
		t.Fatal(err)
	}
	proxy.Listener = ln
	proxy.Start()
	defer proxy.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for after := uint64(0); ; {
		h, index, err := s.Watch().Next(ctx, after)
		if err != nil {
			t.Fatalf("%v; the check says %+v", err, s.Host().Checks["a"])
		}
		if c := h.Checks["a"]; c.Status == catalog.StatusPassing {
			if !strings.Contains(c.Output, "app.invalid:8080/ready?deep=1") {
				t.Errorf("output %q", c.Output)
			}
			return
		}
		after = index
	}
}

// freePort is a port that was free a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}
