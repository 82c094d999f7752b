package agent_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/meshtest"
	"github.com/weftmesh/weft/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair registers web and db with sidecars; web reaches db at the returned port.
func pair(t *testing.T, m *meshtest.Mesh) (upstream int) {
	t.Helper()
	upstream = meshtest.FreePort(t)
	m.Register(map[string]any{"Name": "db", "Port": meshtest.Echo(t, "db"), "Connect": map[string]any{"SidecarService": map[string]any{}}})
	m.Register(map[string]any{"Name": "web", "Port": meshtest.Echo(t, "web"), "Connect": map[string]any{"SidecarService": map[string]any{
		"Proxy": map[string]any{"Upstreams": []any{map[string]any{"DestinationName": "db", "LocalBindPort": upstream}}},
	}}})
	m.Eventually("both proxies to be passing", func() error {
		for _, name := range []string{"web", "db"} {
			var list []struct{ Checks []catalog.Check }
			m.Do("GET", "/v1/health/connect/"+name+"?passing", nil, &list)
			if len(list) != 1 {
				return fmt.Errorf("%s has %d healthy instances", name, len(list))
			}
		}
		return nil
	})
	return upstream
}

// call opens a connection through an upstream's listener; it has heard the
// destination's greeting, and had a line sent back.
func call(port int, name string) (net.Conn, error) {
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	fail := func(err error) (net.Conn, error) {
		_ = c.Close()
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(meshtest.Patience))
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); err != nil || line != name+"\n" {
		return fail(fmt.Errorf("greeting %q: %w", line, errors.Join(err, io.ErrUnexpectedEOF)))
	}
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return fail(err)
	}
	if line, err := r.ReadString('\n'); err != nil || line != "hello\n" {
		return fail(fmt.Errorf("echo %q: %w", line, errors.Join(err, io.ErrUnexpectedEOF)))
	}
	return c, nil
}

func mustRefuse(t *testing.T, port int, why string) {
	t.Helper()
	if c, err := call(port, "db"); err == nil {
		_ = c.Close()
		t.Errorf("a connection passed %s", why)
	}
}

func eventuallyPasses(t *testing.T, m *meshtest.Mesh, port int, what string) (c net.Conn) {
	t.Helper()
	m.Eventually(what, func() (err error) {
		c, err = call(port, "db")
		return err
	})
	return c
}

// mustBeCut waits for the far end to end c.
func mustBeCut(t *testing.T, c net.Conn) {
	t.Helper()
	start := time.Now()
	_ = c.SetReadDeadline(start.Add(10 * time.Second))
	_, err := c.Read(make([]byte, 1))
	var ne net.Error
	if err == nil || (errors.As(err, &ne) && ne.Timeout()) {
		t.Errorf("the live connection goes on: %v", err)
	}
	t.Logf("cut after %s", time.Since(start))
	_ = c.Close()
}

func TestRefusedAllowedCut(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{})
	up := pair(t, m)
	mustRefuse(t, up, "with no intention")

	m.Intend("web", "db", catalog.ActionAllow)
	live := eventuallyPasses(t, m, up, "the intention to be enforced")
	m.Intend("web", "db", catalog.ActionDeny)
	mustBeCut(t, live)
	mustRefuse(t, up, "against a deny")

	m.Intend("web", "db", catalog.ActionAllow)
	_ = eventuallyPasses(t, m, up, "the intention to be enforced again").Close()
	m.Deregister("web")
	m.Eventually("the sidecar's listener to go with its service", func() error {
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(up)))
		if err == nil {
			_ = c.Close()
			return errors.New("it accepts still")
		}
		return nil
	})
	m.Eventually("the catalog to forget the service", func() error {
		var names map[string][]string
		m.Do("GET", "/v1/catalog/services", nil, &names)
		if _, ok := names["web"]; ok {
			return fmt.Errorf("%v", names)
		}
		return nil
	})
}

// TestRestart keeps registrations and policy over restarts: with its server, and
// with no server at all.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	m := meshtest.Start(t, meshtest.Options{DataDir: dir})
	up := pair(t, m)
	m.Intend("web", "db", catalog.ActionAllow)
	_ = eventuallyPasses(t, m, up, "the intention to be enforced").Close()
	var before struct{ Config struct{ NodeID string } }
	m.Do("GET", "/v1/agent/self", nil, &before)
	m.Stop()

	m = meshtest.Start(t, meshtest.Options{DataDir: dir})
	_ = eventuallyPasses(t, m, up, "connections after a restart").Close()
	var after struct{ Config struct{ NodeID string } }
	m.Do("GET", "/v1/agent/self", nil, &after)
	if before != after || after.Config.NodeID == "" {
		t.Errorf("the node was %q and is %q", before.Config.NodeID, after.Config.NodeID)
	}
	live := eventuallyPasses(t, m, up, "connections after a restart")
	m.StopServer()
	if _, err := io.WriteString(live, "still there\n"); err != nil {
		t.Errorf("a live connection after the server stopped: %v", err)
	}
	_ = live.Close()
	_ = eventuallyPasses(t, m, up, "connections with the server gone").Close()
	m.Stop()

	m = meshtest.Start(t, meshtest.Options{DataDir: dir, NoServer: true})
	_ = eventuallyPasses(t, m, up, "connections of an agent without any server").Close()
	var services map[string]struct{ Service string }
	m.Do("GET", "/v1/agent/services", nil, &services)
	if len(services) != 4 {
		t.Errorf("registrations: %v", services)
	}
}

// TestStaleReadsWithoutServers: what this host knew goes on being answered, and
// says that it is old; what must be fresh fails.
func TestStaleReadsWithoutServers(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{Change: func(c *agent.Config, _ *server.Config) { c.HoldTimeout = 200 * time.Millisecond }})
	pair(t, m)
	m.StopServer()
	status, body, err := m.Try("GET", "/v1/health/connect/db?stale", nil)
	if err != nil || status != 200 || !strings.Contains(string(body), "db-sidecar-proxy") {
		t.Errorf("stale: %d %s %v", status, body, err)
	}
	if status, body, _ = m.Try("GET", "/v1/health/connect/db", nil); status != 500 {
		t.Errorf("default: %d %s", status, body)
	}
}

func TestNodeRow(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{Files: agent.Files{NodeMeta: map[string]string{"rack": "r1"}}})
	m.Eventually("the node row", func() error {
		var nodes []catalog.Node
		m.Do("GET", "/v1/catalog/nodes", nil, &nodes)
		if len(nodes) != 1 {
			return fmt.Errorf("%d nodes", len(nodes))
		}
		n := nodes[0]
		got, err := json.Marshal(map[string]any{"a": n.Address, "t": n.TaggedAddresses, "m": n.Meta, "d": n.Datacenter})
		want := `{"a":"127.0.0.1","d":"dc1","m":{"consul-network-segment":"","consul-version":"0.0.0-test","rack":"r1"},` +
			`"t":{"lan":"127.0.0.1","lan_ipv4":"127.0.0.1","wan":"127.0.0.1","wan_ipv4":"127.0.0.1"}}`
		if err != nil || string(got) != want {
			return fmt.Errorf("got  %s\nwant %s", got, want)
		}
		return nil
	})
}

// TestAliasOfAnotherNode follows a node, and a service on it, that other hosts or
// tools have put into the catalog.
func TestAliasOfAnotherNode(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{})
	set := func(status string) {
		m.Do("PUT", "/v1/catalog/register", map[string]any{
			"Node": "ext", "Address": "10.0.0.9", "Service": map[string]any{"Service": "erp", "Port": 1},
			"Checks": []any{map[string]any{"CheckID": "c", "Name": "c", "ServiceID": "erp", "Status": status}},
		}, nil)
	}
	m.Register(map[string]any{"Name": "front", "Checks": []any{
		map[string]any{"CheckID": "node", "AliasNode": "ext"},
		map[string]any{"CheckID": "service", "AliasNode": "ext", "AliasService": "erp"},
	}})
	expect := func(node, service string) {
		t.Helper()
		m.Eventually("the aliases to be "+node+" and "+service, func() error {
			var checks map[string]catalog.Check
			m.Do("GET", "/v1/agent/checks", nil, &checks)
			if n, s := checks["node"].Status, checks["service"].Status; n != node || s != service {
				return fmt.Errorf("%s (%s) and %s (%s)", n, checks["node"].Output, s, checks["service"].Output)
			}
			return nil
		})
	}
	expect("critical", "critical") // there is no such node
	set("warning")
	expect("passing", "warning")
	set("passing")
	expect("passing", "passing")
	m.Do("PUT", "/v1/catalog/deregister", map[string]any{"Node": "ext"}, nil)
	expect("critical", "critical")
}

func TestReload(t *testing.T) {
	var files agent.Files
	var loadErr error
	m := meshtest.Start(t, meshtest.Options{
		Files: agent.Files{Services: []*catalog.ServiceRegistration{{Name: "first", Port: 1}}},
		Load:  func(context.Context) (agent.Files, error) { return files, loadErr },
	})
	names := func() string {
		var services map[string]struct{ Service string }
		m.Do("GET", "/v1/agent/services", nil, &services)
		out := []string{}
		for id := range services {
			out = append(out, id)
		}
		return strings.Join(out, " ")
	}
	if got := names(); got != "first" {
		t.Fatalf("from files: %q", got)
	}
	files = agent.Files{Services: []*catalog.ServiceRegistration{{Name: "late", Port: 7}}}
	m.Do("PUT", "/v1/agent/reload", nil, nil)
	if got := names(); got != "late" {
		t.Errorf("after the reload: %q", got)
	}
	loadErr = fmt.Errorf("services.hcl: %w", catalog.ErrInvalid)
	if status, body, _ := m.Try("PUT", "/v1/agent/reload", nil); status == 200 || !strings.Contains(string(body), "services.hcl") {
		t.Errorf("a broken file: %d %s", status, body)
	}
	if got := names(); got != "late" {
		t.Errorf("after the broken reload: %q", got)
	}
}

func TestNodeID(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	first, err := agent.NodeID(dir, "")
	if err != nil || len(first) != 36 {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := agent.NodeID(dir, ""); err != nil || again != first {
		t.Errorf("again: %q, %v", again, err)
	}
	const mine = "0c4f6d1a-31a5-44c9-8f01-0d2c8bd3a9b1"
	if id, err := agent.NodeID(dir, strings.ToUpper(mine)); err != nil || id != mine {
		t.Errorf("configured: %q, %v", id, err)
	}
	if id, err := agent.NodeID(dir, ""); err != nil || id != mine {
		t.Errorf("the configured one was not kept: %q, %v", id, err)
	}
	if _, err := agent.NodeID("", "web"); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("no UUID: %v", err)
	}
	file := filepath.Join(dir, "node-id")
	if err := os.WriteFile(file, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.NodeID(dir, ""); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestConfigIsValidated(t *testing.T) {
	for name, change := range map[string]func(*agent.Config){
		"no name":               func(c *agent.Config) { c.NodeName = "" },
		"no ID":                 func(c *agent.Config) { c.NodeID = "" },
		"no datacenter":         func(c *agent.Config) { c.Datacenter = "" },
		"no way to a server":    func(c *agent.Config) { c.Dial = nil },
		"no address":            func(c *agent.Config) { c.Advertise = "" },
		"an address for nobody": func(c *agent.Config) { c.Advertise = "0.0.0.0" },
		"a port in use":         func(c *agent.Config) { c.HTTP.Addrs = []string{busy(t)} },
		"a service without name": func(c *agent.Config) {
			c.Files.Services = []*catalog.ServiceRegistration{{Port: 1}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := agent.Config{
				NodeName: "n", NodeID: "0c4f6d1a-31a5-44c9-8f01-0d2c8bd3a9b1", Datacenter: "dc1", Advertise: "127.0.0.1",
				Dial: func(context.Context) (net.Conn, error) { return nil, net.ErrClosed },
			}
			change(&cfg)
			if a, err := agent.New(cfg); err == nil {
				a.Close()
				t.Error("it was accepted")
			} else {
				t.Log(err)
			}
		})
	}
}

func busy(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}
