package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// What is packaged is what the binary prints.
func TestPackagedCompletion(t *testing.T) {
	for shell, file := range map[string]string{"bash": "weft.bash", "zsh": "_weft", "fish": "weft.fish"} {
		var out bytes.Buffer
		if code := run(context.Background(), []string{"weft", "completion", shell}, streams{out: &out, err: &out, env: func(string) string { return "" }}); code != 0 {
			t.Fatalf("%s: exit %d: %s", shell, code, out.String())
		}
		text, err := os.ReadFile(filepath.Join("..", "..", "packaging", "completion", file))
		if err != nil || string(text) != out.String() {
			t.Errorf("packaging/completion/%s differs from weft completion %s: %v", file, shell, err)
		}
	}
}

func TestCompletionInstall(t *testing.T) {
	home := t.TempDir()
	rc := filepath.Join(home, ".zshrc")
	if err := os.WriteFile(rc, []byte("alias a=b"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := func(name string) string {
		if name == "HOME" {
			return home
		}
		return ""
	}
	do := func(flag string) {
		t.Helper()
		var out bytes.Buffer
		if code := run(context.Background(), []string{"weft", flag}, streams{out: &out, err: &out, env: env}); code != 0 {
			t.Fatalf("%s: exit %d: %s", flag, code, out.String())
		}
	}
	do("-autocomplete-install")
	do("-autocomplete-install") // twice is once
	for _, f := range []string{".local/share/bash-completion/completions/weft", ".config/fish/completions/weft.fish"} {
		if _, err := os.Stat(filepath.Join(home, f)); err != nil {
			t.Error(err)
		}
	}
	if text, _ := os.ReadFile(rc); string(text) != "alias a=b\n"+zshLine {
		t.Errorf(".zshrc: %s", text)
	}
	do("-autocomplete-uninstall")
	if text, _ := os.ReadFile(rc); string(text) != "alias a=b\n" {
		t.Errorf(".zshrc: %s", text)
	}
	if _, err := os.Stat(filepath.Join(home, ".config/fish/completions/weft.fish")); !os.IsNotExist(err) {
		t.Error("the file for fish stays: ", err)
	}
}

// bash itself completes commands, subcommands and flags.
func TestBashCompletes(t *testing.T) {
	bash := proc.Need(t, "bash")
	dir := t.TempDir()
	fake := filepath.Join(dir, "weft")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fake, []byte("#!/bin/sh\nWEFT_TEST_AS_PROGRAM=1 exec '"+self+"' \"$@\"\n"), 0o700); err != nil { //nolint:gosec // it has to be run
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"weft inten": "intention", "weft intention cr": "create", "weft kv put -fl": "-flags",
	} {
		script := `source ../../packaging/completion/weft.bash; COMP_WORDS=(` + line + `); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _weft; printf '%s\n' "${COMPREPLY[@]}"`
		cmd := exec.Command(bash, "-c", script)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %q, %v; want %s", line, out, err, want)
		}
	}
}
