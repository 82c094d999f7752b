package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft/catalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// servers is a Syncer that remembers what it was told.
type servers struct {
	mu    sync.Mutex
	fail  error
	calls int
	state catalog.NodeState
}

func (f *servers) Sync(_ context.Context, want catalog.NodeState) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.fail != nil {
		return 0, f.fail
	}
	f.state = want
	return uint64(f.calls), nil
}

func (f *servers) setFail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

func (f *servers) last() (catalog.NodeState, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state, f.calls
}

func (f *servers) check(id string) *catalog.Check {
	state, _ := f.last()
	for _, c := range state.Checks {
		if c.CheckID == id {
			return c
		}
	}
	return nil
}

func open(t *testing.T, dir string, edit func(*Config)) (*State, *servers) {
	t.Helper()
	f := &servers{}
	cfg := Config{
		Node:    &catalog.Node{Node: "n1", ID: "id", Address: "127.0.0.1"},
		DataDir: dir,
		Syncer:  f,
		Logger:  slog.New(slog.DiscardHandler),
	}
	if edit != nil {
		edit(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, f
}

func run(t *testing.T, s *State) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func register(t *testing.T, s *State, js string) []string {
	t.Helper()
	w, err := tryRegister(s, js, RegisterOptions{})
	if err != nil {
		t.Fatalf("%s: %v", js, err)
	}
	return w
}

func tryRegister(s *State, js string, opt RegisterOptions) ([]string, error) {
	var reg catalog.ServiceRegistration
	if err := catalog.DecodeJSON([]byte(js), &reg); err != nil {
		return nil, err
	}
	return s.Register(context.Background(), &reg, opt)
}

func tryCheck(s *State, js string) error {
	var def catalog.CheckDefinition
	if err := catalog.DecodeJSON([]byte(js), &def); err != nil {
		return err
	}
	_, err := s.RegisterCheck(context.Background(), &def)
	return err
}

func ids[T any](m map[string]T) string { return strings.Join(slices.Sorted(maps.Keys(m)), " ") }

func TestDefaults(t *testing.T) {
	s, _ := open(t, "", nil)
	register(t, s, `{"Name":"full","ID":"f1","Address":"10.1.2.3","Port":8080}`)
	svc := s.Host().Services["f1"]
	if svc.Tags == nil || svc.Meta == nil || *svc.Weights != (catalog.Weights{Passing: 1, Warning: 1}) {
		t.Errorf("defaults: %+v", svc)
	}
	want := catalog.ServiceAddress{Address: "10.1.2.3", Port: 8080}
	if len(svc.TaggedAddresses) != 2 || svc.TaggedAddresses["lan_ipv4"] != want || svc.TaggedAddresses["wan_ipv4"] != want {
		t.Errorf("tagged addresses: %v", svc.TaggedAddresses)
	}
	register(t, s, `{"Name":"six","Address":"::1","Port":1}`)
	if a := s.Host().Services["six"].TaggedAddresses["lan_ipv6"]; a.Address != "::1" {
		t.Errorf("IPv6: %v", a)
	}
}

func TestCheckIDsAndNames(t *testing.T) {
	s, _ := open(t, "", nil)
	register(t, s, `{"Name":"one","Check":{"TTL":"1h"}}`)
	register(t, s, `{"Name":"m","Check":{"TTL":"1h","Status":"passing"},"Checks":[{"TTL":"1h","Name":"named"},{"TTL":"1h","CheckID":"own","Notes":"hi","Status":"warning"}]}`)
	h := s.Host()
	if got := ids(h.Checks); got != "own service:m:1 service:m:2 service:one" {
		t.Fatalf("checks %s", got)
	}
	for id, want := range map[string]catalog.Check{
		"service:one": {Name: "Service 'one' check", Status: "critical", ServiceID: "one"},
		"service:m:1": {Name: "Service 'm' check", Status: "passing", ServiceID: "m"},
		"service:m:2": {Name: "named", Status: "critical", ServiceID: "m"},
		"own":         {Name: "Service 'm' check", Status: "warning", ServiceID: "m", Notes: "hi"},
	} {
		got := h.Checks[id]
		if got.Name != want.Name || got.Status != want.Status || got.ServiceID != want.ServiceID || got.Notes != want.Notes ||
			got.Type != "ttl" || got.Node != "n1" || got.Interval != "" {
			t.Errorf("%s: %+v", id, got)
		}
	}
	if err := tryCheck(s, `{"Name":"t","TTL":"1h"}`); err != nil {
		t.Fatal(err)
	}
	if c := s.Host().Checks["t"]; c.Interval != "0s" || c.Timeout != "0s" {
		t.Errorf("a check of its own shows zero times: %+v", c)
	}
}

func TestReregisterKeepsChecks(t *testing.T) {
	s, _ := open(t, "", nil)
	register(t, s, `{"Name":"r","Tags":["a"],"Check":{"CheckID":"c1","TTL":"1h"}}`)
	if err := s.UpdateTTL("c1", "passing", "ok"); err != nil {
		t.Fatal(err)
	}
	register(t, s, `{"Name":"r","Tags":["b"]}`)
	if c := s.Host().Checks["c1"]; c == nil || c.ServiceTags[0] != "a" || c.Status != "passing" {
		t.Fatalf("c1 after registering without checks: %+v", c)
	}
	register(t, s, `{"Name":"r","Tags":["b"],"Check":{"CheckID":"c1","TTL":"2h"}}`)
	if c := s.Host().Checks["c1"]; c.Status != "passing" || c.Output != "ok" || c.ServiceTags[0] != "b" {
		t.Fatalf("a changed definition lost the status: %+v", c)
	}
	if err := s.ServiceMaintenance("r", true, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := tryRegister(s, `{"Name":"r","Check":{"CheckID":"c2","TTL":"1h"}}`, RegisterOptions{ReplaceExistingChecks: true}); err != nil {
		t.Fatal(err)
	}
	if got := ids(s.Host().Checks); got != "_service_maintenance:r c2" {
		t.Fatalf("replaced: %s", got)
	}
}

func TestSidecar(t *testing.T) {
	s, _ := open(t, "", nil)
	register(t, s, `{"Name":"web","ID":"web-7","Port":8080,"Tags":["t"],"Meta":{"m":"1"},"Weights":{"Passing":7,"Warning":2},"Connect":{"SidecarService":{"Proxy":{"MeshGateway":{"Mode":"remote"},"Upstreams":[{"DestinationName":"db","LocalBindPort":9001}]}}}}`)
	h := s.Host()
	side := h.Services["web-7-sidecar-proxy"]
	if side == nil {
		t.Fatalf("no sidecar: %s", ids(h.Services))
	}
	p := side.Proxy
	if side.Service != "web-sidecar-proxy" || side.Kind != catalog.KindConnectProxy || side.Port < 21000 || side.Port > 21255 || side.Tags[0] != "t" ||
		side.Meta["m"] != "1" || side.Weights.Passing != 7 ||
		p.DestinationServiceName != "web" || p.DestinationServiceID != "web-7" || p.LocalServiceAddress != "127.0.0.1" || p.LocalServicePort != 8080 {
		t.Errorf("sidecar: %+v", side)
	}
	if u := p.Upstreams[0]; u.DestinationType != "service" || u.MeshGateway.Mode != "remote" {
		t.Errorf("upstream: %+v", u)
	}
	if h.Services["web-7"].Connect.SidecarService != nil {
		t.Error("the service still carries the stanza")
	}
	listening, aliasing := h.Checks["service:web-7-sidecar-proxy:1"], h.Checks["service:web-7-sidecar-proxy:2"]
	if listening == nil || listening.Name != "Connect Sidecar Listening" || listening.Type != "tcp" || listening.Interval != "10s" || listening.Status != "critical" {
		t.Errorf("listening: %+v", listening)
	}
	if aliasing == nil || aliasing.Name != "Connect Sidecar Aliasing web-7" || aliasing.Type != "alias" || aliasing.Status != "passing" || aliasing.Interval != "" {
		t.Errorf("aliasing: %+v", aliasing)
	}
	s.SetListening("web-7-sidecar-proxy", true, "listening on :21000")
	if c := s.Host().Checks["service:web-7-sidecar-proxy:1"]; c.Status != "passing" || c.Output != "listening on :21000" {
		t.Errorf("after SetListening: %+v", c)
	}
	// The definition asks for no sidecar any more.
	register(t, s, `{"Name":"web","ID":"web-7","Port":8080}`)
	if got := ids(s.Host().Services); got != "web-7" || len(s.Host().Checks) != 0 {
		t.Errorf("left over: %s, %s", got, ids(s.Host().Checks))
	}
}

func TestSidecarListeningBeforeRegistration(t *testing.T) {
	s, _ := open(t, "", nil)
	js := `{"Name":"web","Port":1,"Connect":{"SidecarService":{}}}`
	register(t, s, js)
	s.SetListening("web-sidecar-proxy", true, "up")
	if err := s.Deregister(context.Background(), "web"); err != nil {
		t.Fatal(err)
	}
	register(t, s, js) // so fast that whoever runs the proxy saw nothing
	if c := s.Host().Checks["service:web-sidecar-proxy:1"]; c.Status != "passing" {
		t.Errorf("%+v", c)
	}
}

// threePorts finds three ports in a row that are free, below those that connections
// of other programs take.
func threePorts(t *testing.T) int {
	t.Helper()
	for range 1000 {
		if p := 10_000 + rand.IntN(20_000); listenable(p) && listenable(p+1) && listenable(p+2) {
			return p
		}
	}
	t.Fatal("no three free ports in a row")
	return 0
}

func TestSidecarPorts(t *testing.T) {
	first := threePorts(t)
	s, _ := open(t, "", func(c *Config) { c.SidecarMinPort, c.SidecarMaxPort = first, first+2 })
	ctx := context.Background()
	port := func(id string) int { return s.Host().Services[id+"-sidecar-proxy"].Port }
	for i, n := range []string{"s0", "s1", "s2"} {
		register(t, s, `{"Name":"`+n+`","Port":80,"Connect":{"SidecarService":{}}}`)
		if port(n) != first+i {
			t.Fatalf("%s got %d", n, port(n))
		}
	}
	_, err := tryRegister(s, `{"Name":"s3","Port":80,"Connect":{"SidecarService":{}}}`, RegisterOptions{})
	if !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "s3") || !strings.Contains(err.Error(), "sidecar_max_port") {
		t.Fatalf("no port left: %v", err)
	}
	if s.Host().Services["s3"] != nil {
		t.Fatal("a refused registration left its service")
	}
	if err := s.Deregister(ctx, "s0"); err != nil {
		t.Fatal(err)
	}
	register(t, s, `{"Name":"s2","Port":81,"Connect":{"SidecarService":{}}}`)
	register(t, s, `{"Name":"s9","Port":80,"Connect":{"SidecarService":{}}}`)
	if port("s2") != first+2 || port("s9") != first {
		t.Fatalf("s2 kept %d, s9 got %d", port("s2"), port("s9"))
	}
	_, err = tryRegister(s, fmt.Sprintf(`{"Name":"dup","Port":80,"Connect":{"SidecarService":{"Port":%d}}}`, first+2), RegisterOptions{})
	if !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "s2-sidecar-proxy") {
		t.Fatalf("duplicate port: %v", err)
	}
	register(t, s, fmt.Sprintf(`{"Name":"ext","Port":80,"Connect":{"SidecarService":{"Port":%d,"Proxy":{"Config":{"external":true}}}}}`, first+2))
	if c := s.checks["service:ext-sidecar-proxy:1"]; c.fact {
		t.Error("the listener of a proxy that runs elsewhere is no fact of this agent")
	}
}

// Instances of one service are no more than one at the mesh port.
func TestMeshPortIsForOneInstance(t *testing.T) {
	first, mesh := threePorts(t), 9
	s, _ := open(t, "", func(c *Config) { c.MeshPort, c.SidecarMinPort, c.SidecarMaxPort = mesh, first, first+2 })
	add := func(id, name string) int {
		register(t, s, `{"ID":"`+id+`","Name":"`+name+`","Port":80,"Connect":{"SidecarService":{}}}`)
		return s.Host().Services[id+"-sidecar-proxy"].Port
	}
	for range 2 { // a registration that is repeated changes nothing
		for id, want := range map[string]int{"web-1": mesh, "db-1": mesh} {
			if got := add(id, id[:len(id)-2]); got != want {
				t.Fatalf("%s has %d, want %d", id, got, want)
			}
		}
		if got := add("web-2", "Web"); got != first {
			t.Fatalf("the second instance has %d, want %d", got, first)
		}
	}
	explicit := fmt.Sprintf(`{"ID":"web-3","Name":"web","Port":80,"Connect":{"SidecarService":{"Port":%d}}}`, mesh)
	if _, err := tryRegister(s, explicit, RegisterOptions{}); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "web-1-sidecar-proxy") {
		t.Fatalf("two at the mesh port: %v", err)
	}
	if err := s.Deregister(context.Background(), "web-1"); err != nil {
		t.Fatal(err)
	}
	if got := s.Host().Services["web-2-sidecar-proxy"].Port; got != first {
		t.Errorf("it moved to %d by itself", got)
	}
	if got := add("web-2", "Web"); got != mesh {
		t.Errorf("the only instance has %d, want the mesh port", got)
	}
	if got := add("web-1", "web"); got != first {
		t.Errorf("the one that came back has %d, want %d", got, first)
	}
}

func TestUpstreamClash(t *testing.T) {
	s, _ := open(t, "", nil)
	register(t, s, `{"Name":"a","Port":1,"Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"DestinationName":"db","LocalBindPort":9001}]}}}}`)
	_, err := tryRegister(s, `{"Name":"b","Port":2,"Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"DestinationName":"db","LocalBindPort":9001}]}}}}`, RegisterOptions{})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:9001") || !strings.Contains(err.Error(), "a-sidecar-proxy") {
		t.Fatalf("%v", err)
	}
	register(t, s, `{"Name":"b","Port":2,"Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"DestinationName":"db","LocalBindAddress":"127.0.0.2","LocalBindPort":9001}]}}}}`)
}

func TestRefused(t *testing.T) {
	s, _ := open(t, "", nil)
	for js, words := range map[string]string{
		`{}`:                         "Missing service name",
		`{"ID":"only-id"}`:           "Missing service name",
		`{"Name":"*"}`:               "stands for every service",
		`{"Name":"a\nb"}`:            "control characters",
		`{"Name":"consul"}`:          "the servers themselves",
		`{"Name":"consul","ID":"x"}`: "the servers themselves",
		`{"ID":"consul","Name":"x"}`: "the servers themselves",
		`{"Name":"w","Connect":{"SidecarService":{"Name":"consul"}}}`:                                 "the servers themselves",
		`{"Name":"a","Address":"0.0.0.0"}`:                                                            "wildcard",
		`{"Name":"a","Port":70000}`:                                                                   "port 70000",
		`{"Name":"a","Port":1,"SocketPath":"/s"}`:                                                     "exclude each other",
		`{"Name":"a","Namespace":"x"}`:                                                                "Namespace",
		`{"Name":"a","Kind":"odd"}`:                                                                   "unknown Kind",
		`{"Name":"a","Meta":{"a b":"c"}}`:                                                             "Invalid Service Meta: Couldn't load metadata pair ('a b', 'c'): Key contains invalid characters",
		`{"Name":"a","Weights":{"Warning":5}}`:                                                        "Invalid Weights: Passing must be greater than 0",
		`{"Name":"a","Weights":{"Passing":70000}}`:                                                    "Invalid Weights: DNS Weight must be between 0 and 65535",
		`{"Name":"a","TaggedAddresses":{"lan":{"Port":1}}}`:                                           "has no Address",
		`{"Name":"a","Check":{"Interval":"10s"}}`:                                                     "Invalid check: TTL must be > 0 for TTL checks",
		`{"Name":"a","Check":{"HTTP":"http://x"}}`:                                                    "Invalid check: Interval must be > 0",
		`{"Name":"a","Check":{"TTL":"1h","Interval":"1s"}}`:                                           "Invalid check: Interval and TTL cannot both be specified",
		`{"Name":"a","Check":{"TTL":"1h","Status":"bogus"}}`:                                          "Status for checks must 'passing', 'warning', 'critical'",
		`{"Name":"a","Checks":[{"TTL":"1h","CheckID":"c"},{"TTL":"1h","ID":"c"}]}`:                    "given twice",
		`{"Name":"w","Connect":{"SidecarService":{"Connect":{"SidecarService":{}}}}}`:                 "A SidecarService cannot have a nested SidecarService",
		`{"Name":"w","Connect":{"SidecarService":{"ID":"own"}}}`:                                      "A SidecarService cannot specify an ID as this is managed by the agent",
		`{"Name":"w","Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"LocalBindPort":1}]}}}}`:     "upstream destination name cannot be empty",
		`{"Name":"w","Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"DestinationName":"a"}]}}}}`: "must be defined and nonzero",
		`{"Name":"w","Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"DestinationName":"a","LocalBindPort":1},{"DestinationName":"b","LocalBindPort":1}]}}}}`:                              `"127.0.0.1:1" is specified twice`,
		`{"Name":"w","Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"DestinationName":"a","LocalBindPort":1,"LocalBindAddress":"0.0.0.0"},{"DestinationName":"b","LocalBindPort":1}]}}}}`: "the upstream a of service w-sidecar-proxy does, on 0.0.0.0:1",
		`{"Name":"w","Connect":{"SidecarService":{"Port":9,"Proxy":{"Upstreams":[{"DestinationName":"a","LocalBindPort":9}]}}}}`:                                                               "service w-sidecar-proxy does, on :9",
		`{"Name":"w","Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"DestinationName":"a","LocalBindSocketPath":"a.sock"}]}}}}`:                                                           "not an absolute path",
		`{"Name":"w","Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"DestinationName":"a","LocalBindPort":1,"LocalBindAddress":"[::1]"}]}}}}`:                                             "without brackets",
		`{"Name":"w","SocketPath":"w.sock","Connect":{"SidecarService":{}}}`:                                                                                                                   "not an absolute path",
		`{"Name":"w","Connect":{"SidecarService":{"Proxy":{"LocalServiceAddress":"[::1]"}}}}`:                                                                                                  "without brackets",
		`{"Name":"w","Address":"[::1]"}`:                                                                  "without brackets",
		`{"Kind":"connect-proxy","Name":"p","Port":1}`:                                                    "DestinationServiceName must be non-empty",
		`{"Kind":"connect-proxy","Name":"p","Proxy":{"DestinationServiceName":"web"}}`:                    "Port or SocketPath must be set",
		`{"Kind":"terminating-gateway","Name":"gw","Port":8443,"Proxy":{"DestinationServiceName":"web"}}`: "The Proxy.DestinationServiceName configuration is invalid for a terminating-gateway",
		`{"Name":"a","Check":{"AliasNode":"elsewhere"}}`:                                                  "cannot follow other nodes",
		`{"Name":"a","Ports":[{"Name":"x","Port":1},{"Name":"x","Port":2}]}`:                              "given twice",
	} {
		_, err := tryRegister(s, js, RegisterOptions{})
		if !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", js, err)
		}
	}
	if h := s.Host(); len(h.Services)+len(h.Checks) != 0 {
		t.Errorf("refused registrations left %s %s", ids(h.Services), ids(h.Checks))
	}
}

func TestRefusedChecks(t *testing.T) {
	s, _ := open(t, "", nil)
	for js, words := range map[string]string{
		`{}`:                                     "Missing check name",
		`{"Name":"x"}`:                           "Invalid check: TTL must be > 0 for TTL checks",
		`{"Name":"serfHealth","TTL":"1h"}`:       "the servers keep that check",
		`{"Name":"x","TTL":"1h","Status":"odd"}`: "Bad check status",
		`{"Name":"x","DockerContainerID":"c","Interval":"1s","ScriptArgs":["a"]}`: "supported are http, tcp",
	} {
		if err := tryCheck(s, js); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", js, err)
		}
	}
	if err := tryCheck(s, `{"Name":"c2","ServiceID":"nope","TTL":"1h"}`); !errors.Is(err, catalog.ErrNotFound) || err.Error() != `ServiceID "nope" does not exist` {
		t.Errorf("%v", err)
	}
	if err := tryCheck(s, `{"Name":"x","ScriptArgs":["ls"],"Interval":"10s"}`); err == nil || errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "Scripts are disabled") {
		t.Errorf("script: %v", err)
	}
	for _, err := range []error{
		s.Deregister(context.Background(), "d"),
		s.DeregisterCheck(context.Background(), "d"),
		s.UpdateTTL("d", "passing", ""),
		s.ServiceMaintenance("d", true, ""),
	} {
		if !errors.Is(err, catalog.ErrNotFound) || !strings.Contains(err.Error(), `"d". Ensure that the`) {
			t.Errorf("%v", err)
		}
	}
	if err := s.UpdateTTL("d", "bogus", ""); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if err := tryCheck(s, `{"Name":"h","TCP":"127.0.0.1:1","Interval":"1h"}`); err != nil {
		t.Fatal(err)
	}
	if err := s.UpdateTTL("h", "passing", ""); err == nil || err.Error() != `CheckID "h" does not have associated TTL` {
		t.Errorf("%v", err)
	}
}

func TestWarnings(t *testing.T) {
	s, _ := open(t, "", nil)
	w := register(t, s, `{"Name":"under_score","Tags":["a b"],"Check":{"HTTP":"http://127.0.0.1/","Interval":"100ms","DeregisterCriticalServiceAfter":"1s"}}`)
	all := strings.Join(w, "\n")
	for _, words := range []string{`"under_score"`, `"a b"`, "100ms", "deregister_critical_service_after"} {
		if !strings.Contains(all, words) {
			t.Errorf("no warning of %s in %s", words, all)
		}
	}
}

func TestMaintenanceAndAggregation(t *testing.T) {
	s, _ := open(t, "", nil)
	register(t, s, `{"Name":"m","Tags":["x"],"Check":{"TTL":"1h","Status":"warning"}}`)
	status := func() string { return AggregatedStatus(s.Host().ServiceChecks("m")) }
	if status() != "warning" {
		t.Errorf("%s", status())
	}
	if err := s.ServiceMaintenance("m", true, "because"); err != nil {
		t.Fatal(err)
	}
	c := s.Host().Checks["_service_maintenance:m"]
	if c.Name != "Service Maintenance Mode" || c.Notes != "because" || c.Status != "critical" || c.Type != "maintenance" || c.ServiceName != "m" || status() != "maintenance" {
		t.Errorf("%+v, %s", c, status())
	}
	if err := s.ServiceMaintenance("m", false, ""); err != nil || status() != "warning" {
		t.Errorf("%v %s", err, status())
	}
	if err := s.NodeMaintenance(true, ""); err != nil || status() != "maintenance" || !strings.Contains(s.Host().Checks["_node_maintenance"].Notes, "no reason") {
		t.Errorf("%v %s", err, status())
	}
	if err := s.NodeMaintenance(false, ""); err != nil || len(s.Host().Checks) != 1 {
		t.Errorf("%v", err)
	}
}

func TestAliases(t *testing.T) {
	s, _ := open(t, "", nil)
	register(t, s, `{"Name":"web","Check":{"CheckID":"wc","TTL":"1h"}}`)
	for _, js := range []string{
		`{"Name":"al","AliasService":"web"}`,
		`{"Name":"self","AliasNode":"N1"}`,
		`{"Name":"lost","AliasService":"nobody"}`,
	} {
		if err := tryCheck(s, js); err != nil {
			t.Fatal(err)
		}
	}
	register(t, s, `{"Name":"front","Check":{"CheckID":"fc","AliasService":"web"}}`)
	register(t, s, `{"Name":"fronter","Check":{"CheckID":"ffc","AliasService":"front"}}`)
	register(t, s, `{"Name":"ringa","Check":{"CheckID":"ra","AliasService":"ringb"}}`)
	register(t, s, `{"Name":"ringb","Check":{"CheckID":"rb","AliasService":"ringa"}}`)
	expect := func(when string, want map[string]string) {
		t.Helper()
		for id, status := range want {
			if c := s.Host().Checks[id]; c.Status != status {
				t.Errorf("%s: %s is %s (%s), want %s", when, id, c.Status, c.Output, status)
			}
		}
	}
	expect("critical", map[string]string{"al": "critical", "fc": "critical", "ffc": "critical", "lost": "critical", "self": "passing", "ra": "passing", "rb": "passing"})
	if err := s.UpdateTTL("wc", "passing", ""); err != nil {
		t.Fatal(err)
	}
	expect("passing", map[string]string{"al": "passing", "fc": "passing", "ffc": "passing", "lost": "critical"})
	if err := s.NodeMaintenance(true, ""); err != nil {
		t.Fatal(err)
	}
	expect("node maintenance", map[string]string{"al": "critical", "ffc": "critical", "self": "critical", "ra": "critical"})
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir, nil)
	ctx := context.Background()
	register(t, s, `{"Name":"web","Port":1}`)
	register(t, s, `{"Name":"api","Port":2}`)
	apply := func(regs, defs []string) error {
		var rs []*catalog.ServiceRegistration
		var ds []*catalog.CheckDefinition
		for _, js := range regs {
			r := &catalog.ServiceRegistration{}
			if err := catalog.DecodeJSON([]byte(js), r); err != nil {
				t.Fatal(err)
			}
			rs = append(rs, r)
		}
		for _, js := range defs {
			d := &catalog.CheckDefinition{}
			if err := catalog.DecodeJSON([]byte(js), d); err != nil {
				t.Fatal(err)
			}
			ds = append(ds, d)
		}
		_, err := s.ApplyFiles(ctx, rs, ds)
		return err
	}
	if err := apply([]string{
		`{"name":"auto","port":5,"connect":{"sidecar_service":{}}}`,
		`{"name":"web","port":99,"check":{"ttl":"1h","status":"passing"},"connect":{"sidecar_service":{"port":21000}}}`,
	}, []string{`{"name":"disk","ttl":"1h"}`}); err != nil {
		t.Fatal(err)
	}
	h := s.Host()
	if h.Services["web"].Port != 99 || h.Services["web-sidecar-proxy"].Port != 21000 || h.Services["auto-sidecar-proxy"].Port < 21001 || h.Checks["disk"] == nil {
		t.Fatalf("after files: %s %s", ids(h.Services), ids(h.Checks))
	}
	if err := tryCheck(s, `{"Name":"extra","ServiceID":"web","TTL":"1h"}`); err != nil {
		t.Fatal(err)
	}
	before := s.Host()
	for _, bad := range [][]string{
		{`{"name":"x"}`, `{"name":"x"}`},
		{`{"name":"x"}`, `{"name":"y","port":-1}`},
	} {
		if err := apply(bad, nil); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if s.Host() != before {
		t.Error("refused files changed something")
	}
	// Only what came from files goes when the files say less.
	if err := apply([]string{`{"name":"web","port":98}`}, nil); err != nil {
		t.Fatal(err)
	}
	h = s.Host()
	if got := ids(h.Services); got != "api web" || h.Services["web"].Port != 98 {
		t.Errorf("services %s", got)
	}
	if got := ids(h.Checks); got != "extra" {
		t.Errorf("checks %s", got)
	}
	// After a restart the API's registrations are there at once, the check of the
	// file's service once the file is.
	s2, _ := open(t, dir, nil)
	if got := ids(s2.Host().Services); got != "api" || len(s2.Host().Checks) != 0 {
		t.Fatalf("restarted: %s", got)
	}
	if _, err := s2.ApplyFiles(ctx, []*catalog.ServiceRegistration{{Name: "web"}}, nil); err != nil {
		t.Fatal(err)
	}
	if got := ids(s2.Host().Checks); got != "extra" {
		t.Errorf("checks after files: %q", got)
	}
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir, nil)
	stop := run(t, s)
	register(t, s, `{"Name":"web","Port":1,"Token":"secret","Meta":{"k":"v"},"Check":{"CheckID":"ttl","TTL":"1h"},"Connect":{"SidecarService":{"Proxy":{"Config":{"n":5,"l":["a"]},"Upstreams":[{"DestinationName":"db","LocalBindPort":9}]}}}}`)
	register(t, s, `{"Name":"gone"}`)
	if err := s.Deregister(context.Background(), "gone"); err != nil {
		t.Fatal(err)
	}
	if err := s.UpdateTTL("ttl", "warning", "so so"); err != nil {
		t.Fatal(err)
	}
	s.SetListening("web-sidecar-proxy", true, "up")
	if err := s.NodeMaintenance(true, "why"); err != nil {
		t.Fatal(err)
	}
	if err := s.NodeMaintenance(false, ""); err != nil {
		t.Fatal(err)
	}
	stop()
	want := s.Host()
	for _, e := range []string{"services", "checks", "checks/state"} {
		files, err := os.ReadDir(filepath.Join(dir, e))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if info, _ := f.Info(); !f.IsDir() && info.Mode().Perm() != 0o600 {
				t.Errorf("%s/%s has mode %s", e, f.Name(), info.Mode())
			}
		}
	}
	s2, _ := open(t, dir, nil)
	got := s2.Host()
	if a, b := asJSON(t, want), asJSON(t, got); a != b {
		t.Errorf("before\n%s\nafter\n%s", a, b)
	}
	if s2.Token("web") != "secret" {
		t.Error("the token is lost")
	}
}

func TestCorruptFiles(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir, nil)
	register(t, s, `{"Name":"a"}`)
	register(t, s, `{"Name":"b","Check":{"TTL":"1h"}}`)
	bad := s.disk.path(dirServices, "a")
	if err := os.WriteFile(bad, []byte(`{"ID":"a","Ser`), 0o600); err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(dir, "services", "odd.json")
	if err := os.WriteFile(odd, []byte(`{"ID":"x","Service":{"ID":"x","Service":"x"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	s2, _ := open(t, dir, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	if got := ids(s2.Host().Services); got != "b" && got != "b x" {
		t.Errorf("services %s", got)
	}
	if ids(s2.Host().Checks) != "service:b" {
		t.Errorf("checks %s", ids(s2.Host().Checks))
	}
	if !strings.Contains(log.String(), bad+corruptSuffix) {
		t.Errorf("the log does not name the file: %s", log.String())
	}
	for _, path := range []string{bad + corruptSuffix, odd + corruptSuffix} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestDiskFails(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir, nil)
	register(t, s, `{"Name":"kept"}`)
	checks := filepath.Join(dir, "checks")
	if err := errors.Join(os.RemoveAll(checks), os.WriteFile(checks, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	_, err := tryRegister(s, `{"Name":"new","Check":{"TTL":"1h"}}`, RegisterOptions{})
	if err == nil || !strings.Contains(err.Error(), "service:new") {
		t.Fatalf("%v", err)
	}
	if got := ids(s.Host().Services); got != "kept" {
		t.Errorf("memory has %s", got)
	}
	if err := os.Remove(checks); err != nil {
		t.Fatal(err)
	}
	s2, _ := open(t, dir, nil)
	if got := ids(s2.Host().Services); got != "kept" {
		t.Errorf("disk has %s", got)
	}
}

func TestUnreadableDataDir(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(Config{Node: &catalog.Node{Node: "n"}, Syncer: &servers{}, DataDir: file})
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Fatalf("%v", err)
	}
}

// TestServersServiceOnDisk: what an older agent took for a service of its own.
func TestServersServiceOnDisk(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir, nil)
	register(t, s, `{"Name":"web"}`)
	old := &service{svc: &catalog.Service{ID: "consul", Service: "consul"}}
	if err := s.disk.putService(old); err != nil {
		t.Fatal(err)
	}
	again, _ := open(t, dir, nil)
	if got := ids(again.Host().Services); got != "web" {
		t.Errorf("services %s", got)
	}
	if _, err := os.Stat(s.disk.path(dirServices, "consul") + corruptSuffix); err != nil {
		t.Error(err)
	}
}

// TestSlowDiskHoldsNoNewsBack: a registration waits for the disk, and so does what is
// saved of checks; that a check is critical goes to the servers all the same.
func TestSlowDiskHoldsNoNewsBack(t *testing.T) {
	f := &servers{}
	var once sync.Once
	asked, goOn := make(chan struct{}), make(chan struct{})
	s, _ := open(t, t.TempDir(), func(c *Config) {
		c.Syncer = syncFunc(func(ctx context.Context, want catalog.NodeState) (uint64, error) {
			once.Do(func() { close(asked); <-goOn })
			return f.Sync(ctx, want)
		})
	})
	register(t, s, `{"Name":"a","Check":{"CheckID":"c","TTL":"1h","Status":"passing"}}`)
	stop := run(t, s)
	defer stop()
	<-asked
	s.changing.Lock() // somebody writes to a disk that hangs
	defer s.changing.Unlock()
	close(goOn)
	for _, status := range []string{"critical", "warning"} {
		if err := s.UpdateTTL("c", status, ""); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := s.WaitSynced(ctx); err != nil || f.check("c").Status != status {
			t.Fatalf("the servers know %+v: %v", f.check("c"), err)
		}
	}
}

type syncFunc func(ctx context.Context, want catalog.NodeState) (uint64, error)

func (f syncFunc) Sync(ctx context.Context, want catalog.NodeState) (uint64, error) {
	return f(ctx, want)
}

func TestWaitSynced(t *testing.T) {
	s, f := open(t, "", nil)
	down := errors.New("no servers")
	f.setFail(down)
	stop := run(t, s)
	defer stop()
	register(t, s, `{"Name":"web"}`)
	short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := s.WaitSynced(short); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, down) {
		t.Errorf("%v", err)
	}
	f.setFail(nil)
	long, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.WaitSynced(long); err != nil {
		t.Fatal(err)
	}
	if state, _ := f.last(); len(state.Services) != 1 {
		t.Errorf("%+v", state)
	}
	if err := s.Leave(long); err != nil {
		t.Fatal(err)
	}
	if state, _ := f.last(); len(state.Services) != 0 || state.Node == nil {
		t.Errorf("after leaving: %+v", state)
	}
}

// TestPortOfARemovedSidecarIsFree: its proxy closes in its own time, which must not
// cost the next sidecar the port.
func TestPortOfARemovedSidecarIsFree(t *testing.T) {
	ln, err := net.Listen("tcp", ":0") // the proxy of the first sidecar, slow to close
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	s, _ := open(t, t.TempDir(), func(c *Config) { c.SidecarMinPort, c.SidecarMaxPort = port, min(port+50, 65535) })
	sidecar := func(name string, port int) *catalog.Service {
		t.Helper()
		reg := &catalog.ServiceRegistration{Name: name, Port: 80, Connect: &catalog.ServiceConnect{
			SidecarService: &catalog.ServiceRegistration{Port: port},
		}}
		if _, err := s.Register(t.Context(), reg, RegisterOptions{}); err != nil {
			t.Fatal(err)
		}
		return s.Host().Services[name+"-sidecar-proxy"]
	}
	sidecar("first", port)
	if got := sidecar("other", 0).Port; got == port {
		t.Fatalf("the second sidecar has the port %d of the first", got)
	}
	if err := s.Deregister(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	if got := sidecar("second", 0).Port; got != port {
		t.Errorf("the port is %d, not %d, which the first sidecar gave up", got, port)
	}
}
