package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

var (
	fenced    = regexp.MustCompile("(?ms)^```.*?^```")
	inFences  = regexp.MustCompile(`(?m)^\s*(?:\$ )?(?:sudo )?weft ([a-z].*)$`)
	inPassing = regexp.MustCompile("`weft ([a-z][^`]*)`")
)

// commandsNamed are the command lines in a page, without the "weft" that they begin with.
func commandsNamed(page string) (lines []string) {
	for _, m := range inFences.FindAllStringSubmatch(strings.Join(fenced.FindAllString(page, -1), "\n"), -1) {
		lines = append(lines, m[1])
	}
	for _, m := range inPassing.FindAllStringSubmatch(fenced.ReplaceAllString(page, ""), -1) {
		lines = append(lines, m[1])
	}
	return lines
}

// TestNamedCommandsExist: whoever follows the site or the README finds each command,
// and each flag of it.
func TestNamedCommandsExist(t *testing.T) {
	files, err := filepath.Glob("../../website/content/docs/*.md")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	files = append(files, "../../README.md", "../../website/content/_index.md")
	app, named := newApp(stdio()), 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range commandsNamed(string(b)) {
			named++
			if wrong := firstUnknown(app.Commands, strings.Fields(line)); wrong != "" {
				t.Errorf("%s names `weft %s`: there is no %s", filepath.Base(file), line, wrong)
			}
		}
	}
	if named < 50 {
		t.Errorf("only %d commands were found", named)
	}
}

// firstUnknown is the word of a command line that is neither a command nor a flag.
func firstUnknown(cmds []*cli.Command, words []string) string {
	var at *cli.Command
	for i, w := range words {
		switch {
		case strings.HasPrefix(w, "#") || w == "|" || w == "--" || w == ">":
			return ""
		case strings.HasPrefix(w, "-") && at != nil:
			name, _, _ := strings.Cut(strings.TrimRight(strings.TrimLeft(w, "-"), ".,:;)"), "=")
			if !hasFlag(at, name) {
				return "flag " + w
			}
			cmds = nil // what follows are values and arguments
		case len(cmds) > 0:
			next := commandOf(cmds, w)
			if next == nil {
				return "command " + strings.Join(words[:i+1], " ")
			}
			at, cmds = next, next.Subcommands
		}
	}
	return ""
}

func commandOf(cmds []*cli.Command, name string) *cli.Command {
	for _, c := range cmds {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func hasFlag(c *cli.Command, name string) bool {
	if name == "help" || name == "h" {
		return true
	}
	for _, f := range c.Flags {
		for _, n := range f.Names() {
			if n == name {
				return true
			}
		}
	}
	return false
}
