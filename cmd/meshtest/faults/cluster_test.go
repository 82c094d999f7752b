//go:build faults

package faults_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestClusterFromNothing mints twice and starts eight times: three servers and five
// agents serve within a minute, and nothing that was said goes over a cable in plain.
func TestClusterFromNothing(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 5, Namespaces: true, Unstarted: true})
	ears := listen(t)
	began := time.Now()
	c.Start()
	took := time.Since(began)
	t.Logf("3 servers and 5 agents serve after %s", took.Round(time.Millisecond))
	if took > time.Minute {
		t.Errorf("it took %s", took)
	}
	const secret = "a-value-that-nobody-may-read"
	if _, err := c.Agents[0].Client.KV().Put(&api.KVPair{Key: "marker", Value: []byte(secret)}, nil); err != nil {
		t.Fatal(err)
	}
	register(t, c.Agents[1].Agent, &api.AgentServiceRegistration{Name: "marker-service", Port: 1})
	for _, n := range c.Nodes() {
		proc.Eventually(t, 20*time.Second, n.Name+" knows all", func() error {
			p, _, err := n.Client.KV().Get("marker", nil)
			if err != nil || p == nil || string(p.Value) != secret {
				return fmt.Errorf("key: %v, %v", p, err)
			}
			svc, _, err := n.Client.Catalog().Service("marker-service", "", nil)
			if err != nil || len(svc) != 1 || svc[0].Node != "agent-2" {
				return fmt.Errorf("service: %v, %v", svc, err)
			}
			members, err := n.Client.Agent().Members(false)
			if err != nil || len(members) != 8 {
				return fmt.Errorf("%d members, %v", len(members), err)
			}
			return nil
		})
	}
	heard := ears()
	if heard.packets < 1000 || heard.between < 500 {
		t.Errorf("only %d packets were heard, %d of them between hosts: the test is deaf", heard.packets, heard.between)
	}
	for _, word := range heard.words {
		t.Errorf("%q went over a cable in plain", word)
	}
	for _, s := range c.Servers {
		for _, port := range []string{"8300", "8301"} {
			if got := shout(net.JoinHostPort(s.Addr, port)); len(got) > 0 && got[0] != 0x15 { // 0x15: a TLS alert
				t.Errorf("port %s answers a stranger with %q", port, got)
			}
		}
	}
}

// heard is what was heard on the cables.
type heard struct {
	packets, between int
	words            []string
}

// listen hears every packet on the bridge until the function that it returns is called.
// What the test says to the API of a host in plain is not meant.
func listen(t *testing.T) func() heard {
	t.Helper()
	const all = 0x0003 // ETH_P_ALL
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, int(swap(all)))
	if err != nil {
		t.Fatal(err)
	}
	_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, 64<<20)
	_ = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Usec: 100_000})
	stop, done := make(chan struct{}), make(chan struct{})
	var h heard
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, _, err := syscall.Recvfrom(fd, b, 0)
			if err != nil {
				continue // nothing for a while
			}
			h.take(b[:n])
		}
	}()
	return sync.OnceValue(func() heard {
		close(stop)
		<-done
		_ = syscall.Close(fd)
		return h
	})
}

func swap(v uint16) uint16 { return v<<8 | v>>8 }

func (h *heard) take(frame []byte) {
	h.packets++
	if len(frame) < 14+20 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 {
		return
	}
	src, dst := frame[14+12:14+16], frame[14+16:14+20]
	if src[0] != 10 || src[3] == 1 || dst[3] == 1 {
		return // the test itself
	}
	h.between++
	for _, word := range []string{"a-value-that-nobody-may-read", "marker", "server-1", "agent-2", "HTTP/1", "PRI * HTTP/2"} {
		if bytes.Contains(frame, []byte(word)) && !slices.Contains(h.words, word) {
			h.words = append(h.words, word)
		}
	}
}

// shout says something in plain to a port and gives what comes back.
func shout(addr string) []byte {
	c, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return nil
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(8 * time.Second))
	_, _ = c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	b := make([]byte, 512)
	n, _ := c.Read(b)
	return b[:n]
}

// TestP13AgentCutOff cuts an agent off from everybody: it goes on answering what it
// knows, marked as old, and catches up as soon as the cable is back.
func TestP13AgentCutOff(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2, Namespaces: true})
	a, b := c.Agents[0], c.Agents[1]
	register(t, b.Agent, &api.AgentServiceRegistration{Name: "db", Port: 1})
	health := func(n *proc.Node, o *api.QueryOptions) (int, *api.QueryMeta, error) {
		got, meta, err := n.Client.Health().Service("db", "", true, o)
		return len(got), meta, err
	}
	proc.Eventually(t, 10*time.Second, "a knows db", func() error {
		if n, _, err := health(a, nil); err != nil || n != 1 {
			return fmt.Errorf("%d, %v", n, err)
		}
		return nil
	})
	c.Isolate(a)
	proc.Eventually(t, 40*time.Second, "a answers from memory and says so", func() error {
		n, meta, err := health(a, &api.QueryOptions{AllowStale: true})
		switch {
		case err != nil || n != 1:
			return fmt.Errorf("%d, %v", n, err)
		case meta.KnownLeader:
			return errors.New("it claims that there is a leader")
		}
		return nil
	})
	register(t, a.Agent, &api.AgentServiceRegistration{Name: "queued", Port: 2})
	began := time.Now()
	c.Network.Heal()
	proc.Eventually(t, 30*time.Second, "all know what was registered meanwhile", func() error {
		got, _, err := b.Client.Catalog().Service("queued", "", nil)
		if err != nil || len(got) != 1 {
			return fmt.Errorf("%d, %v", len(got), err)
		}
		return nil
	})
	t.Logf("caught up %s after the cable was back", time.Since(began).Round(10*time.Millisecond))
}

// TestP14ServersGone takes all servers away and restarts an agent meanwhile: its
// proxies serve, with the policy and the certificates that they had.
func TestP14ServersGone(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2})
	a, b := c.Agents[0], c.Agents[1]
	e := startEcho(t)
	register(t, b.Agent, sidecar("echo", e.port()))
	upstream := proc.FreePorts(t, 1)[0]
	register(t, a.Agent, sidecar("client", 1, api.Upstream{DestinationName: "echo", LocalBindPort: upstream}))
	if _, err := a.Client.Connect().IntentionUpsert(&api.Intention{SourceName: "client", DestinationName: "echo", Action: api.IntentionActionAllow}, nil); err != nil {
		t.Fatal(err)
	}
	ask := func() error { return roundTrip(upstream) }
	proc.Eventually(t, 20*time.Second, "client reaches echo", ask)
	proc.Eventually(t, 10*time.Second, "the instance of echo is on a's disk", func() error {
		b, err := os.ReadFile(filepath.Join(a.Dir, "proxies", "client-sidecar-proxy", "snapshot.json"))
		if err == nil && !strings.Contains(string(b), `"echo-sidecar-proxy"`) {
			err = errors.New("it is not in the snapshot")
		}
		return err
	})
	for _, s := range c.Servers {
		s.Kill()
	}
	if err := ask(); err != nil {
		t.Errorf("the servers are gone, and so is the mesh: %v", err)
	}
	for _, n := range []*proc.Node{a, b} {
		n.Restart()
	}
	proc.Eventually(t, 20*time.Second, "client reaches echo, both agents having started with no server", ask)
	for _, s := range c.Servers {
		s.Launch()
	}
	c.WaitServing(40 * time.Second)
	if err := ask(); err != nil {
		t.Errorf("with the servers back: %v", err)
	}
}

// roundTrip sends a line through a local port and wants it back.
func roundTrip(port int) error {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 2*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write([]byte("ping\n")); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := c.Read(b); err != nil {
		return err
	}
	if !strings.HasPrefix(string(b), "ping") {
		return fmt.Errorf("%q came back", b)
	}
	return nil
}
