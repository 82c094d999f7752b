//go:build faults

package faults_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// An echo server in a process of its own has descriptors of its own.
const echoEnv = "WEFT_TEST_ECHO"

func init() {
	if os.Getenv(echoEnv) == "" {
		return
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
	fmt.Println(ln.Addr().(*net.TCPAddr).Port)
	for {
		c, err := ln.Accept()
		if err != nil {
			pause(10) // out of descriptors
			continue
		}
		go func() {
			_, _ = io.Copy(struct{ io.Writer }{c}, c) // splicing would take two descriptors more for each
			c.Close()
		}()
	}
}

// echoProcess gives the port of one that ends with the test.
func echoProcess(t *testing.T) int {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self) //nolint:noctx // killed below
	cmd.Env = append(os.Environ(), echoEnv+"=1")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var port int
	_, err = fmt.Fscan(out, &port)
	must(t, err)
	return port
}

// mesh16 is two agents with sources and two with destinations.
type mesh16 struct {
	c     *proc.Cluster
	pairs []pair16
}

type pair16 struct {
	source, destination string
	port                int
}

const destinations16 = 2

func newMesh16(t *testing.T, sources int) *mesh16 {
	m := &mesh16{c: proc.StartCluster(t, proc.ClusterOptions{Servers: 1, Agents: 4})}
	for d := range destinations16 {
		register(t, m.c.Agents[2+d].Agent, sidecar("db"+strconv.Itoa(d), echoProcess(t)))
	}
	ports := proc.FreePorts(t, sources*destinations16)
	for s := range sources {
		name := "web" + strconv.Itoa(s)
		var ups []api.Upstream
		for d := range destinations16 {
			p := pair16{name, "db" + strconv.Itoa(d), ports[len(m.pairs)]}
			m.pairs = append(m.pairs, p)
			ups = append(ups, api.Upstream{DestinationName: p.destination, LocalBindPort: p.port})
			intend(t, m.c.Agents[0].Agent, p.source, p.destination, api.IntentionActionAllow)
		}
		register(t, m.c.Agents[s%2].Agent, sidecar(name, 1, ups...))
	}
	return m
}

// TestP16DenyEndsLiveConnections holds connections over a hundred pairs, between two
// agents with sources and two with destinations, denies half of the pairs, and times
// each close from the moment at which -wait said that all enforce it. None of the
// others may end.
func TestP16DenyEndsLiveConnections(t *testing.T) {
	m := newMesh16(t, proc.Count(10, 50))
	each := proc.Count(20, 100)
	type held struct {
		pair int
		conn net.Conn
	}
	var all []held
	for i, p := range m.pairs {
		for range each {
			all = append(all, held{i, through(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)))})
		}
	}
	answered := make([]time.Time, len(m.pairs))
	ended := make([]time.Time, len(all))
	var wg sync.WaitGroup
	for i, h := range all {
		if h.pair%4 >= 2 { // half of the pairs, of both destinations
			continue
		}
		wg.Go(func() {
			_ = h.conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
			_, err := h.conn.Read(make([]byte, 1))
			ended[i] = time.Now()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a denied connection of pair %d was not closed", h.pair)
			}
		})
	}
	for i, p := range m.pairs {
		if i%4 < 2 {
			m.c.Agents[0].MustCLI("intention", "create", "-replace", "-deny", "-wait", "10s", p.source, p.destination)
			answered[i] = time.Now()
		}
	}
	wg.Wait()
	var late []time.Duration
	for i, h := range all {
		if h.pair%4 < 2 {
			late = append(late, max(0, ended[i].Sub(answered[h.pair])))
		}
	}
	slices.Sort(late)
	p99, worst := late[len(late)*99/100], late[len(late)-1]
	if p99 > 100*time.Millisecond || worst > time.Second {
		t.Errorf("denied connections closed p99 %s and at most %s after -wait answered, want 100 ms and 1 s", p99, worst)
	}
	wrong := 0
	for _, h := range all {
		if h.pair%4 >= 2 {
			if err := ping(h.conn); err != nil {
				wrong++
				t.Errorf("an allowed connection of pair %d was hurt: %v", h.pair, err)
			}
		}
	}
	t.Logf("%d connections over %d pairs and two agents a side, half denied: closed p99 %s, at most %s after -wait answered; %d wrong closes",
		len(all), len(m.pairs), p99.Round(time.Microsecond), worst.Round(time.Microsecond), wrong)
}
