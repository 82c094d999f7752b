//go:build faults

package faults_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestP18BlockedQueries lets thousands of clients, in two processes of their own,
// wait for one service of fifty instances, changes one instance, and times how the
// last of them wakes; then the same clients wait for a thousand services. It records
// the memory of one who waits, how often the answer was computed, and what a write
// costs beside them.
func TestP18BlockedQueries(t *testing.T) {
	waiters := proc.Count(2_000, 10_000)
	rounds := proc.Count(3, 10)
	a := proc.Start(t, "-server", "-bootstrap-expect=1", "-bind", "127.0.0.1", "-data-dir", t.TempDir(),
		"-hcl", "limits { http_max_conns_per_client = 20000 }")
	const instances, services = 50, 1000
	for i := range instances {
		change(t, a, "node"+strconv.Itoa(i), "many", 0)
	}
	for i := range services {
		change(t, a, "node0", "one-"+strconv.Itoa(i), 0)
	}
	_, body, err := a.Get("/v1/health/service/many")
	must(t, err)
	alone := writes(t, a)

	before := residentKiB(t, a.PID())
	p := startWaiters(t, a.HTTP, waiters, "/v1/health/service/many", 1)
	each := float64(residentKiB(t, a.PID())-before) / float64(waiters)
	beside := writes(t, a)
	made := answersMade(t, a)
	var worst []time.Duration
	agentCPU, clientCPU := processorTime(t, a.PID()), p.processorTime(t)
	for r := range rounds {
		allWait(t, a, waiters)
		begin := time.Now()
		change(t, a, "node1", "many", r+1)
		worst = append(worst, p.wait(t).Sub(begin))
	}
	agentCPU, clientCPU = processorTime(t, a.PID())-agentCPU, p.processorTime(t)-clientCPU
	made = answersMade(t, a) - made
	p.stop()
	slices.Sort(worst)
	t.Logf("%d clients wait for %d instances (%d bytes): the last wakes %s after the write (worst of %d; median %s)",
		waiters, instances, len(body), worst[rounds-1].Round(time.Millisecond), rounds, worst[rounds/2].Round(time.Millisecond))
	t.Logf("processor time of a change: %s of the agent, %s of the clients", (agentCPU / time.Duration(rounds)).Round(time.Millisecond), (clientCPU / time.Duration(rounds)).Round(time.Millisecond))
	t.Logf("resident memory: %.1f KiB each; answers encoded: %.0f for %d changes", each, made, rounds)
	t.Logf("a write, p50 and p99: %s and %s alone, %s and %s beside them: p99 × %.2f", half(alone), p99(alone), half(beside), p99(beside), float64(p99(beside))/float64(p99(alone)))
	if worst[rounds-1] > 10*time.Second {
		t.Errorf("the last client woke after %s", worst[rounds-1])
	}
	if made > float64(rounds) {
		t.Errorf("%d changes were encoded %.0f times", rounds, made)
	}

	spread := startWaiters(t, a.HTTP, waiters, "/v1/health/service/one-", services)
	defer spread.stop()
	allWait(t, a, waiters)
	beside = writes(t, a)
	begin := time.Now()
	for i := range services {
		change(t, a, "node0", "one-"+strconv.Itoa(i), 1)
	}
	took := time.Since(begin)
	t.Logf("%d clients wait for %d services: %d changes take %s, the last client wakes %s after the last; p99 of a write × %.2f",
		waiters, services, services, took.Round(time.Millisecond), time.Until(spread.wait(t)).Abs().Round(time.Millisecond), float64(p99(beside))/float64(p99(alone)))
}

// change registers an instance on a node of its own, with a port that makes it new.
func change(t *testing.T, a *proc.Agent, node, service string, version int) {
	t.Helper()
	_, err := a.Client.Catalog().Register(&api.CatalogRegistration{
		Node: node, Address: "10.0.0.1", SkipNodeUpdate: version > 0,
		Service: &api.AgentService{ID: service, Service: service, Port: 1000 + version, Tags: []string{"v1", "production"}, Meta: map[string]string{"team": "shop", "version": "1.2.3"}, Weights: api.AgentWeights{Passing: 1, Warning: 1}},
		Checks:  api.HealthChecks{{Node: node, CheckID: service, Name: "Service check", Status: api.HealthPassing, ServiceID: service, Output: "HTTP GET http://10.0.0.1/health: 200 OK"}},
	}, nil)
	must(t, err)
}

// writes times keys that are written one after the other.
func writes(t *testing.T, a *proc.Agent) []time.Duration {
	t.Helper()
	times := make([]time.Duration, 300)
	for i := range times {
		begin := time.Now()
		_, err := a.Client.KV().Put(&api.KVPair{Key: "k", Value: []byte("v")}, nil)
		must(t, err)
		times[i] = time.Since(begin)
	}
	slices.Sort(times)
	return times
}

func p99(sorted []time.Duration) time.Duration {
	return sorted[len(sorted)*99/100].Round(10 * time.Microsecond)
}

func half(sorted []time.Duration) time.Duration {
	return sorted[len(sorted)/2].Round(10 * time.Microsecond)
}

// residentKiB is the resident memory of a process.
func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	must(t, err)
	return n
}

// processorTime is what a process has used of the processors.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	user, err := strconv.Atoi(f[11])
	must(t, err)
	system, err := strconv.Atoi(f[12])
	must(t, err)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

// answersMade counts the answers that were encoded for those who wait.
func answersMade(t *testing.T, a *proc.Agent) float64 {
	t.Helper()
	return metric(t, a, "weft_http_shared_answers_total")
}

// allWait returns when n clients wait.
func allWait(t *testing.T, a *proc.Agent, n int) {
	t.Helper()
	proc.Eventually(t, time.Minute, "all wait", func() error {
		if is := metric(t, a, "weft_http_waiting_clients"); is != float64(n) {
			return fmt.Errorf("%.0f of %d clients wait", is, n)
		}
		return nil
	})
}

// metric is what the agent says of itself.
func metric(t *testing.T, a *proc.Agent, name string) float64 {
	t.Helper()
	_, text, err := a.Get("/v1/agent/metrics?format=prometheus")
	must(t, err)
	_, rest, ok := strings.Cut(text, "\n"+name+" ")
	if !ok {
		t.Fatal("no metric " + name)
	}
	n, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	must(t, err)
	return n
}

// waiters are clients in two processes, who ask again as soon as they are answered.
type waiters struct {
	procs []*exec.Cmd
	in    []io.Closer
	out   []*bufio.Reader
}

// startWaiters returns when all of them wait.
func startWaiters(t *testing.T, addr string, n int, path string, distinct int) *waiters {
	t.Helper()
	w := &waiters{}
	for range 2 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWaitersOfP18$") //nolint:gosec // ourselves
		cmd.Env = append(os.Environ(), fmt.Sprintf("P18_WAITERS=%s %d %s %d", addr, n/2, path, distinct))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		w.procs, w.in, w.out = append(w.procs, cmd), append(w.in, in), append(w.out, bufio.NewReader(out))
	}
	t.Cleanup(w.stop)
	w.wait(t)
	pause(1000) // the last requests are on their way, and garbage of the first is collected
	return w
}

func (w *waiters) processorTime(t *testing.T) (sum time.Duration) {
	t.Helper()
	for _, p := range w.procs {
		sum += processorTime(t, p.Process.Pid)
	}
	return sum
}

func (w *waiters) stop() {
	for i, p := range w.procs {
		_ = w.in[i].Close()
		_ = p.Wait()
	}
	w.procs = nil
}

// wait returns when every one of them was answered once more, and says when the last was.
func (w *waiters) wait(t *testing.T) (last time.Time) {
	t.Helper()
	for _, out := range w.out {
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatalf("the clients ended: %v", err)
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		must(t, err)
		if at := time.Unix(0, ns); at.After(last) {
			last = at
		}
	}
	return last
}
