package agent_test

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/miekg/dns"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/cmd/meshtest"
	"github.com/weftmesh/weft/server"
)

// lookup asks DNS over "udp" or "tcp" and gives the code and the records of the
// answer, as text without names and TTLs.
func lookup(m *meshtest.Mesh, network, name string, qtype uint16) (string, error) {
	c := dns.Client{Net: network, Timeout: meshtest.Patience}
	r, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, qtype), m.DNS)
	if err != nil {
		return "", err
	}
	got := []string{dns.RcodeToString[r.Rcode]}
	for _, rr := range r.Answer {
		got = append(got, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(got, " "), nil
}

func eventuallyNamed(t *testing.T, m *meshtest.Mesh, name string, qtype uint16, want string) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		m.Eventually(network+" "+name, func() error {
			got, err := lookup(m, network, name, qtype)
			if err == nil && got != want {
				err = fmt.Errorf("%s, want %s", got, want)
			}
			return err
		})
	}
}

// TestNamesFollowTheCatalog: what registers has a name, and what turns critical
// or goes has none.
func TestNamesFollowTheCatalog(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{Change: func(c *agent.Config, _ *server.Config) {
		c.DNS.ServiceTTL = map[string]time.Duration{"*": 5 * time.Second}
		c.DNS.AltDomain = "mesh.test"
	}})
	eventuallyNamed(t, m, "test-node.node.consul.", dns.TypeA, "NOERROR 127.0.0.1")
	eventuallyNamed(t, m, "web.service.consul.", dns.TypeA, "NXDOMAIN")
	m.Register(map[string]any{
		"Name": "Web", "Address": "127.0.0.9", "Port": 81, "Tags": []string{"v1"},
		"Check":   map[string]any{"CheckID": "beat", "TTL": "1h", "Status": "passing"},
		"Connect": map[string]any{"SidecarService": map[string]any{}},
	})
	eventuallyNamed(t, m, "web.service.consul.", dns.TypeA, "NOERROR 127.0.0.9")
	eventuallyNamed(t, m, "v1.web.service.dc1.mesh.test.", dns.TypeA, "NOERROR 127.0.0.9")
	eventuallyNamed(t, m, "_web._v1.service.consul.", dns.TypeSRV, "NOERROR 1 1 81 7f000009.addr.dc1.consul.")
	eventuallyNamed(t, m, "web.service.dc2.consul.", dns.TypeA, "NXDOMAIN")
	m.Eventually("the service's mesh address", func() error {
		got, err := lookup(m, "udp", "web.connect.consul.", dns.TypeSRV)
		if err == nil && !strings.HasPrefix(got, "NOERROR 1 1 ") {
			err = errors.New(got)
		}
		return err
	})
	eventuallyNamed(t, m, "1.0.0.127.in-addr.arpa.", dns.TypePTR, "NOERROR test-node.node.dc1.consul.")
	m.Eventually("the service's reverse name", func() error {
		got, err := lookup(m, "udp", "9.0.0.127.in-addr.arpa.", dns.TypePTR)
		if err == nil && !strings.Contains(got, " Web.service.dc1.consul.") {
			err = errors.New(got)
		}
		return err
	})
	eventuallyNamed(t, m, "example.com.", dns.TypeA, "REFUSED")

	m.Do("PUT", "/v1/agent/check/fail/beat", nil, nil)
	eventuallyNamed(t, m, "web.service.consul.", dns.TypeA, "NXDOMAIN")
	m.Do("PUT", "/v1/agent/check/warn/beat", nil, nil)
	eventuallyNamed(t, m, "web.service.consul.", dns.TypeA, "NOERROR 127.0.0.9")
	m.Deregister("Web")
	eventuallyNamed(t, m, "web.service.consul.", dns.TypeA, "NXDOMAIN")

	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	for _, want := range []string{"consul_dns_domain_query", "consul_dns_ptr_query", "consul_dns_stale_queries", "weft_dns_queries_total"} {
		if !strings.Contains(strings.Join(names, " "), want) {
			t.Errorf("there is no metric %s", want)
		}
	}
}

// TestNamesOutliveTheServers: names that were asked for go on resolving with no
// leader and no server, whichever way DNS reads, but not where it is to ask the
// leader each time.
func TestNamesOutliveTheServers(t *testing.T) {
	for _, way := range []string{"stale", "cached", "from the leader"} {
		t.Run(way, func(t *testing.T) {
			m := meshtest.Start(t, meshtest.Options{Change: func(c *agent.Config, _ *server.Config) {
				c.HoldTimeout = 200 * time.Millisecond
				c.DNSViews.AllowStale, c.DNSViews.UseCache = way != "from the leader", way == "cached"
			}})
			m.Register(map[string]any{"Name": "Web", "Address": "127.0.0.9", "Port": 81})
			asked := []struct {
				name string
				kind uint16
				want string
			}{
				{"web.service.consul.", dns.TypeA, "NOERROR 127.0.0.9"},
				{"web.service.consul.", dns.TypeSRV, "NOERROR 1 1 81 7f000009.addr.dc1.consul."},
				{"test-node.node.consul.", dns.TypeA, "NOERROR 127.0.0.1"},
				{"consul.", dns.TypeNS, "NOERROR test-node.node.dc1.consul."},
				{"1.0.0.127.in-addr.arpa.", dns.TypePTR, "NOERROR test-node.node.dc1.consul."},
				{"9.0.0.127.in-addr.arpa.", dns.TypePTR, "NOERROR Web.service.dc1.consul."},
				{"7f000009.addr.consul.", dns.TypeA, "NOERROR 127.0.0.9"},
			}
			for _, a := range asked {
				eventuallyNamed(t, m, a.name, a.kind, a.want)
			}
			m.StopServer()
			if way == "from the leader" {
				eventuallyNamed(t, m, "web.service.consul.", dns.TypeA, "SERVFAIL")
				return
			}
			for range 3 {
				for _, a := range asked {
					if got, err := lookup(m, "udp", a.name, a.kind); err != nil || got != a.want {
						t.Errorf("%s without a server: %s, %v; want %s", a.name, got, err, a.want)
					}
				}
			}
			if got, err := lookup(m, "udp", "never-asked.node.consul.", dns.TypeA); err != nil || got != "SERVFAIL" {
				t.Errorf("a name that was never asked for: %s, %v", got, err)
			}
		})
	}
}

// TestNamesAlone: an agent that starts alone says that it does
// not know, not that nothing exists.
func TestNamesAlone(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{NoServer: true, Change: func(c *agent.Config, _ *server.Config) { c.HoldTimeout = 100 * time.Millisecond }})
	if got, err := lookup(m, "udp", "web.service.consul.", dns.TypeA); err != nil || got != "SERVFAIL" {
		t.Errorf("%s, %v", got, err)
	}
}

// TestNamesOffAndTaken: DNS may be off, and a port that is taken for UDP alone is
// named.
func TestNamesOffAndTaken(t *testing.T) {
	off := meshtest.Start(t, meshtest.Options{Change: func(c *agent.Config, _ *server.Config) { c.DNS.Addrs = nil }})
	if a := off.Agent.DNSAddrs(); len(a) != 0 {
		t.Errorf("DNS listens on %s", a)
	}
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	var cfg agent.Config
	meshtest.Start(t, meshtest.Options{Change: func(c *agent.Config, _ *server.Config) { cfg = *c }})
	cfg.DNS.Addrs, cfg.Registerer = []string{p.LocalAddr().String()}, nil
	port := strconv.Itoa(p.LocalAddr().(*net.UDPAddr).Port)
	if a, err := agent.New(cfg); err == nil || !strings.Contains(err.Error(), port) || !strings.Contains(err.Error(), "another process has it") {
		t.Errorf("%v", err)
		if err == nil {
			a.Close()
		}
	}
}

// TestQueriesHaveNames: a prepared query answers in DNS under its name and as its
// template, in any case, with its own TTL and choice.
func TestQueriesHaveNames(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{})
	for id, tag := range map[string]string{"127.0.0.9": "v1", "127.0.0.8": "v2"} {
		m.Register(map[string]any{"ID": id, "Name": "web", "Address": id, "Port": 81, "Tags": []string{tag}})
	}
	client := consulClient(t, m)
	for _, q := range []*api.PreparedQueryDefinition{
		{Name: "First", Service: api.ServiceQuery{Service: "web", Tags: []string{"v1"}}, DNS: api.QueryDNSOptions{TTL: "7s"}},
		{
			Name: "pick-", Template: api.QueryTemplate{Type: "name_prefix_match", Regexp: "^pick-(.+)-of-(.+)$"},
			Service: api.ServiceQuery{Service: "${match(2)}", Tags: []string{"${match(1)}"}},
		},
		{Name: "none", Service: api.ServiceQuery{Service: "nothing"}},
	} {
		if _, _, err := client.PreparedQuery().Create(q, nil); err != nil {
			t.Fatal(err)
		}
	}
	eventuallyNamed(t, m, "first.query.consul.", dns.TypeA, "NOERROR 127.0.0.9")
	eventuallyNamed(t, m, "fIrSt.QUERY.dc1.consul.", dns.TypeA, "NOERROR 127.0.0.9")
	eventuallyNamed(t, m, "_first._tcp.query.consul.", dns.TypeSRV, "NOERROR 1 1 81 7f000009.addr.dc1.consul.")
	eventuallyNamed(t, m, "PICK-V2-of-Web.query.consul.", dns.TypeA, "NOERROR 127.0.0.8")
	eventuallyNamed(t, m, "none.query.consul.", dns.TypeA, "NXDOMAIN")
	eventuallyNamed(t, m, "unknown.query.consul.", dns.TypeA, "NXDOMAIN")
	eventuallyNamed(t, m, "first.query.dc9.consul.", dns.TypeA, "NXDOMAIN")
}
