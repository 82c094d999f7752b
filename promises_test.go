package weft_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// RELIABILITY.md publishes what weft promises. It has all promises, and names the
// tests that hold them: those that there are, and no others.
func TestPromisesAreHeldByTheTestsTheyName(t *testing.T) {
	page, err := os.ReadFile("RELIABILITY.md")
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 35; n++ {
		if !strings.Contains(string(page), fmt.Sprintf("\n### P%d · ", n)) {
			t.Errorf("RELIABILITY.md has no section for P%d", n)
		}
	}
	named := map[string]bool{}
	section := regexp.MustCompile(`(?m)^### P(\d+) · `)
	starts := section.FindAllSubmatchIndex(page, -1)
	for i, at := range starts {
		end := len(page)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		prefix := fmt.Sprintf("TestP%02s", page[at[2]:at[3]])
		for _, m := range regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(page[at[0]:end], -1) {
			named[string(m[1])] = true
			if !strings.HasPrefix(string(m[1]), prefix) {
				t.Errorf("RELIABILITY.md names %s among the tests of another promise", m[1])
			}
		}
	}
	for test, file := range promiseTests(t) {
		if !named[test] {
			t.Errorf("%s holds a promise by %s, and RELIABILITY.md does not name it", file, test)
		}
		delete(named, test)
	}
	for test := range named {
		t.Errorf("RELIABILITY.md names %s, and there is no such test", test)
	}
}

// promiseTests are the tests whose names begin with a promise, and a file of each.
func promiseTests(t *testing.T) map[string]string {
	t.Helper()
	decl := regexp.MustCompile(`(?m)^func (TestP\d\d\w*)\(`)
	found := map[string]string{}
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range decl.FindAllSubmatch(text, -1) {
			found[string(m[1])] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
