package local

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/weftmesh/weft/catalog"
)

// FuzzSavedFiles starts an agent over registrations that a disk damaged: what cannot
// be used is moved aside or left out, and the agent starts.
func FuzzSavedFiles(f *testing.F) {
	seeds := []string{
		``, `{}`, `null`, `[]`, `{"ID":"web"}`, "\x00\x01", `{"ID":"web","Service":null}`,
		`{"ID":"web","Service":{"ID":"web","Service":"web","Port":-1,"Tags":null,"Meta":null,"Weights":{"Passing":-1}}}`,
		`{"ID":"web","SidecarOf":"other","Service":{"ID":"web","Service":"web","Kind":"connect-proxy","Proxy":{"Upstreams":[{}]}}}`,
		`{"ID":"web","SidecarOf":"web","Service":{"ID":"web","Service":"web","TaggedAddresses":{"lan":{}}}}`,
	}
	checks := []string{
		``, `{}`, `{"ID":"c","Def":null}`, `{"ID":"c","Def":{"CheckID":"c","TTL":1000000000}}`,
		`{"ID":"c","Kind":"maintenance","Def":{"CheckID":"c"}}`, `{"ID":"c","Def":{"CheckID":"c","ServiceID":"gone","TTL":1}}`,
		`{"ID":"c","Def":{"CheckID":"c","AliasNode":"n","AliasService":"c"}}`, `{"ID":"c","Def":{"CheckID":"c","HTTP":"http://x","Interval":-1}}`,
		`{"ID":"c","Def":{"CheckID":"c","ScriptArgs":["/bin/true"],"Interval":1000000000}}`,
	}
	for i := range max(len(seeds), len(checks)) {
		f.Add("web", []byte(seeds[i%len(seeds)]), "c", []byte(checks[i%len(checks)]), []byte(`{"ID":"c","Status":"passing","Output":"x","Until":"2999-01-01T00:00:00Z"}`), []byte("2026-01-01T00:00:00Z"))
	}
	f.Fuzz(func(t *testing.T, serviceID string, service []byte, checkID string, check, status, alive []byte) {
		dir := t.TempDir()
		d := &disk{dir: dir}
		for path, b := range map[string][]byte{
			d.path(dirServices, serviceID): service, d.path(dirChecks, checkID): check, d.path(dirStates, checkID): status,
			filepath.Join(dir, dirChecks, aliveFile): alive,
		} {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, err := New(Config{
			Node: &catalog.Node{Node: "n", Address: "127.0.0.1"}, Syncer: &servers{},
			DataDir: dir, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatalf("the agent does not start: %v", err)
		}
		h := s.Host()
		if _, err := json.Marshal(h); err != nil {
			t.Fatalf("what was read cannot be said: %v", err)
		}
		if _, err := s.ApplyFiles(t.Context(), nil, nil); err != nil {
			t.Fatalf("nothing in the configuration, and yet: %v", err)
		}
	})
}
