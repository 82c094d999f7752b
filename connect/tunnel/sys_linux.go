package tunnel

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of a turn never wait, so the Go scheduler is not told of them: telling it
// wakes its monitor thread for each turn of an idle process, which costs more than the
// calls do. A loop that does not come to rest makes an ordinary call each turn (poll),
// so that the monitor runs and others get their share of the processor.

func rawRead(fd int, p []byte) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p))) //nolint:gosec // the buffer, for the length of the call
	return int(n), e
}

func rawWrite(fd int, p []byte) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p))) //nolint:gosec // the buffer, for the length of the call
	return int(n), e
}

func rawEpollWait(epfd int, events []unix.EpollEvent) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0) //nolint:gosec // the same
	return int(n), e
}

// readSome reads what is there; again says that nothing is.
func readSome(fd int, p []byte) (n int, again bool, err error) {
	for {
		n, e := rawRead(fd, p)
		switch e {
		case 0:
			return n, false, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, true, nil
		default:
			return 0, false, e
		}
	}
}
