package server

import (
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/consensus"
)

// TestServerInWords: who reads `weft info` learns how a server fares.
func TestServerInWords(t *testing.T) {
	f := newFleet(t, 3)
	says := func(i int) map[string]string { return statsOf(f.nodes[i].server)[wire.StatsState] }
	f.up(1)
	f.until("word of what is waited for", func() bool { return strings.Contains(says(1)["server"], "waits for others") })
	if s := says(1); !strings.HasPrefix(s["server"], "is in no cluster yet: ") || !strings.Contains(s["server_hint"], "retry_join") {
		t.Error(s)
	}
	f.up(2)
	f.up(3)
	leader := f.leader()
	for i := range f.nodes {
		want := "leads"
		if i != leader {
			want = "follows " + nameOf(leader) + " (" + f.addrs[leader] + ")"
		}
		f.until("server "+nameOf(i)+" "+want, func() bool { return strings.HasPrefix(says(i)["server"], want) })
		s := says(i)
		if s["server_hint"] != "" || !strings.Contains(s["disk"], "MiB are free") {
			t.Errorf("server %d: %v, want %q", i, s, want)
		}
	}
}

func TestDiskInWords(t *testing.T) {
	for _, tc := range []struct {
		disk       consensus.DiskState
		what, hint string
	}{
		{consensus.DiskState{Dir: "/d", Free: 3 << 20}, "answers; 3 MiB are free (/d)", ""},
		{consensus.DiskState{Dir: "/d", Free: 3 << 20, Low: true}, "is nearly full: 3 MiB", "free some space"},
		{consensus.DiskState{Dir: "/d", Hung: true, Age: 2 * time.Second}, "hangs: a write to /d has taken 2s", "its controller"},
	} {
		what, hint := diskWords(tc.disk)
		if !strings.Contains(what, tc.what) || !strings.Contains(hint, tc.hint) || (hint == "") != (tc.hint == "") {
			t.Errorf("%+v: %q, %q", tc.disk, what, hint)
		}
	}
}
