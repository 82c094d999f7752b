//go:build faults

package faults_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestP01KilledServers kills servers of three (and two at a time of five), the leader
// half the time, beneath 12 writers: what was acknowledged is on every server in the end.
func TestP01KilledServers(t *testing.T) {
	for _, c := range []struct{ servers, victims, kills, batches int }{
		{3, 1, proc.Count(5, 20), proc.Count(1, 45)},
		{5, 2, proc.Count(2, 10), proc.Count(1, 10)},
	} {
		t.Run(fmt.Sprintf("%d of %d", c.victims, c.servers), func(t *testing.T) {
			cluster := proc.StartCluster(t, proc.ClusterOptions{Servers: c.servers})
			rng := rand.New(rand.NewPCG(1, uint64(c.servers)))
			sum := 0
			for b := range c.batches {
				l := startLoad(t, fmt.Sprintf("p01-%d", b), 12, 10*time.Millisecond, cluster.Servers...)
				for range c.kills {
					pause(time.Duration(200 + rng.IntN(1300))) // now and then before a follower has caught up
					killSome(cluster, rng, c.victims)
				}
				cluster.WaitServing(60 * time.Second)
				sum += l.judge(t, cluster.Servers...)
				if _, _, err := l.store.do(http.MethodDelete, cluster.Servers[0], "/v1/kv/p01?recurse", ""); err != nil {
					t.Error(err)
				}
			}
			t.Logf("%d kills of %d of %d servers, %d writes acknowledged in all", c.kills*c.batches, c.victims, c.servers, sum)
		})
	}
}

// killSome kills servers, the leader among them half the time, and starts them again
// after a moment.
func killSome(c *proc.Cluster, rng *rand.Rand, victims int) {
	servers := slices.Clone(c.Servers)
	rng.Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
	if rng.IntN(2) == 0 {
		lead := c.Leader()
		i := slices.Index(servers, lead)
		servers[0], servers[i] = servers[i], servers[0]
	}
	for _, n := range servers[:victims] {
		n.Kill()
	}
	pause(time.Duration(100 + rng.IntN(900)))
	for _, n := range servers[:victims] {
		n.Launch()
	}
	c.WaitServing(60 * time.Second)
}

// probes writes by each server every few milliseconds, whether or not the write
// before has ended, and notes when those were begun that were acknowledged.
type probes struct {
	store store
	stop  chan struct{}
	wg    sync.WaitGroup

	mu   sync.Mutex
	acks []ack
	ends []ack // those that failed too
}

type ack struct {
	by         *proc.Node
	begun, end time.Time
}

const probeEvery = 10 * time.Millisecond

// manyConns lets probes that wait have a connection each.
var manyConns = []string{"-hcl", "limits { http_max_conns_per_client = 4000 }"}

func startProbes(t *testing.T, servers ...*proc.Node) *probes {
	p := &probes{store: newStore(t, 5*time.Second), stop: make(chan struct{})}
	for _, n := range servers {
		p.wg.Go(func() {
			tick := time.NewTicker(probeEvery)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-p.stop:
					return
				case <-tick.C:
				}
				p.wg.Go(func() {
					begun := time.Now()
					done, _ := p.store.put(n, fmt.Sprintf("probe/%s-%d", n.Name, i%8), "", "")
					p.mu.Lock()
					defer p.mu.Unlock()
					a := ack{n, begun, time.Now()}
					p.ends = append(p.ends, a)
					if done {
						p.acks = append(p.acks, a)
					}
				})
			}
		})
	}
	t.Cleanup(p.end)
	return p
}

func (p *probes) end() {
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	p.wg.Wait()
	p.store.http.CloseIdleConnections()
}

// longest is how long a write took that was begun about then, whatever came of it.
func (p *probes) longest(at time.Time) (most time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.ends {
		if a.end.After(at) {
			most = max(most, a.end.Sub(a.begun))
		}
	}
	return most
}

// first is when a write that was begun after at was first acknowledged, by anybody
// or, when one is named, by that server; ok is false while there is none.
func (p *probes) first(at time.Time, by *proc.Node) (end time.Time, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.acks {
		if a.begun.After(at) && (by == nil || a.by == by) && (!ok || a.end.Before(end)) {
			end, ok = a.end, true
		}
	}
	return end, ok
}

// gapAfter waits for the first write after at that is acknowledged, and tells how
// long that took for anybody, and until all of the servers had one.
func (p *probes) gapAfter(t *testing.T, at time.Time, servers ...*proc.Node) (first, all time.Duration) {
	t.Helper()
	proc.Eventually(t, 30*time.Second, "each server that lives acknowledges writes", func() error {
		for _, n := range servers {
			end, ok := p.first(at, n)
			if !ok {
				return fmt.Errorf("%s does not", n.Name)
			}
			all = max(all, end.Sub(at))
		}
		return nil
	})
	end, _ := p.first(at, nil)
	return end.Sub(at), all
}

// TestP05KilledLeader kills the leader again and again and measures for how long
// nobody can write.
func TestP05KilledLeader(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, ServerArgs: manyConns})
	disk := watchSyncs(t)
	var first, all []time.Duration
	for range proc.Count(6, 50) {
		lead, others := c.Roles()
		p := startProbes(t, others...)
		pause(300)
		at := time.Now()
		lead.Kill()
		f, a := p.gapAfter(t, at, others...)
		first, all = append(first, f), append(all, a)
		p.end()
		lead.Launch()
		c.WaitServing(30 * time.Second)
		pause(500)
	}
	t.Logf("from kill -9 of the leader to the next write: %s", spread(first))
	t.Logf("until every server that lives took one: %s", spread(all))
	disk.report(t)
	if worst := slices.Max(all); worst > 10*time.Second {
		t.Errorf("nobody could write for %s", worst)
	}
}

// TestP05FrozenLeader stops the leader's process as it is, so that nothing of it ends and
// nothing answers: who waits for it, on another server or on an agent that uses it, is
// served by the next one or told, soon.
func TestP05FrozenLeader(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 3, ServerArgs: manyConns, AgentArgs: manyConns})
	var servers, agents, waits []time.Duration
	for range proc.Count(3, 25) {
		lead, others := c.Roles()
		p := startProbes(t, append(slices.Clone(others), c.Agents...)...)
		pause(300)
		at := time.Now()
		lead.Freeze()
		_, s := p.gapAfter(t, at, others...)
		_, a := p.gapAfter(t, at, c.Agents...)
		servers, agents = append(servers, s), append(agents, a)
		pause(500)
		lead.Thaw()
		p.end()
		waits = append(waits, p.longest(at))
		c.WaitServing(30 * time.Second)
		pause(1000)
	}
	t.Logf("the leader is frozen: every other server takes writes after: %s", spread(servers))
	t.Logf("every agent does, also those that used it: %s", spread(agents))
	t.Logf("the longest that a call waited until it was answered: %s", spread(waits))
	if worst := slices.Max(agents); worst > 10*time.Second {
		t.Errorf("an agent was stuck for %s", worst)
	}
}

// TestP05NoNeedlessElections lets programs burn all processors, four times over, and
// counts elections.
func TestP05NoNeedlessElections(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3})
	lead := c.Leader()
	before := raftTerm(t, lead)
	burn(t, 4)
	l := startLoad(t, "burn", 8, 20*time.Millisecond, c.Servers...)
	length := proc.Count(12*time.Second, 10*time.Minute)
	time.Sleep(length)
	l.end()
	after := raftTerm(t, c.Leader())
	acked, failed, _ := l.sum()
	stretched := 0
	for _, n := range c.Servers {
		stretched += strings.Count(n.Log(), "this host runs late")
	}
	t.Logf("%d elections in %s beneath 4 programs that burn %s; %d writes acknowledged, %d not; longest gap %s; %s; timers were stretched %d times",
		after-before, length, "all processors", acked, failed, l.gap(time.Now().Add(-length)).Round(time.Millisecond), spread(l.took), stretched)
	if n := after - before; n > proc.Count(2, 3) {
		t.Errorf("%d elections with nobody gone", n)
	}
}

// burn runs programs that do nothing but take processors, until the test ends.
func burn(t *testing.T, programs int) {
	t.Helper()
	sh := proc.Need(t, "sh")
	for range programs {
		cmd := exec.Command(sh, "-c", "while :; do :; done")
		must(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
}

// TestP06StoppedLeader stops the leader as an operator does, at a thousand writes a
// second through the other servers and through agents: no call fails.
func TestP06StoppedLeader(t *testing.T) {
	o := proc.ClusterOptions{Servers: 3, Agents: 2}
	if !proc.Full() { // there TMPDIR says where
		o.ServerDirs = inMemory(t, o.Servers)
	}
	c := proc.StartCluster(t, o)
	disk := watchSyncs(t)
	var gaps []time.Duration
	writes, failures := 0, 0
	for i := range proc.Count(4, 20) {
		lead, others := c.Roles()
		targets := slices.Concat(others, c.Agents)
		l := startLoad(t, fmt.Sprintf("p06-%d", i), 24, 24*time.Millisecond, targets...)
		pause(1000)
		at := time.Now()
		if code := lead.Stop(); code != 0 {
			t.Errorf("the leader ended with exit code %d", code)
		}
		pause(1000)
		l.end()
		gaps = append(gaps, l.gap(at))
		acked, failed, errs := l.sum()
		writes, failures = writes+acked, failures+failed
		for e, n := range errs {
			t.Errorf("%d × %s", n, e)
		}
		lead.Launch()
		c.WaitServing(30 * time.Second)
		pause(500)
	}
	t.Logf("the leader stopped %d times: longest time without an acknowledged write: %s; %d writes, %d failed", len(gaps), spread(gaps), writes, failures)
	disk.report(t)
}
