package connect

import "golang.org/x/sys/unix"

// tcpClose is TCP_CLOSE of the kernel's tcp_states.h.
const tcpClose = 7

// isClosedFD tells whether a TCP socket is in no connection any more.
func isClosedFD(fd uintptr) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == tcpClose
}

// hasInput tells whether bytes wait to be read.
func hasInput(fd uintptr) bool {
	n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	return err == nil && n > 0
}
