package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestReadyWithoutHTTP: without an HTTP API, too, the agent says that it is ready
// once it knows a leader.
func TestReadyWithoutHTTP(t *testing.T) {
	a := launchAgent(t, "-http-port=-1")
	a.await(`"msg":"ready"`)
}

func TestAutoReload(t *testing.T) {
	dir := t.TempDir()
	write := func(name, src string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.hcl", `auto_reload_config = true
		service { name = "one" port = 1 }`)
	a := startAgent(t, "-config-dir", dir)
	a.eventually("one", "catalog", "services")
	write("b.hcl", `service { name = "two" port = 2 }`)
	a.eventually("two", "catalog", "services")
	write("b.hcl", `service { name = `) // half a file changes nothing
	a.await(`"level":"ERROR"`, "b.hcl")
	a.eventually("two", "catalog", "services")
}
