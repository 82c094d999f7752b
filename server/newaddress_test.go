//go:build !race

package server

import "testing"

// Raft 1.8 has a data race where an address changes while entries are sent
// (ARCHITECTURE.md): this runs beside the benchmarks, which have no race detector.

// TestNewAddress: a server that comes back at another address is followed there.
func TestNewAddress(t *testing.T) {
	f := newFleet(t, 3)
	f.change, f.wander = quick, true
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	lead := f.leader()
	mover := 1 + lead%3
	old := f.nodes[mover].server.cfg.Addr
	f.down(mover)
	f.up(mover) // every start takes a free port
	now := f.nodes[mover].server.cfg.Addr
	if old == now {
		t.Fatal("the same address")
	}
	f.until("the list has the new address", func() bool { return f.peers(f.leader())[idOf(mover)].Address == now })
	f.put(mover, "k", "x")
}
