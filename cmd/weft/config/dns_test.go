package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDNSKeys(t *testing.T) {
	c, err := load(t, "a.hcl", `
		client_addr = "127.0.0.1 ::1 unix:///run/weft.sock"
		ports { dns = 53 }
		domain = "Mesh.Example."
		alt_domain = "consul."
		recursors = ["{{ \"10.0.0.2 10.0.0.3\" }}", "[fd00::1]:5353"]
		dns_config {
			allow_stale = false
			max_stale = "1m"
			use_cache = true
			only_passing = true
			node_ttl = "3s"
			service_ttl { "*" = "1s", "web*" = "5s" }
			udp_answer_limit = 5
			a_record_limit = 2
			enable_truncate = true
			disable_compression = true
			recursor_strategy = "random"
			recursor_timeout = "1s"
			recurse_from = ["10.1.2.3/8"]
			cache_max_age = "10s"
			enable_additional_node_meta_txt = false
			soa { expire = 1, min_ttl = 2, refresh = 3, retry = 4 }
		}`)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(c.DNSAddrs()); got != "[127.0.0.1:53 [::1]:53]" {
		t.Errorf("addresses: %s", got)
	}
	if c.Domain != "Mesh.Example" || c.AltDomain != "consul" {
		t.Errorf("domains: %q and %q", c.Domain, c.AltDomain)
	}
	want := DNS{
		MaxStale: time.Minute, UseCache: true, OnlyPassing: true, NodeTTL: 3 * time.Second,
		UDPAnswerLimit: 5, ARecordLimit: 2, EnableTruncate: true, DisableCompression: true,
		SOA:              SOA{Refresh: 3, Retry: 4, Expire: 1, MinTTL: 2},
		ServiceTTL:       map[string]time.Duration{"*": time.Second, "web*": 5 * time.Second},
		Recursors:        []string{"10.0.0.2", "10.0.0.3", "[fd00::1]:5353"},
		RecursorStrategy: "random", RecursorTimeout: time.Second, RecurseFrom: []string{"10.1.2.3/8"},
	}
	if got := fmt.Sprintf("%+v", c.DNS); got != fmt.Sprintf("%+v", want) {
		t.Errorf("got  %s\nwant %+v", got, want)
	}
	if got := c.RecurseFrom(); !slices.Equal(got, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}) {
		t.Errorf("networks: %s", got)
	}
	if text := strings.Join(c.Warnings, "\n"); strings.Count(text, "dns") != 1 || !strings.Contains(text, "dns_config.cache_max_age is ignored: ") {
		t.Errorf("warnings: %s", text)
	}
	if got := c.Effective()["dns_config.service_ttl"]; fmt.Sprint(got) != "map[*:1s web*:5s]" {
		t.Errorf("shown: %v", got)
	}
}

func TestDNSOff(t *testing.T) {
	c, err := load(t, "a.hcl", `ports { dns = -1 }`)
	if err != nil || len(c.DNSAddrs()) != 0 || len(c.Warnings) != 0 {
		t.Errorf("%v, listens on %v, warns %v", err, c.DNSAddrs(), c.Warnings)
	}
	if c, err = load(t, "a.hcl", ``); err != nil || fmt.Sprint(c.DNSAddrs()) != "[127.0.0.1:8600]" {
		t.Errorf("%v, by default on %v", err, c.DNSAddrs())
	}
}

func TestBadDNS(t *testing.T) {
	for _, tc := range []struct{ src, want string }{
		{`ports { dns = 8500 }`, "a.hcl:1: ports.dns: 8500 is also the port of ports.http"},
		{`ports { dns = 70000 }`, "a.hcl:1: ports.dns: 70000 is not a port"},
		{`addresses { dns = "unix:///run/x" }`, "a.hcl:1: addresses.dns: \"unix:///run/x\": DNS is not served on Unix sockets"},
		{`addresses { dns = "web" }`, `addresses.dns: "web" is not an IP address`},
		{`domain = ""`, `a.hcl:1: domain: "" is not a DNS domain`},
		{`alt_domain = "a..b"`, `a.hcl:1: alt_domain: "a..b" is not a DNS domain`},
		{`domain = "` + strings.Repeat("a.", 100) + `b"`, `is not a DNS domain`},
		{`recursors = ["dns.example.com"]`, `a.hcl:1: recursors: "dns.example.com" is not an IP address`},
		{`recursors = ["10.0.0.1:0"]`, `recursors: "10.0.0.1:0" is not an IP address`},
		{`recursors = ["{{ nope }}"]`, `recursors: the template "{{ nope }}" fails`},
		{`dns_config { recursor_strategy = "any" }`, `dns_config.recursor_strategy: "any" is neither "sequential" nor "random"`},
		{`dns_config { recurse_from = ["10.0.0.1"] }`, `dns_config.recurse_from: "10.0.0.1" is not a network such as 10.0.0.0/8`},
		{`dns_config { service_ttl { web = 5 } }`, `a.hcl:1: dns_config.service_ttl.web: must be a duration such as "10s", not a number`},
		{`dns_config { service_ttl { web = "-5s" } }`, `dns_config.service_ttl.web: -5s is below zero`},
		{`dns_config { udp_answer_limit = -1 }`, `dns_config.udp_answer_limit: -1 is not between 0 and`},
		{`dns_config { soa { retry = -1 } }`, `dns_config.soa.retry: -1 is not between 0 and`},
	} {
		if _, err := load(t, "a.hcl", tc.src); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s\n got %v\nwant %s", tc.src, err, tc.want)
		}
	}
}
