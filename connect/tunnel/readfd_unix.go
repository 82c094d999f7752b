//go:build unix

package tunnel

import "syscall"

// canProbe: the platform can read a descriptor without waiting.
const canProbe = true

// readFD reads what is there; again says that nothing is.
func readFD(fd uintptr, p []byte) (n int, again bool, err error) {
	for {
		n, err = syscall.Read(int(fd), p)
		switch err { //nolint:errorlint // a bare errno
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, true, nil
		}
		return max(n, 0), false, err
	}
}
