package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/agent/guard"
	"github.com/weftmesh/weft/agent/sidecar"
)

// sshPort is never redirected: who sets this up is most likely connected to it.
const sshPort = 22

// defaultDNSPort is that of a DNS server of which only the address is given, and
// localDNS the address where only the port is.
const (
	defaultDNSPort = 53
	localDNS       = "127.0.0.1"
)

func redirectTraffic(s streams) *cli.Command {
	return spec{
		name: "redirect-traffic", usage: "Redirect the connections of this host to a proxy in transparent mode",
		about: "Writes an nftables table, " + guard.Table + ", which sends what applications of this host dial to the outbound\n" +
			"port of the proxy, and what arrives from other hosts to its inbound port. Run again it replaces the\n" +
			"table; -remove removes it. It must be root, and be run again after each boot.\n\n" +
			"With -proxy-id the agent is asked for the ports. What arrives at port 22, at the agent's own ports,\n" +
			"at other proxies and at exposed paths of this host is left alone then; without, at port 22.",
		examples: []string{
			"sudo weft connect redirect-traffic -proxy-id web-sidecar-proxy -proxy-uid weft -consul-dns-port 8600",
			"sudo weft connect redirect-traffic -remove",
		},
		flags: clientFlags(
			&cli.StringFlag{Name: "proxy-id", Usage: "The ID of the proxy, or of the service before which it is. The agent is asked for its ports."},
			&cli.StringFlag{Name: "proxy-uid", Usage: "The user that the proxy runs as, which is the agent's: a number or a name. Its connections are not redirected."},
			&cli.IntFlag{Name: "proxy-inbound-port", Usage: "The inbound port of the proxy, instead of -proxy-id."},
			&cli.IntFlag{Name: "proxy-outbound-port", Usage: "The outbound port of the proxy. What its registration says, or 15001."},
			&cli.StringSliceFlag{Name: "exclude-inbound-port", Usage: "A port at which connections arrive as they are. May be given many times."},
			&cli.StringSliceFlag{Name: "exclude-outbound-port", Usage: "A port to which connections go as they are. May be given many times."},
			&cli.StringSliceFlag{Name: "exclude-outbound-cidr", Usage: "A network, or address, to which connections go as they are. May be given many times."},
			&cli.StringSliceFlag{Name: "exclude-uid", Usage: "A user, number or name, whose connections go as they are. May be given many times."},
			&cli.StringFlag{Name: "consul-dns-ip", Usage: "The address of the agent's DNS: questions for names are redirected there."},
			&cli.IntFlag{Name: "consul-dns-port", Usage: "The port of the agent's DNS, at 127.0.0.1 unless -consul-dns-ip says another address."},
			&cli.StringFlag{Name: "netns", Usage: "The network namespace to redirect in, a path or a name."},
			&cli.BoolFlag{Name: "remove", Usage: "Remove what an earlier call wrote."},
		),
		action: func(c *cli.Context) error {
			if c.Bool("remove") {
				for _, name := range []string{"proxy-id", "proxy-uid", "proxy-inbound-port"} {
					if c.IsSet(name) {
						return usagef(c, "-remove needs nothing but -netns: -%s has no place beside it", name)
					}
				}
				if err := guard.Remove(c.String("netns")); err != nil {
					return err
				}
				fmt.Fprintln(c.App.Writer, "Connections of this host are not redirected (any more).")
				return nil
			}
			r, err := rulesFromFlags(c)
			if err != nil {
				return usagef(c, "%v", err)
			}
			if c.String("proxy-id") != "" {
				cl, err := newClient(c, s)
				if err != nil {
					return err
				}
				if err := askProxy(c, cl, &r); err != nil {
					return cl.explain(err)
				}
			}
			if r.OutboundPort == 0 {
				r.OutboundPort = sidecar.DefaultOutboundPort
			}
			if err := guard.Apply(r); err != nil {
				return err
			}
			showRules(c, &r)
			return nil
		},
	}.build()
}

// rulesFromFlags reads all but what the agent knows.
func rulesFromFlags(c *cli.Context) (guard.Rules, error) {
	r := guard.Rules{
		InboundPort: c.Int("proxy-inbound-port"), OutboundPort: c.Int("proxy-outbound-port"),
		ExcludeInboundPorts: []int{sshPort}, NetNS: c.String("netns"),
	}
	switch {
	case c.String("proxy-uid") == "":
		return r, errors.New("-proxy-uid is needed: the user that the proxy, which is the agent, runs as; else its own connections would come back to it")
	case c.String("proxy-id") == "" && r.InboundPort == 0:
		return r, errors.New("-proxy-id is needed, or -proxy-inbound-port")
	case c.String("proxy-id") != "" && r.InboundPort != 0:
		return r, errors.New("-proxy-id and -proxy-inbound-port exclude each other: the agent is asked for the port")
	}
	uids, err := userIDs(append(c.StringSlice("exclude-uid"), c.String("proxy-uid")))
	if err != nil {
		return r, err
	}
	r.ProxyUID, r.ExcludeUIDs = uids[len(uids)-1], uids[:len(uids)-1]
	if err := readPorts(c, "exclude-inbound-port", &r.ExcludeInboundPorts); err != nil {
		return r, err
	}
	if err := readPorts(c, "exclude-outbound-port", &r.ExcludeOutboundPorts); err != nil {
		return r, err
	}
	for _, text := range c.StringSlice("exclude-outbound-cidr") {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); err != nil && aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return r, fmt.Errorf("-exclude-outbound-cidr %q is neither a network such as 10.0.0.0/8 nor an address", text)
		}
		r.ExcludeOutboundCIDRs = append(r.ExcludeOutboundCIDRs, p)
	}
	r.DNS, err = dnsFromFlags(c)
	return r, err
}

func dnsFromFlags(c *cli.Context) (netip.AddrPort, error) {
	ip, port := c.String("consul-dns-ip"), c.Int("consul-dns-port")
	if ip == "" && port == 0 {
		return netip.AddrPort{}, nil
	}
	if ip == "" {
		ip = localDNS
	}
	if port == 0 {
		port = defaultDNSPort
	}
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("-consul-dns-ip %q is no IP address", ip)
	}
	n, err := readPort(strconv.Itoa(port))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("-consul-dns-port %w", err)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil //nolint:gosec // a port
}

func readPorts(c *cli.Context, flag string, into *[]int) error {
	for _, text := range c.StringSlice(flag) {
		n, err := readPort(text)
		if err != nil {
			return fmt.Errorf("-%s %w", flag, err)
		}
		*into = append(*into, n)
	}
	return nil
}

func readPort(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port between 1 and 65535", text)
	}
	return int(n), nil
}

// userIDs reads users, numbers or names.
func userIDs(users []string) ([]uint32, error) {
	out := make([]uint32, 0, len(users))
	for _, name := range users {
		if n, err := strconv.ParseUint(name, 10, 32); err == nil {
			out = append(out, uint32(n))
			continue
		}
		u, err := user.Lookup(name)
		if err != nil {
			return nil, fmt.Errorf("user %q: there is none of this name; give a number or a name", name)
		}
		n, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %q has the ID %q, which is no number", name, u.Uid)
		}
		out = append(out, uint32(n))
	}
	return out, nil
}

// askProxy learns from the agent which ports are the proxy's, and which are others'.
func askProxy(c *cli.Context, cl *client, r *guard.Rules) error {
	services, err := cl.Agent().ServicesWithFilterOpts("", cl.read(c.Context))
	if err != nil {
		return err
	}
	proxy, err := proxyOf(services, c.String("proxy-id"))
	if err != nil {
		return err
	}
	r.InboundPort = inboundPort(proxy)
	if r.InboundPort == 0 {
		return fmt.Errorf("the proxy %s has no port to take connections at", proxy.ID)
	}
	if t := proxy.Proxy.TransparentProxy; t != nil && r.OutboundPort == 0 {
		r.OutboundPort = t.OutboundListenerPort
	}
	for _, other := range services {
		if other.Proxy == nil {
			continue
		}
		r.ExcludeInboundPorts = append(r.ExcludeInboundPorts, inboundPort(other))
		for _, e := range other.Proxy.Expose.Paths {
			r.ExcludeInboundPorts = append(r.ExcludeInboundPorts, e.ListenerPort)
		}
	}
	self, err := cl.Agent().Self()
	if err != nil {
		return err
	}
	for key, v := range self["DebugConfig"] {
		n, isNumber := v.(float64)
		if isNumber && (strings.HasPrefix(key, "ports.") && !strings.HasPrefix(key, "ports.sidecar_") || key == "connect.mesh_port") {
			r.ExcludeInboundPorts = append(r.ExcludeInboundPorts, int(n))
		}
	}
	slices.Sort(r.ExcludeInboundPorts)
	r.ExcludeInboundPorts = slices.DeleteFunc(slices.Compact(r.ExcludeInboundPorts), func(n int) bool { return n <= 0 })
	return nil
}

// proxyOf finds a proxy in transparent mode, by its ID or by that of its service.
func proxyOf(services map[string]*api.AgentService, id string) (*api.AgentService, error) {
	found := services[id]
	if found == nil || found.Kind != api.ServiceKindConnectProxy {
		for _, s := range services {
			if s.Kind == api.ServiceKindConnectProxy && s.Proxy != nil && s.Proxy.DestinationServiceID == id {
				found = s
			}
		}
	}
	switch {
	case found == nil:
		return nil, fmt.Errorf("the agent has no proxy %q; weft connect status lists those it has", id)
	case found.Kind != api.ServiceKindConnectProxy || found.Proxy == nil:
		return nil, fmt.Errorf("%s is a service without a proxy; register it with connect { sidecar_service {} }", id)
	case found.Proxy.Mode != api.ProxyModeTransparent:
		return nil, fmt.Errorf("the proxy %s is not in transparent mode, and would refuse what is redirected to it: "+
			"register it with proxy { mode = \"transparent\" }, or set Mode in service-defaults or proxy-defaults", found.ID)
	}
	return found, nil
}

// inboundPort is where a proxy listens.
func inboundPort(s *api.AgentService) int {
	if s.Proxy != nil {
		switch n := s.Proxy.Config["bind_port"].(type) {
		case float64:
			return int(n)
		case string:
			if port, err := readPort(n); err == nil {
				return port
			}
		}
	}
	return s.Port
}

func showRules(c *cli.Context, r *guard.Rules) {
	w := c.App.Writer
	list := func(ports []int) string {
		words := make([]string, len(ports))
		for i, p := range ports {
			words[i] = strconv.Itoa(p)
		}
		return strings.Join(words, ", ")
	}
	fmt.Fprintf(w, "Outbound connections go to port %d, except those of user %d.\n", r.OutboundPort, r.ProxyUID)
	fmt.Fprintf(w, "Inbound connections go to port %d, except those to %s.\n", r.InboundPort, list(r.ExcludeInboundPorts))
	if r.DNS.IsValid() {
		fmt.Fprintf(w, "Questions for names go to %s.\n", r.DNS)
	}
	fmt.Fprintf(w, "To undo it: weft connect redirect-traffic -remove\n")
}
