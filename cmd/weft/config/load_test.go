package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func hostname() (string, error) { return "host1", nil }

// load writes name with src and loads it on top of -dev.
func load(t *testing.T, name, src string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(Options{Dev: true, Paths: []string{path}, Hostname: hostname})
}

func TestDev(t *testing.T) {
	c, err := Load(Options{Dev: true, Hostname: hostname})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Server || !c.Bootstrap || c.BindAddr != "127.0.0.1" || c.AdvertiseAddr != "127.0.0.1" ||
		c.NodeName != "host1" || c.Datacenter != "dc1" || c.DataDir != "" || c.DefaultIntentionPolicy != "deny" {
		t.Fatalf("unexpected: %+v", c)
	}
	if got := c.HTTP(); len(got) != 1 || got[0].Addr != "127.0.0.1:8500" {
		t.Fatalf("HTTP listens on %v", got)
	}
	if *c.LeaveOnTerminate || !*c.SkipLeaveOnInterrupt {
		t.Fatal("a server must not leave on signals by default")
	}
	if len(c.Warnings) != 0 {
		t.Fatalf("warnings: %q", c.Warnings)
	}
}

func TestSources(t *testing.T) {
	dir := t.TempDir()
	write := func(name, src string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("b.json", `{"datacenter": "from-b", "node_meta": {"b": "1", "both": "b"}, "service": {"name": "two", "port": 2}}`)
	write("a.hcl", `
		datacenter = "from-a"
		log_level  = "warn"
		node_meta { a = "1" both = "a" }
		service { name = "one" port = 1 }
	`)
	write("ignored.txt", `no configuration`)
	if err := os.Mkdir(filepath.Join(dir, "sub.hcl"), 0o700); err != nil {
		t.Fatal(err)
	}
	last := write("last.conf", `{"node_name": "from-file"}`)
	c, err := Load(Options{
		Dev: true, Paths: []string{dir, last}, Format: "json", Hostname: hostname,
		Fragments: []string{`ports { http = 18500 }`, `{"log_json": true}`},
		Flags: []FlagValue{
			{Flag: "-node", Key: "node_name", Value: "from-flag"},
			{Flag: "-http-port", Key: "ports.http", Value: 28500},
			{Flag: "-node-meta", Key: "node_meta", Value: map[string]string{"c": "1"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Datacenter != "from-b" || c.NodeName != "from-flag" || c.Ports.HTTP != 28500 || !c.LogJSON || c.LogLevel != "warn" {
		t.Errorf("wrong order: %+v", c)
	}
	if len(c.NodeMeta) != 4 || c.NodeMeta["both"] != "b" {
		t.Errorf("maps are merged: %v", c.NodeMeta)
	}
	if len(c.Services) != 2 || c.Services[0].Name != "one" || c.Services[1].Name != "two" {
		t.Errorf("services are appended: %v", c.Services)
	}
	if len(c.Files) != 3 {
		t.Errorf("files read: %v", c.Files)
	}
}

const fullHCL = `
server = true
bootstrap_expect = 1
datacenter = "Eu-1"
ports {
  http = 1500
  server = 1300
  serf_lan = 1301
}
connect {
  enabled = true
  ca_config { leaf_cert_ttl = "1h" private_key_bits = 256 }
}
http_config { response_headers { X-Frame-Options = "DENY" } }
services = [{ name = "db", port = 5432 }]
service {
  name = "web"
  port = 80
  tags = ["a", "b"]
  meta { team = "x" }
  check { http = "http://127.0.0.1/" interval = "10s" }
  checks = [{ ttl = "30s", name = "beat" }]
  connect {
    sidecar_service {
      port = 20000
      proxy {
        upstreams { destination_name = "db" local_bind_port = 5433 }
        upstreams { destination_name = "cache" local_bind_port = 6380 }
        config { external = true }
      }
    }
  }
}
check { name = "disk" ttl = "1m" }
config_entries {
  bootstrap {
    kind = "service-intentions"
    name = "db"
    sources { name = "web" action = "allow" }
  }
}
performance { leave_drain_time = "9s" }
`

func TestDefinitions(t *testing.T) {
	c, err := load(t, "full.hcl", fullHCL)
	if err != nil {
		t.Fatal(err)
	}
	if c.Datacenter != "eu-1" || c.Ports.Server != 1300 || c.LeaveDrainTime != 9*time.Second {
		t.Errorf("scalars: %+v", c)
	}
	if c.Connect.CAConfig["leaf_cert_ttl"] != "1h" || c.Connect.CAConfig["private_key_bits"] != int64(256) {
		t.Errorf("ca_config: %#v", c.Connect.CAConfig)
	}
	if len(c.Services) != 2 {
		t.Fatalf("services: %v", c.Services)
	}
	web := c.Services[1]
	up := web.Connect.SidecarService.Proxy.Upstreams
	if web.Name != "web" || len(web.Tags) != 2 || web.Check.Interval != 10*time.Second || len(up) != 2 ||
		up[1].DestinationName != "cache" || up[1].LocalBindPort != 6380 || web.Connect.SidecarService.Proxy.Config["external"] != true {
		t.Errorf("web: %+v", web)
	}
	if len(c.Checks) != 1 || c.Checks[0].TTL != time.Minute {
		t.Errorf("checks: %v", c.Checks)
	}
	in, ok := c.ConfigEntries[0].(*catalog.ServiceIntentions)
	if !ok || in.Name != "db" || in.Sources[0].Precedence != 9 {
		t.Errorf("config entries: %+v", c.ConfigEntries)
	}
}

// What the conformance runner writes must load.
func TestHarnessFile(t *testing.T) {
	c, err := load(t, "agent.json", `{"node_name":"conf-node","bind_addr":"127.0.0.1","client_addr":"127.0.0.1",
		"log_level":"warn","disable_update_check":true,
		"ports":{"http":1,"dns":2,"grpc":3,"grpc_tls":-1,"serf_lan":4,"serf_wan":5,"server":6},
		"acl":{"enabled":true,"default_policy":"deny","tokens":{"initial_management":"aaaaaaaa-1111-2222-3333-bbbbbbbbbbbb"}},
		"dns_config":{"service_ttl":{"*":"5s"},"node_ttl":"11s"},"connect":{"enabled":true,"ca_config":{"leaf_cert_ttl":"5h"}},
		"discovery_max_stale":"5s","peering":{"enabled":false},"encrypt":"pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s=",
		"disable_keyring_file":true,"services":[{"name":"filed","port":99,"check":{"ttl":"1h","status":"passing"}}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if c.Ports.DNS != 2 || c.DNS.NodeTTL != 11*time.Second || c.DNS.ServiceTTL["*"] != 5*time.Second || !c.DNS.AllowStale {
		t.Errorf("DNS: %+v", c.DNS)
	}
	text := strings.Join(c.Warnings, "\n")
	for _, want := range []string{
		"ports.grpc is ignored: ", "acl.enabled has no effect yet: ", "disable_update_check is ignored: ",
	} {
		if strings.Count(text, want) != 1 {
			t.Errorf("want one warning %q in:\n%s", want, text)
		}
	}
}

func TestBadInput(t *testing.T) {
	deep := strings.Repeat("a {", 40) + strings.Repeat("}", 40)
	for _, tc := range []struct{ name, file, src, want string }{
		{"unknown key", "a.hcl", "datacenter = \"x\"\n\ndata_dri = \"/x\"\n", "a.hcl:3: data_dri: unknown key; did you mean data_dir?"},
		{"unknown key in JSON", "a.json", "{\n \"ports\": {\n  \"htpp\": 1\n }\n}", "a.json:3: ports.htpp: unknown key; did you mean http?"},
		{"unknown key far from any", "a.hcl", "zzzzzz = 1", "a.hcl:1: zzzzzz: unknown key"},
		{"wrong type", "a.hcl", "\nserver = \"yes\"", "a.hcl:2: server: must be true or false, not a string"},
		{"wrong type in JSON", "a.json", "{\"ports\":\n{\"http\":\n\"8500\"}}", "a.json:2: ports.http: must be a whole number, not a string"},
		{"half a port", "a.json", `{"ports":{"http":8500.5}}`, "a.json:1: ports.http: 8500.5 is not a whole number"},
		{"huge number", "a.json", `{"ports":{"http":1e999}}`, "ports.http: 1e999 is not a whole number"},
		{"object wanted", "a.hcl", "ports = 1", "a.hcl:1: ports: must be an object, not a number"},
		{"scalar wanted", "a.hcl", "datacenter { x = 1 }", "a.hcl:1: datacenter: must be a string, not an object"},
		{"list wanted", "a.hcl", "retry_join = \"x\"", "a.hcl:1: retry_join: must be a list of strings, not a string"},
		{"list element", "a.hcl", "retry_join = [\n\"x\",\n2]", "a.hcl:3: retry_join[1]: must be a string, not a number"},
		{"map value", "a.hcl", "node_meta {\n x = 1\n}", "a.hcl:2: node_meta.x: must be a string, not a number"},
		{"duration", "a.hcl", "max_query_time = \"10 minutes\"", `a.hcl:1: max_query_time: "10 minutes" is not a duration such as "10s"`},
		{"duration as number", "a.hcl", "max_query_time = 10", `max_query_time: must be a duration such as "10s", not a number`},
		{"negative duration", "a.hcl", `max_query_time = "-1s"`, "is below zero"},
		{"given twice", "a.hcl", "datacenter = \"a\"\ndatacenter = \"b\"", "a.hcl:2: datacenter: given twice, first on line 1"},
		{"given twice in JSON", "a.json", "{\"server\": true,\n\"server\": false}", "a.json:2: server: given twice, first on line 1"},
		{"block given twice", "a.hcl", "ports { http = 1 }\nports { server = 1 }", "a.hcl:2: ports: given twice, first on line 1"},
		{"broken HCL", "a.hcl", "datacenter = \n\"a\"\n}", "a.hcl:3: not valid HCL"},
		{"broken JSON", "a.json", "{\"server\": true,\n \"x\" 1}", "a.json:2: not valid JSON"},
		{"short JSON", "a.json", "{\"server\": true,\n", "a.json:2: not valid JSON: it ends too early"},
		{"JSON list", "a.json", "[1]", "a.json:1: the document must be a JSON object, not a list"},
		{"data after JSON", "a.json", "{}\n{}", "not valid JSON: data after the object"},
		{"deep HCL", "a.hcl", deep, "nested deeper than 32 levels"},
		{"deep JSON", "a.json", strings.Repeat("[", 1<<20), "nested deeper than 32 levels"},
		{"too large", "a.json", strings.Repeat(" ", maxSource+1), "larger than 4 MiB"},
		{"refused", "a.hcl", `acl_datacenter = "dc1"`, "a.hcl:1: acl_datacenter: legacy ACLs are gone, use primary_datacenter"},
		{"unknown key in a service", "a.hcl", "service {\n name = \"web\"\n prt = 1\n}", "a.hcl:3: service.prt: unknown key"},
		{"unknown key deep in a service", "a.json", "{\"services\":[{\"name\":\"web\",\n\"connect\":{\"sidecar_service\":{\n\"proxy\":{\"upstream\":[]}}}}]}", "a.json:3: services."},
		{"wrong type in a service", "a.hcl", "service {\n name = \"web\"\n port = \"x\"\n}", "a.hcl:3: service: "},
		{"wrong type in a list in a service", "a.json", "{\"service\":{\"name\":\"w\",\"checks\":[\n{\"ttl\":\"1s\"},\n{\"ttl\":\"x\"}]}}", "a.json:3: service: "},
		{"service without a name", "a.hcl", "service { port = 1 }", "a.hcl:1: service: the service has no name"},
		{"service twice", "a.hcl", "service { name = \"web\" }\nservice { name = \"web\" }", `a.hcl:2: service: a second service with the id "web", the first is at `},
		{"check twice", "a.hcl", "check { name = \"c\" ttl = \"1s\" }\ncheck { id = \"c\" ttl = \"1s\" }", `a second check with the id "c"`},
		{"check without a name", "a.hcl", "check { ttl = \"1s\" }", "the check has neither a name nor an id"},
		{"service is no object", "a.hcl", "service = 1", "service: must be an object, not a number"},
		{"config entry", "a.hcl", "config_entries { bootstrap {\n kind = \"nope\" } }", "config entry kind"},
		{"intention without source", "a.hcl", "config_entries { bootstrap {\n kind = \"service-intentions\" name = \"db\" } }", "At least one source is required"},
		{"same port twice", "a.hcl", "ports {\n http = 8300\n}", "ports.server: 8300 is also the port of ports.http"},
		{"no port", "a.hcl", "ports {\n http = 70000\n}", "a.hcl:2: ports.http: 70000 is not a port"},
		{"server port off", "a.hcl", "ports { server = -1 }", "a.hcl:1: ports.server: -1 is not a port"},
		{"sidecar range", "a.hcl", "ports { sidecar_min_port = 22000 }", "ports.sidecar_min_port: 22000 is above ports.sidecar_max_port"},
		{"three servers", "a.hcl", "bootstrap_expect = 3", "a.hcl:1: bootstrap_expect: is 3, but -dev is a cluster of one"},
		{"cloud join", "a.hcl", "retry_join = [\"provider=aws tag_key=x\"]", "a.hcl:1: retry_join: \"provider=aws tag_key=x\" asks a cloud"},
		{"retry interval", "a.hcl", "retry_interval = \"0s\"", "a.hcl:1: retry_interval: must be above zero"},
		{"reconnect timeout", "a.hcl", "reconnect_timeout = \"1h\"", "a.hcl:1: reconnect_timeout: 1h0m0s is less than 8h"},
		{"gossip network", "a.hcl", "serf_lan_allowed_cidrs = [\"10\"]", "a.hcl:1: serf_lan_allowed_cidrs: \"10\" is not a network"},
		{"datacenter", "a.hcl", `datacenter = "a b"`, `datacenter: "a b" is not a name`},
		{"node ID", "a.hcl", `node_id = "x"`, `node_id: "x" is not a UUID`},
		{"reserved meta", "a.hcl", `node_meta { consul-x = "1" }`, `is reserved`},
		{"bind address", "a.hcl", `bind_addr = "host"`, `a.hcl:1: bind_addr: "host" is not an IP address`},
		{"two bind addresses", "a.hcl", `bind_addr = "127.0.0.1 127.0.0.2"`, `holds 2 addresses`},
		{"template", "a.hcl", `bind_addr = "{{ Nope }}"`, `a.hcl:1: bind_addr: the template "{{ Nope }}" fails`},
		{"template without result", "a.hcl", `bind_addr = "{{ GetInterfaceIP \"nope0\" }}"`, `finds no address on this host`},
		{"unspecified advertise", "a.hcl", `advertise_addr = "0.0.0.0"`, `is not an address that others can use`},
		{"relative socket", "a.hcl", `addresses { http = "unix://x" }`, `must be absolute`},
		{"intention policy", "a.hcl", `default_intention_policy = "maybe"`, `is neither "allow" nor "deny"`},
		{"CA provider", "a.hcl", `connect { ca_provider = "vault" }`, `connect.ca_provider: "vault" is not supported`},
		{"log level", "a.hcl", `log_level = "loud"`, `"loud" is none of trace, debug`},
		{"socket mode", "a.hcl", `unix_sockets { mode = "rw" }`, `is not a mode such as`},
		{"query times", "a.hcl", `max_query_time = "1m"`, `default_query_time: 5m0s must be above zero and at most max_query_time`},
		{"header", "a.hcl", `http_config { response_headers { "a b" = "c" } }`, `is not the name of a header`},
		{"header value", "a.json", `{"http_config":{"response_headers":{"a":"c\r\nb: d"}}}`, `contains a line break`},
		{"bad number", "a.hcl", `ports { http = 99999999999999999999 }`, `is not a number`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := load(t, tc.file, tc.src)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got  %v\nwant %s", err, tc.want)
			}
			if !errors.Is(err, catalog.ErrInvalid) {
				t.Errorf("%v is no ErrInvalid", err)
			}
		})
	}
}

func TestUnreadable(t *testing.T) {
	_, err := Load(Options{Dev: true, Paths: []string{"/nonexistent/a.hcl"}, Hostname: hostname})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/a.hcl: cannot be read: no such file") {
		t.Fatalf("got %v", err)
	}
	path := filepath.Join(t.TempDir(), "noext")
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = Load(Options{Dev: true, Paths: []string{path}}); err == nil || !strings.Contains(err.Error(), "-config-format") {
		t.Fatalf("got %v", err)
	}
}

func TestWithoutDev(t *testing.T) {
	for _, tc := range []struct{ src, want string }{
		{``, "data_dir: must be set (or use -dev, which keeps everything in memory)"},
		{`server = true bootstrap_expect = 1`, "data_dir: must be set"},
		{`server = true bootstrap_expect = 99`, "bootstrap_expect: is 99"},
		{`server = true bootstrap = true bootstrap_expect = 3`, "bootstrap: contradicts bootstrap_expect = 3"},
		{`bootstrap_expect = 1`, "bootstrap_expect: needs server = true"},
		{`performance { raft_multiplier = -1 }`, "performance.raft_multiplier: -1 is not in 1 to 10"},
		{`performance { raft_multiplier = 11 }`, "performance.raft_multiplier: 11 is not in 1 to 10"},
	} {
		_, err := Load(Options{Fragments: []string{strings.ReplaceAll(tc.src, " b", "\nb") + "\nbind_addr = \"127.0.0.1\""}, Hostname: hostname})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %s", tc.src, err, tc.want)
		}
	}
	if c, err := Load(Options{Dev: true, Fragments: []string{`performance { raft_multiplier = 0 }`}, Hostname: hostname}); err != nil || c.RaftMultiplier != 1 {
		t.Errorf("0 as the default of raft_multiplier: %+v, %v", c, err)
	}
	c, err := Load(Options{Fragments: []string{"server = true\nbootstrap = true\ndata_dir = \"/x\"\nbind_addr = \"{{ GetAllInterfaces | include \\\"flags\\\" \\\"loopback\\\" | include \\\"type\\\" \\\"IPv4\\\" | limit 1 | attr \\\"address\\\" }}\""}, Hostname: hostname})
	if err != nil {
		t.Fatal(err)
	}
	if !Loopback(c.BindAddr) || c.AdvertiseAddr != c.BindAddr || c.DataDir != "/x" {
		t.Errorf("template: %+v", c)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("json", `{"a": [1, {"b": null}]}`)
	f.Add("hcl", fullHCL)
	f.Add("hcl", "a \"b\" { c = <<EOF\nx\nEOF\n }")
	f.Fuzz(func(t *testing.T, format, src string) {
		_, err := Load(Options{Dev: true, Fragments: []string{src}, Hostname: hostname})
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%T: %v", err, err)
			}
		}
		if n, err := parse("f", format, []byte(src)); err == nil {
			n.plain()
		}
	})
}

// Every mistake is told, not the first alone.
func TestEveryMistakeIsTold(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "1.hcl"), filepath.Join(dir, "2.json")
	for name, text := range map[string]string{
		one: "data_dr = \"/x\"\nlog_level = 7\nservice {\n  port = 1\n}\nports {\n  htp = 1\n}\n",
		two: `{"check": {"name": "a", "tcpp": "x"}, "encrypt": 5}`,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Load(Options{Paths: []string{dir}})
	var all Mistakes
	if !errors.As(err, &all) || !errors.Is(err, catalog.ErrInvalid) {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{
		one + ":1: data_dr: unknown key; did you mean data_dir?", one + ":2: log_level: must be a string", one + ":7: ports.htp: unknown key",
		two + ":1: encrypt: must be a string", one + ":3: service: the service has no name", "tcpp: unknown key",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in\n%v", want, err)
		}
	}
	if len(all) != 6 {
		t.Errorf("%d mistakes:\n%v", len(all), err)
	}
	// What several keys say together is all told too.
	_, err = Load(Options{Dev: true, Fragments: []string{`datacenter = "a b" connect { ca_provider = "x" } check_output_max_size = 0 syslog_facility = "X" ports { https = 8501 }`}})
	if !errors.As(err, &all) || len(all) != 5 {
		t.Errorf("%v", err)
	}
}
