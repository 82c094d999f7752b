package tunnel

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// closedFD tells whether the kernel has given a TCP connection up. Between the end
// of the far end and our own it waits for ours, so a socket that is closed when it
// says "end" was reset, and a write has used the error up.
func closedFD(fd uintptr) bool {
	const tcpClose = 7 // include/net/tcp_states.h
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == tcpClose
}

// shortestRTT is the shortest round trip of the last minutes, as the kernel saw it; 0:
// not known.
func shortestRTT(fd uintptr) time.Duration {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || info.Min_rtt == math.MaxUint32 {
		return 0
	}
	return time.Duration(info.Min_rtt) * time.Microsecond
}
