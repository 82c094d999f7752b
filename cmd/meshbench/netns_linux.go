package main

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside marks the process that runs in the namespace.
const inside = "MESHBENCH_INSIDE"

// ownNetwork runs this program again in a network namespace of its own, where nothing
// else listens, connects or filters, and gives its exit code. It reports false where it
// is in one, or may not make one.
func ownNetwork() (code int, done bool) {
	if os.Geteuid() != 0 || os.Getenv(inside) != "" {
		return 0, false
	}
	runtime.LockOSThread() // its end is what Pdeathsig means
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:gosec,noctx // ourselves; it ends by the same signals
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	if cmd.Start() != nil {
		return 0, false // a container that may not: the host's network serves too
	}
	var exit *exec.ExitError
	switch err := cmd.Wait(); {
	case err == nil:
		return 0, true
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode(), true
	default:
		return 1, true
	}
}

// loopbackUp brings up the only interface of a fresh namespace.
func loopbackUp() error {
	if os.Getenv(inside) == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	// For everybody alike: where the host's default is BBR, it paces by a timer what
	// nothing limits here. The setting is this namespace's alone. Where the host allows
	// no namespace to choose CUBIC, Reno is what each may have.
	if os.WriteFile(congestionFile, []byte("cubic"), 0o600) != nil {
		_ = os.WriteFile(congestionFile, []byte("reno"), 0o600) // where there is none, the host's default serves
	}
	return os.NewSyscallError("ioctl", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo))
}

const congestionFile = "/proc/sys/net/ipv4/tcp_congestion_control"

// congestionControl is what TCP uses where the run takes place.
func congestionControl() string {
	b, err := os.ReadFile(congestionFile)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}
