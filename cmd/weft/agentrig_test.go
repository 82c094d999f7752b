package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// patience bounds every wait for a process; it is far above what any should take.
const patience = 30 * time.Second

// runningAgent is `weft agent` as a process of its own.
type runningAgent struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string // of the HTTP API

	mu    sync.Mutex
	log   []string
	news  chan struct{}
	ended chan struct{}
	err   error
}

// startAgent runs the agent on free ports of loopback and waits until it is ready.
func startAgent(t *testing.T, args ...string) *runningAgent {
	t.Helper()
	return launchAgent(t, args...).ready()
}

// ready waits until the agent serves.
func (a *runningAgent) ready() *runningAgent {
	a.t.Helper()
	for _, line := range []string{`"service":"http"`, `"msg":"ready"`} {
		got := a.await(line)
		var fields struct{ Msg, Addr string }
		if err := json.Unmarshal([]byte(got), &fields); err != nil {
			a.t.Fatalf("log line %q: %v", got, err)
		}
		if fields.Addr != "" {
			a.addr = fields.Addr
		}
	}
	return a
}

func launchAgent(t *testing.T, args ...string) *runningAgent {
	t.Helper()
	return launch(t, append([]string{"-dev"}, args...)...)
}

// launch is launchAgent without -dev.
func launch(t *testing.T, args ...string) *runningAgent {
	t.Helper()
	low, high := proc.SidecarPorts(t)
	ports := fmt.Sprintf("ports { http = 0 dns = 0 serf_lan = 0 sidecar_min_port = %d sidecar_max_port = %d }", low, high)
	all := append([]string{"agent", "-log-json", "-node", "host1", "-hcl", ports}, args...)
	a := &runningAgent{t: t, cmd: program(t, all...), news: make(chan struct{}), ended: make(chan struct{})}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.cmd.Stderr = a.cmd.Stdout
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go a.follow(out)
	t.Cleanup(func() {
		_ = a.cmd.Process.Kill() // it may have ended
		<-a.ended
		if t.Failed() {
			t.Logf("agent:\n%s", a.text())
		}
	})
	return a
}

func (a *runningAgent) follow(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		a.mu.Lock()
		a.log = append(a.log, lines.Text())
		close(a.news)
		a.news = make(chan struct{})
		a.mu.Unlock()
	}
	a.err = a.cmd.Wait()
	close(a.ended)
}

func (a *runningAgent) text() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.log, "\n")
}

// await gives the first line that holds all parts.
func (a *runningAgent) await(parts ...string) string {
	a.t.Helper()
	deadline := time.After(patience)
	for {
		a.mu.Lock()
		lines, news := a.log, a.news
		a.mu.Unlock()
		for _, l := range lines {
			found := true
			for _, p := range parts {
				found = found && strings.Contains(l, p)
			}
			if found {
				return l
			}
		}
		select {
		case <-news:
		case <-a.ended:
			a.t.Fatalf("the agent ended (%v) and never said %q", a.err, parts)
		case <-deadline:
			a.t.Fatalf("the agent never said %q", parts)
		}
	}
}

// stop sends sig and gives the exit code.
func (a *runningAgent) stop(sig os.Signal) int {
	a.t.Helper()
	if err := a.cmd.Process.Signal(sig); err != nil {
		a.t.Fatal(err)
	}
	return a.exit()
}

func (a *runningAgent) exit() int {
	a.t.Helper()
	select {
	case <-a.ended:
	case <-time.After(patience):
		a.t.Fatal("the agent did not end")
	}
	var exit *exec.ExitError
	if errors.As(a.err, &exit) {
		return exit.ExitCode()
	}
	return exitOK
}

// weft runs a command against the agent and demands success.
func (a *runningAgent) weft(args ...string) string {
	a.t.Helper()
	code, out, errs := call(map[string]string{"WEFT_HTTP_ADDR": a.addr}, args...)
	if code != exitOK {
		a.t.Fatalf("weft %s: exit code %d: %s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// eventually repeats a command until its output holds want.
func (a *runningAgent) eventually(want string, args ...string) {
	a.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		code, out, errs := call(map[string]string{"WEFT_HTTP_ADDR": a.addr}, args...)
		if strings.Contains(out, want) {
			return
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("weft %s: exit code %d, no %q in:\n%s%s", strings.Join(args, " "), code, want, out, errs)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// gone repeats a command until its output holds what no more.
func (a *runningAgent) gone(what string, args ...string) {
	a.t.Helper()
	deadline := time.Now().Add(patience)
	for strings.Contains(a.weft(args...), what) {
		if time.Now().After(deadline) {
			a.t.Fatalf("weft %s: still %q", strings.Join(args, " "), what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// counts waits until the metrics for Prometheus have a line that begins with each of these.
func (a *runningAgent) counts(want ...string) {
	a.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		text := metrics(a.t, a.addr)
		missing := slices.DeleteFunc(slices.Clone(want), func(line string) bool { return strings.Contains(text, "\n"+line) })
		if len(missing) == 0 {
			return
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("there is no %q in:\n%s", missing, text)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// metrics are those of the agent at addr, for Prometheus.
func metrics(t *testing.T, addr string) string {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/v1/agent/metrics?format=prometheus")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// greeter says hello on the port it gives, and keeps connections open.
func greeter(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, "hello") // the reader says when it is missing
				_, _ = io.Copy(io.Discard, c)     // until the reader goes
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// greeted dials addr until somebody says hello there.
func greeted(t *testing.T, addr string) net.Conn {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			b := make([]byte, 5)
			if _, err = io.ReadFull(c, b); err == nil && string(b) == "hello" {
				return c
			}
			c.Close()
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody says hello at %s: %v", addr, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
