package config

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	sockaddr "github.com/hashicorp/go-sockaddr"
	"github.com/hashicorp/go-sockaddr/template"
)

// Listener is where something listens: network "tcp" and host:port, or "unix" and
// a path.
type Listener struct {
	Network string
	Addr    string
}

func (l Listener) String() string {
	if l.Network == "unix" {
		return "unix://" + l.Addr
	}
	return l.Addr
}

// HTTP is where the HTTP API listens; none when its port is off and no Unix
// socket is named.
func (c *Config) HTTP() []Listener {
	key, list := "client_addr", c.ClientAddr
	if c.Addresses.HTTP != "" {
		key, list = "addresses.http", c.Addresses.HTTP
	}
	out, err := c.listeners(key, list, c.Ports.HTTP)
	if err != nil {
		return nil // Load has refused it
	}
	return out
}

func (c *Config) listeners(key, list string, port int) ([]Listener, error) {
	var out []Listener
	for _, a := range strings.Fields(list) {
		if path, ok := strings.CutPrefix(a, "unix://"); ok {
			if !strings.HasPrefix(path, "/") {
				return nil, c.problem(key, "%q: the path of a Unix socket must be absolute", a)
			}
			out = append(out, Listener{Network: "unix", Addr: path})
			continue
		}
		if _, err := netip.ParseAddr(a); err != nil && a != "localhost" {
			return nil, c.problem(key, "%q is not an IP address", a)
		}
		if port >= 0 {
			out = append(out, Listener{Network: "tcp", Addr: net.JoinHostPort(a, strconv.Itoa(port))})
		}
	}
	return out, nil
}

// resolveAddresses evaluates templates and fills in what is left open.
func (c *Config) resolveAddresses() error {
	for _, a := range []struct {
		key string
		val *string
	}{
		{"bind_addr", &c.BindAddr},
		{"advertise_addr", &c.AdvertiseAddr},
		{"client_addr", &c.ClientAddr},
		{"addresses.http", &c.Addresses.HTTP},
		{"addresses.dns", &c.Addresses.DNS},
		{"addresses.https", &c.HTTPS.Addresses},
	} {
		s, err := evaluate(*a.val)
		if err != nil {
			return c.problem(a.key, "%v", err)
		}
		*a.val = s
	}
	if err := c.oneIP("bind_addr", c.BindAddr); err != nil {
		return err
	}
	if c.ClientAddr == "" {
		return c.problem("client_addr", "is empty")
	}
	if _, err := c.listeners("client_addr", c.ClientAddr, c.Ports.HTTP); err != nil {
		return err
	}
	if _, err := c.listeners("addresses.http", c.Addresses.HTTP, c.Ports.HTTP); err != nil {
		return err
	}
	if err := c.resolveDNS(); err != nil {
		return err
	}
	if err := c.resolveAdvertised(); err != nil {
		return err
	}
	if c.AdvertiseAddr == "" {
		advertise, err := c.defaultAdvertise()
		if err != nil {
			return err
		}
		c.AdvertiseAddr = advertise
	}
	if err := c.oneIP("advertise_addr", c.AdvertiseAddr); err != nil {
		return err
	}
	if netip.MustParseAddr(c.AdvertiseAddr).IsUnspecified() {
		return c.problem("advertise_addr", "%s is not an address that others can use", c.AdvertiseAddr)
	}
	return nil
}

func (c *Config) oneIP(key, s string) error {
	fields := strings.Fields(s)
	if len(fields) > 1 {
		return c.problem(key, "%q holds %d addresses, name one", s, len(fields))
	}
	if _, err := netip.ParseAddr(s); err != nil {
		return c.problem(key, "%q is not an IP address", s)
	}
	return nil
}

func (c *Config) defaultAdvertise() (string, error) {
	if bind := netip.MustParseAddr(c.BindAddr); !bind.IsUnspecified() {
		return c.BindAddr, nil
	}
	ip, err := sockaddr.GetPrivateIP()
	if err != nil || ip == "" {
		return "", c.problem("advertise_addr", "must be set: bind_addr is %s and this host has no private address", c.BindAddr)
	}
	return ip, nil
}

// evaluate runs a go-sockaddr template such as {{ GetPrivateIP }}.
func evaluate(s string) (out string, err error) {
	if !strings.Contains(s, "{{") {
		return strings.TrimSpace(s), nil
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the template %q fails: %v", s, r)
		}
	}()
	out, err = template.Parse(s)
	if err != nil {
		return "", fmt.Errorf("the template %q fails: %w", s, err)
	}
	out = strings.TrimSpace(out)
	if out == "" {
		return "", fmt.Errorf("the template %q finds no address on this host", s)
	}
	return out, nil
}
