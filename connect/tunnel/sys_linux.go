package tunnel

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of a turn never wait, so the Go scheduler is not told of them: telling it
// wakes its monitor thread for each turn of an idle process, which then looks fifty times
// in the next millisecond and costs more than the calls do. A loop that does not come to
// rest makes an ordinary call now and then (poll), so that the monitor runs and others get
// their share of the processor.

// rawRecv and rawSend are for sockets: they spare what read and write do for files, which is
// 4 % of a request in the kernel.
func rawRecv(fd int, p []byte) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0) //nolint:gosec // the buffer, for the length of the call
	return int(n), e
}

func rawSend(fd int, p []byte) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0) //nolint:gosec // the buffer, for the length of the call
	return int(n), e
}

// rawWake adds to an eventfd.
func rawWake(fd int) {
	one := [8]byte{1}
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one)) //nolint:gosec // the same
}

func rawEpollWait(epfd int, events []unix.EpollEvent) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0) //nolint:gosec // the same
	return int(n), e
}

func rawEpollCtl(epfd, op, fd int, ev *unix.EpollEvent) unix.Errno {
	_, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0) //nolint:gosec // the same
	return e
}

// rawAccept accepts a non-blocking connection.
func rawAccept(fd int) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int(n), e
}

// rawClose closes a descriptor whose file does not linger.
func rawClose(fd int) { _, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func rawShutdown(fd, how int) unix.Errno {
	_, _, e := syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), uintptr(how), 0)
	return e
}

func rawSocket(family, typ, proto int) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family), uintptr(typ), uintptr(proto))
	return int(n), e
}

func rawSetsockopt(fd, level, name int, p unsafe.Pointer, n uintptr) unix.Errno {
	_, _, e := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(p), n, 0)
	return e
}

func setInt(fd, level, name int, v int32) unix.Errno {
	return rawSetsockopt(fd, level, name, unsafe.Pointer(&v), unsafe.Sizeof(v)) //nolint:gosec // the same
}

// setLinger has closing reset the far end, or not.
func setLinger(fd int, l unix.Linger) unix.Errno {
	return rawSetsockopt(fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&l), unsafe.Sizeof(l)) //nolint:gosec // the same
}

var renoName = [...]byte{'r', 'e', 'n', 'o'}

func setReno(fd int) unix.Errno {
	return rawSetsockopt(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, unsafe.Pointer(&renoName), unsafe.Sizeof(renoName)) //nolint:gosec // the same
}

// rawConnect starts connecting a non-blocking socket.
func rawConnect(fd int, to netip.AddrPort, zone uint32) unix.Errno {
	var port [2]byte
	binary.BigEndian.PutUint16(port[:], to.Port())
	network := *(*uint16)(unsafe.Pointer(&port)) //nolint:gosec // as the kernel wants it
	addr := to.Addr().Unmap()
	var e unix.Errno
	if addr.Is4() {
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: network, Addr: addr.As4()}
		_, _, e = syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa)) //nolint:gosec // the same
	} else {
		sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: network, Addr: addr.As16(), Scope_id: zone}
		_, _, e = syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa)) //nolint:gosec // the same
	}
	return e
}

// readSome reads what is there; again says that nothing is.
func readSome(fd int, p []byte) (n int, again bool, err error) {
	for {
		n, e := rawRecv(fd, p)
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
