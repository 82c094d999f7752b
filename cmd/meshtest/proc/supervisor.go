//go:build linux

package proc

import (
	"errors"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Supervisor runs an agent as systemd does: it hears NOTIFY_SOCKET, keeps descriptors
// (FDSTORE), offers them to the next process (LISTEN_FDS), follows MAINPID, and when the
// main process ends, kills what the unit has beside it and starts the agent again, at once
// and whatever its exit code.
type Supervisor struct {
	*Agent
	t      testing.TB
	socket string
	conn   *net.UnixConn
	// Program is what is started, now and by the agent itself; Upgrade replaces it.
	Program string

	mu     sync.Mutex
	store  map[string]int // descriptors, by name
	main   int            // process
	starts int
	paused bool
	ended  bool
	groups []int // of processes
}

// Supervise prepares a supervisor for an agent that was prepared and not started, on a
// copy of its binary. Begin starts it.
func Supervise(t testing.TB, a *Agent) *Supervisor {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft-sv-") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	s := &Supervisor{
		Agent: a, t: t, socket: filepath.Join(dir, "notify"), Program: filepath.Join(dir, "weft"), store: map[string]int{},
	}
	s.Upgrade(a.bin)
	if s.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.socket, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	raw, err := s.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	if err := errors.Join(err, serr); err != nil {
		t.Fatal(err)
	}
	go s.listen()
	t.Cleanup(func() {
		s.End()
		_ = os.RemoveAll(dir)
	})
	return s
}

// Upgrade puts another program where the agent is started from, as a package manager does.
func (s *Supervisor) Upgrade(program string) {
	s.t.Helper()
	b, err := os.ReadFile(program)
	if err == nil {
		syscall.ForkLock.RLock()                       // a child that has it open for writing would keep it from being run
		err = os.WriteFile(s.Program+".new", b, 0o755) //nolint:gosec // a program
		syscall.ForkLock.RUnlock()
	}
	if err == nil {
		err = os.Rename(s.Program+".new", s.Program)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// Begin starts the agent, without waiting for anything.
func (s *Supervisor) Begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.paused {
		return
	}
	names := slices.Sorted(maps.Keys(s.store))
	var files []*os.File
	for _, n := range names {
		fd, err := unix.FcntlInt(uintptr(s.store[n]), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			s.t.Errorf("supervisor: %v", err)
			return
		}
		files = append(files, os.NewFile(uintptr(fd), n))
	}
	// The shell knows its process ID before it becomes the agent.
	cmd := exec.Command("sh", append([]string{"-c", `export LISTEN_PID=$$; exec "$@"`, "sh", s.Program}, s.args...)...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+s.socket, "LISTEN_FDS="+strconv.Itoa(len(files)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // all of them end with the test
	err := cmd.Start()
	for _, f := range files {
		_ = f.Close() // the agent has its own
	}
	if err != nil {
		s.t.Errorf("supervisor: %v", err)
		return
	}
	s.starts++
	s.groups = append(s.groups, cmd.Process.Pid)
	go func() { _ = cmd.Wait() }()
	s.follow(cmd.Process.Pid)
}

// Pause has the supervisor start nothing until Resume, as after systemctl stop.
func (s *Supervisor) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = true
}

// Resume starts the agent again after Pause.
func (s *Supervisor) Resume() {
	s.mu.Lock()
	s.paused = false
	s.mu.Unlock()
	s.Begin()
}

// follow makes pid the main process; s.mu is held.
func (s *Supervisor) follow(pid int) {
	s.main = pid
	go func() {
		waitFor(pid)
		s.mu.Lock()
		if s.main != pid {
			s.mu.Unlock()
			return // another one is the main process by now
		}
		s.main = 0
		for _, g := range s.groups {
			_ = syscall.Kill(-g, syscall.SIGKILL) // gone already is as good
		}
		s.mu.Unlock()
		s.Begin()
	}()
}

// waitFor waits until a process, of whatever parent, has ended.
func waitFor(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// listen hears what the agent says.
func (s *Supervisor) listen() {
	b, oob := make([]byte, 64<<10), make([]byte, 4<<10)
	for {
		n, on, _, _, err := s.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		var fds []int
		from := 0
		messages, _ := syscall.ParseSocketControlMessage(oob[:on])
		for _, m := range messages {
			if got, err := syscall.ParseUnixRights(&m); err == nil {
				fds = append(fds, got...)
			}
			if cred, err := syscall.ParseUnixCredentials(&m); err == nil {
				from = int(cred.Pid)
			}
		}
		s.hear(from, strings.Split(string(b[:n]), "\n"), fds)
	}
}

// hear acts on one message. As with NotifyAccess=main, only the main process is heard.
func (s *Supervisor) hear(from int, lines []string, fds []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := ""
	for _, l := range lines {
		if v, ok := strings.CutPrefix(l, "FDNAME="); ok {
			name = v
		}
	}
	for _, l := range lines {
		if from != s.main {
			break
		}
		switch key, value, _ := strings.Cut(l, "="); key {
		case "FDSTORE":
			for _, fd := range fds {
				s.keep(name, fd)
			}
			fds = nil
		case "FDSTOREREMOVE":
			if fd, ok := s.store[name]; ok {
				_ = unix.Close(fd)
				delete(s.store, name)
			}
		case "MAINPID":
			if pid, err := strconv.Atoi(value); err == nil && pid != s.main {
				s.follow(pid)
			}
		}
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// keep stores a descriptor, once.
func (s *Supervisor) keep(name string, fd int) {
	if old, ok := s.store[name]; ok {
		_ = unix.Close(old)
	}
	unix.CloseOnExec(fd)
	s.store[name] = fd
}

// Main is the main process, 0 when there is none.
func (s *Supervisor) Main() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.main
}

// Starts counts the starts by the supervisor itself.
func (s *Supervisor) Starts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.starts
}

// Tell sends a signal to the main process.
func (s *Supervisor) Tell(sig syscall.Signal) {
	if pid := s.Main(); pid > 0 {
		_ = syscall.Kill(pid, sig) // gone already is as good
	}
}

// Relieve has a new process take over, and waits until it is the main one. It returns
// the process that drains.
func (s *Supervisor) Relieve(within time.Duration) (drainer int) {
	s.t.Helper()
	before := s.Main()
	s.Tell(syscall.SIGUSR2)
	Eventually(s.t, within, "another process takes over", func() error {
		if now := s.Main(); now == before || now == 0 {
			return errors.New("it has not")
		}
		return nil
	})
	return before
}

// WaitServing waits until the agent serves, whichever process it is.
func (s *Supervisor) WaitServing(within time.Duration) {
	s.t.Helper()
	waitServing(s.t, s.Agent, within)
}

func waitServing(t testing.TB, a *Agent, within time.Duration) {
	t.Helper()
	Eventually(t, within, "the agent at "+a.HTTP+" serves", func() error {
		leader, err := a.Client.Status().Leader()
		if err == nil && leader == "" {
			err = errors.New("no leader yet")
		}
		return err
	})
}

// End kills every process that was started and forgets what is stored.
func (s *Supervisor) End() {
	s.mu.Lock()
	s.ended = true
	groups := slices.Clone(s.groups)
	s.mu.Unlock()
	for _, g := range groups {
		_ = syscall.Kill(-g, syscall.SIGKILL) // gone already is as good
	}
	_ = s.conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fd := range s.store {
		_ = unix.Close(fd)
	}
	clear(s.store)
}

// Gone waits until a process has ended; a zombie that nobody reaps has. One that does
// not end is to write to its log what it is doing.
func Gone(t testing.TB, pid int, within time.Duration) {
	t.Helper()
	gone := false
	defer func() {
		if !gone {
			_ = syscall.Kill(pid, syscall.SIGQUIT) // gone by now is as good
			waitFor(pid)
		}
	}()
	Eventually(t, within, "process "+strconv.Itoa(pid)+" ends", func() error {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			return nil //nolint:nilerr // gone
		}
		if _, rest, _ := strings.Cut(string(b), ") "); strings.HasPrefix(rest, "Z") {
			return nil
		}
		return errors.New("it runs")
	})
	gone = true
}
