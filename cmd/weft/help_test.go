package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// Every command's help is as its golden file says, and fits a terminal.
func TestHelp(t *testing.T) {
	golden := map[string]bool{}
	check := func(path string, args ...string) {
		code, out, errs := call(nil, append(args, "-help")...)
		if code != exitOK || errs != "" {
			t.Errorf("%s -help: exit code %d, stderr %q", path, code, errs)
		}
		file := filepath.Join("testdata", "help", strings.ReplaceAll(path, " ", "_")+".txt")
		golden[file] = true
		if *update {
			if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if out != string(want) {
			t.Errorf("%s -help differs from %s (go test ./cmd/weft -run TestHelp -update):\n%s", path, file, out)
		}
		for line := range strings.Lines(out) {
			if len([]rune(line)) > helpWidth+8 {
				t.Errorf("%s -help: too wide: %s", path, line)
			}
		}
	}
	check("weft")
	err := eachCommand(newApp(stdio()).Commands, "weft", func(path string, cmd *cli.Command) error {
		if !cmd.Hidden {
			check(path, strings.Fields(path)[1:]...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/help/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !golden[f] {
			t.Errorf("%s belongs to no command", f)
		}
	}
}

// Every flag and command says what it is for.
func TestEverythingIsDescribed(t *testing.T) {
	err := eachCommand(newApp(stdio()).Commands, "weft", func(path string, cmd *cli.Command) error {
		if cmd.Usage == "" || strings.HasSuffix(cmd.Usage, ".") {
			t.Errorf("%s: usage %q", path, cmd.Usage)
		}
		for _, f := range cmd.Flags {
			d, ok := f.(cli.DocGenerationFlag)
			if !ok || !strings.HasSuffix(d.GetUsage(), ".") {
				t.Errorf("%s -%s: usage is no sentence", path, f.Names()[0])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestReferencePages(t *testing.T) {
	code, out, _ := call(nil, "docs", "cli")
	if code != exitOK || !strings.Contains(out, "## weft intention create\n") || strings.Contains(out, "weft docs") {
		t.Errorf("docs cli: exit code %d\n%s", code, out)
	}
	if code, out, _ = call(nil, "docs", "config"); code != exitOK || !strings.Contains(out, "| `data_dir` | string |") {
		t.Errorf("docs config: exit code %d\n%s", code, out)
	}
	if code, out, _ = call(nil, "docs", "http"); code != exitOK || !strings.Contains(out, "### `PUT /v1/agent/service/register`") {
		t.Errorf("docs http: exit code %d\n%s", code, out)
	}
	if code, _, _ = call(nil, "docs", "nope"); code != exitUsage {
		t.Errorf("docs nope: exit code %d", code)
	}
}
