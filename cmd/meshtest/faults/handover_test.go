//go:build faults && linux

package faults_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// supervised is a server and agent under a supervisor, with web → db through it.
func supervised(t *testing.T, args ...string) (s *proc.Supervisor, up string) {
	t.Helper()
	a := proc.Prepare(t, nil, append([]string{"-server", "-bootstrap-expect=1", "-bind", "127.0.0.1", "-data-dir", t.TempDir()}, args...)...)
	s = proc.Supervise(t, a)
	s.Begin()
	s.WaitServing(30 * time.Second)
	return s, meshOf(t, a)
}

// meshOf registers web → db, which echoes, at an agent, and gives the address of web's end.
func meshOf(t *testing.T, a *proc.Agent) (up string) {
	t.Helper()
	e := startEcho(t)
	port := proc.FreePorts(t, 1)[0]
	register(t, a, sidecar("db", e.port()))
	register(t, a, sidecar("web", 1, api.Upstream{DestinationName: "db", LocalBindPort: port}))
	intend(t, a, "web", "db", api.IntentionActionAllow)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// cutWithin waits until the far end has closed a connection.
func cutWithin(t *testing.T, c net.Conn, within time.Duration, what string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(within))
	if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) || err == nil {
		t.Errorf("%s was not cut within %s: %v", what, within, err)
	}
}

// TestWaitNamesADrainer freezes the old process after a hand-over: nobody is told that a
// deny is enforced while what that process carries may still be open.
func TestWaitNamesADrainer(t *testing.T) {
	t.Parallel()
	s, up := supervised(t)
	held := through(t, up)
	old := s.Relieve(60 * time.Second)
	s.WaitServing(30 * time.Second)
	t.Cleanup(func() { _ = syscall.Kill(old, syscall.SIGKILL) }) // it may have ended
	if _, errs, code := s.CLI("intention", "create", "-replace", "-deny", "-wait", "30s", "other", "db"); code != 0 {
		t.Errorf("a process that drains is waited for in vain: %s", errs)
	}
	must(t, syscall.Kill(old, syscall.SIGSTOP))
	_, errs, code := s.CLI("intention", "create", "-replace", "-deny", "-wait", "3s", "web", "db")
	if want := fmt.Sprintf("draining in process %d", old); code == 0 || !strings.Contains(errs, want) {
		t.Errorf("exit code %d with a process that is frozen, %q is to be named: %s", code, want, errs)
	}
	must(t, syscall.Kill(old, syscall.SIGCONT))
	cutWithin(t, held, 15*time.Second, "what the old process carried")
	if _, errs, code := s.CLI("intention", "create", "-replace", "-wait", "30s", "web", "db"); code != 0 {
		t.Errorf("once it goes on: %s", errs)
	}
	proc.Gone(t, old, 30*time.Second)

	// And one that ends frozen.
	_ = through(t, up)
	old = s.Relieve(60 * time.Second)
	s.WaitServing(30 * time.Second)
	must(t, syscall.Kill(old, syscall.SIGSTOP))
	if _, _, code := s.CLI("intention", "create", "-replace", "-deny", "-wait", "1s", "web", "db"); code == 0 {
		t.Error("enforced, with a process that is frozen")
	}
	must(t, syscall.Kill(old, syscall.SIGKILL))
	if _, errs, code := s.CLI("intention", "create", "-replace", "-deny", "-wait", "30s", "web", "db"); code != 0 {
		t.Errorf("once it is gone: %s", errs)
	}
}

// TestP31HandOver has one process follow another: what was carried goes on in the old
// one, new connections go to the new one, and a deny ends both.
func TestP31HandOver(t *testing.T) {
	t.Parallel()
	s, up := supervised(t)
	held := through(t, up)
	old := s.Relieve(60 * time.Second)
	if err := ping(held); err != nil {
		t.Fatalf("a connection held over the hand-over: %v", err)
	}
	s.WaitServing(30 * time.Second)
	proc.Eventually(t, 15*time.Second, "what the old process carries is shown", func() error {
		_, body, err := s.Get("/v1/agent/connect/proxies")
		if err == nil && !strings.Contains(strings.ReplaceAll(body, " ", ""), `"PID":`+strconv.Itoa(old)) {
			err = fmt.Errorf("not in %s", body)
		}
		return err
	})
	fresh := through(t, up)
	intend(t, s.Agent, "web", "db", api.IntentionActionDeny)
	cutWithin(t, held, 10*time.Second, "the connection in the old process")
	cutWithin(t, fresh, 10*time.Second, "the connection in the new process")
	proc.Gone(t, old, 20*time.Second)
	ended := fmt.Sprintf(`weft_proxy_connections_total{destination="db",direction="outbound",process="%d",reason="policy_changed",source="web"}`, old)
	proc.Eventually(t, 15*time.Second, "what ended in the old process is counted", func() error {
		_, text, err := s.Get("/v1/agent/metrics?format=prometheus")
		if err == nil && !strings.Contains(text, ended) {
			err = fmt.Errorf("there is no %s", ended)
		}
		return err
	})
	if n := s.Starts(); n != 1 || s.Main() == 0 {
		t.Errorf("the supervisor started %d processes, the main one is %d", n, s.Main())
	}
}

// A connection that the first of three processes carries outlives both hand-overs, and
// is cut by a deny that the third one hears of.
func TestHandOverTwice(t *testing.T) {
	t.Parallel()
	s, up := supervised(t)
	held := through(t, up)
	first := s.Relieve(60 * time.Second)
	s.WaitServing(30 * time.Second)
	s.Relieve(60 * time.Second)
	s.WaitServing(30 * time.Second)
	// One that was told that its proxy is gone would be cut after 5 s.
	ticks := time.NewTicker(250 * time.Millisecond)
	defer ticks.Stop()
	for end := time.Now().Add(7 * time.Second); time.Now().Before(end); <-ticks.C {
		if err := ping(held); err != nil {
			t.Fatalf("a connection held over two hand-overs: %v", err)
		}
	}
	intend(t, s.Agent, "web", "db", api.IntentionActionDeny)
	cutWithin(t, held, 10*time.Second, "the connection in the first process")
	proc.Gone(t, first, 20*time.Second)
}

// TestP31Killed kills the agent with SIGKILL under a supervisor: who connects while no
// agent runs is refused nothing, and who tries again is served.
func TestP31Killed(t *testing.T) {
	t.Parallel()
	s, up := supervised(t)
	held := through(t, up)
	begin := time.Now()
	s.Tell(syscall.SIGKILL)
	cutWithin(t, held, 5*time.Second, "a connection of the killed process")
	c, err := net.DialTimeout("tcp", up, 5*time.Second)
	if err != nil {
		t.Fatalf("a connection while no agent ran: %v", err)
	}
	defer c.Close()
	connected := time.Since(begin)
	_ = through(t, up).Close() // the policy on the disk may be older than the process that was killed
	t.Logf("connected %s after the kill, answered after %s", connected, time.Since(begin))
	if n := s.Starts(); n != 2 {
		t.Errorf("the supervisor started %d processes", n)
	}
}
