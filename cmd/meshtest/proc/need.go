package proc

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Need returns the path of a program, looked for on the PATH and then in the
// given directories (globs). Where it is missing the test is skipped, loudly; in
// CI that is a failure. No other code of this project skips a test.
func Need(t testing.TB, program string, dirs ...string) string {
	t.Helper()
	if p, err := exec.LookPath(program); err == nil {
		return p
	}
	for _, d := range dirs {
		if found, _ := filepath.Glob(filepath.Join(d, program)); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	missing(t, "the program "+program+" is not installed; .ci/run installs what the tests need")
	return ""
}

// NeedRoot skips, or in CI fails, a test that must be root.
func NeedRoot(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "not root, which is needed "+why)
	}
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CANNOT RUN HERE: %s", what)
	}
	t.Skipf("CANNOT RUN HERE: %s", what)
}

// needClocks skips, or in CI fails, a test that moves the clocks of processes.
func needClocks(t testing.TB) {
	t.Helper()
	NeedRoot(t, "to move the clock of a process")
	if !clocksMove {
		missing(t, "clocks of processes are moved on linux/amd64 only")
	}
}
