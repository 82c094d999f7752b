package programs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestDig asks the agent's DNS as people do.
func TestDig(t *testing.T) {
	t.Parallel()
	dig := proc.Need(t, "dig")
	conf := filepath.Join(t.TempDir(), "names.hcl")
	if err := os.WriteFile(conf, []byte(`
node_name  = "host1"
node_meta  { rack = "r1" }
alt_domain = "mesh.example."
dns_config { service_ttl { "*" = "5s" } }
services = [
  { id = "web1", name = "web", port = 81, address = "10.1.1.1", tags = ["v1"], weights = { passing = 7, warning = 1 } },
  { id = "web2", name = "web", port = 82, address = "2001:db8::1" },
  { name = "Elsewhere", port = 83, address = "www.example.com" },
]`), 0o600); err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(proc.FreePorts(t, 1)[0])
	a := proc.StartAgent(t, "-config-file", conf, "-dns-port", port)
	ask := func(args ...string) (string, error) {
		return run(t.Context(), dig, append([]string{"@127.0.0.1", "-p", port, "+tries=1", "+time=5", "+nocookie"}, args...)...)
	}
	proc.Eventually(t, 15*time.Second, "the services have names", func() error {
		out, err := ask("+short", "elsewhere.service.consul", "A")
		if err == nil && out != "www.example.com.\n" {
			err = errors.New(out)
		}
		return err
	})
	for _, tc := range []struct{ args, want string }{
		{"web.service.consul A", "10.1.1.1"},
		{"+tcp web.service.consul AAAA", "2001:db8::1"},
		{"WEB.service.dc1.Consul A", "10.1.1.1"},
		{"_web._v1.service.consul SRV", "1 7 81 0a010101.addr.dc1.consul."},
		{"v1.web.service.mesh.example SRV", "1 7 81 0a010101.addr.dc1.mesh.example."},
		{"0a010101.addr.consul A", "10.1.1.1"},
		{"host1.node.consul A", "127.0.0.1"},
		{"-x 10.1.1.1", "web.service.dc1.consul."},
		{"-x 2001:db8::1", "web.service.dc1.consul."},
		{"-x 127.0.0.1", "host1.node.dc1.consul."},
		{"consul NS", "host1.node.dc1.consul."},
	} {
		if out, err := ask(append([]string{"+short"}, strings.Fields(tc.args)...)...); err != nil || strings.TrimSpace(out) != tc.want {
			t.Errorf("dig %s: %q, %v; want %q", tc.args, out, err, tc.want)
		}
	}
	for _, tc := range []struct {
		args string
		want []string
	}{
		{"nope.service.consul A", []string{"status: NXDOMAIN", " aa ", "AUTHORITY: 1", "SOA\tns.consul. hostmaster.consul."}},
		{"example.com A", []string{"status: REFUSED"}},
		{"consul AXFR", []string{"Transfer failed."}},
		{"+edns=1 +noednsneg consul SOA", []string{"status: BADVERS"}},
		{"+subnet=192.0.2.0/24 web.service.consul A", []string{"CLIENT-SUBNET: 192.0.2.0/24/0", "5\tIN\tA\t10.1.1.1"}},
	} {
		out, err := ask(strings.Fields(tc.args)...)
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("dig %s: there is no %q, %v:\n%s", tc.args, want, err, out)
			}
		}
	}
	out, err := ask("web.service.consul", "SRV")
	if err != nil || strings.Count(out, "\tSRV\t") != 2 || strings.Count(out, `TXT	"rack=r1"`) != 1 {
		t.Errorf("%v:\n%s", err, out)
	}
	if status, metrics, err := a.Get("/v1/agent/metrics?format=prometheus"); err != nil || !strings.Contains(metrics, `weft_dns_queries_total{rcode="REFUSED",type="A"} 1`) {
		t.Errorf("metrics: %d, %v", status, err)
	}
	if want := fmt.Sprintf("service=dns addr=127.0.0.1:%s", port); !strings.Contains(a.Log(), want) {
		t.Errorf("the log does not say %q", want)
	}
}
