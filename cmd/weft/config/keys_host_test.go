package config

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func TestHostKeys(t *testing.T) {
	c, err := load(t, "a.hcl", `
		bind_addr           = "0.0.0.0"
		advertise_addr_ipv4 = "10.1.2.3"
		advertise_addr_ipv6 = "2001:db8::1"
		advertise_addr_wan  = "198.51.100.7"
		tagged_addresses { lan_ipv6 = "2001:db8::2" rack = "10.9.9.9" }
		translate_wan_addrs = true
		locality { region = "eu" zone = "a" }
		serf_lan   = "127.0.0.1"
		gossip_lan { probe_timeout = "700ms" suspicion_mult = 6 }
		unix_sockets { user = "0" group = "0" }
		auto_reload_config = true
		http_config { use_cache = false }`)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) != 0 {
		t.Errorf("warnings: %q", c.Warnings)
	}
	if want := map[string]string{"lan_ipv4": "10.1.2.3", "lan_ipv6": "2001:db8::2", "rack": "10.9.9.9"}; !reflect.DeepEqual(c.TaggedAddresses(), want) {
		t.Errorf("tagged addresses: %v, want %v", c.TaggedAddresses(), want)
	}
	if c.AdvertiseAddr != "10.1.2.3" || c.Advertised.WAN != "198.51.100.7" || !c.Advertised.Translate {
		t.Errorf("advertised: %s, %+v", c.AdvertiseAddr, c.Advertised)
	}
	if want := (&catalog.Locality{Region: "eu", Zone: "a"}); !reflect.DeepEqual(c.Locality(), want) {
		t.Errorf("locality: %+v", c.Locality())
	}
	if c.Gossip.BindAddr != "127.0.0.1" || c.Gossip.ProbeTimeout != 700*time.Millisecond || c.Gossip.SuspicionMult != 6 || c.Gossip.Nodes != 4 {
		t.Errorf("gossip: %+v", c.Gossip)
	}
	if uid, gid := c.SocketOwner(); uid != 0 || gid != 0 || !c.AutoReload || c.HTTPUseCache {
		t.Errorf("owner %d:%d, reload %v, cache %v", uid, gid, c.AutoReload, c.HTTPUseCache)
	}
	if c := Default(); c.Locality() != nil || len(c.TaggedAddresses()) != 0 {
		t.Error("a host of which nothing is said stands somewhere")
	}
}

func TestHostKeysRefused(t *testing.T) {
	for src, want := range map[string]string{
		`advertise_addr_ipv4 = "::1"`:                `advertise_addr_ipv4: ::1 is no IPv4 address`,
		`advertise_addr_ipv6 = "10.0.0.1"`:           `advertise_addr_ipv6: 10.0.0.1 is no IPv6 address`,
		`advertise_addr_wan = "0.0.0.0"`:             `advertise_addr_wan: 0.0.0.0 is not an address that others can use`,
		`serf_lan = "example"`:                       `serf_lan: "example" is not an IP address`,
		`tagged_addresses { a = "" }`:                `tagged_addresses: "a" = ""`,
		`locality { zone = "a" }`:                    `locality.zone: a zone is in a region`,
		`gossip_lan { gossip_nodes = 0 }`:            `gossip_lan.gossip_nodes: 0 is not between`,
		`gossip_lan { probe_interval = "1h" }`:       `gossip_lan.probe_interval: 1h0m0s is not between`,
		`unix_sockets { user = "no-such-user-x" }`:   `unix_sockets.user: there is no user`,
		`unix_sockets { group = "no-such-group-x" }`: `unix_sockets.group: there is no group`,
		`unix_sockets { user = "-4" }`:               `unix_sockets.user: "-4" is neither`,
	} {
		if _, err := load(t, "a.hcl", src); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", src, err, want)
		}
	}
}

func TestCheckTLS(t *testing.T) {
	for src, want := range map[string]string{
		`tls { enable_agent_tls_for_checks = true }`:                                        "tls.enable_agent_tls_for_checks: needs a certificate or authorities",
		`enable_agent_tls_for_checks = true ca_file = "/none/ca.pem"`:                       "enable_agent_tls_for_checks: open /none/ca.pem",
		`enable_agent_tls_for_checks = true cert_file = "/none/c.pem" key_file = "/none/k"`: "/none/c.pem",
		`ports { expose_min_port = 9 expose_max_port = 8 }`:                                 "ports.expose_min_port: 9 is above ports.expose_max_port, 8",
		`ports { expose_max_port = 0 }`:                                                     "ports.expose_max_port: 0 is not a port",
		`ports { expose_max_port = 70000 }`:                                                 "ports.expose_max_port: 70000 is not a port",
	} {
		if _, err := load(t, "a.hcl", src); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", src, err, want)
		}
	}
	c, err := load(t, "a.hcl", `server_name = "x" ca_file = "/none"`)
	if err != nil || c.CheckTLS() != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "server_name has no effect without") {
		t.Errorf("%v; warnings %q", err, c.Warnings)
	}
}

// TestKeysWithoutEffectSaySo: whatever does nothing says so, once, and why.
func TestKeysWithoutEffectSaySo(t *testing.T) {
	for _, k := range Keys() {
		if k.Status != Accepted && k.Status != Ignored {
			continue
		}
		if k.Note == "" {
			t.Errorf("%s does not say why it has no effect", k.Name)
		}
		if w := k.warning("set"); !strings.Contains(w, k.Name) || !strings.Contains(w, k.Note) {
			t.Errorf("%s: %q", k.Name, w)
		}
	}
}
