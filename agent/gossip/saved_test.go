package gossip

import (
	"bytes"
	"errors"
	"fmt"
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

func savedMember(name, role, ip string, status catalog.MemberStatus) catalog.Member {
	return catalog.Member{Name: name, Addr: ip, Port: 8301, Status: status, Tags: map[string]string{"role": role}}
}

func savedAddrs(p *peers) []string {
	got := p.addrs()
	slices.Sort(got)
	return got
}

// A host keeps where others were while it is off, for however long, and while it is out of
// touch. Those that it does not see for days while it is in touch are forgotten.
func TestPeersAreKeptWhileAway(t *testing.T) {
	file, now := filepath.Join(t.TempDir(), "members"), time.Now()
	self := savedMember("a", "node", "10.0.0.1", catalog.MemberAlive)
	server, agent := savedMember("s", "consul", "10.0.0.2", catalog.MemberAlive), savedMember("b", "node", "10.0.0.3", catalog.MemberAlive)
	gone, other := savedMember("gone", "consul", "10.0.0.4", catalog.MemberAlive), savedMember("t", "consul", "10.0.0.5", catalog.MemberAlive)
	const s, b, g, o = "10.0.0.2:8301", "10.0.0.3:8301", "10.0.0.4:8301", "10.0.0.5:8301"
	const day, forget = 24 * time.Hour, 72 * time.Hour
	var p *peers
	var last time.Duration
	for _, step := range []struct {
		name    string
		started bool // just before
		at      time.Duration
		members []catalog.Member
		want    []string
	}{
		{"at first", true, 0, []catalog.Member{server, agent, gone, other}, []string{s, b, g, o}},
		{"alone after 90 days", true, 90 * day, nil, []string{s, b, g, o}},
		{"with no server", false, 94 * day, []catalog.Member{agent}, []string{s, b, g, o}},
		{"with one server of three", false, 98 * day, []catalog.Member{server, agent}, []string{s, b, g, o}},
		{"off once more", true, 200 * day, []catalog.Member{server, other, agent}, []string{s, b, g, o}},
		{"in touch", false, 202 * day, []catalog.Member{server, other, agent}, []string{s, b, g, o}},
		{"suspended", false, 300 * day, []catalog.Member{server, other, agent}, []string{s, b, g, o}},
		{"in touch for long", false, 302 * day, []catalog.Member{server, other, agent}, []string{s, b, o}},
		{"its clock set back", true, 0, nil, []string{s, b, o}},
	} {
		if step.started {
			var err error
			if p, err = openPeers(file); err != nil {
				t.Fatal(err)
			}
		}
		if step.started || step.name == "suspended" {
			last = step.at
		}
		for ; last <= step.at; last += time.Hour {
			if err := p.keep(append(step.members, self), self.Name, forget, now.Add(last)); err != nil {
				t.Fatal(err)
			}
		}
		if got := savedAddrs(p); !slices.Equal(got, step.want) {
			t.Errorf("%s: %v, want %v", step.name, got, step.want)
		}
	}
}

// Of a cluster that is split those with fewer servers keep the others, however many agents
// are with them, and over restarts. Those with more forget, as who is told of who left.
func TestFewerServersKeepTheOthers(t *testing.T) {
	const alive, failed, left = catalog.MemberAlive, catalog.MemberFailed, catalog.MemberLeft
	split := func(here, there catalog.MemberStatus) []catalog.Member {
		return []catalog.Member{
			savedMember("s1", "consul", "10.0.0.1", here), savedMember("a1", "node", "10.0.1.1", here),
			savedMember("a2", "node", "10.0.1.2", here), savedMember("a3", "node", "10.0.1.3", here),
			savedMember("s2", "consul", "10.0.0.2", there), savedMember("s3", "consul", "10.0.0.3", there),
		}
	}
	moved, gone := split(alive, alive), split(alive, left)
	moved[5], gone[3].Status = savedMember("s3", "consul", "10.0.0.9", alive), failed
	for _, c := range []struct {
		name, self string
		then       []catalog.Member // for 96 hours, after all were there
		want       []string
	}{
		{"a server with fewer", "s1", split(alive, failed), []string{"10.0.0.2:8301", "10.0.0.3:8301", "10.0.1.1:8301", "10.0.1.2:8301", "10.0.1.3:8301"}},
		{"an agent with fewer", "a1", split(alive, failed), []string{"10.0.0.1:8301", "10.0.0.2:8301", "10.0.0.3:8301", "10.0.1.2:8301", "10.0.1.3:8301"}},
		{"a server with more", "s2", split(failed, alive), []string{"10.0.0.3:8301"}},
		{"who is told that others left", "s1", split(alive, left), []string{"10.0.1.1:8301", "10.0.1.2:8301", "10.0.1.3:8301"}},
		{"who is told, and misses another", "s1", gone, []string{"10.0.1.1:8301", "10.0.1.2:8301"}},
		{"who sees that one moved", "s1", moved, []string{"10.0.0.2:8301", "10.0.0.9:8301", "10.0.1.1:8301", "10.0.1.2:8301", "10.0.1.3:8301"}},
	} {
		for _, restarts := range []bool{false, true} {
			file := filepath.Join(t.TempDir(), "members")
			p, err := openPeers(file)
			now, members := time.Unix(1_800_000_000, 0), split(alive, alive)
			for hour := 0; hour <= 96 && err == nil; hour++ {
				for _, after := range []time.Duration{0, 50 * time.Minute} {
					err = errors.Join(err, p.keep(members, c.self, 72*time.Hour, now.Add(time.Duration(hour)*time.Hour+after)))
				}
				if members = c.then; restarts && err == nil {
					p, err = openPeers(file)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := savedAddrs(p); !slices.Equal(got, c.want) {
				t.Errorf("%s, restarted each hour: %v: %v, want %v", c.name, restarts, got, c.want)
			}
		}
	}
}

// Who is restarted ever again forgets the dead as others do, also from a file of an
// earlier version, which says of members only when they were seen.
func TestRestartsDoNotKeepTheDead(t *testing.T) {
	file, now := filepath.Join(t.TempDir(), "members"), time.Unix(1_800_000_000, 0)
	old := fmt.Sprintf(`{"Members":[{"Name":"dead","Addr":"10.0.0.4:8301","Server":true,"Seen":%d},{"Name":"s","Addr":"10.0.0.2:8301","Server":true,"Seen":%[1]d}]}`, now.Unix())
	if err := os.WriteFile(file, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	self, server := savedMember("a", "consul", "10.0.0.1", catalog.MemberAlive), savedMember("s", "consul", "10.0.0.2", catalog.MemberAlive)
	var forgot int
	for hour := 1; hour <= 96; hour++ {
		p, err := openPeers(file)
		if err != nil {
			t.Fatal(err)
		}
		start := now.Add(time.Duration(hour) * time.Hour)
		for i, members := range [][]catalog.Member{{self}, {self, server}} {
			if err := p.keep(members, self.Name, 72*time.Hour, start.Add(time.Duration(i)*keepEvery)); err != nil {
				t.Fatal(err)
			}
		}
		if forgot == 0 && !slices.Contains(p.addrs(), "10.0.0.4:8301") {
			forgot = hour
		}
	}
	if forgot < 72 || forgot > 74 {
		t.Errorf("a server that is dead is forgotten after %d restarts, an hour apart, want 72 to 74", forgot)
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
