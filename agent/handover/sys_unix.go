//go:build unix

package handover

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func duplicate(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

func closeOnExec(fd int) { unix.CloseOnExec(fd) }

func rights(fd int) []byte { return syscall.UnixRights(fd) }

// pair gives the two ends of the talk between two processes.
func pair() (ours net.Conn, theirs *os.File, err error) {
	syscall.ForkLock.RLock() // so that no child gets an end that is not its own
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "handover")
	mine := os.NewFile(uintptr(fds[0]), "handover")
	defer mine.Close() //nolint:errcheck // FileConn duplicates
	ours, err = net.FileConn(mine)
	if err != nil {
		_ = theirs.Close() // nobody has it yet
		return nil, nil, err
	}
	return ours, theirs, nil
}

// errHeld is the error of lock where another process has it.
var errHeld error = unix.EWOULDBLOCK

// lock takes the lock of a file for as long as f is open, or fails at once.
func lock(f *os.File) error {
	return withFD(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
}
