package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestOnChange(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.hcl")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "one")
	ctx, cancel := context.WithCancel(t.Context())
	looks, ended := make(chan time.Time), make(chan struct{})
	calls := make(chan struct{}, 10)
	go func() {
		onChange(ctx, []string{dir}, looks, func() { calls <- struct{}{} })
		close(ended)
	}()
	look := func(want int, what string) {
		t.Helper()
		for range 3 { // the third is taken only when the second is done with
			looks <- time.Time{}
		}
		if len(calls) != want {
			t.Fatalf("%s: %d calls, want %d", what, len(calls), want)
		}
		for len(calls) > 0 {
			<-calls
		}
	}
	look(0, "nothing changed")
	write(file, "longer")
	look(1, "a file changed")
	look(0, "it stays as it is")
	write(filepath.Join(dir, "b.json"), "{}")
	look(1, "a file came")
	write(filepath.Join(dir, "b.txt"), "{}")
	look(0, "a file that is not read")
	write(file+".new", "longer")
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	look(1, "a file was replaced by another of the same size")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	look(1, "a file went")
	cancel()
	<-ended
}
