package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weftmesh/weft/server"
)

func TestCodesOfServerErrors(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code int
	}{
		{server.ErrStorage, exitStorage},
		{fmt.Errorf("%w: %w", server.ErrStorage, server.ErrHung), exitHung},
		{fmt.Errorf("entry 7: %w", server.ErrNewer), exitOlder},
		{os.ErrDeadlineExceeded, exitFailure},
	} {
		if got := serverCode(tc.err); got != tc.code {
			t.Errorf("%v: exit code %d, want %d", tc.err, got, tc.code)
		}
	}
}

func readText(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestExitCodesAreTold: the unit that we ship does not start again after a code that
// another start cannot mend (exitUsage may be a crash), and the site says of each code what to do.
func TestExitCodesAreTold(t *testing.T) {
	unit := readText(t, "../../packaging/weft.service")
	m := regexp.MustCompile(`(?m)^RestartPreventExitStatus=(.*)$`).FindStringSubmatch(unit)
	final := strings.Fields(fmt.Sprint(exitDataDir, exitOlder, exitConfig))
	if m == nil || !slices.Equal(strings.Fields(m[1]), final) {
		t.Errorf("RestartPreventExitStatus of packaging/weft.service is %q, want %v", m, final)
	}
	_, table, _ := strings.Cut(readText(t, "../../website/content/docs/troubleshooting.md"), "| exit code |")
	table, _, _ = strings.Cut(table, "\n\n")
	codes := regexp.MustCompile(`(?m)^\t(exit[A-Z]\w+) *= (\d+)`).FindAllStringSubmatch(readText(t, "exit.go"), -1)
	if len(codes) < 9 {
		t.Fatalf("exit.go has %d codes", len(codes))
	}
	for _, c := range codes {
		if !regexp.MustCompile(`(?m)^\| ([^|]*, )?`+c[2]+`(,[^|]*)? \|`).MatchString(table) && c[2] != "0" {
			t.Errorf("troubleshooting.md has no row for exit code %s, %s", c[2], c[1])
		}
	}
}
