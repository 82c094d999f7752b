package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// store is the file descriptor store of a service manager that speaks systemd's
// protocol. A nil store takes nothing.
type store struct{ addr *net.UnixAddr }

// openStore finds the store of this process. Whether it takes anything is up to the
// unit (FileDescriptorStoreMax); what it does not take it closes.
func openStore() *store {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	return &store{&net.UnixAddr{Name: path, Net: "unixgram"}}
}

// add leaves a descriptor to the store. It is not watched there: an error on a UDP
// socket is no reason to forget it.
func (s *store) add(name string, f *os.File) error {
	if s == nil {
		return nil
	}
	return withFD(f, func(fd int) error {
		return s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, rights(fd))
	})
}

func (s *store) remove(name string) {
	if s != nil && name != "" {
		_ = s.send("FDSTOREREMOVE=1\nFDNAME="+name, nil) // it would be offered, and discarded, at the next start
	}
}

func (s *store) send(state string, oob []byte) error {
	// One that is not connected, as only those may send descriptors; the kernel names it.
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	_, _, err = c.WriteMsgUnix([]byte(state), oob, s.addr)
	return errors.Join(err, c.Close())
}

// withFD lends the descriptor of f, as it is: os.File.Fd could make it block, for
// every process that shares it.
func withFD(f *os.File, use func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var uerr error
	if err := raw.Control(func(fd uintptr) { uerr = use(int(fd)) }); err != nil {
		return err
	}
	return uerr
}
