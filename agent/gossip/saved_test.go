package gossip

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
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

// A host keeps where others were while it is off, for however long, and while it is out of
// touch. Those that it does not see for days while it is in touch are forgotten.
func TestPeersAreKeptWhileAway(t *testing.T) {
	file, now := filepath.Join(t.TempDir(), "members"), time.Now()
	member := func(name, role, ip string) catalog.Member {
		return catalog.Member{Name: name, Addr: ip, Port: 8301, Status: catalog.MemberAlive, Tags: map[string]string{"role": role}}
	}
	self, server, agent := member("a", "node", "10.0.0.1"), member("s", "consul", "10.0.0.2"), member("b", "node", "10.0.0.3")
	gone := member("gone", "consul", "10.0.0.4")
	const s, b, g = "10.0.0.2:8301", "10.0.0.3:8301", "10.0.0.4:8301"
	const day, forget = 24 * time.Hour, 72 * time.Hour
	var p *peers
	for _, step := range []struct {
		name    string
		started bool // just before
		at      time.Duration
		members []catalog.Member
		want    []string
	}{
		{"at first", true, 0, []catalog.Member{server, agent, gone}, []string{s, b, g}},
		{"alone after 90 days", true, 90 * day, nil, []string{s, b, g}},
		{"with no server", false, 100 * day, []catalog.Member{agent}, []string{s, b, g}},
		{"off once more", true, 200 * day, []catalog.Member{server, agent}, []string{s, b, g}},
		{"in touch", false, 202 * day, []catalog.Member{server, agent}, []string{s, b, g}},
		{"and for long", false, 204 * day, []catalog.Member{server, agent}, []string{s, b}},
		{"its clock set back", true, 0, nil, []string{s, b}},
	} {
		if step.started {
			var err error
			if p, err = openPeers(file); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.keep(append(step.members, self), self.Name, forget, now.Add(step.at)); err != nil {
			t.Fatal(err)
		}
		got := p.addrs()
		slices.Sort(got)
		if !slices.Equal(got, step.want) {
			t.Errorf("%s: %v, want %v", step.name, got, step.want)
		}
	}
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
