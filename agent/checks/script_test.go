package checks

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func TestScriptStatuses(t *testing.T) {
	for _, c := range []struct {
		script string
		status catalog.Status
		output string
	}{
		{"echo fine", "passing", "fine\n"},
		{"echo careful >&2; exit 1", "warning", "careful\n"},
		{"echo broken; exit 2", "critical", "broken\n"},
		{"kill -9 $$", "critical", "signal: killed"},
		{"cat", "passing", ""}, // standard input is empty
	} {
		status, output := once(t, &catalog.CheckDefinition{ScriptArgs: []string{"/bin/sh", "-c", c.script}})
		if status != c.status || output != c.output {
			t.Errorf("%q: %s, %q; want %s, %q", c.script, status, output, c.status, c.output)
		}
	}
	if status, output := once(t, &catalog.CheckDefinition{ScriptArgs: []string{"/does/not/exist"}}); status != "critical" || !strings.Contains(output, "no such file") {
		t.Errorf("a command that there is not: %s, %q", status, output)
	}
}

// The output is the end of what was said, never more than the limit.
func TestScriptOutputIsBounded(t *testing.T) {
	def := &catalog.CheckDefinition{ScriptArgs: []string{"/bin/sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; printf THEEND"}, OutputMaxSize: 100}
	status, output := once(t, def)
	if status != "passing" || !strings.HasPrefix(output, "Captured 100 of 1000006 bytes\n...\nxxx") || !strings.HasSuffix(output, "xTHEEND") || len(output) > 150 {
		t.Errorf("%s, %d bytes: %.60q", status, len(output), output)
	}
	tl := &tail{limit: 10}
	for i := range 1000 {
		if _, _ = tl.Write([]byte(strconv.Itoa(i % 10))); cap(tl.kept) > 64 {
			t.Fatalf("holds %d bytes", cap(tl.kept))
		}
	}
	if got := tl.String(); got != "Captured 10 of 1000 bytes\n...\n0123456789" {
		t.Errorf("tail %q", got)
	}
}

// When the time is up everything that the command started is killed.
func TestScriptTimeoutKillsTheGroup(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	def := &catalog.CheckDefinition{
		ScriptArgs: []string{"/bin/sh", "-c", "echo begun; sleep 600 & echo $! > '" + pidFile + "'; wait"},
		Timeout:    300 * time.Millisecond,
	}
	status, output := once(t, def)
	if status != "critical" || output != "Timed out running check: the command and all that it started were killed\nbegun\n" {
		t.Errorf("%s, %q", status, output)
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for alive(pid) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d lives", pid)
		}
		time.Sleep(5 * time.Millisecond) // the kernel tells nobody but the parent, which is not us
	}
}

// alive tells whether a process runs; one that waits to be reaped does not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// What stays behind and holds the output neither blocks the check nor piles up.
func TestScriptLeavesNothingBehind(t *testing.T) {
	start := time.Now()
	status, output := once(t, &catalog.CheckDefinition{ScriptArgs: []string{"/bin/sh", "-c", "sleep 600 & echo $!"}, Timeout: time.Minute})
	if status != "passing" || time.Since(start) > 30*time.Second {
		t.Fatalf("%s after %s: %q", status, time.Since(start), output)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(output))
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for alive(pid) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d lives", pid)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestScriptEnvironment(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	t.Setenv("WEFT_TEST_SCRIPT", "there")
	_, output := once(t, &catalog.CheckDefinition{ScriptArgs: []string{"/bin/sh", "-c", "echo ${NOTIFY_SOCKET-none} $WEFT_TEST_SCRIPT"}})
	if output != "none there\n" {
		t.Errorf("environment: %q", output)
	}
}

func TestScriptGate(t *testing.T) {
	script := &catalog.CheckDefinition{ScriptArgs: []string{"true"}}
	for _, c := range []struct {
		gate     Scripts
		fromFile bool
		want     string
	}{
		{NoScripts, false, "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"},
		{NoScripts, true, "Scripts are disabled on this agent; to enable, configure 'enable_script_checks' or 'enable_local_script_checks' to true"},
		{LocalScripts, false, "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"},
		{LocalScripts, true, ""},
		{AllScripts, false, ""},
		{AllScripts, true, ""},
	} {
		err := c.gate.Allow(script, c.fromFile)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrScripts) || err.Error() != c.want) {
			t.Errorf("gate %d, from a file %v: %v", c.gate, c.fromFile, err)
		}
		if err := c.gate.Allow(&catalog.CheckDefinition{TCP: "a:1"}, c.fromFile); err != nil {
			t.Errorf("a tcp check: %v", err)
		}
	}
	for _, args := range [][]string{{""}, {"a\x00b"}, make([]string, maxArgs+1), {"a", strings.Repeat("x", maxArgBytes)}} {
		if _, err := New(&catalog.CheckDefinition{ScriptArgs: args, Interval: time.Second}, Options{}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%.20q: %v", args, err)
		}
	}
}

// A check that is stopped in the middle ends at once and says nothing.
func TestScriptEndsWithItsCheck(t *testing.T) {
	var rec recorder
	r, err := New(&catalog.CheckDefinition{ScriptArgs: []string{"sleep", "600"}, Interval: time.Hour}, Options{Report: rec.report})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r.(*periodic).once(ctx)
	if status, output := rec.take(); status != "" {
		t.Errorf("%s, %q", status, output)
	}
}
