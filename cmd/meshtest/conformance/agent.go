package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

const nodeName = "conf-node"

// agent is a fresh `weft agent -dev` with the settings of a case.
type agent struct {
	dir       string
	ports     ports
	http, dns string
	settings  map[string]any
	cmd       *exec.Cmd
	ended     chan struct{}
}

// startAgent starts the agent and waits until it serves. Another process may take
// a port between the look and the start: then other ports are tried.
func startAgent(binary string, c *Case) (*agent, error) {
	var err error
	for range 3 {
		var a *agent
		if a, err = newAgent(binary, c); err != nil {
			return nil, err
		}
		if err = a.waitReady(c); err == nil {
			return a, nil
		}
		log := a.tail()
		a.stop()
		if err = fmt.Errorf("%w\n%s", err, log); !strings.Contains(log, "address already in use") {
			break
		}
	}
	return nil, err
}

func newAgent(binary string, c *Case) (_ *agent, err error) {
	a := &agent{settings: map[string]any{}, ended: make(chan struct{})}
	if a.dir, err = os.MkdirTemp("", "conformance-"); err != nil {
		return nil, err
	}
	if a.ports, err = freePorts(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.ports.release()
		}
	}()
	a.http = fmt.Sprintf("127.0.0.1:%d", a.ports.first)
	a.dns = fmt.Sprintf("127.0.0.1:%d", a.ports.first+1)
	if len(c.Agent) > 0 {
		if err := json.Unmarshal(c.Agent, &a.settings); err != nil {
			return nil, fmt.Errorf("agent settings: %w", err)
		}
	}
	if err := a.writeConfig(nil); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(a.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	a.cmd = exec.Command(binary, "agent", "-dev", "-config-file", a.configFile(), "-hcl", `default_intention_policy="allow"`)
	a.cmd.Dir, a.cmd.Stdout, a.cmd.Stderr = a.dir, log, log
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = a.cmd.Wait()
		close(a.ended)
	}()
	return a, nil
}

func (a *agent) configFile() string { return filepath.Join(a.dir, "agent.json") }

func (a *agent) sidecarShift() int64 { return int64(a.ports.sidecars() - sidecarMin) }

// writeConfig writes the configuration file of the run with additions.
func (a *agent) writeConfig(extra json.RawMessage) error {
	p := a.ports.first
	base := map[string]any{
		"node_name": nodeName, "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1",
		"log_level": "warn", "disable_update_check": true,
		"ports": map[string]any{
			"http": p, "dns": p + 1, "grpc": p + 2, "grpc_tls": -1,
			"serf_lan": p + 3, "serf_wan": p + 4, "server": p + 5,
			"sidecar_min_port": a.ports.sidecars(), "sidecar_max_port": a.ports.first + portsEach - 1,
		},
	}
	more := map[string]any{}
	if len(extra) > 0 {
		if err := json.Unmarshal(extra, &more); err != nil {
			return err
		}
	}
	b, err := json.Marshal(merge(merge(base, a.settings), more))
	if err != nil {
		return err
	}
	return os.WriteFile(a.configFile(), a.vars().substJSON(b), 0o600)
}

// waitReady waits until the agent has a leader, roots, and its own node with all
// that it says of itself in the catalog.
func (a *agent) waitReady(c *Case) error {
	acls := a.settings["acl"] != nil
	wants := []struct {
		path string
		ok   func(body []byte) bool
	}{
		{"/v1/status/leader", func(b []byte) bool { s := string(bytes.TrimSpace(b)); return s != `""` && s != "" }},
		{"/v1/health/node/" + nodeName, func(b []byte) bool { return acls || bytes.Contains(b, []byte("serfHealth")) }},
		{"/v1/connect/ca/roots", func(b []byte) bool { return bytes.Contains(b, []byte("ActiveRootID")) }},
		// Services of the configuration file: their sidecars serve.
		{"/v1/agent/checks", func(b []byte) bool { return a.settings["services"] == nil || !bytes.Contains(b, []byte(`"critical"`)) }},
		{"/v1/catalog/node/" + nodeName, func(b []byte) bool { return acls || bytes.Contains(b, []byte(`"lan"`)) }},
	}
	for deadline := time.Now().Add(30 * time.Second); len(wants) > 0; {
		status, body, err := a.get(wants[0].path, c)
		if err == nil && (status == http.StatusOK && wants[0].ok(body) || acls && status == http.StatusForbidden) {
			wants = wants[1:]
			continue
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the agent does not serve %s: status %d, %w", wants[0].path, status, err)
		}
		select {
		case <-a.ended:
			return fmt.Errorf("the agent ended: %s", a.cmd.ProcessState)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

func (a *agent) get(path string, c *Case) (int, []byte, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+a.http+path, http.NoBody) //nolint:noctx // the client has a timeout
	if err != nil {
		return 0, nil, err
	}
	req.Close = true
	if c.Token != nil && *c.Token != "" {
		req.Header.Set("X-Consul-Token", *c.Token)
	}
	client := http.Client{Timeout: 3 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// tail is the end of what the agent printed.
func (a *agent) tail() string {
	b, _ := os.ReadFile(filepath.Join(a.dir, "log"))
	return string(b[max(0, len(b)-600):])
}

func (a *agent) stop() {
	_ = a.cmd.Process.Kill()
	<-a.ended
	a.ports.release()
	_ = os.RemoveAll(a.dir)
}

// ports are a block that one agent has for itself: the named ones, then those of
// its sidecars. Blocks lie below the ephemeral range and below those that other
// tests use. The last of the named ports is held as long as the block is used, so
// that agents of another process do not come between either.
type ports struct {
	first int
	held  net.Listener
}

const (
	portsLow, portsEach, portsBlocks = 10000, 40, 280
	portsNamed                       = 8
)

func (p ports) sidecars() int { return p.first + portsNamed }

var blocks atomic.Int64

func freePorts() (ports, error) {
	for range portsBlocks {
		p := ports{first: portsLow + int((int64(os.Getpid())*17+blocks.Add(1))%portsBlocks)*portsEach}
		held, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p.sidecars()-1))
		if err != nil {
			continue
		}
		if p.held = held; p.free() {
			return p, nil
		}
		p.release()
	}
	return ports{}, errors.New("no block of free ports")
}

func (p ports) release() { _ = p.held.Close() }

func (p ports) free() bool {
	for port := p.first; port < p.first+portsEach; port++ {
		if port == p.sidecars()-1 {
			continue // held
		}
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return false
		}
		ln.Close()
		u, err := net.ListenPacket("udp", addr)
		if err != nil {
			return false
		}
		_ = u.Close()
	}
	return true
}
