package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func rotated(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "weft-*.log"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestLogFileRotatesBySize(t *testing.T) {
	for keep, want := range map[int]int{0: 9, 3: 3, -1: 0} {
		dir := t.TempDir()
		other := filepath.Join(dir, "weft-notes.log") // of somebody else
		if err := os.WriteFile(other, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := openLogFile(dir+"/", rotation{bytes: 100, keep: keep})
		if err != nil {
			t.Fatal(err)
		}
		line := bytes.Repeat([]byte("x"), 60)
		for range 10 {
			if n, err := l.Write(line); n != len(line) || err != nil {
				t.Fatal(n, err)
			}
		}
		l.close()
		if found := rotated(t, dir); len(found) != want+1 {
			t.Errorf("keep %d: %v", keep, found)
		}
		if text, err := os.ReadFile(filepath.Join(dir, "weft.log")); err != nil || len(text) != 60 {
			t.Errorf("keep %d: the current file has %d bytes, %v", keep, len(text), err)
		}
	}
}

func TestLogFileRotatesByAge(t *testing.T) {
	dir := t.TempDir()
	l, err := openLogFile(filepath.Join(dir, "weft.log"), rotation{age: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for _, born := range []time.Time{time.Now(), time.Now().Add(-2 * time.Hour)} {
		l.born = born
		if _, err := l.Write([]byte("line\n")); err != nil {
			t.Fatal(err)
		}
	}
	if found := rotated(t, dir); len(found) != 1 {
		t.Errorf("%v", found)
	}
}

// A log that cannot be moved aside goes on where it is.
func TestLogFileStuck(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l, err := openLogFile(filepath.Join(dir, "weft.log"), rotation{bytes: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if _, err := l.Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "weft.log")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if n, err := l.Write([]byte("0123456789")); n != 10 || err != nil {
			t.Fatal(n, err)
		}
	}
	if l.stuck.IsZero() {
		t.Error("it did not notice")
	}
	if err := l.reopen(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Write([]byte("after\n")); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "weft.log")); err != nil || !strings.Contains(string(text), "after") {
		t.Errorf("%q, %v", text, err)
	}
}
