//go:build faults && linux

package faults_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// steady connects to addr and asks for an echo, again and again, until end, which
// tells how many exchanges there were, how long one took at most, and what failed first.
func steady(addr string) (end func() (n int, slowest time.Duration, err error)) {
	stop, done := make(chan struct{}), make(chan struct{})
	var n int
	var slowest time.Duration
	var first error
	go func() {
		defer close(done)
		for ; first == nil; n++ {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			begin := time.Now()
			c, err := net.DialTimeout("tcp", addr, 5*time.Second)
			if err == nil {
				err = ping(c)
				_ = c.Close() // all has been said
			}
			first, slowest = err, max(slowest, time.Since(begin))
		}
	}()
	return func() (int, time.Duration, error) {
		close(stop)
		<-done
		return n, slowest, first
	}
}

// TestP31MeshPort shares one inbound port among the sidecars of a host: a hand-over
// fails no exchange through it, and while no agent runs after a kill it refuses nobody.
func TestP31MeshPort(t *testing.T) {
	t.Parallel()
	port := strconv.Itoa(proc.FreePorts(t, 1)[0])
	shared := net.JoinHostPort("127.0.0.1", port)
	s, up := supervised(t, "-hcl", "connect { mesh_port = "+port+", local_short_cut = false }")
	held := through(t, up)
	end := steady(up)
	old := s.Relieve(60 * time.Second)
	s.WaitServing(30 * time.Second)
	if err := ping(held); err != nil {
		t.Errorf("a connection held over the hand-over: %v", err)
	}
	_ = held.Close() // nothing keeps the old process any more
	proc.Gone(t, old, 30*time.Second)
	fresh := through(t, up) // not before: the old process may have taken it
	if n, _, err := end(); err != nil {
		t.Errorf("exchange %d over the hand-over failed: %v", n, err)
	}
	s.Tell(syscall.SIGKILL)
	cutWithin(t, fresh, 5*time.Second, "a connection of the killed process")
	taken(t, shared)
	_ = through(t, up).Close()
	if n := s.Starts(); n != 2 {
		t.Errorf("the supervisor started %d processes", n)
	}
}

// TestP31Restart restarts the service as systemctl does, with a connection open that does
// not end: whoever connects meanwhile is served, soon.
func TestP31Restart(t *testing.T) {
	t.Parallel()
	s, up := supervised(t)
	held := through(t, up)
	end := steady(up)
	was := s.Main()
	s.Tell(syscall.SIGTERM)
	proc.Eventually(t, 60*time.Second, "another process is started", func() error {
		if now := s.Main(); now == 0 || now == was {
			return errors.New("not yet")
		}
		return nil
	})
	s.WaitServing(30 * time.Second)
	_ = through(t, up).Close()
	n, slowest, err := end()
	t.Logf("%d exchanges over the restart; the slowest took %s", n, slowest.Round(time.Millisecond))
	if err != nil {
		t.Errorf("exchange %d over the restart failed: %v", n, err)
	}
	cutWithin(t, held, time.Second, "a connection that did not end by itself")
	if n := s.Starts(); n != 2 {
		t.Errorf("the supervisor started %d processes", n)
	}
}

// ownProxy registers a service whose sidecar the agent leaves to others, and runs it as
// `weft connect proxy` does, until the test ends.
func ownProxy(t *testing.T, a *proc.Agent, svc *api.AgentServiceRegistration) {
	t.Helper()
	svc.Connect.SidecarService.Proxy.Config = map[string]any{"external": true}
	register(t, a, svc)
	cmd := exec.Command(proc.Binary(t), "connect", "proxy", "-sidecar-for", svc.Name, "-http-addr", a.HTTP)
	log, err := os.CreateTemp(t.TempDir(), "proxy")
	must(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // gone already is as good
		_ = cmd.Wait()
		if b, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("log of the proxy of %s:\n%s", svc.Name, b)
		}
		_ = log.Close() // read already
	})
}

// TestP31ConnectProxy kills the agent below proxies that are processes of their own:
// new connections are served while it is away, and when it is back, and after it was
// handed over to another process, a deny reaches the proxies again.
func TestP31ConnectProxy(t *testing.T) {
	t.Parallel()
	a := proc.Prepare(t, nil, "-server", "-bootstrap-expect=1", "-bind", "127.0.0.1", "-data-dir", t.TempDir())
	s := proc.Supervise(t, a)
	s.Begin()
	s.WaitServing(30 * time.Second)
	port := proc.FreePorts(t, 1)[0]
	up := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	ownProxy(t, a, sidecar("db", startEcho(t).port()))
	ownProxy(t, a, sidecar("web", 1, api.Upstream{DestinationName: "db", LocalBindPort: port}))
	intend(t, a, "web", "db", api.IntentionActionAllow)
	held := through(t, up)

	s.Pause()
	s.Tell(syscall.SIGKILL)
	proc.Eventually(t, 10*time.Second, "no agent runs", func() error {
		if s.Main() != 0 {
			return errors.New("it runs")
		}
		return nil
	})
	away := steady(up)
	fresh := through(t, up)
	s.Resume()
	s.WaitServing(30 * time.Second)
	if n, _, err := away(); err != nil {
		t.Errorf("exchange %d while the agent was away failed: %v", n, err)
	}
	if err := errors.Join(ping(held), ping(fresh)); err != nil {
		t.Errorf("connections held while the agent was away: %v", err)
	}
	intend(t, a, "web", "db", api.IntentionActionDeny)
	cutWithin(t, held, 15*time.Second, "a connection made before the agent was killed")
	cutWithin(t, fresh, 15*time.Second, "a connection made while it was away")

	intend(t, a, "web", "db", api.IntentionActionAllow)
	held = through(t, up)
	end := steady(up)
	s.Relieve(60 * time.Second)
	s.WaitServing(30 * time.Second)
	if n, _, err := end(); err != nil {
		t.Errorf("exchange %d over the hand-over failed: %v", n, err)
	}
	intend(t, a, "web", "db", api.IntentionActionDeny)
	cutWithin(t, held, 15*time.Second, "a connection held over the hand-over")
}

// taken wants a connection to be accepted while no agent runs: what listens is with the
// supervisor.
func taken(t *testing.T, addr string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatalf("a connection to %s while no agent runs: %v", addr, err)
	}
	_ = c.Close() // that it was taken is enough
}
