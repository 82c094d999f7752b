package agent

import (
	"context"
	"net"
	"strings"
	"time"

	"github.com/weftmesh/weft/agent/discover"
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
	if a.cfg.Sockets != nil {
		c.Sockets = a.cfg.Sockets
	}
	c.Query = preparedQueries(c.Views, a.cfg.NodeName, c.Datacenter)
	if c.Logger == nil {
		c.Logger = a.cfg.Logger
	}
	if c.Registerer == nil {
		c.Registerer = a.cfg.Registerer
	}
	return dns.New(c)
}

// preparedQueries executes prepared queries for DNS.
func preparedQueries(views dns.Views, node, dc string) func(context.Context, dns.QueryRequest) (*dns.QueryAnswer, error) {
	return func(ctx context.Context, req dns.QueryRequest) (*dns.QueryAnswer, error) {
		// DNS knows no case, and a template would carry that of the question into the
		// name of the service.
		q, err := discover.Resolve(ctx, views.Read, strings.ToLower(req.Name))
		if err != nil {
			return nil, err
		}
		found, err := discover.Execute(ctx, views.Read, q, discover.Search{
			By: discover.Asker{Node: node, Addr: req.Source}, Datacenter: dc,
		})
		if err != nil {
			return nil, err
		}
		ans := &dns.QueryAnswer{Service: q.Service.Service, Datacenter: found.Datacenter, Instances: found.Instances}
		if ttl, err := time.ParseDuration(q.DNS.TTL); err == nil {
			ans.TTL = &ttl
		}
		return ans, nil
	}
}

// DNSAddrs are the addresses of DNS, each over UDP and TCP, in the order of
// Config.DNS.Addrs; none when it is off.
func (a *Agent) DNSAddrs() []net.Addr {
	if a.dns == nil {
		return nil
	}
	return a.dns.Addrs()
}
