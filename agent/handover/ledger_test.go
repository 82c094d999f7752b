package handover

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/weftmesh/weft/catalog"
)

// TestLedger has one process know what another carries, for as long as that lives.
func TestLedger(t *testing.T) {
	dir := t.TempDir()
	old, next := NewLedger(dir, quiet()), NewLedger(dir, quiet())
	if n := len(next.Others()); n != 0 {
		t.Errorf("%d processes drain before one does", n)
	}
	if err := old.Carry(map[string]catalog.Name{"web-1\n": "web", "db-1": "db"}); err != nil {
		t.Fatal(err)
	}
	if n := len(next.Others()); n != 0 {
		t.Error("a process drains itself")
	}
	const pid = 1
	page := filepath.Join(dir, ledgerName, strconv.Itoa(pid))
	if err := os.Rename(filepath.Join(dir, ledgerName, strconv.Itoa(os.Getpid())), page); err != nil {
		t.Fatal(err) // as if another process had written it
	}
	expect := func(what string, want map[string]catalog.Name) {
		t.Helper()
		if got := next.Others()[pid]; !maps.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	expect("it drains", map[string]catalog.Name{"web-1\n": "web", "db-1": "db"})
	if _, err := old.own.WriteString(`{"ID":"db-1","En`); err != nil {
		t.Fatal(err)
	}
	expect("a line is being written", map[string]catalog.Name{"web-1\n": "web", "db-1": "db"})
	if _, err := old.own.WriteString("ded\":true}\n"); err != nil {
		t.Fatal(err)
	}
	expect("one has drained", map[string]catalog.Name{"web-1\n": "web"})
	old.Ended("web-1\n")
	expect("all have", nil)
	if err := old.Carry(map[string]catalog.Name{"web-1\n": "web"}); err != nil {
		t.Fatal(err)
	}
	_ = old.own.Close() // as its end does
	own := filepath.Join(dir, ledgerName, strconv.Itoa(os.Getpid()))
	if err := os.Rename(own, filepath.Join(dir, ledgerName, "2")); err != nil {
		t.Fatal(err)
	}
	if got := next.Others(); got[2] != nil {
		t.Errorf("a process that has ended drains: %v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, ledgerName, "2")); err == nil {
		t.Error("its file stays")
	}
}

// TestLedgerWithABadPage: a page that cannot be read, or not be removed, costs no other.
func TestLedgerWithABadPage(t *testing.T) {
	dir := t.TempDir()
	old, next := NewLedger(dir, quiet()), NewLedger(dir, quiet())
	page := func(pid int) string { return filepath.Join(dir, ledgerName, strconv.Itoa(pid)) }
	carry := func(pid int, service catalog.Name) *os.File {
		t.Helper()
		if err := old.Carry(map[string]catalog.Name{"p": service}); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(page(os.Getpid()), page(pid)); err != nil {
			t.Fatal(err)
		}
		return old.own
	}
	if !next.Alive(os.Getpid()) || next.Alive(0) || next.Alive(1<<30) {
		t.Error("it is not known who lives")
	}
	defer carry(2, "web").Close() //nolint:errcheck // only its lock matters
	defer carry(3, "db").Close()  //nolint:errcheck // as above
	if got := next.Others(); len(got) != 2 {
		t.Fatalf("%v", got)
	}
	if err := errors.Join(os.Rename(page(2), page(4)), os.Symlink(page(2), page(2))); err != nil {
		t.Fatal(err)
	}
	got := next.Others()
	for pid, service := range map[int]catalog.Name{2: "web", 3: "db", 4: "web"} {
		if got[pid]["p"] != service {
			t.Errorf("process %d: %v", pid, got)
		}
	}
}
