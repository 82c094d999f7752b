package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestConfigEntries drives `weft config` against an agent: entries of the
// configuration file in any order, every kind through files, refusals in words.
func TestConfigEntries(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "agent.hcl")
	writeFile(t, conf, `config_entries { bootstrap = [
		{ kind = "service-router" name = "web" routes { destination { service = "api" } } },
		{ kind = "service-defaults" name = "web" protocol = "http" },
		{ kind = "service-defaults" name = "api" protocol = "http" }
	] }`)
	a := startAgent(t, "-config-file", conf)
	a.eventually("web", "config", "list", "-kind", "service-router")

	refused := func(want string, args ...string) {
		t.Helper()
		code, out, errs := call(map[string]string{"WEFT_HTTP_ADDR": a.addr}, args...)
		if code != exitFailure || !strings.Contains(errs, want) {
			t.Errorf("weft %s: %d %q %q", strings.Join(args, " "), code, out, errs)
		}
	}
	refused(`does not permit advanced routing`, "config", "delete", "-kind", "service-defaults", "-name", "web")
	for name, e := range map[string]struct{ kind, entry, doc, shows string }{
		"resolver.hcl": {"service-resolver", "web", `Kind = "service-resolver"
			Name = "web"
			ConnectTimeout = "3s"
			Subsets = { "v1" = { Filter = "Service.Meta.v == 1" } }`, `"ConnectTimeout": "3s"`},
		"splitter.json": {"service-splitter", "web", `{"kind":"service-splitter","name":"web","splits":[{"weight":100,"service_subset":"v1"}]}`, `"Weight": 100`},
		"mesh.hcl":      {"mesh", "mesh", `Kind = "mesh"`, `"MeshDestinationsOnly": false`},
		"exports.hcl":   {"exported-services", "default", `Kind = "exported-services"` + "\nName = \"default\"\nServices = [{ Name = \"web\" Consumers = [{ Peer = \"p\" }] }]", `"Peer": "p"`},
	} {
		path := filepath.Join(dir, name)
		writeFile(t, path, e.doc)
		if name == "splitter.json" {
			continue // its subset comes first
		}
		if got := a.weft("config", "write", path); got != "Config entry written: "+e.kind+"/"+e.entry+"\n" {
			t.Errorf("%s: %s", name, got)
		}
		if got := a.weft("config", "read", "-kind", e.kind, "-name", e.entry); !strings.Contains(got, e.shows) {
			t.Errorf("%s: %s", name, got)
		}
		if got := a.weft("config", "list", "-kind", e.kind); got != e.entry+"\n" {
			t.Errorf("%s: list: %q", name, got)
		}
	}
	a.weft("config", "write", filepath.Join(dir, "splitter.json"))
	refused(`service "web" does not have a subset named "v1"`, "config", "delete", "-filename", filepath.Join(dir, "resolver.hcl"))
	a.weft("config", "delete", "-kind", "service-splitter", "-name", "web")
	a.weft("config", "delete", "-filename", filepath.Join(dir, "resolver.hcl"))

	idle := filepath.Join(dir, "idle.hcl")
	writeFile(t, idle, "Kind = \"service-defaults\"\nName = \"idle\"\nUpstreamConfig { Defaults { EnvoyClusterJSON = \"{}\" } }\n")
	if code, _, errs := call(map[string]string{"WEFT_HTTP_ADDR": a.addr}, "config", "write", idle); code != exitOK || errs != "Warning: UpstreamConfig.Defaults.EnvoyClusterJSON has no effect\n" {
		t.Errorf("%d %q", code, errs)
	}

	bad := filepath.Join(dir, "bad.hcl")
	writeFile(t, bad, "Kind = \"sameness-group\"\nName = \"x\"\n")
	refused("enterprise-only", "config", "write", bad)
	// Entries that never fit together end the start, and say why.
	writeFile(t, conf, `config_entries { bootstrap = [{ kind = "service-router" name = "x" }] }`)
	b := launchAgent(t, "-config-file", conf)
	if got := b.await("does not permit advanced routing"); !strings.Contains(got, "service-router/x") {
		t.Error(got)
	}
}
