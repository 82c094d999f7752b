package agent

import (
	"net"

	"github.com/weftmesh/weft/agent/dns"
)

// newNames makes the DNS server, nil where no address is configured for it.
func newNames(a *Agent) (*dns.Server, error) {
	c, v := a.cfg.DNS, a.cfg.DNSViews
	if len(c.Addrs) == 0 {
		return nil, nil //nolint:nilnil // off is no mistake
	}
	v.Reader, v.Watch = a.remote, a.remote.Watch
	if v.Registerer == nil {
		v.Registerer = a.cfg.Registerer
	}
	var err error
	if c.Views, err = dns.NewViews(v); err != nil {
		return nil, err
	}
	c.Datacenter = a.cfg.Datacenter
	if c.Logger == nil {
		c.Logger = a.cfg.Logger
	}
	if c.Registerer == nil {
		c.Registerer = a.cfg.Registerer
	}
	return dns.New(c)
}

// DNSAddrs are the addresses of DNS, each over UDP and TCP, in the order of
// Config.DNS.Addrs; none when it is off.
func (a *Agent) DNSAddrs() []net.Addr {
	if a.dns == nil {
		return nil
	}
	return a.dns.Addrs()
}
