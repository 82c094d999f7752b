package main

import (
	"log/slog"
	"log/syslog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSyslog: each line comes with its severity and facility, without time and level,
// which syslog has itself.
func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const facility = 16 // LOCAL0
	to, err := syslog.Dial("unixgram", path, syslog.Priority(facility<<3)|syslog.LOG_INFO, "weft")
	if err != nil {
		t.Fatal(err)
	}
	h := syslogOf(to, slog.LevelDebug)
	defer h.close()
	log := slog.New(h).With("node", "n1")
	for severity, write := range map[syslog.Priority]func(string, ...any){
		syslog.LOG_ERR: log.Error, syslog.LOG_WARNING: log.Warn, syslog.LOG_INFO: log.Info, syslog.LOG_DEBUG: log.Debug,
	} {
		write("something happened", "count", 3)
		if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, err := l.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		line := string(buf[:n])
		if want := "<" + strconv.Itoa(facility<<3+int(severity)) + ">"; !strings.HasPrefix(line, want) {
			t.Errorf("%q does not begin with %s", line, want)
		}
		if !strings.Contains(line, `msg="something happened" node=n1 count=3`) || strings.Contains(line, "level=") || strings.Contains(line, "time=") {
			t.Errorf("line %q", line)
		}
	}
}
