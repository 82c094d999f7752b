package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// agentProcess is a running `weft agent -dev` on free ports.
type agentProcess struct {
	cmd     *exec.Cmd
	http    string
	serving time.Duration // from exec to a leader that answers
}

func startMesh(ctx context.Context, binary string) (*agentProcess, error) {
	port := func() int {
		_, p, _ := net.SplitHostPort(freeAddr())
		n, _ := strconv.Atoi(p)
		return n
	}
	httpPort := port()
	conf := fmt.Sprintf(`ports { http = %d, serf_lan = %d, server = %d, dns = -1, sidecar_min_port = 20000, sidecar_max_port = 20999 }`, httpPort, port(), port())
	cmd := exec.CommandContext(ctx, binary, "agent", "-dev", "-hcl", conf, "-log-level", "warn") //nolint:gosec // the binary under test
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	a := &agentProcess{cmd: cmd, http: "http://127.0.0.1:" + strconv.Itoa(httpPort)}
	for {
		var leader string
		if err := a.get(ctx, "/v1/status/leader", &leader); err == nil && leader != "" {
			a.serving = time.Since(begin)
			return a, nil
		}
		if time.Since(begin) > 20*time.Second {
			a.stop()
			return nil, fmt.Errorf("the agent did not serve within 20 s:\n%s", log.String())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (a *agentProcess) stop() {
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	_ = a.cmd.Wait()
}

// pair registers db, which is the backend, and web, which dials it; it returns
// the address of web's upstream listener.
func (a *agentProcess) pair(ctx context.Context, backend string) (string, error) {
	host, p, err := net.SplitHostPort(backend)
	if err != nil {
		return "", err
	}
	port, err := strconv.Atoi(p)
	if err != nil {
		return "", err
	}
	upstream := freeAddr()
	_, up, _ := net.SplitHostPort(upstream)
	upPort, _ := strconv.Atoi(up)
	db := map[string]any{
		"Name": "db", "Address": host, "Port": port,
		"Connect": map[string]any{"SidecarService": map[string]any{}},
	}
	web := map[string]any{
		"Name": "web", "Port": 1,
		"Connect": map[string]any{"SidecarService": map[string]any{"Proxy": map[string]any{
			"Upstreams": []any{map[string]any{"DestinationName": "db", "LocalBindPort": upPort}},
		}}},
	}
	for _, s := range []any{db, web} {
		if err := a.put(ctx, "/v1/agent/service/register", s); err != nil {
			return "", err
		}
	}
	return upstream, nil
}

func (a *agentProcess) put(ctx context.Context, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return a.do(ctx, http.MethodPut, path, b, nil)
}

func (a *agentProcess) get(ctx context.Context, path string, out any) error {
	return a.do(ctx, http.MethodGet, path, nil, out)
}

func (a *agentProcess) do(ctx context.Context, method, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, a.http+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(b))
	}
	if out != nil {
		return json.Unmarshal(b, out)
	}
	return nil
}
