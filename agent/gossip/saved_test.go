package gossip

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FuzzSavedFiles reads the keyring, its stamp and the last members as a disk may have
// left them. A keyring that is taken is written and read again as it was.
func FuzzSavedFiles(f *testing.F) {
	for _, b := range []string{
		``, `null`, `[]`, `[""]`, `["AA=="]`, `["AAAAAAAAAAAAAAAAAAAAAA=="]`, `["AAAAAAAAAAAAAAAAAAAAAA==","AAAAAAAAAAAAAAAAAAAAAA=="]`, `{"Keys":[]}`,
		`["AAAAAAAAAAAAAAAAAAAAAA==",null]`, "\x00\xff",
	} {
		f.Add([]byte(b), []byte("1"), []byte(`{"Members":[{"Name":"b","Addr":"10.0.0.1:8301"},{"Addr":"x"},{}]}`))
	}
	f.Add([]byte(`[]`), []byte("-9223372036854775808"), []byte(`{"Members":null}`))
	f.Fuzz(func(t *testing.T, keys, stamp, members []byte) {
		dir := t.TempDir()
		ring, list := filepath.Join(dir, "ring"), filepath.Join(dir, "members")
		for path, b := range map[string][]byte{ring: keys, stampFile(ring): stamp, list: members} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if p, err := openPeers(list); err == nil {
			p.addrs()
		}
		k, err := openKeyring(Config{NodeName: "a", KeyringFile: ring, Logger: slog.New(slog.DiscardHandler)})
		if err != nil || k == nil {
			return
		}
		if err := k.save(); err != nil {
			t.Fatal(err)
		}
		again, err := openKeyring(Config{NodeName: "a", KeyringFile: ring, Logger: slog.New(slog.DiscardHandler)})
		if err != nil || again == nil {
			t.Fatalf("what was saved cannot be read: %v", err)
		}
		if !bytes.Equal(again.ring.GetPrimaryKey(), k.ring.GetPrimaryKey()) {
			t.Fatal("another key is in use after a restart")
		}
	})
}

// A host keeps since when it lives at its address over restarts. A copy at another one is
// younger, whatever its clock says, and stays a copy once that was found out.
func TestHomeOfCopyIsYounger(t *testing.T) {
	file := filepath.Join(t.TempDir(), "home.json")
	log := slog.New(slog.DiscardHandler)
	at := func(id, addr string, ms int64) home {
		h := openHome(&Config{NodeName: "a", NodeID: id, HomeFile: file, Logger: log}, addr, time.UnixMilli(ms))
		h.settle(log)
		return h
	}
	first := at("1", "10.0.0.1:8301", 1000)
	if first.kept || first.Since != 1000 {
		t.Fatalf("at its first start: %+v", first)
	}
	if h := at("1", "10.0.0.1:8301", 5000); !h.kept || h.Since != 1000 {
		t.Errorf("after a restart: %+v", h)
	}
	twin := at("1", "10.0.0.2:8301", 10)
	if twin.kept || twin.Since <= 1000 {
		t.Errorf("the copy, whose clock is late: %+v", twin)
	}
	g := &Gossip{home: twin, log: log}
	if err := g.Disown(""); err != nil {
		t.Errorf("nobody said that it is a copy: %v", err)
	}
	if err := g.Disown("10.0.0.1:8301"); !errors.Is(err, ErrCopy) {
		t.Errorf("a copy goes on: %v", err)
	}
	again := &Gossip{home: at("1", "10.0.0.3:8301", 6000), log: log}
	if err := again.Original(t.Context(), nil); !errors.Is(err, ErrCopy) || !strings.Contains(err.Error(), "10.0.0.1:8301") {
		t.Errorf("the copy, restarted while nobody answers: %v", err)
	}
	if h := at("2", "10.0.0.3:8301", 7000); h.kept || h.Original != "" {
		t.Errorf("with an ID of its own it is a host of its own: %+v", h)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if h := at("2", "10.0.0.3:8301", 8000); h.kept || h.Since != 8000 {
		t.Errorf("from a damaged file: %+v", h)
	}
}
