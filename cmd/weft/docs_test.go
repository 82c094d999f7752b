package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestReferenceIsUpToDate holds the generated pages of the site to the code.
func TestReferenceIsUpToDate(t *testing.T) {
	dir := t.TempDir()
	app := newApp(streams{in: os.Stdin, out: os.Stdout, err: os.Stderr})
	if err := app.RunContext(t.Context(), []string{"weft", "docs", dir}); err != nil {
		t.Fatal(err)
	}
	for _, p := range docsPages {
		want, err := os.ReadFile(filepath.Join(dir, p.file))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("..", "..", "website", "content", "reference", p.file))
		if err != nil || string(got) != string(want) {
			t.Errorf("website/content/reference/%s is not what the code says (%v): run `make docs`", p.file, err)
		}
	}
}
