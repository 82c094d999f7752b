package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
)

// cluster starts three nodes over transports in memory; the first leads.
func cluster(t *testing.T, edits ...func(*Config)) []*Node {
	t.Helper()
	const size = 3
	var transports []*raft.InmemTransport
	for i := range size {
		_, tr := raft.NewInmemTransport(raft.ServerAddress(fmt.Sprintf("10.0.0.%d:8300", i+1)))
		transports = append(transports, tr)
	}
	var nodes []*Node
	for i, tr := range transports {
		for _, other := range transports {
			tr.Connect(other.LocalAddr(), other)
		}
		cfg := config(t, "")
		cfg.NodeID, cfg.Addr, cfg.Transport = fmt.Sprintf("node-%d", i+1), string(tr.LocalAddr()), tr
		cfg.Bootstrap = i == 0
		cfg.Timers = Timers{Heartbeat: 100 * time.Millisecond}
		for _, edit := range edits {
			edit(&cfg)
		}
		n, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		nodes = append(nodes, n)
	}
	waitLeader(t, nodes[0])
	for i := 1; i < size; i++ {
		id, addr := raft.ServerID(nodes[i].cfg.NodeID), transports[i].LocalAddr()
		if err := nodes[0].raft.AddVoter(id, addr, 0, patience).Error(); err != nil {
			t.Fatal(err)
		}
	}
	return nodes
}

// TestHandover: a leader that stops hands over, what it acknowledged is there, and
// the new leader's first read shows it.
func TestHandover(t *testing.T) {
	nodes := cluster(t)
	var index uint64
	for i := range 50 {
		index = apply(t, nodes[0], register(i))
	}
	if _, err := nodes[1].ReadIndex(t.Context()); !errors.Is(err, catalog.ErrNoLeader) {
		t.Error("a follower proved that it leads:", err)
	}
	if _, _, err := nodes[1].Apply(t.Context(), register(1)); !errors.Is(err, catalog.ErrNoLeader) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- nodes[0].Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	next := anyLeader(t, nodes[1:])
	got, err := next.ReadIndex(t.Context())
	if err != nil || got < index {
		t.Errorf("the new leader reads at %d, written was %d: %v", got, index, err)
	}
	if addr, self, err := next.Leader(); err != nil || !self || addr != next.cfg.Addr {
		t.Error(addr, self, err)
	}
	if i := apply(t, next, register(99)); i <= index {
		t.Errorf("the index fell from %d to %d", index, i)
	}
}

// TestP06NoWriteIsInDoubt: leadership goes when the writes that Raft has are answered,
// or after a while; those that come meanwhile are refused as not begun. Before and after
// they are carried out.
func TestP06NoWriteIsInDoubt(t *testing.T) {
	const answered = drainWrites / 2
	for name, takes := range map[string]time.Duration{"answered": answered, "never answered": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes := cluster(t)
				apply(t, nodes[0], register(1))
				if !nodes[0].writes.begin() { // as a write that Raft has
					t.Fatal("a write is refused at rest")
				}
				over := time.AfterFunc(takes, nodes[0].writes.end)
				defer over.Stop()
				begin := time.Now()
				done := make(chan error, 1)
				go func() { done <- nodes[0].TransferLeadership(t.Context(), "") }()
				time.Sleep(answered / 2)
				if _, _, err := nodes[0].Apply(t.Context(), register(2)); !errors.Is(err, catalog.ErrNoLeader) {
					t.Errorf("a write while leadership is handed over: %v", err)
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				if took, least := time.Since(begin), min(takes, drainWrites); took < least {
					t.Errorf("leadership went after %s, with a write in doubt until %s", took, least)
				}
				apply(t, anyLeader(t, nodes[1:]), register(3))
			})
		})
	}
}

func anyLeader(t *testing.T, nodes []*Node) *Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found := make(chan *Node, len(nodes))
	for _, n := range nodes {
		go func() {
			for at := uint64(0); ; {
				l, i, err := n.Leadership().Next(ctx, at)
				if err != nil {
					return
				}
				if at = i; l.Leading {
					found <- n
					return
				}
			}
		}()
	}
	select {
	case n := <-found:
		return n
	case <-ctx.Done():
		t.Fatal("nobody leads")
		return nil
	}
}

// part cuts the first node off from the others.
func part(t *testing.T, nodes []*Node) {
	t.Helper()
	for _, n := range nodes {
		for _, other := range nodes {
			if (n == nodes[0]) != (other == nodes[0]) {
				wires(t, n).Disconnect(other.witness.LocalAddr())
			}
		}
	}
}

func wires(t *testing.T, n *Node) *raft.InmemTransport {
	t.Helper()
	tr, ok := n.cfg.Transport.(*raft.InmemTransport)
	if !ok {
		t.Fatal("not the transport of this test")
	}
	return tr
}

// TestDeposedLeaderDoesNotAnswer: cut off from the others, a leader can prove
// nothing any more, and does not acknowledge.
func TestDeposedLeaderDoesNotAnswer(t *testing.T) {
	nodes := cluster(t)
	index := apply(t, nodes[0], register(1))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, n := range nodes { // all know of each other, and can elect
		if err := n.cfg.Store.WaitIndex(ctx, index); err != nil {
			t.Fatal(err)
		}
	}
	part(t, nodes)
	term := nodes[0].Term()
	if got, err := nodes[0].ReadIndexFor(t.Context(), "node-2", term); err == nil && got < index {
		t.Error("a follower's word gave", got)
	}
	for id, term := range map[string]uint64{"node-1": term, "nobody": term, "node-3": 0, "node-2": term + 1} {
		if _, err := nodes[0].ReadIndexFor(t.Context(), id, term); !errors.Is(err, catalog.ErrNoLeader) {
			t.Errorf("read for %s in term %d: %v", id, term, err)
		}
	}
	if _, err := nodes[0].ReadIndex(t.Context()); !errors.Is(err, catalog.ErrNoLeader) {
		t.Error("read:", err)
	}
	short, end := context.WithTimeout(t.Context(), 2*time.Second)
	defer end()
	if _, _, err := nodes[0].Apply(short, register(2)); err == nil {
		t.Error("a minority acknowledged a write")
	}
	next := anyLeader(t, nodes[1:])
	index = apply(t, next, register(3))
	if _, err := next.ReadIndex(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := nodes[0].ReadIndexFor(t.Context(), "node-2", nodes[1].Term()); !errors.Is(err, catalog.ErrNoLeader) {
		t.Error("a server of the new term vouches for the old leader:", err)
	}
	if got, err := next.ReadIndexFor(t.Context(), "node-1", nodes[0].Term()); err != nil || got < index {
		t.Error("read for a server in an older term:", got, err)
	}
}

// TestReadOfAnEntryThatTheLeaderHasToApply: a follower may apply an entry, and show
// it, before the leader's own store does. Whoever reads after that must see it, too.
func TestReadOfAnEntryThatTheLeaderHasToApply(t *testing.T) {
	var slow atomic.Bool
	held, release := make(chan struct{}), make(chan struct{})
	nodes := cluster(t, func(cfg *Config) {
		if leads := cfg.Bootstrap; leads {
			cfg.hooks.observe = func(uint64, []byte) {
				if slow.CompareAndSwap(true, false) {
					close(held)
					<-release
				}
			}
		}
	})
	index := apply(t, nodes[0], register(1))
	slow.Store(true)
	done := make(chan error, 1)
	go func() {
		_, _, err := nodes[0].Apply(context.Background(), register(2))
		done <- err
	}()
	<-held
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := nodes[1].cfg.Store.WaitIndex(ctx, index+1); err != nil {
		t.Fatal(err)
	}
	shown := nodes[1].cfg.Store.Index()
	if got, err := nodes[0].ReadIndexFor(ctx, "node-3", nodes[0].Term()); err != nil || got < shown {
		t.Errorf("a follower shows entry %d, and another reads at %d: %v", shown, got, err)
	}
	if got, err := nodes[0].ReadIndex(ctx); err != nil || got < shown {
		t.Errorf("a follower shows entry %d, and the leader reads at %d: %v", shown, got, err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got, err := nodes[0].ReadIndex(ctx); err != nil || got != nodes[0].cfg.Store.Index() {
		t.Errorf("at rest the leader reads at %d, its store is at %d: %v", got, nodes[0].cfg.Store.Index(), err)
	}
}

// TestCaughtUpFollower: what Raft has handed over and the store does not show yet is
// missed still. A revocation may be among it.
func TestCaughtUpFollower(t *testing.T) {
	var slow atomic.Bool
	release := make(chan struct{})
	nodes := cluster(t, func(cfg *Config) {
		if cfg.NodeID == "node-2" {
			cfg.hooks.observe = func(uint64, []byte) {
				if slow.CompareAndSwap(true, false) {
					<-release
				}
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := nodes[1].cfg.Store.WaitIndex(ctx, apply(t, nodes[0], register(1))); err != nil {
		t.Fatal(err)
	}
	slow.Store(true)
	index := apply(t, nodes[0], register(2))
	for nodes[1].raft.AppliedIndex() < index {
		if time.Sleep(time.Millisecond); ctx.Err() != nil {
			t.Fatal("the follower does not get the entry")
		}
	}
	nodes[1].past = index // as if it had been restarted with it
	soon, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if err := nodes[1].CaughtUp(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("caught up (%v) with the store at %d of %d", err, nodes[1].cfg.Store.Index(), index)
	}
	close(release)
	if err := nodes[1].CaughtUp(ctx); err != nil || nodes[1].cfg.Store.Index() < index {
		t.Errorf("%v, the store is at %d of %d", err, nodes[1].cfg.Store.Index(), index)
	}
}

// lateTransport holds back the replies to heartbeats while it is told to.
type lateTransport struct {
	*raft.InmemTransport
	gate atomic.Pointer[chan struct{}]
	held chan struct{}
}

func (l *lateTransport) AppendEntries(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := l.InmemTransport.AppendEntries(id, to, args, resp)
	if gate := l.gate.Load(); gate != nil && err == nil {
		l.held <- struct{}{}
		<-*gate
	}
	return err
}

// TestLateReplyIsNoProof: replies to heartbeats that were sent before a read began
// say nothing about who led when it began.
func TestLateReplyIsNoProof(t *testing.T) {
	_, inner := raft.NewInmemTransport("a:1")
	_, peer := raft.NewInmemTransport("b:1")
	inner.Connect("b:1", peer)
	go func() {
		for range 2 {
			rpc := <-peer.Consumer()
			rpc.Respond(&raft.AppendEntriesResponse{Term: 7, Success: true}, nil)
		}
	}()
	late := &lateTransport{InmemTransport: inner, held: make(chan struct{}, 1)}
	gate := make(chan struct{})
	late.gate.Store(&gate)
	w := newWitness(late)
	ask := func() error {
		return w.AppendEntries("b", "b:1", &raft.AppendEntriesRequest{Term: 7}, &raft.AppendEntriesResponse{})
	}
	done := make(chan error, 1)
	go func() { done <- ask() }()
	<-late.held
	since := time.Now()
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	two := []raft.Server{{ID: "a"}, {ID: "b"}}
	most := func(voters []raft.Server, term uint64) bool {
		proved, _ := w.majority(voters, "a", term, since)
		return proved
	}
	if most(two, 7) {
		t.Error("a reply to an earlier question counts")
	}
	late.gate.Store(nil)
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	if !most(two, 7) || most(two, 8) {
		t.Error("a reply to a later question in its term does not count, or one of another term does")
	}
	if !most(two[:1], 9) {
		t.Error("a lone voter is its own majority")
	}
}
