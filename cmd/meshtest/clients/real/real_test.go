//go:build clients

package real_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestPrometheus runs Prometheus's own Consul discovery.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	bin := tool(t, "prometheus", ".")
	f := newFleet(t)
	p := start(t, bin, fmt.Sprintf("server: %s\nservices: [web]\ntags: [v1]\nrefresh_interval: 100ms\nfilter: ServiceMeta.team == shop\n", f.agent.HTTP))
	f.follow(watcher{keeps: true, sees: func() ([]int, error) {
		lines := strings.Split(strings.TrimSpace(p.out.String()), "\n")
		var targets []map[string]string
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &targets); err != nil {
			return nil, fmt.Errorf("nothing discovered yet: %w", err)
		}
		found := []int{}
		for _, l := range targets {
			for label, want := range map[string]string{
				"__meta_consul_service": "web", "__meta_consul_dc": "dc1", "__meta_consul_tags": ",v1,prod,",
				"__meta_consul_service_metadata_team": "shop", "__meta_consul_address": "127.0.0.1",
			} {
				if l[label] != want {
					return nil, fmt.Errorf("%s is %q, want %q", label, l[label], want)
				}
			}
			if far := l["__meta_consul_metadata_external_node"] == "true"; far != (l["__meta_consul_node"] == "far") {
				return nil, fmt.Errorf("metadata of node %s: %v", l["__meta_consul_node"], l)
			}
			if l["__meta_consul_health"] != api.HealthPassing {
				continue
			}
			_, port, _ := strings.Cut(l["__address__"], ":")
			n, err := strconv.Atoi(port)
			if err != nil {
				return nil, err
			}
			found = append(found, n)
		}
		return found, nil
	}})
}

// TestConsulTemplate runs two consul-templates that share their queries through
// sessions and keys (deduplication): who leads renders, and so does who follows.
func TestConsulTemplate(t *testing.T) {
	t.Parallel()
	bin := tool(t, "consul-template", "github.com/hashicorp/consul-template")
	f := newFleet(t)
	_, err := f.agent.Client.KV().Put(&api.KVPair{Key: "app/greeting", Value: []byte("hello")}, nil)
	must(t, err)
	dir := t.TempDir()
	in := write(t, dir, "web.ctmpl", `{{range service "v1.web|passing"}}{{.ID}} {{.Address}}:{{.Port}} {{.Tags | join ","}} {{.ServiceMeta.team}}
{{end}}{{key "app/greeting"}} {{range ls "app"}}{{.Key}}={{.Value}}{{end}} {{range datacenters}}{{.}}{{end}} {{range services}}{{.Name}},{{end}} {{with node}}{{.Node.Address}}{{end}}
`)
	var outs []string
	for _, name := range []string{"alone", "shared-a", "shared-b"} {
		out := filepath.Join(dir, name)
		outs = append(outs, out)
		conf := write(t, dir, name+".hcl", fmt.Sprintf("consul {\n address = %q\n}\nwait {\n min = \"0s\"\n max = \"0s\"\n}\ndeduplicate {\n enabled = %t\n prefix = \"dedup/\"\n}\n"+
			"template {\n source = %q\n destination = %q\n command = \"echo reloaded >> %s.reloads\"\n}\n", f.agent.HTTP, name != "alone", in, out, out))
		start(t, bin, "-config", conf, "-log-level", "info")
	}
	read := func(out string) (instances, last string, err error) {
		b, err := os.ReadFile(out)
		if err != nil {
			return "", "", err
		}
		text := strings.TrimSuffix(string(b), "\n")
		i := strings.LastIndexByte(text, '\n') + 1
		return text[:i], text[i:], nil
	}
	f.follow(watcher{keeps: true, sees: func() ([]int, error) {
		var first []int
		for i, out := range outs {
			instances, _, err := read(out)
			if err != nil {
				return nil, err
			}
			got, err := ports(instances)
			if err != nil {
				return nil, err
			}
			slices.Sort(got)
			if i == 0 {
				first = got
			} else if !slices.Equal(got, first) {
				return nil, fmt.Errorf("%s has %v, the first one %v", filepath.Base(out), got, first)
			}
			if strings.Count(instances, "v1,prod shop\n") != len(got) && strings.Count(instances, "prod,v1 shop\n") != len(got) {
				return nil, fmt.Errorf("tags or metadata are missing:\n%s", instances)
			}
		}
		return first, nil
	}})
	_, err = f.agent.Client.KV().Put(&api.KVPair{Key: "app/greeting", Value: []byte("goodbye")}, nil)
	must(t, err)
	for _, out := range outs {
		proc.Eventually(t, patience, "a key that changed is rendered", func() error {
			_, last, err := read(out)
			if want := "goodbye greeting=goodbye dc1 consul, 127.0.0.1"; err == nil && last != want {
				err = fmt.Errorf("%q, want %q", last, want)
			}
			return err
		})
		if b, err := os.ReadFile(out + ".reloads"); err != nil || strings.Count(string(b), "reloaded") < 5 {
			t.Errorf("%s: reloads: %q, %v", filepath.Base(out), b, err)
		}
	}
}

// TestHAProxy balances over the instances that DNS SRV records name.
func TestHAProxy(t *testing.T) {
	t.Parallel()
	bin := proc.Need(t, "haproxy", "/usr/sbin")
	f := newFleet(t)
	front := proc.FreePorts(t, 1)[0]
	conf := write(t, t.TempDir(), "haproxy.cfg", fmt.Sprintf(`
global
  maxconn 500
resolvers weft
  nameserver agent 127.0.0.1:%s
  accepted_payload_size 8192
  resolve_retries 3
  timeout resolve 200ms
  timeout retry 200ms
  hold valid 200ms
  hold obsolete 0s
  hold timeout 60s
  hold refused 60s
  hold other 60s
  hold nx 0s
defaults
  mode http
  timeout connect 2s
  timeout client 5s
  timeout server 5s
  timeout queue 200ms
  retries 3
frontend in
  bind 127.0.0.1:%d
  default_backend web
backend web
  balance roundrobin
  server-template web 8 _web._v1.service.consul resolvers weft resolve-opts allow-dup-ip resolve-prefer ipv4 init-addr none
`, f.dns, front))
	start(t, bin, "-db", "-f", conf)
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	f.follow(watcher{keeps: true, sees: func() ([]int, error) {
		seen := map[int]bool{}
		refused := 0
		for range 24 {
			resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/port", front))
			if err != nil {
				return nil, err
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				return nil, err
			}
			if resp.StatusCode == http.StatusServiceUnavailable {
				refused++
				continue
			}
			port, err := strconv.Atoi(resp.Header.Get("X-Port"))
			if err != nil {
				return nil, fmt.Errorf("status %d: %.80s", resp.StatusCode, body)
			}
			seen[port] = true
		}
		if refused > 0 && len(seen) > 0 {
			return nil, fmt.Errorf("%d of 24 requests found no server", refused)
		}
		return slices.Collect(func(yield func(int) bool) {
			for p := range seen {
				if !yield(p) {
					return
				}
			}
		}), nil
	}})
}

// TestDig asks for the SRV records and their addresses.
func TestDig(t *testing.T) {
	t.Parallel()
	bin := proc.Need(t, "dig")
	f := newFleet(t)
	ask := func(args ...string) (string, error) {
		return run(t, bin, append([]string{"@127.0.0.1", "-p", f.dns, "+tries=1", "+time=5", "+nocookie", "+short"}, args...)...)
	}
	f.follow(watcher{sees: func() ([]int, error) {
		out, err := ask("v1.web.service.consul", "SRV")
		if err != nil {
			return nil, err
		}
		found := []int{}
		for _, l := range strings.Fields(strings.ReplaceAll(strings.TrimSpace(out), " ", "/")) {
			fields := strings.Split(l, "/")
			if len(fields) != 4 {
				return nil, errors.New(l)
			}
			addr, err := ask(fields[3], "A")
			if err != nil || !strings.HasPrefix(addr, "127.0.1.") {
				return nil, fmt.Errorf("%s has address %q: %w", fields[3], addr, err)
			}
			port, err := strconv.Atoi(fields[2])
			if err != nil {
				return nil, err
			}
			found = append(found, port)
		}
		return found, nil
	}})
}
