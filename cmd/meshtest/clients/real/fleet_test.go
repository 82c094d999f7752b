//go:build clients

// Package real_test runs clients that were written for Consul, unchanged, as real
// processes against the built binary, while services come, go and fail, and checks
// what they do. `make test-clients` runs it.
package real_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// patience is a ceiling; Prometheus alone rests 15 s after an error.
const patience = 60 * time.Second

// fleet is an agent with a data directory and instances of one service behind it.
type fleet struct {
	t     *testing.T
	agent *proc.Agent
	dns   string // the port
	hosts int    // how many addresses instances have taken
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, dns: strconv.Itoa(proc.FreePorts(t, 1)[0])}
	f.agent = proc.Start(t, "-server", "-bootstrap-expect=1", "-bind=127.0.0.1", "-data-dir", t.TempDir(), "-dns-port", f.dns)
	return f
}

// instance is one that really answers, with its name.
type instance struct {
	name string
	addr string // each has its own
	port int
	sick atomic.Bool
}

func (f *fleet) serve(name string) *instance {
	f.hosts++
	i := &instance{name: name, addr: "127.0.1." + strconv.Itoa(f.hosts)}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Port", strconv.Itoa(i.port))
		if r.URL.Path == "/health" && i.sick.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprint(w, name)
	}))
	srv.Listener.Close()
	ln, err := net.Listen("tcp", i.addr+":0")
	must(f.t, err)
	srv.Listener = ln
	srv.Start()
	f.t.Cleanup(srv.Close)
	i.port = srv.Listener.Addr().(*net.TCPAddr).Port
	return i
}

// come starts an instance and registers it with a check of its health.
func (f *fleet) come(name string) *instance {
	f.t.Helper()
	i := f.serve(name)
	must(f.t, f.agent.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: name, Name: "web", Address: i.addr, Port: i.port, Tags: []string{"v1", "prod"}, Meta: map[string]string{"team": "shop"},
		Check: &api.AgentServiceCheck{HTTP: fmt.Sprintf("http://%s:%d/health", i.addr, i.port), Interval: "1s", Timeout: "2s"},
	}))
	return i
}

func (f *fleet) leave(i *instance) {
	f.t.Helper()
	must(f.t, f.agent.Client.Agent().ServiceDeregister(i.name))
}

// external registers an instance on a node of its own, with a check that others set.
func (f *fleet) external(i *instance, status string) {
	f.t.Helper()
	_, err := f.agent.Client.Catalog().Register(&api.CatalogRegistration{
		Node: "far", Address: "127.0.0.1", NodeMeta: map[string]string{"external-node": "true"},
		Service: &api.AgentService{ID: i.name, Service: "web", Address: i.addr, Port: i.port, Tags: []string{"v1", "prod"}, Meta: map[string]string{"team": "shop"}, Weights: api.AgentWeights{Passing: 1, Warning: 1}},
		Checks:  api.HealthChecks{{Node: "far", CheckID: "up", Name: "up", Status: status, ServiceID: i.name}},
	}, nil)
	must(f.t, err)
}

// watcher is a client that is said to follow the service.
type watcher struct {
	// sees gives the ports of the instances that the client would send work to.
	sees func() ([]int, error)
	// keeps says that it goes on with what it knew while the agent is down.
	keeps bool
}

// follow takes the fleet through a day, and asks after each step what the client sees.
func (f *fleet) follow(w watcher) {
	f.t.Helper()
	want := func(what string, instances ...*instance) {
		f.t.Helper()
		begin := time.Now()
		proc.Eventually(f.t, patience, what, func() error { return w.check(instances) })
		f.t.Logf("%s: seen %s later", what, time.Since(begin).Round(time.Millisecond))
	}
	one, two := f.come("web-1"), f.come("web-2")
	want("two instances come", one, two)
	two.sick.Store(true)
	want("one fails", one)
	two.sick.Store(false)
	want("it is well again", one, two)
	three := f.come("web-3")
	f.leave(one)
	want("one goes, one comes", two, three)
	far := f.serve("web-far")
	f.external(far, api.HealthPassing)
	want("one comes on a host without an agent", two, three, far)
	f.external(far, api.HealthCritical)
	want("its monitor finds it critical", two, three)
	f.agent.Kill()
	if w.keeps {
		for range 5 {
			if err := w.check([]*instance{two, three}); err != nil {
				f.t.Errorf("the agent is down: %v", err)
			}
		}
	}
	f.agent.Exec()
	_, err := f.agent.Client.Catalog().Deregister(&api.CatalogDeregistration{Node: "far"}, nil)
	must(f.t, err)
	f.leave(three)
	four := f.come("web-4")
	want("the agent was killed and is back, one went, one comes", two, four)
	f.leave(two)
	f.leave(four)
	want("all go")
}

func (w watcher) check(instances []*instance) error {
	var ports []int
	for _, i := range instances {
		ports = append(ports, i.port)
	}
	got, err := w.sees()
	if err != nil {
		return err
	}
	slices.Sort(got)
	slices.Sort(ports)
	if !slices.Equal(got, ports) {
		return fmt.Errorf("it sees ports %v, want %v", got, ports)
	}
	return nil
}

// process is a client that runs.
type process struct {
	cmd      *exec.Cmd
	end      chan struct{}
	out, log buffer
}

// start runs a program until the end of the test, which fails when it ends before.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), end: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.log
	must(t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait()
		close(p.end)
	}()
	t.Cleanup(func() {
		select {
		case <-p.end:
			t.Errorf("%s ended: %s", filepath.Base(name), p.cmd.ProcessState)
		default:
			_ = p.cmd.Process.Kill()
			<-p.end
		}
		if t.Failed() {
			t.Logf("%s said:\n%s\n%s", filepath.Base(name), p.out.String(), p.log.String())
		}
	})
	return p
}

// tool builds a client from its module, once, and returns the program.
func tool(t *testing.T, module, pkg string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), module)
	cmd := exec.Command("go", "build", "-o", out, pkg)
	cmd.Dir = filepath.Join("..", module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", module, err, text)
	}
	return out
}

// run runs a program to its end.
func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(out), err
}

// ports finds " 127.0.1.<n>:<port> " in each line that is not empty.
func ports(text string) (found []int, err error) {
	for _, l := range strings.Split(strings.TrimSpace(text), "\n") {
		if l == "" {
			continue
		}
		_, rest, ok := strings.Cut(l, " 127.0.1.")
		_, rest, _ = strings.Cut(rest, ":")
		digits, _, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(digits)
		if !ok || err != nil {
			return nil, fmt.Errorf("no address in %q", l)
		}
		found = append(found, n)
	}
	return found, nil
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// buffer may be written by a process while the test reads.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
