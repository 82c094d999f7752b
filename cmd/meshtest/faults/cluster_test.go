//go:build faults

package faults_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
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

// roundTrip sends a line through a local port and wants it back.
func roundTrip(port int) error { return roundTripTo(fmt.Sprintf("127.0.0.1:%d", port)) }

// roundTripTo is roundTrip to an address.
func roundTripTo(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 2*time.Second)
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
