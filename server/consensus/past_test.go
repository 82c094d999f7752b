package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// marked is a data directory of a server with its log and its mark.
func marked(t *testing.T, dir string) Config {
	cfg := config(t, filepath.Join(dir, "raft"))
	cfg.MarkFile = filepath.Join(dir, "raft-id")
	return cfg
}

func run(t *testing.T, cfg Config, entries int) (fingerprint string) {
	t.Helper()
	n := open(t, cfg)
	for i := range entries {
		apply(t, n, register(i))
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	return cfg.Store.Fingerprint()
}

func refused(t *testing.T, cfg Config, want ...string) {
	t.Helper()
	n, err := New(cfg)
	if err == nil {
		_ = n.Close()
		t.Fatal("opened")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not in: %v", w, err)
		}
	}
}

// A server whose log is gone does not begin an empty cluster.
func TestLostLog(t *testing.T) {
	good := t.TempDir()
	want := run(t, marked(t, good), 5)
	if info, err := os.Stat(filepath.Join(good, "raft-id")); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	raftDB := func(dir string) string { return filepath.Join(dir, "raft", logFile) }
	for name, spoil := range map[string]func(t *testing.T, dir string) error{
		"empty file": func(_ *testing.T, dir string) error { return os.Truncate(raftDB(dir), 0) },
		"no file":    func(_ *testing.T, dir string) error { return os.Remove(raftDB(dir)) },
		"no folder":  func(_ *testing.T, dir string) error { return os.RemoveAll(filepath.Join(dir, "raft")) },
		"another log": func(t *testing.T, dir string) error {
			other := t.TempDir()
			run(t, marked(t, other), 1)
			return os.Rename(raftDB(other), raftDB(dir))
		},
		"backup only": func(t *testing.T, dir string) error {
			n := open(t, marked(t, dir))
			return errors.Join(n.Backup(t.Context()), n.Close(), os.Truncate(raftDB(dir), 0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyDir(t, good)
			if err := spoil(t, dir); err != nil {
				t.Fatal(err)
			}
			mark := filepath.Join(dir, "raft-id")
			refused(t, marked(t, dir), "gone", raftDB(dir), "from a copy", "remove "+mark)
			refused(t, marked(t, dir), "gone") // the first time has not changed that
			if name == "backup only" {
				return // it is a past
			}
			if err := os.Remove(mark); err != nil { // as the error says
				t.Fatal(err)
			}
			run(t, marked(t, dir), 1)
		})
	}
	t.Run("no mark", func(t *testing.T) { // killed before it was written
		dir := copyDir(t, good)
		mark := filepath.Join(dir, "raft-id")
		before, err := os.ReadFile(mark)
		if err = errors.Join(err, os.Remove(mark)); err != nil {
			t.Fatal(err)
		}
		if got := run(t, marked(t, dir), 0); got != want {
			t.Error("the state differs")
		}
		if after, err := os.ReadFile(mark); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%q, %v", after, err)
		}
	})
	t.Run("bad mark", func(t *testing.T) {
		dir := copyDir(t, good)
		write(t, filepath.Join(dir, "raft-id"), []byte("x"))
		refused(t, marked(t, dir), filepath.Join(dir, "raft-id"), "UUID")
	})
	t.Run("nobody begins", func(t *testing.T) { // a server that waits for others has no log to lose
		dir := t.TempDir()
		for range 2 {
			cfg := marked(t, dir)
			cfg.Bootstrap = false
			n, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestP09FlippedBytes: bytes of the log that changed on the disk are never applied as
// something else.
func TestP09FlippedBytes(t *testing.T) {
	good := filepath.Join(t.TempDir(), "raft")
	want := run(t, config(t, good), 60)
	b, err := os.ReadFile(filepath.Join(good, logFile))
	if err != nil {
		t.Fatal(err)
	}
	flip := func(t *testing.T, at int) Config {
		dir := copyDir(t, good)
		changed := bytes.Clone(b)
		changed[at] ^= 1 << (at % 8)
		write(t, filepath.Join(dir, logFile), changed)
		return config(t, dir)
	}
	// Pages that are not in use any more hold copies of this one.
	refusals := 0
	for at, name := 0, []byte("n42"); ; at += len(name) {
		i := bytes.Index(b[at:], name)
		if i < 0 {
			break
		}
		at += i
		n, err := New(flip(t, at))
		if err == nil {
			_ = n.Close()
			continue
		}
		refusals++
		for _, w := range []string{logFile, "corrupt", "entry", "checksum", "copy"} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q is not in: %v", w, err)
			}
		}
	}
	if refusals == 0 {
		t.Error("a changed name was not noticed")
	}
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	page := os.Getpagesize()
	for range fullCount(40, 1000) {
		at := 2*page + rnd.IntN(len(b)-2*page) // the first two are one record, twice
		cfg := flip(t, at)
		switch n, err := New(cfg); {
		case err == nil:
			waitLeader(t, n)
			if cfg.Store.Fingerprint() != want {
				t.Errorf("byte %d: the state is another one", at)
			}
			_ = n.Close()
		case !strings.Contains(err.Error(), cfg.DataDir):
			t.Error(err)
		}
		_ = os.RemoveAll(cfg.DataDir) // a thousand of them would fill the disk
	}
}

func TestVerifyLog(t *testing.T) {
	servers := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "b"}}})
	for name, c := range map[string]struct {
		log  raft.Log
		want string
	}{
		"servers":         {raft.Log{Index: 7, Term: 2, Type: raft.LogConfiguration, Data: servers}, ""},
		"noop":            {raft.Log{Index: 7, Term: 3, Type: raft.LogNoop}, ""},
		"other index":     {raft.Log{Index: 8, Term: 2, Type: raft.LogNoop}, "entry 8"},
		"earlier term":    {raft.Log{Index: 7, Term: 1, Type: raft.LogNoop}, "term is 1"},
		"hidden command":  {raft.Log{Index: 7, Term: 2, Type: raft.LogBarrier, Data: []byte{1}}, "1 bytes"},
		"hidden as list":  {raft.Log{Index: 7, Term: 2, Type: raft.LogConfiguration, Data: []byte{1, 2, 3}}, "servers"},
		"nothing as list": {raft.Log{Index: 7, Term: 2, Type: raft.LogConfiguration}, "servers"},
		"no command":      {raft.Log{Index: 7, Term: 2, Type: raft.LogCommand}, "cut short"},
		"newer command":   {raft.Log{Index: 7, Term: 2, Type: raft.LogCommand, Data: binary.BigEndian.AppendUint64([]byte{9}, 1)}, "newer version"},
		"unknown type":    {raft.Log{Index: 7, Term: 2, Type: 77}, "type 77"},
	} {
		err := verifyLog(&c.log, 7, 2)
		if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
