//go:build unix

package httpapi

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

const canPark = true

// readable waits until there is something to read, without reading it. It is false
// at the end of the connection, or of its deadline.
func readable(raw syscall.RawConn) (more bool) {
	err := raw.Read(func(fd uintptr) bool {
		var one [1]byte
		for {
			n, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EAGAIN):
				return false
			}
			more = err == nil && n > 0
			return true
		}
	})
	return err == nil && more
}

// writeSome writes as much of b as the connection takes now.
func writeSome(raw syscall.RawConn, b []byte) (n int, err error) {
	ctl := raw.Write(func(fd uintptr) bool {
		for {
			n, err = unix.Write(int(fd), b)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EAGAIN):
				n, err = 0, nil
			}
			return true
		}
	})
	return max(n, 0), errors.Join(err, ctl)
}
