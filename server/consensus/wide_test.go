package consensus

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
)

// TestTimersCarryTheirRoundTrip: servers that are 50 ms apart for each time that the
// timers are taken keep their leader, also while all of them run late and have the
// heartbeat stretched, and elect another one when it is gone.
func TestTimersCarryTheirRoundTrip(t *testing.T) {
	for _, times := range []int{1, 2, 10} {
		t.Run(fmt.Sprint(times), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { farApart(t, times, time.Duration(times)*50*time.Millisecond) })
		})
	}
}

func farApart(t *testing.T, times int, roundTrip time.Duration) {
	v := newVirtual(1, 0)
	defer time.Sleep(time.Second) // what was under way ends
	for i, n := range v.nodes {
		st, err := store.New(store.Config{Epoch: "one"})
		if err != nil {
			t.Fatal(err)
		}
		n.run, n.store = n.disk.mount(), st
		n.node, err = New(Config{
			NodeID: n.id, Addr: n.addr, Bootstrap: i == 0, Store: st, Transport: v.net.attach(raft.ServerAddress(n.addr)),
			Timers: Timers{}.Times(times), Logger: vlogger(n.id),
			hooks: hooks{memory: &memory{log: n.run, snapshots: n.run, probe: n.run.sync, space: n.disk.space}},
		})
		if err != nil {
			t.Fatal(err)
		}
		n.hurry = make(chan struct{})
		defer v.kill(n)
	}
	first := v.nodes[0].node
	waitLeader(t, first)
	for _, n := range v.nodes[1:] {
		if err := first.raft.AddVoter(raft.ServerID(n.id), raft.ServerAddress(n.addr), 0, patience).Error(); err != nil {
			t.Fatal(err)
		}
	}
	v.net.mu.Lock()
	for _, n := range v.nodes {
		v.net.slow[raft.ServerAddress(n.addr)] = roundTrip / 4 // added at both ends, on both ways
	}
	v.net.mu.Unlock()
	term := first.raft.CurrentTerm()
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Second) {
		if time.Until(end) < 2*time.Minute {
			for _, n := range v.nodes {
				n.node.tuner.look(time.Minute)
			}
		}
		if _, _, err := first.Apply(t.Context(), &catalog.SetKey{Pair: catalog.KVPair{Key: "k"}}); err != nil {
			t.Fatalf("a write: %v", err)
		}
		for _, n := range v.nodes {
			if now := n.node.raft.CurrentTerm(); now != term {
				t.Fatalf("%s is in term %d, not in %d any more", n.id, now, term)
			}
		}
	}
	if beat := first.raft.ReloadableConfig().HeartbeatTimeout; beat != maxStretch*first.cfg.Timers.Heartbeat {
		t.Errorf("the heartbeat is %s, not stretched", beat)
	}
	v.kill(v.nodes[0])
	begin := time.Now()
	for v.leader() == nil {
		time.Sleep(10 * time.Millisecond)
		if took := time.Since(begin); took > time.Duration(times)*time.Minute {
			t.Fatalf("nobody leads %s after the leader was killed", took)
		}
	}
	t.Logf("round trip %s: %s until another one leads", roundTrip, time.Since(begin))
}
