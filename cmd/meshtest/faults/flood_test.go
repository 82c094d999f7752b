//go:build faults

package faults_test

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestP34FloodOfConnections opens connections that say nothing to the servers' port, to
// gossip and to the API, as many as one stranger can: operators are answered all the
// while, agents keep their connections, and afterwards all is as before.
func TestP34FloodOfConnections(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2})
	lead, a := c.Leader(), c.Agents[0]
	alive(t, a, 5, 30*time.Second)
	base := residentKiB(t, lead.PID())
	each := proc.Count(600, 6400)
	var mu sync.Mutex
	var open []net.Conn
	var wg sync.WaitGroup
	refused := map[string]int{}
	for _, port := range []string{"8300", "8301", "8500"} {
		wg.Go(func() {
			for range each {
				conn, err := net.DialTimeout("tcp", net.JoinHostPort(lead.Addr, port), 2*time.Second)
				mu.Lock()
				if err == nil {
					open = append(open, conn)
				} else {
					refused[port]++
				}
				mu.Unlock()
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var times []time.Duration
	var failed int
	most := base
	for flooding, end := true, time.Now().Add(proc.Count(8*time.Second, time.Minute)); flooding || time.Now().Before(end); {
		select {
		case <-done:
			flooding = false
		default:
		}
		at := time.Now()
		// The operator is not at the stranger's address, nor need be at this server.
		if _, err := c.Followers()[0].Client.Operator().RaftGetConfiguration(nil); err != nil {
			failed++
			t.Errorf("an operator is refused: %v", err)
		}
		if _, _, err := a.Client.Catalog().Nodes(nil); err != nil {
			failed++
			t.Errorf("an agent is refused: %v", err)
		}
		times = append(times, time.Since(at))
		most = max(most, residentKiB(t, lead.PID()))
		pause(100)
	}
	for _, conn := range open {
		conn.Close()
	}
	proc.Eventually(t, 30*time.Second, "the flooded server answers, and nobody missed anybody", func() error {
		if _, err := lead.Client.Operator().RaftGetConfiguration(nil); err != nil {
			return err
		}
		checks, _, err := a.Client.Health().State("critical", nil)
		if err != nil || len(checks) > 0 {
			return fmt.Errorf("%v, %w", checks, err)
		}
		return nil
	})
	slices.Sort(times)
	t.Logf("P34: %d connections (%v refused): %d of %d questions failed, p99 %s; resident memory +%d KiB at most",
		3*each, refused, failed, len(times), p99(times).Round(time.Millisecond), most-base)
	if most-base > 100<<10 {
		t.Errorf("resident memory grew by %d KiB", most-base)
	}
}
