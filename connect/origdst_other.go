//go:build !linux

package connect

import (
	"errors"
	"net"
	"net/netip"
)

// originalDst is known on Linux only.
func originalDst(net.Conn) (netip.AddrPort, error) {
	return netip.AddrPort{}, errors.New("redirected connections are taken on Linux only")
}
