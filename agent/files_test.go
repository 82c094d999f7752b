package agent_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/agent/watches"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/meshtest"
	"github.com/weftmesh/weft/server"
)

func script(name string) *catalog.CheckDefinition {
	return &catalog.CheckDefinition{Name: name, ScriptArgs: []string{"/bin/sh", "-c", "echo ran; exit 1"}, Interval: time.Second}
}

// TestScriptsFromFilesAlone: with the local gate open a file's command runs and its
// result reaches the catalog, and one that comes over the API is refused.
func TestScriptsFromFilesAlone(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{Change: func(c *agent.Config, _ *server.Config) {
		c.Checks.Scripts = checks.LocalScripts
		c.Files.Checks = []*catalog.CheckDefinition{script("from-file")}
	}})
	m.Eventually("the result of the command", func() error {
		var list []struct{ CheckID, Status, Output, Type string }
		m.Do(http.MethodGet, "/v1/health/state/any", nil, &list)
		for _, c := range list {
			if c.CheckID == "from-file" && c.Status == "warning" && c.Output == "ran\n" && c.Type == "script" {
				return nil
			}
		}
		return fmt.Errorf("%+v", list)
	})
	for path, body := range map[string]any{
		"/v1/agent/check/register":   map[string]any{"Name": "c", "Args": []string{"true"}, "Interval": "10s"},
		"/v1/agent/service/register": map[string]any{"Name": "s", "Check": map[string]any{"Args": []string{"true"}, "Interval": "10s"}},
	} {
		status, answer, err := m.Try(http.MethodPut, path, body)
		if err != nil || status != http.StatusInternalServerError || !strings.Contains(string(answer), "Scripts are disabled on this agent from remote calls") {
			t.Errorf("%s: %d %s %v", path, status, answer, err)
		}
	}
}

// TestWatchesFollowTheCatalog: a watch of the configuration runs its command with
// what the catalog holds now.
func TestWatchesFollowTheCatalog(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	w, err := watches.Parse(map[string]any{
		"type": "service", "service": "web", "args": []any{"/bin/sh", "-c", "cat > " + out + ".new; mv " + out + ".new " + out},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := meshtest.Start(t, meshtest.Options{Change: func(c *agent.Config, _ *server.Config) {
		c.Files.Watches = []watches.Definition{w}
	}})
	for _, tag := range []string{"one", "two"} {
		m.Register(map[string]any{"Name": "web", "Port": 81, "Tags": []string{tag}})
		m.Eventually("the command sees the tag "+tag, func() error {
			text, err := os.ReadFile(out)
			if err == nil && !strings.Contains(string(text), `"`+tag+`"`) {
				err = fmt.Errorf("%s", text)
			}
			return err
		})
	}
}
