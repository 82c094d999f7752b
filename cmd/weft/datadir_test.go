package main

import (
	"io"
	"os"
	"strings"
	"testing"
)

// TestOpenDataDir: a data directory in which every user may write could hold another's
// keys, and is refused.
func TestOpenDataDir(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // what is refused
		t.Fatal(err)
	}
	if err := prepareDataDir(dir); exitCode(io.Discard, err) != exitDataDir || !strings.Contains(err.Error(), "chmod o-w") {
		t.Errorf("%v", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // as others have it
		t.Fatal(err)
	}
	if err := prepareDataDir(dir); err != nil {
		t.Error(err)
	}
}
