// Package programs_test puts unmodified programs behind the mesh and uses them
// through it: an HTTP server with curl, Redis with redis-cli, PostgreSQL with
// psql and pgbench. And it asks for names with dig.
package programs_test

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
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// mesh registers a service at port and a client that dials it through the mesh,
// by files and the CLI as a user would, and returns the agent and the port of the
// client's upstream listener.
func mesh(t *testing.T, service string, port int) (*proc.Agent, int) {
	t.Helper()
	a := proc.StartAgent(t)
	upstream := proc.FreePorts(t, 1)[0]
	dir := t.TempDir()
	files := map[string]string{
		"service.hcl": fmt.Sprintf(`
service {
  name = %q
  port = %d
  connect { sidecar_service {} }
  check {
    tcp      = "127.0.0.1:%d"
    interval = "1s"
  }
}`, service, port, port),
		"client.hcl": fmt.Sprintf(`
service {
  name = "client"
  connect {
    sidecar_service {
      proxy {
        upstreams {
          destination_name = %q
          local_bind_port  = %d
        }
      }
    }
  }
}`, service, upstream),
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		a.MustCLI("services", "register", path)
	}
	proc.Eventually(t, 15*time.Second, service+" has a healthy sidecar", func() error {
		got, _, err := a.Client.Health().Connect(service, "", true, nil)
		if err == nil && len(got) == 0 {
			err = errors.New("no passing instance")
		}
		return err
	})
	return a, upstream
}

// run runs a program with a deadline and returns what it printed.
func run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// logged waits for words in the log, which is written behind what it tells of.
func logged(t *testing.T, a *proc.Agent, words string) {
	t.Helper()
	proc.Eventually(t, 5*time.Second, "the log says "+words, func() error {
		if !strings.Contains(a.Log(), words) {
			return errors.New("it does not")
		}
		return nil
	})
}

func allow(t *testing.T, a *proc.Agent, service string) {
	t.Helper()
	a.MustCLI("intention", "create", "-replace", "-allow", "client", service)
}

func TestCurlThroughTheMesh(t *testing.T) {
	t.Parallel()
	curl := proc.Need(t, "curl")
	page := strings.Repeat("weft carries this page\n", 50_000)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			var b bytes.Buffer
			_, _ = b.ReadFrom(r.Body)
			fmt.Fprintf(w, "got %d bytes", b.Len())
			return
		}
		fmt.Fprint(w, page)
	}))
	defer srv.Close()
	a, up := mesh(t, "pages", srv.Listener.Addr().(*net.TCPAddr).Port)
	url := fmt.Sprintf("http://127.0.0.1:%d/", up)
	ctx := t.Context()

	if out, err := run(ctx, curl, "-sS", "-m", "10", url); err == nil {
		t.Fatalf("curl got through with no intention: %.80q", out)
	}
	logged(t, a, "weft intention create client pages") // the command that would allow it
	allow(t, a, "pages")
	proc.Eventually(t, 5*time.Second, "curl gets the page", func() error {
		out, err := run(ctx, curl, "-sS", "-m", "10", url)
		if err == nil && out != page {
			err = fmt.Errorf("got %d bytes, want %d", len(out), len(page))
		}
		return err
	})
	upload := filepath.Join(t.TempDir(), "upload")
	if err := os.WriteFile(upload, []byte(strings.Repeat("x", 5<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run(ctx, curl, "-sS", "-m", "30", "--data-binary", "@"+upload, url)
	if err != nil || out != fmt.Sprintf("got %d bytes", 5<<20) {
		t.Fatalf("upload: %v: %.200q", err, out)
	}
}

func TestRedisThroughTheMesh(t *testing.T) {
	t.Parallel()
	server, cli := proc.Need(t, "redis-server"), proc.Need(t, "redis-cli")
	port := proc.FreePorts(t, 1)[0]
	dir := t.TempDir()
	start(t, nil, server, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--dir", dir)
	waitPort(t, port)
	a, up := mesh(t, "redis", port)
	allow(t, a, "redis")
	ctx := t.Context()
	redis := func(args ...string) (string, error) {
		return run(ctx, cli, append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(up)}, args...)...)
	}
	proc.Eventually(t, 5*time.Second, "redis answers", func() error {
		out, err := redis("PING")
		if err == nil && strings.TrimSpace(out) != "PONG" {
			err = errors.New(out)
		}
		return err
	})
	if out, err := redis("SET", "k", strings.Repeat("v", 100_000)); err != nil || strings.TrimSpace(out) != "OK" {
		t.Fatalf("SET: %v %q", err, out)
	}
	if out, err := redis("STRLEN", "k"); err != nil || !strings.Contains(out, "100000") {
		t.Fatalf("STRLEN: %v %q", err, out)
	}
	// Ten thousand commands in one pipe: the client sends all, half-closes, and reads.
	var pipe bytes.Buffer
	for i := range 10_000 {
		fmt.Fprintf(&pipe, "INCRBY n %d\r\n", i)
	}
	cmd := exec.CommandContext(ctx, cli, "-h", "127.0.0.1", "-p", strconv.Itoa(up), "--pipe")
	cmd.Stdin = &pipe
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "errors: 0, replies: 10000") {
		t.Fatalf("pipe: %v %q", err, out)
	}
	if out, err := redis("GET", "n"); err != nil || !strings.Contains(out, "49995000") {
		t.Fatalf("GET n: %v %q", err, out)
	}
	// A subscriber waits; the deny ends it.
	sub := exec.CommandContext(ctx, cli, "-h", "127.0.0.1", "-p", strconv.Itoa(up), "BLPOP", "nothing", "0")
	if err := sub.Start(); err != nil {
		t.Fatal(err)
	}
	proc.Eventually(t, 10*time.Second, "redis holds the waiting client", func() error {
		out, err := run(ctx, cli, "-p", strconv.Itoa(port), "CLIENT", "LIST")
		if err == nil && !strings.Contains(out, "cmd=blpop") {
			err = errors.New(out)
		}
		return err
	})
	begin := time.Now()
	a.MustCLI("intention", "create", "-replace", "-deny", "client", "redis")
	proc.Eventually(t, 10*time.Second, "the deny reaches redis", func() error {
		out, err := run(ctx, cli, "-p", strconv.Itoa(port), "CLIENT", "LIST")
		if err == nil && strings.Contains(out, "cmd=blpop") {
			err = errors.New("the denied client is still connected")
		}
		return err
	})
	t.Logf("from the start of `intention create -deny` to the end of the live connection: %s", time.Since(begin).Round(time.Millisecond))
	_ = sub.Process.Kill()
	_ = sub.Wait()
	if out, err := redis("PING"); err == nil && strings.TrimSpace(out) == "PONG" {
		t.Error("redis answers although the intention denies")
	}
}

func TestPostgreSQLThroughTheMesh(t *testing.T) {
	t.Parallel()
	const bins = "/usr/lib/postgresql/*/bin"
	initdb, postgres := proc.Need(t, "initdb", bins), proc.Need(t, "postgres", bins)
	psql, pgbench := proc.Need(t, "psql", bins), proc.Need(t, "pgbench", bins)
	port := proc.FreePorts(t, 1)[0]
	cred, dir := postgresUser(t)
	data := filepath.Join(dir, "data")
	mk := exec.Command(initdb, "-D", data, "-U", "weft", "-A", "trust", "--no-sync")
	mk.SysProcAttr, mk.Dir = cred, dir
	if out, err := mk.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	start(t, cred, postgres, "-D", data, "-p", strconv.Itoa(port), "-h", "127.0.0.1", "-k", dir, "-c", "fsync=off", "-c", "logging_collector=off")
	ctx := t.Context()
	sql := func(p int, args ...string) (string, error) {
		return run(ctx, psql, append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(p), "-U", "weft", "-d", "postgres", "-X", "-At", "-v", "ON_ERROR_STOP=1"}, args...)...)
	}
	proc.Eventually(t, 30*time.Second, "PostgreSQL answers directly", func() error {
		_, err := sql(port, "-c", "select 1")
		return err
	})
	a, up := mesh(t, "pg", port)
	if out, err := sql(up, "-c", "select 1"); err == nil {
		t.Fatalf("psql got through with no intention: %q", out)
	}
	allow(t, a, "pg")
	proc.Eventually(t, 5*time.Second, "psql connects through the mesh", func() error {
		_, err := sql(up, "-c", "select 1")
		return err
	})

	const rows = "select g, md5(g::text), repeat('x', g % 1000) from generate_series(1, 20000) g order by g"
	want, err := sql(port, "-c", rows)
	if err != nil {
		t.Fatal(err)
	}
	got, err := sql(up, "-c", rows)
	if err != nil || got != want {
		t.Fatalf("the mesh gave other rows (%d bytes, want %d): %v", len(got), len(want), err)
	}

	bench := func(args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, pgbench, append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(up), "-U", "weft"}, append(args, "postgres")...)...)
	}
	if out, err := bench("-i", "-s", "1", "-q").CombinedOutput(); err != nil {
		t.Fatalf("pgbench -i: %v\n%s", err, out)
	}
	out, err := bench("-c", "8", "-j", "2", "-T", "3").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "number of failed transactions: 0 ") {
		t.Fatalf("pgbench: %v\n%s", err, out)
	}
	for _, l := range strings.Split(string(out), "\n") {
		if strings.HasPrefix(l, "tps") || strings.HasPrefix(l, "latency average") {
			t.Log("pgbench through the mesh: " + l)
		}
	}
	// A new connection for each transaction.
	if out, err := bench("-C", "-c", "4", "-j", "2", "-t", "20").CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "number of failed transactions: 0 ") {
		t.Fatalf("pgbench -C: %v\n%s", err, out)
	}

	// Long-lived connections end with a deny.
	long := bench("-c", "8", "-j", "2", "-T", "60", "-n")
	var longOut bytes.Buffer
	long.Stdout, long.Stderr = &longOut, &longOut
	if err := long.Start(); err != nil {
		t.Fatal(err)
	}
	const busy = "select count(*) from pg_stat_activity where application_name = 'pgbench'"
	proc.Eventually(t, 10*time.Second, "pgbench runs", func() error {
		n, err := sql(port, "-c", busy)
		if err == nil && strings.TrimSpace(n) != "8" {
			err = errors.New(n)
		}
		return err
	})
	begin := time.Now()
	a.MustCLI("intention", "create", "-replace", "-deny", "client", "pg")
	called := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- long.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Errorf("pgbench ended well although its connections were denied:\n%s", longOut.String())
		}
	case <-time.After(10 * time.Second):
		t.Errorf("pgbench still runs 10 s after the deny")
		_ = long.Process.Kill()
	}
	t.Logf("the deny took %s by CLI; pgbench's 8 connections had ended %s after its start",
		called.Sub(begin).Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	proc.Eventually(t, 10*time.Second, "PostgreSQL sees the connections end", func() error {
		n, err := sql(port, "-c", busy)
		if err == nil && strings.TrimSpace(n) != "0" {
			err = errors.New(n + " still connected")
		}
		return err
	})
	logged(t, a, "policy_changed") // for the connections that the deny closed
}

// postgresUser gives a directory and, for root, which PostgreSQL refuses, another
// user who owns it.
func postgresUser(t *testing.T) (*syscall.SysProcAttr, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	attr := &syscall.SysProcAttr{}
	if os.Geteuid() != 0 {
		return attr, dir
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	return attr, dir
}

// start runs a program until the test ends.
func start(t *testing.T, attr *syscall.SysProcAttr, name string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = attr
	cmd.Stdout, cmd.Stderr = &out, &out
	if attr != nil {
		cmd.Dir = "/"
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // PostgreSQL's fast shutdown
		done := make(chan struct{})
		go func() { _ = cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(name), out.String())
		}
	})
}

func waitPort(t *testing.T, port int) {
	t.Helper()
	proc.Eventually(t, 20*time.Second, fmt.Sprintf("port %d listens", port), func() error {
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			c.Close()
		}
		return err
	})
}
