package handover

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// isOwn tells whether the process at the other end runs as the user of this one, or as root.
func isOwn(c net.Conn) bool {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return err == nil && cerr == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
}
