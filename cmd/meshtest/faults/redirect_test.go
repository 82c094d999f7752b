//go:build faults && linux

package faults_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// Users of the hosts: the agents are root, as which the test runs.
const (
	applicationUID = 65534
	noAgentUID     = 64321
)

// answering is an HTTP server on the bridge that says one word.
func answering(t *testing.T, c *proc.Cluster, word string) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(c.Network.Base(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: ln, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, word) })}}
	s.Start()
	t.Cleanup(s.Close)
	return ln.Addr().(*net.TCPAddr).Port
}

// curl asks as an application of the host does, that knows nothing of the mesh.
func curl(n *proc.Node, url string) (string, error) {
	out, err := n.Command(applicationUID, "curl", "-sS", "--noproxy", "*", "--max-time", "5", url).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return string(out), nil
}

func curlSays(t *testing.T, n *proc.Node, url, want string) {
	t.Helper()
	proc.Eventually(t, 30*time.Second, url+" answers "+want, func() error {
		got, err := curl(n, url)
		if err == nil && got != want {
			err = fmt.Errorf("it says %q", got)
		}
		return err
	})
}

// curlRefused: it is refused, and the agent says why.
func curlRefused(t *testing.T, n *proc.Node, url string, said ...string) {
	t.Helper()
	proc.Eventually(t, 30*time.Second, url+" is refused", func() error {
		if got, err := curl(n, url); err == nil {
			return fmt.Errorf("it says %q", got)
		}
		for line := range strings.Lines(n.Log()) {
			all := true
			for _, part := range said {
				all = all && strings.Contains(line, part)
			}
			if all {
				return nil
			}
		}
		return fmt.Errorf("no line of the log has %q", said)
	})
}

// redirect runs the command on a host.
func redirect(n *proc.Node, args ...string) error {
	out, said, code := n.CLI(append([]string{"connect", "redirect-traffic", "-netns", n.Namespace()}, args...)...)
	if code != 0 {
		return fmt.Errorf("exit code %d: %s%s", code, out, said)
	}
	return nil
}

func redirects(t *testing.T, n *proc.Node, args ...string) {
	t.Helper()
	proc.Eventually(t, 30*time.Second, "connect redirect-traffic "+strings.Join(args, " "), func() error { return redirect(n, args...) })
}

// tables lists those of a host.
func tables(t *testing.T, n *proc.Node) string {
	t.Helper()
	out, err := n.Command(0, "nft", "list", "tables").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// tableOf lists the rules, users by number.
func tableOf(t *testing.T, n *proc.Node) string {
	t.Helper()
	out, err := n.Command(0, "nft", "-nn", "list", "table", "inet", "weft-redirect").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// TestRedirectedTraffic has applications that know nothing of the mesh dial a service by
// its name and by its virtual address: what intentions allow, and nothing else.
func TestRedirectedTraffic(t *testing.T) {
	proc.Need(t, "curl")
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 1, Agents: 2, Namespaces: true, AgentArgs: withDNS})
	a, b := c.Agents[0], c.Agents[1]
	if _, _, err := a.Client.ConfigEntries().Set(&api.ProxyConfigEntry{Kind: api.ProxyDefaults, Name: "global", Mode: api.ProxyModeTransparent}, nil); err != nil {
		t.Fatal(err)
	}
	s := sidecar("api", answering(t, c, "api"))
	s.Connect.SidecarService.Proxy = &api.AgentServiceConnectProxyConfig{LocalServiceAddress: c.Network.Base()}
	register(t, b.Agent, s)
	register(t, a.Agent, sidecar("web", 1))
	outside := "http://" + net.JoinHostPort(c.Network.Base(), strconv.Itoa(answering(t, c, "outside")))

	rules := []string{"-proxy-id", "web", "-proxy-uid", "0", "-consul-dns-ip", a.Addr, "-consul-dns-port", "8600"}
	redirects(t, a, rules...)
	if got := tables(t, a); got != "table inet weft-redirect" {
		t.Errorf("tables: %q", got)
	}
	const name = "http://api.virtual.consul:8080"
	curlRefused(t, a, name, "reason=denied", "destination=api", "weft intention create web api")
	intend(t, a.Agent, "web", "api", api.IntentionActionAllow)
	curlSays(t, a, name, "api")
	virtual := virtualOf(t, a, "api")
	curlSays(t, a, "http://"+net.JoinHostPort(virtual, "80"), "api")
	curlSays(t, a, outside, "outside")

	if conn, err := net.DialTimeout("tcp", net.JoinHostPort(b.Addr, "9999"), 5*time.Second); err == nil {
		conn.Close()
		t.Error("something listens at port 9999 already")
	}
	redirects(t, b, "-proxy-id", "api-sidecar-proxy", "-proxy-uid", "0")
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(b.Addr, "9999"), 5*time.Second)
	if err != nil {
		t.Errorf("what arrives for any port is not redirected to the proxy: %v", err)
	} else {
		conn.Close()
	}
	if _, err := b.Client.Agent().NodeName(); err != nil {
		t.Errorf("the port of the agent is redirected: %v", err)
	}
	curlSays(t, a, name, "api")

	only := &api.MeshConfigEntry{TransparentProxy: api.TransparentProxyMeshConfig{MeshDestinationsOnly: true}}
	if _, _, err := a.Client.ConfigEntries().Set(only, nil); err != nil {
		t.Fatal(err)
	}
	curlRefused(t, a, outside, "reason=no_instance", "MeshDestinationsOnly")
	curlSays(t, a, name, "api")
	if _, err := a.Client.ConfigEntries().Delete(api.MeshConfig, api.MeshConfigMesh, nil); err != nil {
		t.Fatal(err)
	}
	curlSays(t, a, outside, "outside")

	redirects(t, a, "-proxy-id", "web", "-proxy-uid", strconv.Itoa(noAgentUID))
	other := "http://" + net.JoinHostPort(c.Network.Base(), strconv.Itoa(answering(t, c, "other"))) // its refusals are news
	curlRefused(t, a, other, "redirects to the proxy again", "-proxy-uid")
	redirects(t, a, rules...)
	curlSays(t, a, outside, "outside")
	if got := tables(t, a); got != "table inet weft-redirect" {
		t.Errorf("after the command ran again: %q", got)
	}

	a.Kill()
	if got, err := curl(a, outside); err == nil {
		t.Errorf("without an agent something goes past the mesh: %q", got)
	}
	a.Launch()
	curlSays(t, a, name, "api")
	intend(t, a.Agent, "web", "api", api.IntentionActionDeny)
	curlRefused(t, a, name, "reason=denied", "destination=api", "rule=\"web → api")
	redirects(t, a, "-proxy-inbound-port", "21000", "-proxy-uid", "root", "-exclude-inbound-port", "4433", "-exclude-outbound-port", "3306",
		"-exclude-outbound-cidr", "192.0.2.0/25", "-exclude-outbound-cidr", "2001:db8::/33", "-exclude-uid", "1234", "-consul-dns-port", "8600")
	listed := tableOf(t, a)
	for _, rule := range []string{
		"tcp dport 22 return", "tcp dport 4433 return", "redirect to :21000", "meta skuid 0 return", "meta skuid 1234 return",
		"tcp dport 3306 return", "ip daddr 192.0.2.0/25 return", "ip6 daddr 2001:db8::/33 return", "ip daddr 127.0.0.0/8 return",
		"udp dport 53 dnat ip to 127.0.0.1:8600", "redirect to :15001",
	} {
		if !strings.Contains(listed, rule) {
			t.Errorf("no rule %q in\n%s", rule, listed)
		}
	}
	for range 2 {
		redirects(t, a, "-remove")
	}
	if got := tables(t, a); got != "" {
		t.Errorf("after the removal: %q", got)
	}
	curlSays(t, a, outside, "outside")
}

// virtualOf is the address that stands for a service.
func virtualOf(t *testing.T, n *proc.Node, service string) (addr string) {
	t.Helper()
	proc.Eventually(t, 30*time.Second, service+" has a virtual address", func() error {
		found, _, err := n.Client.Health().Connect(service, "", false, nil)
		if err == nil && len(found) == 0 {
			err = errors.New("it has no proxy")
		}
		if err != nil {
			return err
		}
		addr = found[0].Service.TaggedAddresses["consul-virtual"].Address
		return nil
	})
	return addr
}

// TestRedirectedTrafficHandOver has one process of an agent follow another: who is
// redirected meanwhile is taken by one of them.
func TestRedirectedTrafficHandOver(t *testing.T) {
	t.Parallel()
	s, _ := supervised(t)
	port := proc.FreePorts(t, 1)[0]
	app := sidecar("app", 1)
	app.Connect.SidecarService.Proxy = &api.AgentServiceConnectProxyConfig{
		Mode: api.ProxyModeTransparent, TransparentProxy: &api.TransparentProxyConfig{OutboundListenerPort: port},
	}
	register(t, s.Agent, app)
	dial := func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), 5*time.Second)
		switch {
		case err == nil:
			c.Close()
		case !errors.Is(err, syscall.ECONNREFUSED): // it was taken, and reset, as no rule redirected it
			return nil
		}
		return err
	}
	proc.Eventually(t, 30*time.Second, "the proxy takes what is redirected", dial)
	over := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		for {
			select {
			case <-over:
				failed <- nil
				return
			case <-time.After(time.Millisecond):
			}
			if err := dial(); err != nil {
				failed <- err
				return
			}
		}
	}()
	s.Relieve(60 * time.Second)
	s.WaitServing(30 * time.Second)
	proc.Eventually(t, 30*time.Second, "the new process takes what is redirected", func() error {
		_, body, err := s.Get("/v1/agent/connect/proxies")
		if err == nil && !strings.Contains(body, "127.0.0.1:"+strconv.Itoa(port)) {
			err = fmt.Errorf("not in %s", body)
		}
		return err
	})
	close(over)
	if err := <-failed; err != nil {
		t.Errorf("while one process followed the other: %v", err)
	}
}
