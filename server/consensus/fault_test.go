package consensus

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
)

// faulty is a cluster in virtual time whose servers' disks do what a test says.
func faulty(t *testing.T, size int, test func(t *testing.T, v *virtual)) {
	synctest.Test(t, func(t *testing.T) {
		v := newVirtual(1, time.Minute)
		v.nodes = v.nodes[:size]
		v.begin = time.Now()
		for i, n := range v.nodes {
			if err := v.start(n, i == 0); err != nil {
				t.Fatal(err)
			}
		}
		defer func() {
			for _, n := range v.nodes {
				n.disk.thaw()
				v.kill(n)
			}
			time.Sleep(time.Second) // what waited for a frozen disk ends
		}()
		waitLeader(t, v.nodes[0].node)
		for _, n := range v.nodes[1:] {
			if err := v.nodes[0].node.raft.AddVoter(raft.ServerID(n.id), raft.ServerAddress(n.addr), 0, patience).Error(); err != nil {
				t.Fatal(err)
			}
		}
		test(t, v)
		for _, f := range append(v.faults, v.net.faults...) {
			t.Error(f)
		}
	})
}

func put(key, value string) catalog.Command {
	return &catalog.SetKey{Pair: catalog.KVPair{Key: key, Value: []byte(value)}}
}

// firstWrite tries, as a client does who asks one server after the other, until a
// write is acknowledged.
func (v *virtual) firstWrite(t *testing.T, among []*vnode) (after time.Duration) {
	t.Helper()
	start := time.Now()
	for time.Since(start) < time.Minute {
		for _, n := range among {
			node, _ := n.get()
			if node == nil {
				continue
			}
			ctx, end := context.WithTimeout(t.Context(), 500*time.Millisecond)
			_, _, err := node.Apply(ctx, put("first", "write"))
			end()
			if err == nil {
				return time.Since(start)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no write within a minute")
	return 0
}

// TestP07FrozenDisk: a leader whose disk freezes ceases to lead; what waited on it
// fails, and nothing stale is read from it; thawed it is a good follower again.
func TestP07FrozenDisk(t *testing.T) {
	faulty(t, 3, func(t *testing.T, v *virtual) {
		old, others := v.nodes[0], v.nodes[1:]
		old.disk.freeze()
		waiting := make(chan error, 1)
		go func() {
			_, _, err := old.node.Apply(t.Context(), put("waits", "?"))
			waiting <- err
		}()
		gap := v.firstWrite(t, others)
		t.Logf("writes again after %s of virtual time", gap.Round(time.Millisecond))
		if gap > 3*time.Second {
			t.Errorf("no write for %s", gap)
		}
		if err := <-waiting; !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("a write on the frozen disk: %v", err)
		}
		start := time.Now()
		if _, err := old.node.ReadIndex(t.Context()); !errors.Is(err, catalog.ErrNoLeader) || time.Since(start) > 100*time.Millisecond {
			t.Errorf("a read from the frozen leader: %v after %s", err, time.Since(start))
		}
		if _, _, err := old.node.Apply(t.Context(), put("later", "?")); !errors.Is(err, catalog.ErrNoLeader) {
			t.Errorf("a later write on the frozen leader: %v", err)
		}
		time.Sleep(5 * time.Second)
		old.disk.thaw()
		index := apply(t, v.leaderOf(t, others), put("after", "thaw"))
		ctx, end := context.WithTimeout(t.Context(), 10*time.Second)
		defer end()
		if err := old.store.WaitIndex(ctx, index); err != nil {
			t.Error("the thawed server does not follow:", err)
		}
		v.compareLogs()
	})
}

func (v *virtual) leaderOf(t *testing.T, among []*vnode) *Node {
	t.Helper()
	for range 10000 {
		for _, n := range among {
			if node, _ := n.get(); node != nil && node.readyTerm.Load() != 0 {
				return node
			}
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("nobody leads")
	return nil
}

// TestP07FrozenForGood: after half a minute the process should end, with a reason.
func TestP07FrozenForGood(t *testing.T) {
	faulty(t, 3, func(t *testing.T, v *virtual) {
		old := v.nodes[0]
		done := make(chan error, 1)
		go func() { done <- old.node.Run(t.Context()) }()
		old.disk.freeze()
		start := time.Now()
		err := <-done
		if d := time.Since(start); !errors.Is(err, ErrStorage) || !errors.Is(err, ErrHung) || d < 29*time.Second || d > 35*time.Second {
			t.Errorf("Run ended after %s with %v", d, err)
		}
	})
}

// TestP07LoneServer: where nobody else could lead, a disk that hangs for some
// seconds is waited for.
func TestP07LoneServer(t *testing.T) {
	faulty(t, 1, func(t *testing.T, v *virtual) {
		n := v.nodes[0]
		n.disk.freeze()
		time.AfterFunc(8*time.Second, n.disk.thaw)
		start := time.Now()
		if _, _, err := n.node.Apply(t.Context(), put("a", "b")); err != nil || time.Since(start) < 7*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// TestP11StalledFollower: a follower that stalls for any time takes entries again.
func TestP11StalledFollower(t *testing.T) {
	faulty(t, 3, func(t *testing.T, v *virtual) {
		var worst time.Duration
		for i := range 25 {
			follower := v.nodes[1+i%2]
			leader := v.leaderOf(t, v.nodes)
			if leader == follower.node {
				follower = v.nodes[0]
			}
			follower.disk.freeze()
			for range 20 {
				apply(t, leader, put("during", "stall"))
			}
			time.Sleep(time.Duration(i) * time.Second)
			follower.disk.thaw()
			index, start := apply(t, v.leaderOf(t, v.nodes), put("after", "stall")), time.Now()
			ctx, end := context.WithTimeout(t.Context(), 15*time.Second) // Raft tries again after 10 s at most
			if err := follower.store.WaitIndex(ctx, index); err != nil {
				t.Errorf("stall %d: %v", i, err)
			}
			worst = max(worst, time.Since(start))
			end()
		}
		t.Logf("25 stalls of 0 to 24 s; the longest way back took %s", worst)
	})
}

// TestP08LowDisk: a leader hands over before its disk is full, refuses writes when
// nobody can take them, and takes them again when there is room.
func TestP08LowDisk(t *testing.T) {
	faulty(t, 3, func(t *testing.T, v *virtual) {
		old := v.nodes[0]
		old.disk.setFree(1 << 20)
		start := time.Now()
		next := v.leaderOf(t, v.nodes[1:])
		t.Logf("another leads after %s", time.Since(start))
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("it took %s until another led", d)
		}
		apply(t, next, put("a", "b"))
		for _, n := range v.nodes {
			n.disk.setFree(1 << 20)
		}
		time.Sleep(10 * time.Second)
		leader := v.leaderOf(t, v.nodes)
		_, _, err := leader.Apply(t.Context(), put("a", "c"))
		for end := time.Now().Add(time.Minute); errors.Is(err, catalog.ErrNoLeader) && time.Now().Before(end); {
			time.Sleep(100 * time.Millisecond)
			_, _, err = v.leaderOf(t, v.nodes).Apply(t.Context(), put("a", "c"))
		}
		t.Log(err)
		if !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("a write on a full disk: %v", err)
		}
		for _, n := range v.nodes {
			n.disk.setFree(10 << 30)
		}
		start = time.Now()
		if v.firstWrite(t, v.nodes); time.Since(start) > 2*time.Second {
			t.Errorf("healed only after %s", time.Since(start))
		}
	})
}

// TestP08FullDisk: past the wall a write waits for room, nothing is lost, and the
// process lives on.
func TestP08FullDisk(t *testing.T) {
	faulty(t, 3, func(t *testing.T, v *virtual) {
		old := v.nodes[0]
		old.disk.setWall(&fs.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC})
		waiting := make(chan error, 1)
		go func() {
			_, _, err := old.node.Apply(t.Context(), put("x", "y"))
			waiting <- err
		}()
		gap := v.firstWrite(t, v.nodes[1:])
		t.Logf("another leads after %s", gap)
		if err := <-waiting; err == nil {
			t.Error("a write on a full disk was acknowledged")
		}
		old.disk.setWall(nil)
		index := apply(t, v.leaderOf(t, v.nodes[1:]), put("after", "room"))
		ctx, end := context.WithTimeout(t.Context(), 10*time.Second)
		defer end()
		if err := old.store.WaitIndex(ctx, index); err != nil {
			t.Error("the server does not follow after there is room:", err, old.node.disk.failure())
		}
	})
}

// TestP32LostQuorum: the survivor of three serves again, by one command, keeps all
// that was acknowledged to it, and refuses where a majority lives.
func TestP32LostQuorum(t *testing.T) {
	faulty(t, 3, func(t *testing.T, v *virtual) {
		index := apply(t, v.nodes[0].node, put("kept", "yes"))
		survivor := v.nodes[2]
		if err := survivor.store.WaitIndex(t.Context(), index); err != nil {
			t.Fatal(err)
		}
		lost := []string{v.nodes[0].id, v.nodes[1].id}
		if _, err := survivor.node.Recover(t.Context(), lost[:1]); !errors.Is(err, catalog.ErrConflict) {
			t.Error("a recovery where a majority lives:", err)
		}
		v.kill(v.nodes[0])
		v.kill(v.nodes[1])
		time.Sleep(3 * time.Second)
		for _, bad := range [][]string{nil, {survivor.id}, {"nobody", lost[0]}} {
			if _, err := survivor.node.Recover(t.Context(), bad); err == nil {
				t.Errorf("lost %v was accepted", bad)
			}
		}
		start := time.Now()
		ctx, end := context.WithTimeout(t.Context(), 30*time.Second)
		defer end()
		r, err := survivor.node.Recover(ctx, lost)
		if err != nil || len(r.Servers) != 1 || len(r.Removed) != 2 || r.LastIndex < index {
			t.Fatalf("%+v %v", r, err)
		}
		apply(t, survivor.node, put("new", "write"))
		t.Logf("writable after %s: %+v", time.Since(start), r)
		view, err := survivor.store.Read(catalog.Query{Kind: catalog.QueryKey, Name: "kept"})
		if value, _ := pairOf(view); err != nil || value != "yes" {
			t.Error("what was acknowledged is gone:", value, err)
		}
		if survivor.node.gate.lost.running() {
			t.Error("the recovery has not ended")
		}
	})
}

// TestP32LostThreeOfFive: of two survivors only the one with the longer log can
// take over, and says so.
func TestP32LostThreeOfFive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVirtual(3, time.Minute) // five servers
		v.begin = time.Now()
		for i, n := range v.nodes {
			if err := v.start(n, i == 0); err != nil {
				t.Fatal(err)
			}
		}
		defer func() {
			for _, n := range v.nodes {
				v.kill(n)
			}
			time.Sleep(time.Second)
		}()
		leader := v.nodes[0]
		waitLeader(t, leader.node)
		for _, n := range v.nodes[1:] {
			if err := leader.node.raft.AddVoter(raft.ServerID(n.id), raft.ServerAddress(n.addr), 0, patience).Error(); err != nil {
				t.Fatal(err)
			}
		}
		behind, ahead := v.nodes[3], v.nodes[4]
		index := apply(t, leader.node, put("a", "1"))
		for _, n := range v.nodes {
			if err := n.store.WaitIndex(t.Context(), index); err != nil {
				t.Fatal(err)
			}
		}
		v.cutOff(behind, true, true)
		index = apply(t, leader.node, put("a", "2"))
		if err := ahead.store.WaitIndex(t.Context(), index); err != nil {
			t.Fatal(err)
		}
		lost := []string{v.nodes[0].id, v.nodes[1].id, v.nodes[2].id}
		for _, n := range v.nodes[:3] {
			v.kill(n)
		}
		v.net.heal()
		time.Sleep(3 * time.Second)
		ctx, end := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := behind.node.Recover(ctx, lost)
		end()
		if !errors.Is(err, catalog.ErrConflict) {
			t.Error("the server that is behind took over:", err)
		}
		ctx, end = context.WithTimeout(t.Context(), 30*time.Second)
		defer end()
		r, err := ahead.node.Recover(ctx, lost)
		if err != nil || len(r.Servers) != 2 {
			t.Fatalf("%+v %v", r, err)
		}
		index = apply(t, ahead.node, put("b", "1"))
		if err := behind.store.WaitIndex(t.Context(), index); err != nil {
			t.Error(err)
		}
		view, err := behind.store.Read(catalog.Query{Kind: catalog.QueryKey, Name: "a"})
		if value, _ := pairOf(view); err != nil || value != "2" {
			t.Error(value, err)
		}
		for _, f := range append(v.faults, v.net.faults...) {
			t.Error(f)
		}
	})
}
