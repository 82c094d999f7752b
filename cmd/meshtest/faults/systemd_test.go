//go:build faults && linux

package faults_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// shortDog is how long the agent may be silent here. The unit that is shipped says 30 s.
const shortDog = 6 * time.Second

// TestP31RealSystemd runs the unit that is shipped under the systemd of this machine: what
// the tests with proc.Supervisor take for granted is so. All of its hardening is in
// force; what is different is in the drop-in below.
func TestP31RealSystemd(t *testing.T) {
	t.Parallel()
	const dir = "../../../packaging/"
	s := proc.StartSystemd(t, dir+"weft.service", dir+"sysusers.d/weft.conf", `server = true
bootstrap_expect = 1
bind_addr = "127.0.0.1"
performance { leave_drain_time = "1s" }`)
	// There is no journal, and nobody wants to wait half a minute for the watchdog.
	s.Write("/run/units/weft.service.d/test.conf", fmt.Sprintf(
		"[Service]\nStandardOutput=append:/run/test/weft\nStandardError=inherit\nWatchdogSec=%d\n", int(shortDog.Seconds())), 0o644)
	s.MustSystemctl("daemon-reload")
	systemdStarts(t, s)
	up := meshOf(t, s.Agent)
	_ = through(t, up).Close() // served
	systemdReloads(t, s)
	systemdHandsOver(t, s, up)
	systemdKilled(t, s, up)
	systemdLosesBoth(t, s, up)
	systemdRestarts(t, s, up)
	systemdHangs(t, s, up)
	systemdStops(t, s, up)
}

// inState waits until the unit is in a state.
func inState(t *testing.T, s *proc.Systemd, want string, within time.Duration) {
	t.Helper()
	proc.Eventually(t, within, "the unit is "+want, func() error {
		if is := s.Show("ActiveState"); is != want {
			return fmt.Errorf("it is %s, %s", is, s.Show("Result"))
		}
		return nil
	})
}

// systemdStarts: the unit is active when the host serves, and not before.
func systemdStarts(t *testing.T, s *proc.Systemd) {
	t.Helper()
	s.MustSystemctl("start", "weft")
	leader, err := s.Client.Status().Leader()
	if err != nil || leader == "" {
		t.Errorf("active before it serves: leader %q, %v", leader, err)
	}
	leads := regexp.MustCompile(`time=(\S+) level=INFO msg="this server leads"`)
	var at time.Time
	proc.Eventually(t, 10*time.Second, "the agent says since when it leads", func() (err error) {
		m := leads.FindStringSubmatch(s.Log())
		if m == nil {
			return errors.New("it does not")
		}
		at, err = time.Parse(time.RFC3339Nano, m[1])
		return err
	})
	active := time.Duration(s.Count("ActiveEnterTimestampMonotonic")) * time.Microsecond
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	if active := time.Now().Add(active - time.Duration(now.Nano())); active.Before(at) {
		t.Errorf("active since %s, and it leads since %s", active, at)
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(s.Main()) + "/status")
	must(t, err)
	for _, want := range []string{"Seccomp:\t2", "NoNewPrivs:\t1", "CapBnd:\t0000000000000000"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the main process is not hardened, %q is missing:\n%s", want, status)
		}
	}
}

// systemdReloads: systemctl reload has the files read by the process that is the main one.
func systemdReloads(t *testing.T, s *proc.Systemd) {
	t.Helper()
	was, name := s.Main(), fmt.Sprintf("reloaded-%d", s.Main())
	s.Write("/etc/weft.d/reloaded.hcl", fmt.Sprintf("service { name = %q, port = 1 }", name), 0o644)
	s.MustSystemctl("reload", "weft")
	proc.Eventually(t, 10*time.Second, "the files are read again", func() error {
		_, _, err := s.Client.Agent().Service(name, nil)
		return err
	})
	inState(t, s, "active", 10*time.Second)
	if s.Main() != was {
		t.Errorf("after a reload the main process is %d, was %d", s.Main(), was)
	}
}

// systemdHandsOver: nobody notices that another program takes over. systemd takes it for
// its own child, hears that it lives, and has what listens once.
func systemdHandsOver(t *testing.T, s *proc.Systemd, up string) {
	t.Helper()
	held, stored := through(t, up), s.Count("NFileDescriptorStore")
	if stored == 0 {
		t.Error("nothing that listens was left to systemd")
	}
	end := steady(up)
	old := relieved(t, s)
	if n, slowest, err := end(); err != nil {
		t.Errorf("exchange %d over the hand-over failed: %v", n, err)
	} else {
		t.Logf("%d exchanges over the hand-over; the slowest took %s", n, slowest.Round(time.Millisecond))
	}
	if err := ping(held); err != nil {
		t.Errorf("a connection held over the hand-over: %v", err)
	}
	if all := s.Processes(); len(all) != 2 {
		t.Errorf("the unit has the processes %v, want the main one and one that drains", all)
	}
	proc.Eventually(t, 10*time.Second, "what listens is left to systemd once", func() error {
		if n := s.Count("NFileDescriptorStore"); n != stored {
			return fmt.Errorf("it has %d descriptors, had %d", n, stored)
		}
		return nil
	})
	fed := s.Show("WatchdogTimestampMonotonic")
	proc.Eventually(t, shortDog, "systemd hears that the new process lives", func() error {
		if s.Show("WatchdogTimestampMonotonic") == fed {
			return errors.New("it does not")
		}
		return nil
	})
	if n := s.Count("NRestarts"); n != 0 || strings.Contains(s.Said(), "not our child") || strings.Contains(s.Said(), "only permitted for main PID") {
		t.Errorf("%d restarts, or systemd has something to say against it:\n%s", n, s.Said())
	}
	systemdReloads(t, s)
	s.MustCLI("intention", "create", "-replace", "-deny", "-wait", "20s", "web", "db")
	cutWithin(t, held, time.Second, "what the old process carried")
	proc.Gone(t, old, 20*time.Second)
	s.MustCLI("intention", "create", "-replace", "-wait", "20s", "web", "db")
}

// relieved has a new process take over, and gives the one that drains.
func relieved(t *testing.T, s *proc.Systemd) (old int) {
	t.Helper()
	old = s.Main()
	s.InstallProgram(proc.Binary(t))
	s.MustSystemctl("kill", "--kill-whom=main", "--signal=SIGUSR2", "weft")
	proc.Eventually(t, 60*time.Second, "another process takes over", func() error {
		if now := s.Main(); now == old || now == 0 {
			return errors.New("it has not")
		}
		return nil
	})
	s.WaitServing(30 * time.Second)
	return old
}

// systemdLosesBoth: the end of a process that took over is noticed at once although the
// one before it is there still, which ends with it.
func systemdLosesBoth(t *testing.T, s *proc.Systemd, up string) {
	t.Helper()
	held := through(t, up)
	old := relieved(t, s)
	if err := ping(held); err != nil {
		t.Errorf("a connection held over the hand-over: %v", err)
	}
	systemdKilled(t, s, up)
	cutWithin(t, held, time.Second, "what the old process carried")
	proc.Gone(t, old, time.Second)
}

// systemdKilled: nobody is refused while no agent runs after a kill, and who tries again
// is served by the next one.
func systemdKilled(t *testing.T, s *proc.Systemd, up string) {
	t.Helper()
	held, was, before := through(t, up), s.Main(), s.Count("NRestarts")
	begin := time.Now()
	s.MustSystemctl("kill", "--kill-whom=main", "--signal=SIGKILL", "weft")
	cutWithin(t, held, 5*time.Second, "a connection of the killed process")
	taken(t, up)
	_ = through(t, up).Close()
	t.Logf("answered %s after the kill", time.Since(begin).Round(time.Millisecond))
	inState(t, s, "active", 30*time.Second)
	if n := s.Count("NRestarts"); n != before+1 || s.Main() == was {
		t.Errorf("%d restarts, had %d; the main process is %d", n, before, s.Main())
	}
}

// systemdRestarts: over systemctl restart everybody is served, soon, and what does not
// end by itself is cut.
func systemdRestarts(t *testing.T, s *proc.Systemd, up string) {
	t.Helper()
	held, was, stored := through(t, up), s.Main(), s.Count("NFileDescriptorStore")
	end := steady(up)
	s.MustSystemctl("restart", "weft")
	if leader, err := s.Client.Status().Leader(); err != nil || leader == "" {
		t.Errorf("restarted before it serves: leader %q, %v", leader, err)
	}
	_ = through(t, up).Close()
	n, slowest, err := end()
	t.Logf("%d exchanges over the restart; the slowest took %s", n, slowest.Round(time.Millisecond))
	if err != nil {
		t.Errorf("exchange %d over the restart failed: %v", n, err)
	}
	cutWithin(t, held, time.Second, "a connection that did not end by itself")
	if s.Main() == was || s.Count("NFileDescriptorStore") != stored {
		t.Errorf("the main process is %d, was %d; systemd has %s descriptors, had %d", s.Main(), was, s.Show("NFileDescriptorStore"), stored)
	}
}

// systemdHangs: an agent that hangs is ended, and another one started.
func systemdHangs(t *testing.T, s *proc.Systemd, up string) {
	t.Helper()
	was, before := s.Main(), s.Count("NRestarts")
	must(t, syscall.Kill(was, syscall.SIGSTOP))
	proc.Eventually(t, 30*time.Second, "another process is started", func() error {
		if n := s.Count("NRestarts"); n == before {
			return fmt.Errorf("the unit is %s, %s", s.Show("ActiveState"), s.Show("Result"))
		}
		return nil
	})
	inState(t, s, "active", 30*time.Second)
	_ = through(t, up).Close()
	if n := s.Count("NRestarts"); n != before+1 || s.Main() == was {
		t.Errorf("%d restarts, had %d; the main process is %d", n, before, s.Main())
	}
}

// systemdStops: after systemctl stop nothing of the unit remains, and who connects is
// told so. A configuration that is wrong is not tried twice.
func systemdStops(t *testing.T, s *proc.Systemd, up string) {
	t.Helper()
	s.MustSystemctl("stop", "weft")
	if c, err := net.DialTimeout("tcp", up, 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after a stop a connection is %v, %v, want it refused", c, err)
	}
	if left, result := s.Processes(), s.Show("Result"); len(left) > 0 || result != "success" || s.Count("NFileDescriptorStore") != 0 {
		t.Errorf("after a stop (%s) there are the processes %v and %s descriptors", result, left, s.Show("NFileDescriptorStore"))
	}
	s.Write("/etc/weft.d/reloaded.hcl", "nope = 1", 0o644)
	if _, err := s.Systemctl("start", "weft"); err == nil {
		t.Error("it starts with a configuration that is wrong")
	}
	inState(t, s, "failed", 10*time.Second)
	if code, n := s.Count("ExecMainStatus"), s.Count("NRestarts"); code != 78 || n != 0 {
		t.Errorf("with a configuration that is wrong: exit code %d, %d restarts", code, n)
	}
}
