package programs_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestSystemdUnit lets systemd read the unit that we ship.
func TestSystemdUnit(t *testing.T) {
	t.Parallel()
	analyze := proc.Need(t, "systemd-analyze")
	unit, err := os.ReadFile("../../../packaging/weft.service")
	if err != nil {
		t.Fatal(err)
	}
	// The program must be there for systemd to be content.
	text := strings.ReplaceAll(string(unit), "/usr/bin/weft ", proc.Binary(t)+" ")
	file := filepath.Join(t.TempDir(), "weft.service")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", file).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestSystemdIsTold plays systemd: it hears of the start, of the health, of reloads
// and of the end, and is reminded that the process lives.
func TestSystemdIsTold(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	heard := func(want string) {
		t.Helper()
		b := make([]byte, 4096)
		for {
			if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, err := conn.Read(b)
			if err != nil {
				t.Fatalf("systemd was not told %q: %v", want, err)
			}
			if strings.Contains(string(b[:n]), want) {
				return
			}
		}
	}
	a := proc.StartEnv(t, []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=600000"}, "-dev")
	heard("READY=1")
	heard("STATUS=1 of 1 members alive")
	heard("WATCHDOG=1")
	a.Signal(syscall.SIGHUP)
	heard("RELOADING=1\nMONOTONIC_USEC=")
	heard("READY=1")
	a.Signal(syscall.SIGTERM)
	heard("STOPPING=1")
}
