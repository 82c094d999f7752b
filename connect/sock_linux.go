package connect

import "golang.org/x/sys/unix"

// hasInput tells whether bytes wait to be read.
func hasInput(fd uintptr) bool {
	n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	return err == nil && n > 0
}
