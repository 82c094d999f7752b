//go:build faults

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// withDNS lets a host of a cluster answer DNS.
var withDNS = []string{"-hcl", "ports { dns = 8600 }"}

// lookup asks the DNS of a host for the address of a service.
func lookup(n *proc.Node, service string) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(n.Addr, "8600"))
	}}
	return r.LookupHost(ctx, service+".service.consul.")
}

// staleHealth is what a host says of a service from what it knows.
func staleHealth(n *proc.Node, service string) (int, *api.QueryMeta, error) {
	got, meta, err := n.Client.Health().Service(service, "", true, &api.QueryOptions{AllowStale: true})
	return len(got), meta, err
}

// pairIn registers echo on b and a client of it on a, both in namespaces, where the test
// reaches the upstream at the address of a, and allows the one to reach the other.
func pairIn(t *testing.T, c *proc.Cluster, a, b *proc.Node) (upstream string) {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(c.Network.Base(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	e := serveEcho(t, ln)
	s := sidecar("echo", e.port())
	s.Connect.SidecarService.Proxy = &api.AgentServiceConnectProxyConfig{LocalServiceAddress: c.Network.Base()}
	register(t, b.Agent, s)
	register(t, a.Agent, sidecar("client", 1, api.Upstream{DestinationName: "echo", LocalBindAddress: a.Addr, LocalBindPort: 9191}))
	intend(t, a.Agent, "client", "echo", api.IntentionActionAllow)
	upstream = net.JoinHostPort(a.Addr, "9191")
	proc.Eventually(t, 30*time.Second, "client reaches echo", func() error { return roundTripTo(upstream) })
	return upstream
}

// TestP13AgentCutOff cuts an agent off from the servers: it goes on answering what it
// knows, in DNS and over HTTP, marked as old, its proxies work, what is registered
// meanwhile waits, its own checks do not flap, and all is well soon after the cable is back.
func TestP13AgentCutOff(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2, Namespaces: true, AgentArgs: withDNS})
	a, b := c.Agents[0], c.Agents[1]
	upstream := pairIn(t, c, a, b)
	_, port, _ := net.SplitHostPort(a.HTTP)
	httpPort, _ := strconv.Atoi(port)
	register(t, a.Agent, &api.AgentServiceRegistration{
		Name: "local", Port: httpPort, Check: &api.AgentServiceCheck{TCP: a.HTTP, Interval: "500ms", Timeout: "2s", Status: "passing"},
	})
	proc.Eventually(t, 15*time.Second, "a knows echo, everybody local", func() error {
		if n, _, err := staleHealth(a, "echo"); err != nil || n != 1 {
			return fmt.Errorf("echo: %d, %v", n, err)
		}
		if n, _, err := staleHealth(b, "local"); err != nil || n != 1 {
			return fmt.Errorf("local: %d, %v", n, err)
		}
		_, err := lookup(a, "echo")
		return err
	})

	var asked, failed, slow, flaps int
	c.Network.Part(proc.HostOf(a), proc.HostOf(c.Servers...))
	end := time.Now().Add(proc.Count(15*time.Second, 10*time.Minute))
	for n := 0; time.Now().Before(end); n++ {
		asked++
		if err := roundTripTo(upstream); err != nil {
			failed++
			t.Errorf("connection %d: %v", n, err)
		}
		began := time.Now()
		if got, meta, err := staleHealth(a, "echo"); err != nil || got != 1 || meta.KnownLeader {
			t.Errorf("HTTP %d: %d instances, %+v, %v", n, got, meta, err)
		}
		if addrs, err := lookup(a, "echo"); err != nil || !slices.Contains(addrs, b.Addr) {
			t.Errorf("DNS %d: %v, %v", n, addrs, err)
		}
		if time.Since(began) > 500*time.Millisecond {
			slow++
		}
		if own, err := a.Client.Agent().Checks(); err != nil || own["service:local"] == nil || own["service:local"].Status != "passing" {
			flaps++
		}
		if seen, _, err := b.Client.Health().Checks("local", nil); err != nil || len(seen) != 1 || seen[0].Status != "passing" {
			flaps++
		}
		if n == 5 {
			register(t, a.Agent, &api.AgentServiceRegistration{Name: "queued", Port: 2})
		}
		pause(100)
	}
	began := time.Now()
	c.Network.Heal()
	proc.Eventually(t, 30*time.Second, "all know what was registered meanwhile, and that the host is there", func() error {
		if n, _, err := staleHealth(b, "queued"); err != nil || n != 1 {
			return fmt.Errorf("queued: %d, %v", n, err)
		}
		_, _, err := a.Client.Catalog().Service("queued", "", nil)
		return err
	})
	took := time.Since(began)
	if flaps > 0 {
		t.Errorf("checks of a's services flapped %d times", flaps)
	}
	t.Logf("P13: %d rounds: %d connections failed, %d answers took above 0.5 s, %d flaps, converged %s after the cable was back",
		asked, failed, slow, flaps, took.Round(10*time.Millisecond))
	if took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestP14ServersGone takes all servers away for an hour and restarts the agents again
// and again meanwhile: the proxies serve with the policy and the certificates that they
// had, a deny of just before included, and DNS and HTTP answer what was known.
func TestP14ServersGone(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2, Namespaces: true, AgentArgs: withDNS})
	a, b := c.Agents[0], c.Agents[1]
	upstream := pairIn(t, c, a, b)
	register(t, a.Agent, sidecar("outlaw", 1, api.Upstream{DestinationName: "echo", LocalBindAddress: a.Addr, LocalBindPort: 9192}))
	refused := net.JoinHostPort(a.Addr, "9192")
	b.MustCLI("intention", "create", "-allow", "-wait", "10s", "outlaw", "echo")
	proc.Eventually(t, 20*time.Second, "outlaw reaches echo", func() error { return roundTripTo(refused) })
	proc.Eventually(t, 15*time.Second, "a knows echo", func() error {
		if n, _, err := staleHealth(a, "echo"); err != nil || n != 1 {
			return fmt.Errorf("%d, %v", n, err)
		}
		_, err := lookup(a, "echo")
		return err
	})
	pause(4000) // what was read is on disk within a second, where the disk does not pause
	// The last that the servers say, and everybody is killed as soon as it is in force.
	began := time.Now()
	b.MustCLI("intention", "create", "-deny", "-replace", "-wait", "10s", "outlaw", "echo")
	if time.Since(began) > 900*time.Millisecond {
		pause(3000) // a disk that takes a second is not waited for
	}
	for _, n := range c.Nodes() {
		n.Kill()
	}
	restarts := proc.Count(3, 60)
	for i := range restarts {
		for _, n := range []*proc.Node{a, b} {
			n.Restart()
		}
		began := time.Now()
		proc.Eventually(t, 20*time.Second, "client reaches echo, both agents having started with no server", func() error { return roundTripTo(upstream) })
		up := time.Since(began)
		for end := time.Now().Add(proc.Count(2*time.Second, time.Minute)); time.Now().Before(end); pause(100) {
			if err := roundTripTo(upstream); err != nil {
				t.Errorf("restart %d: %v", i, err)
			}
			if err := roundTripTo(refused); err == nil {
				t.Fatalf("restart %d: the deny is forgotten", i)
			}
		}
		if got, meta, err := staleHealth(a, "echo"); err != nil || got != 1 || meta.KnownLeader || meta.LastContact == 0 {
			t.Errorf("restart %d: HTTP: %d instances, %+v, %v", i, got, meta, err)
		}
		if addrs, err := lookup(a, "echo"); err != nil || !slices.Contains(addrs, b.Addr) {
			t.Errorf("restart %d: DNS: %v, %v", i, addrs, err)
		}
		if _, _, err := a.Client.Health().Service("echo", "", true, &api.QueryOptions{RequireConsistent: true}); err == nil {
			t.Error(errors.New("a consistent read is answered with no server"))
		}
		if i == 0 || i == restarts-1 {
			t.Logf("P14: restart %d: proxies serve %s after the start of the agents", i, up.Round(10*time.Millisecond))
		}
	}
	for _, s := range c.Servers {
		s.Launch()
	}
	c.WaitServing(60 * time.Second)
	if err := roundTripTo(upstream); err != nil {
		t.Errorf("with the servers back: %v", err)
	}
	if err := roundTripTo(refused); err == nil {
		t.Error("with the servers back: the deny is forgotten")
	}
}
