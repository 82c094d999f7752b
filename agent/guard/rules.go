package guard

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
)

// Table is the name of the table, of family inet.
const Table = "weft-redirect"

// maxExcluded bounds each list of exceptions.
const maxExcluded = 1024

// dnsPort is where questions for names go unless somebody says otherwise.
const dnsPort = 53

// Rules say which connections of a host go to a proxy instead. Only TCP does, and
// questions for names.
type Rules struct {
	// InboundPort is where the proxy takes connections of the mesh. What comes from other
	// hosts, for whatever port, goes there.
	InboundPort int
	// OutboundPort is where the proxy takes what applications of this host send.
	OutboundPort int
	// ProxyUID is the user that the proxy runs as: its connections go where they are meant to.
	ProxyUID uint32

	ExcludeInboundPorts  []int
	ExcludeOutboundPorts []int
	ExcludeOutboundCIDRs []netip.Prefix
	ExcludeUIDs          []uint32

	// DNS answers questions for names, wherever they were going. Not valid: they go where
	// they are meant to.
	DNS netip.AddrPort

	// NetNS is the network namespace, a path or a name; empty: that of this process.
	NetNS string
}

// validate refuses what would make rules that mean something else.
func (r *Rules) validate() error {
	for name, port := range map[string]int{"the proxy's inbound port": r.InboundPort, "the proxy's outbound port": r.OutboundPort} {
		if !isPort(port) {
			return fmt.Errorf("%s: %d is not between 1 and %d", name, port, math.MaxUint16)
		}
	}
	if r.InboundPort == r.OutboundPort {
		return fmt.Errorf("the proxy's inbound and outbound port are both %d; one of them is wrong", r.InboundPort)
	}
	for _, list := range [][]int{r.ExcludeInboundPorts, r.ExcludeOutboundPorts} {
		for _, port := range list {
			if !isPort(port) {
				return fmt.Errorf("excluded port %d is not between 1 and %d", port, math.MaxUint16)
			}
		}
	}
	if max(len(r.ExcludeInboundPorts), len(r.ExcludeOutboundPorts), len(r.ExcludeOutboundCIDRs), len(r.ExcludeUIDs)) > maxExcluded {
		return fmt.Errorf("more than %d exceptions of one kind; exclude networks rather than addresses", maxExcluded)
	}
	for _, p := range r.ExcludeOutboundCIDRs {
		if !p.IsValid() {
			return errors.New("an excluded network is none")
		}
	}
	return nil
}

func isPort(n int) bool { return n > 0 && n <= math.MaxUint16 }
