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
