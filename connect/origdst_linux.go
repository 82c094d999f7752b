package connect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// originalDst is where a connection was going before the host redirected it.
func originalDst(c net.Conn) (netip.AddrPort, error) {
	var to netip.AddrPort
	var err error
	local := addrPort(c.LocalAddr())
	ask := func(fd uintptr) {
		if local.Addr().Is4() {
			to, err = originalDst4(int(fd))
			return
		}
		to, err = originalDst6(int(fd))
	}
	var cerr error
	if own, ok := c.(interface{ Control(func(fd uintptr)) error }); ok { // one that a loop accepted
		cerr = own.Control(ask)
	} else if raw := newWire(c).raw; raw != nil {
		cerr = raw.Control(ask)
	} else {
		cerr = errors.New("the connection has no descriptor")
	}
	switch {
	case cerr != nil:
		return netip.AddrPort{}, cerr
	case errors.Is(err, unix.ENOENT):
		return netip.AddrPort{}, errors.New("no rule of this host redirected it")
	case err != nil:
		return netip.AddrPort{}, fmt.Errorf("where it was going is not known: %w", err)
	}
	return to, nil
}

// originalDst4 asks with the call for IPv6Mreq, which has room for a sockaddr_in.
func originalDst4(fd int) (netip.AddrPort, error) {
	m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Multiaddr[4:8])), binary.BigEndian.Uint16(m.Multiaddr[2:4])), nil
}

// originalDst6 asks with the call for IPv6MTUInfo, which begins with a sockaddr_in6.
func originalDst6(fd int) (netip.AddrPort, error) {
	m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var port [2]byte // in the order of the network
	binary.NativeEndian.PutUint16(port[:], m.Addr.Port)
	return netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr).Unmap(), binary.BigEndian.Uint16(port[:])), nil
}
