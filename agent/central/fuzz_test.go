package central

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzSavedEntries reads central configuration that a disk damaged, and merges what
// there is of it.
func FuzzSavedEntries(f *testing.F) {
	for _, b := range []string{
		``, `{}`, `null`, `[]`, `{"Version":1,"Entries":[null]}`, `{"Version":1,"Entries":[{}]}`, `{"Version":2,"Entries":[]}`,
		`{"Version":1,"Entries":[{"Kind":"service-defaults","Name":"web","Protocol":"http"}]}`,
		`{"Version":1,"Entries":[{"Kind":"proxy-defaults","Name":"global","Config":{"a":{"b":[null]}}},{"Kind":"none"}]}`,
		`{"Version":1,"Entries":[{"Kind":"service-defaults","Name":"web","UpstreamConfig":{"Defaults":null,"Overrides":[null,{}]}}]}`, "\x00\xff",
	} {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "central.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := New(Config{Views: (&servers{}).Watch, DataDir: dir})
		if err != nil {
			t.Fatalf("the agent does not start: %v", err)
		}
		m.Merge(hostWith("db", ""))
	})
}
