package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

func TestAgentServes(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "agent.hcl")
	writeFile(t, conf, "datacenter = \"test\"\nservice { name = \"filed\" port = 1 }\n")
	a := startAgent(t, "-config-file", conf, "-pid-file", filepath.Join(dir, "pid"))

	if b, err := os.ReadFile(filepath.Join(dir, "pid")); err != nil || string(b) != fmt.Sprint(a.cmd.Process.Pid) {
		t.Errorf("pid file: %q, %v", b, err)
	}
	if got := a.weft("members"); !strings.Contains(got, "host1") || !strings.Contains(got, "alive") || !strings.Contains(got, "test") {
		t.Errorf("members:\n%s", got)
	}
	if got := a.weft("catalog", "datacenters"); got != "test\n" {
		t.Errorf("datacenters: %q", got)
	}
	a.eventually("filed", "catalog", "services")
	a.weft("info")

	web := filepath.Join(dir, "web.json")
	writeFile(t, web, `{"service":{"name":"web","port":80,"check":{"ttl":"1h","status":"passing"},"connect":{"sidecar_service":{}}}}`)
	a.weft("services", "register", web)
	a.eventually("web-sidecar-proxy", "catalog", "services")
	a.eventually("host1", "catalog", "nodes", "-service=web")

	if code, out, errs := call(map[string]string{"WEFT_HTTP_ADDR": a.addr}, "intention", "check", "web", "filed"); code != exitFailure || out != "Denied\n" {
		t.Errorf("check before: %d %q %q", code, out, errs)
	}
	a.weft("intention", "create", "web", "filed")
	if got := a.weft("intention", "check", "web", "filed"); got != "Allowed\n" {
		t.Errorf("check after: %q", got)
	}
	if got := a.weft("intention", "match", "filed"); got != "web => filed (allow)\n" {
		t.Errorf("match: %q", got)
	}
	if got := a.weft("config", "read", "-kind", "service-intentions", "-name", "filed"); !strings.Contains(got, `"web"`) {
		t.Errorf("config read: %s", got)
	}
	a.weft("intention", "delete", "web", "filed")
	if got := a.weft("connect", "ca", "get-config"); !strings.Contains(got, `"consul"`) {
		t.Errorf("CA: %s", got)
	}
	a.eventually("web-sidecar-proxy (ready", "connect", "status")

	writeFile(t, conf, "datacenter = \"test\"\ndefault_query_time = \"7s\"\nlimits { request_limits { mode = \"enforcing\" write_rate = 0 } }\nservice { name = \"refiled\" port = 1 }\n")
	if err := a.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if got := a.await("after a restart only"); !strings.Contains(got, `"keys":"default_query_time"`) {
		t.Errorf("what needs a restart: %s", got)
	}
	a.await("configuration reloaded")
	a.eventually("refiled", "catalog", "services")
	if code, _, errs := call(map[string]string{"WEFT_HTTP_ADDR": a.addr}, "kv", "put", "a", "b"); code != exitFailure || !strings.Contains(errs, "rate limit exceeded") {
		t.Errorf("a write with a rate of 0: %d %q", code, errs)
	}
	writeFile(t, conf, "datacentre = \"test\"\n")
	if code, _, errs := call(map[string]string{"WEFT_HTTP_ADDR": a.addr}, "reload"); code != exitFailure || !strings.Contains(errs, "agent.hcl:1: datacentre: unknown key") {
		t.Errorf("reload of a bad file: %d %q", code, errs)
	}
	a.await("the configuration was not reloaded", "datacentre")
	if code := a.stop(syscall.SIGTERM); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Stat(filepath.Join(dir, "pid")); !os.IsNotExist(err) {
		t.Errorf("the pid file stays: %v", err)
	}
}

func TestDataSurvivesARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	a := startAgent(t, "-data-dir", dir)
	a.weft("intention", "create", "web", "db")
	a.weft("services", "register", "-name=db", "-port=5432")
	id := a.weft("catalog", "nodes", "-detailed", "-format=json")
	a.eventually("db", "catalog", "services")
	if code := a.stop(os.Interrupt); code != exitOK {
		t.Fatalf("exit code %d", code)
	}
	a = startAgent(t, "-data-dir", dir)
	if got := a.weft("intention", "check", "web", "db"); got != "Allowed\n" {
		t.Errorf("check: %q", got)
	}
	a.eventually("db", "catalog", "services")
	var before, after []struct{ ID string }
	if err := errors.Join(json.Unmarshal([]byte(id), &before), json.Unmarshal([]byte(a.weft("catalog", "nodes", "-format=json")), &after)); err != nil {
		t.Fatal(err)
	}
	if len(before) != 1 || len(after) != 1 || before[0] != after[0] {
		t.Errorf("node IDs: %v, then %v", before, after)
	}
	// A second agent on the same data must not start.
	b := launchAgent(t, "-data-dir", dir)
	if code := b.exit(); code != exitDataDir {
		t.Errorf("two agents on one data directory: exit code %d\n%s", code, b.text())
	}
	if code := a.stop(syscall.SIGTERM); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

func TestLeaveEndsTheAgent(t *testing.T) {
	a := startAgent(t)
	if got := a.weft("leave"); got != "Graceful leave complete\n" {
		t.Errorf("leave: %q", got)
	}
	if code := a.exit(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	for _, key := range []string{"http", "dns", "serf_lan"} {
		cmd := program(t, "agent", "-dev", "-hcl", "ports { http = 0 dns = 0 serf_lan = 0 }", "-hcl", fmt.Sprintf("ports { %s = %d }", key, port))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitPortInUse || !strings.Contains(string(out), fmt.Sprint(port)) {
			t.Errorf("%s: %v\n%s", key, err, out)
		}
	}
}

func TestMonitorFollowsTheLog(t *testing.T) {
	a := startAgent(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := program(t, "monitor", "-http-addr", a.addr, "-log-level=debug", "-log-json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it may have ended
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "http request") {
		a.weft("catalog", "datacenters")
	}
	if !strings.Contains(lines.Text(), `"level":"DEBUG"`) {
		t.Errorf("monitor showed %q", lines.Text())
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out) // until it ends
	if err := cmd.Wait(); err != nil {
		t.Errorf("monitor ended with %v", err)
	}
}

// Proxies in processes of their own, one registered and one from flags.
func TestStandaloneProxies(t *testing.T) {
	a := startAgent(t, "-hcl", `config_entries { bootstrap { kind = "service-intentions" name = "db" sources { name = "web" action = "allow" } } }`)
	file := filepath.Join(t.TempDir(), "db.hcl")
	writeFile(t, file, fmt.Sprintf(`service { name = "db" port = %d connect { sidecar_service { check { ttl = "1h" status = "passing" } proxy { config { external = true } } } } }`, greeter(t)))
	a.weft("services", "register", file)
	upstream := proc.FreePorts(t, 1)[0]
	var proxies []*exec.Cmd
	for _, args := range [][]string{
		{"-sidecar-for", "db"},
		{"-service", "web", "-upstream", fmt.Sprintf("db:%d", upstream), "-register"},
	} {
		cmd := program(t, append([]string{"connect", "proxy", "-http-addr", a.addr}, args...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() }) // it may have ended
		proxies = append(proxies, cmd)
	}
	conn := greeted(t, fmt.Sprintf("127.0.0.1:%d", upstream))
	a.eventually("web-proxy", "catalog", "services")
	a.counts(`weft_proxy_connections_open{destination="db",direction="inbound",proxy="db-sidecar-proxy",source="web"} 1`,
		`weft_proxy_connections_open{destination="db",direction="outbound",proxy="web-proxy",source="web"} 1`,
		`weft_proxy_applied_index{proxy="db-sidecar-proxy"} `)
	_ = conn.Close()
	for _, p := range proxies {
		if err := p.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			t.Errorf("%s: %v", p.Args, err)
		}
	}
	a.gone("web-proxy", "catalog", "services")
	// It was told at the end of the proxy, which is registered still.
	a.counts(`weft_proxy_connections_open{destination="db",direction="inbound",proxy="db-sidecar-proxy",source="web"} 0`,
		`weft_proxy_connection_seconds_count{destination="db",direction="inbound",proxy="db-sidecar-proxy",source="web"} 1`,
		`weft_proxy_connections_total{destination="db",direction="inbound",proxy="db-sidecar-proxy",reason="`)
	if text := metrics(t, a.addr); strings.Contains(text, `proxy="web-proxy"`) {
		t.Errorf("of a proxy that is registered no more:\n%s", text)
	}
}

// The first signal waits for connections that run, the second does not.
func TestSecondSignal(t *testing.T) {
	a := startAgent(t, "-hcl", `performance { leave_drain_time = "1h" }`)
	app := greeter(t)
	upstream := proc.FreePorts(t, 1)[0]
	file := filepath.Join(t.TempDir(), "services.hcl")
	writeFile(t, file, fmt.Sprintf(`
		service { name = "db" port = %d connect { sidecar_service {} } }
		service { name = "web" port = 1 connect { sidecar_service { proxy { upstreams { destination_name = "db" local_bind_port = %d } } } } }`,
		app, upstream))
	a.weft("services", "register", file)
	a.weft("intention", "create", "web", "db")
	conn := greeted(t, fmt.Sprintf("127.0.0.1:%d", upstream))
	defer conn.Close()

	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	a.await("ends gracefully")
	select {
	case <-a.ended:
		t.Fatal("the agent cut a running connection")
	case <-time.After(100 * time.Millisecond):
	}
	if code := a.stop(syscall.SIGTERM); code != exitForced {
		t.Errorf("exit code %d", code)
	}
}
