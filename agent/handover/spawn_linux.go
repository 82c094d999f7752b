package handover

import (
	"errors"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// child is a process that this one started.
type child struct {
	pid   int
	file  *os.File // its pidfd
	ended chan struct{}
}

// spawn starts cmd as a child of this process's own parent: a supervisor learns of the
// end of its own children at once, of those of others late or never. What is PID 1 of a
// container has no parent, and when it ended, everything else would, too.
func spawn(cmd *exec.Cmd) (*child, error) {
	if os.Getpid() == 1 {
		return nil, errors.New("this process is the first of its container, which ends with it: replace the container")
	}
	fd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT, PidFD: &fd}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{pid: cmd.Process.Pid, ended: make(chan struct{})}
	_ = cmd.Process.Release() // it is waited for by its parent
	if fd < 0 {               // a kernel before 5.2
		var err error
		if fd, err = unix.PidfdOpen(c.pid, 0); err != nil {
			_ = unix.Kill(c.pid, unix.SIGKILL) // nobody would know what becomes of it
			return nil, os.NewSyscallError("pidfd_open", err)
		}
	}
	unix.CloseOnExec(fd)
	c.file = os.NewFile(uintptr(fd), "pidfd")
	go c.wait(fd)
	return c, nil
}

// wait notices the end of the process. The descriptor stays open until this one ends,
// so that its number cannot come to mean another process.
func (c *child) wait(fd int) {
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); !errors.Is(err, unix.EINTR) {
			close(c.ended)
			return
		}
	}
}

func (c *child) kill() {
	_ = unix.PidfdSendSignal(int(c.file.Fd()), unix.SIGKILL, nil, 0) // it may have ended already
}
