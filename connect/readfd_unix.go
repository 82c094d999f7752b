//go:build unix

package connect

import (
	"os"
	"syscall"
)

const canProbe = true

// readFD reads once from a non-blocking descriptor. It returns wouldBlock when
// nothing is there, and 0 bytes without an error at the end of the stream.
func readFD(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		switch err { //nolint:errorlint // syscall returns bare Errnos
		case nil:
			return n, nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, wouldBlock{}
		default:
			return 0, os.NewSyscallError("read", err)
		}
	}
}
