package checks

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// standIn plays systemd on a bus of its own.
type standIn struct {
	mu    sync.Mutex
	units map[string]map[string]any
}

func (s *standIn) LoadUnit(name string) (dbus.ObjectPath, *dbus.Error) {
	if name == "refused.service" {
		return "", dbus.NewError("org.freedesktop.DBus.Error.AccessDenied", []any{"not for you"})
	}
	return pathOf(name), nil
}

func pathOf(unit string) dbus.ObjectPath {
	return dbus.ObjectPath(systemdPath + "/unit/" + strings.NewReplacer(".", "_2e", "-", "_2d", "@", "_40").Replace(unit))
}

func (s *standIn) set(unit string, properties map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.units[unit] = properties
}

// properties answers for one unit.
type properties struct {
	of   *standIn
	unit string
}

func (p properties) Get(_, name string) (dbus.Variant, *dbus.Error) {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	v, ok := p.of.units[p.unit][name]
	if !ok {
		return dbus.Variant{}, dbus.NewError("org.freedesktop.DBus.Error.UnknownProperty", []any{name})
	}
	return dbus.MakeVariant(v), nil
}

// privateBus starts a dbus-daemon that is the system bus of this test.
func privateBus(t *testing.T) {
	t.Helper()
	daemon := proc.Need(t, "dbus-daemon")
	dir := t.TempDir()
	conf := filepath.Join(dir, "bus.conf")
	text := `<busconfig><type>custom</type><listen>unix:path=` + filepath.Join(dir, "bus") + `</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, daemon, "--config-file="+conf, "--nofork", "--print-address=1")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon says no address: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", strings.TrimSpace(addr))
}

func startStandIn(t *testing.T, units ...string) *standIn {
	t.Helper()
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	s := &standIn{units: map[string]map[string]any{}}
	if err := conn.Export(s, systemdPath, systemdManager); err != nil {
		t.Fatal(err)
	}
	for _, u := range units {
		if err := conn.Export(properties{s, u}, pathOf(u), "org.freedesktop.DBus.Properties"); err != nil {
			t.Fatal(err)
		}
	}
	if reply, err := conn.RequestName(systemdName, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("the name of systemd: %v, %v", reply, err)
	}
	return s
}

func TestOSService(t *testing.T) {
	privateBus(t)
	if status, output := once(t, &catalog.CheckDefinition{OSService: "nginx"}); status != "critical" || !strings.Contains(output, "systemd was asked for nginx.service: ") {
		t.Errorf("nobody plays systemd: %s, %q", status, output)
	}
	s := startStandIn(t, "nginx.service", "backup-1@a.timer", "gone.service", "half.service")
	for _, c := range []struct {
		name       string
		unit       string
		properties map[string]any
		status     catalog.Status
		output     string
	}{
		{
			"nginx", "nginx.service",
			map[string]any{"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "NRestarts": uint32(3), "Result": "success"},
			"passing", "nginx.service is active (running), restarted 3 times by systemd",
		},
		{
			"nginx.service", "nginx.service",
			map[string]any{"LoadState": "loaded", "ActiveState": "activating", "SubState": "auto-restart", "NRestarts": uint32(4), "Result": "exit-code"},
			"warning", "nginx.service is activating (auto-restart), restarted 4 times by systemd, last result exit-code",
		},
		{
			"nginx", "nginx.service",
			map[string]any{"LoadState": "loaded", "ActiveState": "reloading", "SubState": "reload", "NRestarts": uint32(0), "Result": "success"},
			"warning", "nginx.service is reloading (reload), restarted 0 times by systemd",
		},
		{
			"nginx", "nginx.service",
			map[string]any{"LoadState": "loaded", "ActiveState": "failed", "SubState": "failed", "NRestarts": uint32(5), "Result": "signal"},
			"critical", "nginx.service is failed (failed), restarted 5 times by systemd, last result signal",
		},
		{
			"backup-1@a.timer", "backup-1@a.timer",
			map[string]any{"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead"},
			"critical", "backup-1@a.timer is inactive (dead)",
		},
		{
			"gone", "gone.service",
			map[string]any{"LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead"},
			"critical", "gone.service is not known to systemd",
		},
		{"half", "half.service", map[string]any{"LoadState": 7}, "critical", "systemd was asked for half.service: property "},
		{"refused", "refused.service", nil, "critical", "systemd was asked for refused.service: not for you"},
	} {
		s.set(c.unit, c.properties)
		status, output := once(t, &catalog.CheckDefinition{OSService: c.name})
		if status != c.status || !strings.HasPrefix(output, c.output) {
			t.Errorf("%s: %s, %q; want %s, %q", c.name, status, output, c.status, c.output)
		}
	}
}

func TestOSServiceNames(t *testing.T) {
	for _, name := range []string{"a b", "../x", "a;b", "ü", strings.Repeat("x", 300), "a\n"} {
		if _, err := Validate(&catalog.CheckDefinition{OSService: name, Interval: 1e9}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%.20q: %v", name, err)
		}
	}
}
