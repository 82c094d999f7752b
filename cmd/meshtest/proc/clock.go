package proc

import (
	"os/exec"
	"sync"
	"time"
)

// wall is the wall clock of a host, which a test may set as an operator or NTP does:
// time.Now of the real binary moves, monotonic time and timers do not. Files keep the
// kernel's time.
type wall struct {
	mu  sync.Mutex
	off time.Duration
	at  int64 // where the process has it
	pid int
}

func (w *wall) start(cmd *exec.Cmd, bin string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, err := startClocked(cmd, bin, w.off)
	if err == nil {
		w.at, w.pid = at, cmd.Process.Pid
	}
	return err
}

// SetClock sets the host's wall clock so far from the true time, now and for each later
// start. Its cluster was started with Clocks.
func (a *Agent) SetClock(off time.Duration) {
	a.t.Helper()
	if a.wall == nil {
		a.t.Fatal("its clock is that of the machine: start the cluster with Clocks")
	}
	a.wall.mu.Lock()
	defer a.wall.mu.Unlock()
	a.wall.off = off
	if a.wall.at == 0 || !a.Running() {
		return
	}
	if err := setClock(a.wall.pid, a.wall.at, off); err != nil {
		a.t.Fatal(err)
	}
}

// Clock is the time on the host's wall.
func (a *Agent) Clock() time.Time {
	a.wall.mu.Lock()
	defer a.wall.mu.Unlock()
	return time.Now().Add(a.wall.off)
}
