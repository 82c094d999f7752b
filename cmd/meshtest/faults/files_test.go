//go:build faults

package faults_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/weftmesh/weft/catalog/durable"
)

// TestFilesAreReplacedWhole writes where no space is left, where a sync fails, and before
// a power cut: what was answered for is there, and otherwise what was there before.
func TestFilesAreReplacedWhole(t *testing.T) {
	t.Parallel()
	full, lying := loopDisk(t, 8), newBadDisk(t)
	large := bytes.Repeat([]byte("x"), 1<<20)
	holds := func(file, want string) {
		t.Helper()
		entries, err := os.ReadDir(filepath.Dir(file))
		must(t, err)
		b, err := os.ReadFile(file)
		if err != nil || string(b) != want || len(entries) != 1 {
			t.Errorf("%s holds %.20q (%v), want %q, and %d files are there, want one", file, b, err, want, len(entries))
		}
	}

	file := filepath.Join(full, "kept", "f")
	must(t, durable.Write(file, []byte("old")))
	fill(t, full)
	if err := durable.Write(file, large); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write to a full disk: %v", err)
	}
	holds(file, "old")

	file = filepath.Join(lying.mnt, "kept", "f")
	must(t, durable.Write(file, []byte("old")))
	lying.tell(t, "eio 1")
	if err := durable.Write(file, []byte("lost")); !errors.Is(err, syscall.EIO) {
		t.Errorf("a write whose sync failed: %v", err)
	}
	holds(file, "old")
	must(t, durable.Write(file, []byte("new")))
	lying.tell(t, "cut")
	lying.tell(t, "forget")
	holds(file, "new")
}
