package catalog

import "net/netip"

// MaxManualVirtualIPs is how many manual addresses one service may have.
const MaxManualVirtualIPs = 8

// SetVirtualIPs gives a service of the mesh manual addresses instead of those that it
// has, and takes them from other services. Nothing happens where the service has no
// address of its own yet: it is not in the mesh.
// Result: VirtualIPsSet.
type SetVirtualIPs struct {
	Service Name
	IPs     []string
}

// VirtualIPsSet is what became of SetVirtualIPs.
type VirtualIPsSet struct {
	// Found: the service has an address of its own.
	Found bool
	// TakenFrom are the services that had one of the addresses, by name.
	TakenFrom []Name
}

// CommandType implements Command.
func (*SetVirtualIPs) CommandType() CommandType { return CmdSetVirtualIPs }

// Validate implements Command.
func (c *SetVirtualIPs) Validate() error {
	if c.Service == "" {
		return Invalidf("manual virtual IPs: the service has no name")
	}
	if err := validName("manual virtual IPs: the service", c.Service); err != nil {
		return err
	}
	if len(c.IPs) > MaxManualVirtualIPs {
		return Invalidf("cannot associate more than %d manual virtual IPs with the same service", MaxManualVirtualIPs)
	}
	seen := make(map[string]bool, len(c.IPs))
	for _, text := range c.IPs {
		ip, err := netip.ParseAddr(text)
		if err != nil || !ip.Is4() {
			return Invalidf("%q is not a valid IPv4 address", text)
		}
		if seen[text] {
			return Invalidf("the manual virtual IP %s is given twice", text)
		}
		seen[text] = true
	}
	return nil
}

// VirtualIP is what the servers say of the virtual addresses of a service.
type VirtualIP struct {
	Service Name
	// Auto is of VirtualRange, Manual as an operator gave them.
	Auto   string
	Manual []string
}

// Addrs lists the addresses; what is none is left out.
func (v *VirtualIP) Addrs() []netip.Addr {
	var out []netip.Addr
	for _, text := range append([]string{v.Auto}, v.Manual...) {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// VirtualRange is where the servers take virtual addresses from. Nothing else in the
// world is reached there.
var VirtualRange = netip.PrefixFrom(netip.AddrFrom4([4]byte{240, 0, 0, 0}), 4)
