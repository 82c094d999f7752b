package consensus

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
)

// rebased gives a backup of a state as an operator's restore gets it.
func rebased(t *testing.T, leader *Node, old *bytes.Buffer) (fresh *bytes.Buffer, index uint64) {
	t.Helper()
	fresh, index = new(bytes.Buffer), leader.NextBackup()
	if err := leader.cfg.Store.Rebase(old, fresh, index); err != nil {
		t.Fatal(err)
	}
	return fresh, index
}

func backupOf(t *testing.T, n *Node) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	if err := n.cfg.Store.Backup().Write(&b); err != nil {
		t.Fatal(err)
	}
	return &b
}

// TestReadsAfterARestore: once a backup is restored, nobody takes the state of a server
// that does not have it yet for new enough, whoever leads.
func TestReadsAfterARestore(t *testing.T) {
	nodes := cluster(t)
	apply(t, nodes[0], register(1))
	old := backupOf(t, nodes[0])
	var last uint64
	for i := range 50 {
		last = apply(t, nodes[0], register(2+i))
	}
	late := *bytes.NewBuffer(bytes.Clone(old.Bytes()))
	if err := nodes[0].Restore(t.Context(), &late, last, int64(late.Len())); !errors.Is(err, catalog.ErrUnavailable) {
		t.Fatal("a backup in place of entries that are in the log:", err)
	}
	fresh, index := rebased(t, nodes[0], old)
	if err := nodes[0].Restore(t.Context(), fresh, index, int64(fresh.Len())); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		index, err := nodes[0].ReadIndexFor(t.Context(), n.cfg.NodeID, n.Term())
		if err != nil || index <= last {
			t.Fatalf("%s reads at %d, which states of before have, too (%d): %v", n.cfg.NodeID, index, last, err)
		}
		shows(t, n, index, 1)
	}
	if marks := nodes[0].Marks(); len(marks) < 2 || nodes[0].Foreign(marks, nodes[0].raft.AppliedIndex()) {
		t.Errorf("the log is told by %d entries, or not known again", len(marks))
	}
	shows(t, nodes[1], apply(t, nodes[0], register(2)), 2)
}

// shows waits until a node has applied an entry, and counts its hosts.
func shows(t *testing.T, n *Node, index uint64, hosts int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.cfg.Store.WaitIndex(ctx, index); err != nil {
		t.Fatal(n.cfg.NodeID, err)
	}
	if v, err := n.cfg.Store.Read(catalog.Query{Kind: catalog.QueryNodes}); err != nil || len(v.Nodes) != hosts {
		t.Errorf("%s shows %d hosts, not %d: %v", n.cfg.NodeID, len(v.Nodes), hosts, err)
	}
}

// TestRestoreThatNobodyElseGot: a leader that is cut off has restored a backup, and the
// others go on without it, at the indexes that the backup took. When it hears of that it
// stops, and is as the others are when it has started again, whether it ran all the time
// or was killed meanwhile.
func TestRestoreThatNobodyElseGot(t *testing.T) {
	for name, killed := range map[string]bool{"ran on": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			nodes := cluster(t, func(cfg *Config) { cfg.DataDir = filepath.Join(dir, cfg.NodeID) })
			old := backupOf(t, nodes[0])
			for i := range 20 {
				apply(t, nodes[0], register(i))
			}
			if err := nodes[0].Backup(t.Context()); err != nil {
				t.Fatal(err)
			}
			last := apply(t, nodes[0], register(20))
			for _, n := range nodes {
				shows(t, n, last, 21)
			}
			part(t, nodes)
			fresh, index := rebased(t, nodes[0], old)
			if err := nodes[0].Restore(t.Context(), fresh, index, int64(fresh.Len())); err == nil {
				t.Fatal("a minority restored a backup")
			}
			shows(t, nodes[0], index, 0)
			again := func() {
				if err := nodes[0].Close(); err != nil && !errors.Is(err, nodes[0].disk.failure()) {
					t.Fatal(err)
				}
				nodes[0], _ = reopen(t, nodes[0])
			}
			if killed {
				again()
				shows(t, nodes[0], index, 0)
			}
			next := anyLeader(t, nodes[1:])
			for i := range 5 {
				apply(t, next, register(100+i))
			}
			join := func() {
				for _, n := range nodes[1:] {
					wires(t, n).Connect(nodes[0].witness.LocalAddr(), wires(t, nodes[0]))
					wires(t, nodes[0]).Connect(n.witness.LocalAddr(), wires(t, n))
				}
			}
			join()
			select {
			case <-nodes[0].disk.failed:
			case <-time.After(patience):
				t.Fatal("a leader without the backup was followed")
			}
			if err := nodes[0].disk.failure(); !strings.Contains(err.Error(), "leaves that backup out") {
				t.Error(err)
			}
			again()
			join()
			last = apply(t, anyLeader(t, nodes), register(200))
			for _, n := range nodes {
				shows(t, n, last, 27)
			}
			if a, b := nodes[0].cfg.Store.Fingerprint(), next.cfg.Store.Fingerprint(); a != b {
				t.Error("the states differ")
			}
		})
	}
}

// reopen starts a node that was closed on its disk anew, in touch with nobody.
func reopen(t *testing.T, old *Node) (*Node, *raft.InmemTransport) {
	t.Helper()
	cfg := old.cfg
	_, tr := raft.NewInmemTransport(old.witness.LocalAddr())
	cfg.Store, cfg.Transport, cfg.Bootstrap = newStore(t), tr, false
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() }) // it may have ended
	return n, tr
}

// TestCaughtUpAfterARestore: the leader that restored a backup keeps the log that it had
// before. Where it was stopped before another command came, it catches up all the same.
func TestCaughtUpAfterARestore(t *testing.T) {
	dir := t.TempDir()
	nodes := cluster(t, func(cfg *Config) { cfg.DataDir = filepath.Join(dir, cfg.NodeID) })
	old := backupOf(t, nodes[0])
	apply(t, nodes[0], register(1))
	fresh, index := rebased(t, nodes[0], old)
	if err := nodes[0].Restore(t.Context(), fresh, index, int64(fresh.Len())); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		shows(t, n, index, 0)
	}
	part(t, nodes)
	if err := nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	next := anyLeader(t, nodes[1:])
	n, tr := reopen(t, nodes[0])
	for _, other := range nodes[1:] {
		wires(t, other).Connect(tr.LocalAddr(), tr)
		tr.Connect(other.witness.LocalAddr(), wires(t, other))
	}
	shows(t, n, apply(t, next, register(2)), 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.CaughtUp(ctx); err != nil {
		t.Errorf("it has what the leader has, and has not caught up: %v", err)
	}
}
