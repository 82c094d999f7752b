package tunnel

import "golang.org/x/sys/unix"

// closedFD tells whether the kernel has given a TCP connection up. Between the end
// of the far end and our own it waits for ours, so a socket that is closed when it
// says "end" was reset, and a write has used the error up.
func closedFD(fd uintptr) bool {
	const tcpClose = 7 // include/net/tcp_states.h
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == tcpClose
}
