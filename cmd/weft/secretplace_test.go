package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestWhereTheSecretLies: a server whose secret is given to it leaves no copy of it in
// its data directory, and one that makes its own there says what that means.
func TestWhereTheSecretLies(t *testing.T) {
	const warning = "the cluster secret lies in the data directory"
	dir, secret := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "secret")
	if code, _, errs := call(nil, "secret", "new", "-out", secret); code != exitOK {
		t.Fatal(errs)
	}
	text, err := os.ReadFile(secret)
	if err != nil {
		t.Fatal(err)
	}
	server := func(args ...string) *runningAgent {
		t.Helper()
		port := fmt.Sprintf("ports { server = %d }", proc.FreePorts(t, 1)[0])
		return launch(t, append([]string{"-server", "-bootstrap", "-bind", "127.0.0.1", "-hcl", port}, args...)...)
	}
	a := server("-data-dir", dir, "-cluster-secret-file", secret).ready()
	a.stop(syscall.SIGTERM)
	if strings.Contains(a.text(), warning) {
		t.Error("it warns of a secret that lies elsewhere")
	}
	files := 0
	if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if files++; bytes.Contains(b, bytes.TrimSpace(text)) {
			t.Errorf("%s has the secret", path)
		}
		return err
	}); err != nil || files < 4 {
		t.Fatalf("%d files, %v", files, err)
	}
	own := t.TempDir()
	server("-data-dir", own).await(warning, filepath.Join(own, secretFile))
}
