package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// built is a binary of this tree, made once.
type built struct {
	once sync.Once
	path string
	err  error
}

var thisVersion, nextVersion built

func (b *built) get(t testing.TB, args ...string) string {
	t.Helper()
	b.once.Do(func() {
		dir, err := os.MkdirTemp("", "weft-test-")
		if err != nil {
			b.err = err
			return
		}
		b.path = filepath.Join(dir, "weft")
		cmd := exec.Command("go", append(append([]string{"build", "-o", b.path}, args...), "github.com/weftmesh/weft/cmd/weft")...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("building weft: %w\n%s", err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

// Binary is the weft binary under test: WEFT_BINARY, or one built once from this
// tree, static as it is shipped.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("WEFT_BINARY"); path != "" {
		return path
	}
	return thisVersion.get(t)
}

// NextBinary is that of the version after this one: this tree with a command, a field
// and a message more, that this version does not know.
func NextBinary(t testing.TB) string {
	t.Helper()
	return nextVersion.get(t, "-tags", "next", "-ldflags", "-X main.version=0.99.0-next")
}

// Agent is a running `weft agent`.
type Agent struct {
	t    testing.TB
	bin  string
	args []string
	env  []string // beside that of the test
	host *Host    // nil: where the test runs
	wall *wall    // nil: its clock is that of the machine

	files int // descriptors that it may have; 0: what the test may

	HTTP   string // host:port
	Client *api.Client

	mu  sync.Mutex
	cmd *exec.Cmd
	end chan struct{}
	log buffer
}

// StartAgent runs `weft agent -dev` on free ports, with more arguments if given,
// and waits until it serves.
func StartAgent(t testing.TB, args ...string) *Agent {
	t.Helper()
	return Start(t, append([]string{"-dev"}, args...)...)
}

// Start runs `weft agent` with the arguments on free ports and waits until it serves.
func Start(t testing.TB, args ...string) *Agent {
	t.Helper()
	return StartEnv(t, nil, args...)
}

// StartEnv is Start with environment variables beside those of the test.
func StartEnv(t testing.TB, env []string, args ...string) *Agent {
	t.Helper()
	a := Prepare(t, env, args...)
	a.Exec()
	return a
}

// Prepare is StartEnv without the start.
func Prepare(t testing.TB, env []string, args ...string) *Agent {
	t.Helper()
	p := FreePorts(t, 3)
	low, high := SidecarPorts(t)
	hcl := fmt.Sprintf("ports { http = %d, serf_lan = %d, server = %d, dns = -1, sidecar_min_port = %d, sidecar_max_port = %d }",
		p[0], p[1], p[2], low, high)
	a := &Agent{
		t: t, bin: Binary(t), HTTP: net.JoinHostPort("127.0.0.1", strconv.Itoa(p[0])),
		args: append([]string{"agent", "-hcl", hcl}, args...), env: env,
	}
	c, err := api.NewClient(&api.Config{Address: a.HTTP, Scheme: "http", Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		t.Fatal(err)
	}
	a.Client = c
	t.Cleanup(func() {
		a.Kill()
		if t.Failed() {
			t.Logf("log of the agent:\n%s", a.log.String())
		}
	})
	return a
}

// Exec starts the process (again) and waits until it serves.
func (a *Agent) Exec() {
	a.t.Helper()
	a.Launch()
	a.WaitServing(20 * time.Second)
}

// LimitFiles lets the process have n descriptors from its next start on.
func (a *Agent) LimitFiles(n int) {
	a.t.Helper()
	Need(a.t, "prlimit")
	a.files = n
}

// Launch starts the process (again), without waiting for anything.
func (a *Agent) Launch() {
	a.t.Helper()
	program, args := a.bin, a.args
	if a.files > 0 {
		program, args = "prlimit", append([]string{fmt.Sprintf("--nofile=%d:%[1]d", a.files), program}, args...)
	}
	if a.host != nil {
		program, args = a.host.command(program, args...)
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), a.env...)
	cmd.Stdout, cmd.Stderr = &a.log, &a.log
	start := cmd.Start
	if a.wall != nil {
		start = func() error { return a.wall.start(cmd, a.bin) }
	}
	if err := start(); err != nil {
		a.t.Fatal(err)
	}
	end := make(chan struct{})
	a.mu.Lock()
	a.cmd, a.end = cmd, end
	a.mu.Unlock()
	go func() {
		_ = cmd.Wait()
		close(end)
	}()
}

// WaitServing waits until the agent knows a leader and its own node stands in the catalog.
func (a *Agent) WaitServing(within time.Duration) {
	a.t.Helper()
	a.mu.Lock()
	cmd, end := a.cmd, a.end
	a.mu.Unlock()
	Eventually(a.t, within, "the agent at "+a.HTTP+" serves", func() error {
		select {
		case <-end:
			a.t.Fatalf("the agent ended: %s\n%s", cmd.ProcessState, a.log.String())
		default:
		}
		leader, err := a.Client.Status().Leader()
		if err == nil && leader == "" {
			err = errors.New("no leader yet")
		}
		if err != nil {
			return err
		}
		self, err := a.Client.Agent().NodeName()
		if err != nil {
			return err
		}
		node, _, err := a.Client.Catalog().Node(self, nil)
		if err == nil && node == nil {
			err = errors.New("the node is not in the catalog yet")
		}
		return err
	})
}

// Signal sends a signal to the process.
func (a *Agent) Signal(s os.Signal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cmd == nil {
		return // never started
	}
	_ = a.cmd.Process.Signal(s)
}

// PID is the process ID.
func (a *Agent) PID() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cmd.Process.Pid
}

// Kill ends the process with SIGKILL and waits for it.
func (a *Agent) Kill() {
	a.Signal(syscall.SIGKILL)
	if a.end != nil {
		<-a.end
	}
}

// Stop ends the process with SIGTERM and returns its exit code; -1 after 20 seconds.
func (a *Agent) Stop() int {
	a.Signal(syscall.SIGTERM)
	return a.Wait(20 * time.Second)
}

// Wait waits until the process ends by itself and returns its exit code; -1 after
// the time.
func (a *Agent) Wait(within time.Duration) int {
	select {
	case <-a.end:
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		return -1
	}
}

// Log is all that the agent printed so far.
func (a *Agent) Log() string { return a.log.String() }

// CLI runs a weft command against the agent and returns what it printed and its exit code.
func (a *Agent) CLI(args ...string) (stdout, stderr string, code int) {
	a.t.Helper()
	return a.CLIStdin("", args...)
}

// CLIStdin is CLI with standard input.
func (a *Agent) CLIStdin(stdin string, args ...string) (stdout, stderr string, code int) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.bin, args...)
	cmd.Env = append(os.Environ(), "WEFT_HTTP_ADDR="+a.HTTP)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		a.t.Fatalf("weft %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// MustCLI is CLI that fails the test unless the exit code is 0.
func (a *Agent) MustCLI(args ...string) string {
	a.t.Helper()
	out, errOut, code := a.CLI(args...)
	if code != 0 {
		a.t.Fatalf("weft %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errOut)
	}
	return out
}

// Get reads a path of the HTTP API as text.
func (a *Agent) Get(path string) (status int, body string, err error) {
	resp, err := http.Get("http://" + a.HTTP + path) //nolint:noctx // bounded by the agent
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// Eventually calls f until it returns nil, and fails the test when the deadline passes first.
func Eventually(t testing.TB, within time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(10 * time.Millisecond) // polling another process: there is nothing to wait on
	}
}

// buffer is a bytes.Buffer that a process may write to while a test reads.
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

// Started tells whether the process was ever started.
func (a *Agent) Started() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cmd != nil
}

// Running tells whether the process still lives.
func (a *Agent) Running() bool {
	if !a.Started() {
		return false
	}
	select {
	case <-a.end:
		return false
	default:
		return true
	}
}

// TryExec starts the process, which may refuse to, and returns what it printed
// and whether it came to serve within the time. It does not leave it running.
func (a *Agent) TryExec(within time.Duration) (out string, served bool) {
	a.t.Helper()
	var log buffer
	cmd := exec.Command(a.bin, a.args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	end := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(end)
	}()
	deadline := time.Now().Add(within)
	for time.Now().Before(deadline) && !served {
		select {
		case <-end:
			return log.String(), false
		case <-time.After(20 * time.Millisecond):
			leader, err := a.Client.Status().Leader()
			served = err == nil && leader != ""
		}
	}
	_ = cmd.Process.Kill()
	<-end
	return log.String(), served
}
