package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/enroll"
	"github.com/weftmesh/weft/connect/identity"
)

// quick is a tempo for tests.
func quick(_ int, cfg *Config) {
	cfg.tempo = tempo{autopilot: 50 * time.Millisecond, dead: 2 * time.Second, lonely: 500 * time.Millisecond}
	cfg.Autopilot = catalog.DefaultAutopilot()
	cfg.Autopilot.ServerStabilizationTime = 200 * time.Millisecond
	cfg.Autopilot.LastContactThreshold = time.Second
}

func (f *fleet) peers(i int) map[string]wire.RaftPeer {
	f.t.Helper()
	list, err := f.nodes[i].server.raft.Servers()
	if err != nil {
		f.t.Fatal(err)
	}
	out := map[string]wire.RaftPeer{}
	for _, p := range list {
		out[p.ID] = p
	}
	return out
}

func (f *fleet) votes(i int, by int) bool { return f.peers(by)[idOf(i)].Voter }

// TestFiveServers: two of five may go, one after the other, each time the leader,
// and nothing that was acknowledged is lost. Those that come back follow.
func TestFiveServers(t *testing.T) {
	f := newFleet(t, 5)
	for i := 1; i <= 5; i++ {
		f.up(i)
	}
	var gone []int
	for round := range 2 {
		lead := f.leader()
		for i := range f.nodes {
			f.put(i, fmt.Sprintf("r%d-%d", round, i), "x")
		}
		f.down(lead)
		gone = append(gone, lead)
	}
	lead := f.leader()
	f.put(lead, "last", "y")
	for _, i := range gone {
		f.up(i)
	}
	f.leader()
	for i := 1; i <= 5; i++ {
		f.until(fmt.Sprintf("server %d reads", i), func() bool { v, err := f.get(i, "last", wire.Default); return err == nil && v == "y" })
		for round := range 2 {
			if v, err := f.get(i, fmt.Sprintf("r%d-%d", round, lead), wire.Default); err != nil || v != "x" {
				t.Errorf("server %d lost a write of round %d: %q, %v", i, round, v, err)
			}
		}
	}
}

// TestReadsAreLinearizableOnFollowers: what one server acknowledged, every other
// shows at once, while leadership moves about.
func TestReadsAreLinearizableOnFollowers(t *testing.T) {
	f := newFleet(t, 3)
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	f.leader()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { // leadership moves
		for ctx.Err() == nil {
			for _, r := range f.nodes {
				if _, self, err := r.server.raft.Leader(); err == nil && self {
					_ = r.server.raft.TransferLeadership(ctx, "")
					break
				}
			}
			time.Sleep(500 * time.Millisecond)
		}
	})
	write := func(i int, v string) bool {
		_, err := f.nodes[i].Apply(ctx, &wire.ApplyRequest{Command: wire.Command{Command: &catalog.SetKey{
			Pair: catalog.KVPair{Key: "k", Value: []byte(v)},
		}}})
		return err == nil
	}
	const enough = 100
	reads := 0
	begin := time.Now()
	for n := 0; reads < enough && time.Since(begin) < 3*patience; n++ {
		v := fmt.Sprintf("%09d", n)
		if !write(1+n%3, v) {
			time.Sleep(5 * time.Millisecond)
			continue // the outcome is not known: the next write says
		}
		got, err := f.get(1+(n+1)%3, "k", wire.Default)
		if err != nil {
			continue
		}
		if reads++; got < v {
			t.Fatalf("read %q after the write of %q was acknowledged", got, v)
		}
	}
	cancel()
	wg.Wait()
	if reads < enough {
		t.Errorf("only %d reads succeeded", reads)
	}
}

// TestNewcomer: a server that comes later is taken in without a vote and given one;
// an agent that asks it meanwhile is not shown an empty catalog.
func TestNewcomer(t *testing.T) {
	f := newFleet(t, 1)
	f.change = quick
	f.up(1)
	f.leader()
	f.put(1, "old", "x")
	f.change = func(i int, cfg *Config) { quick(i, cfg); cfg.Cluster.Expect = 0 }
	f.up(2)
	r := f.nodes[2]
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found := errors.New("found")
	err := r.Watch(ctx, &wire.WatchRequest{Query: catalog.Query{Kind: catalog.QueryKey, Name: "old"}}, func(e *wire.WatchEvent) error {
		if e.View == nil || len(e.View.Pairs) == 0 {
			return fmt.Errorf("the first event is %+v", e)
		}
		return found
	})
	if !errors.Is(err, found) {
		t.Error(err)
	}
	f.until("the newcomer votes", func() bool { return f.votes(2, 1) })
	f.until("the mark", func() bool {
		m, err := os.ReadFile(filepath.Join(f.dirs[2], markFile))
		return err == nil && len(m) > 30
	})
	f.put(2, "new", "y")
	if v, err := f.get(1, "new", wire.Default); err != nil || v != "y" {
		t.Error(v, err)
	}
	f.up(3)
	f.until("the third votes", func() bool { return f.votes(3, 1) })
}

// TestDeadServerIsRemoved: and one that left at once; the number of voters does not
// fall under what autopilot keeps.
func TestDeadServerIsRemoved(t *testing.T) {
	f := newFleet(t, 5)
	f.change = quick
	for i := 1; i <= 5; i++ {
		f.up(i)
	}
	f.leader()
	dead := 1
	if f.leader() == dead {
		dead = 2
	}
	f.down(dead)
	lead := f.leader()
	f.until("the dead server is removed", func() bool { return len(f.peers(lead)) == 4 })
	// It comes back with its old log, is told so, and votes again.
	f.up(dead)
	f.until("it votes again", func() bool { return f.votes(dead, f.leader()) })

	leaver := 3
	if f.leader() == leaver {
		leaver = 4
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := f.nodes[leaver].server.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.peers(f.leader())[idOf(leaver)]; ok {
		t.Error("the server that left is in Raft")
	}
	f.down(leaver)
	// Leadership goes before the leader does.
	lead = f.leader()
	if err := f.nodes[lead].server.Leave(ctx); err != nil {
		t.Fatal("the leader leaves:", err)
	}
	f.down(lead)
	f.put(f.leader(), "after", "x")
}

// cuttable is a listener behind which a server cannot be reached while it is cut off.
type cuttable struct {
	net.Listener

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

func (l *cuttable) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		cut := l.cut
		l.conns = append(l.conns, c)
		l.mu.Unlock()
		if !cut {
			return c, nil
		}
		_ = c.Close()
	}
}

func (l *cuttable) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

// TestLostServerComesBack: one that autopilot removed because nobody could reach it is
// taken in again when it can be reached, although its process never ended.
func TestLostServerComesBack(t *testing.T) {
	f := newFleet(t, 5)
	doors := map[int]*cuttable{}
	f.change = func(i int, cfg *Config) {
		quick(i, cfg)
		doors[i] = &cuttable{Listener: cfg.Cluster.Listener}
		cfg.Cluster.Listener = doors[i]
	}
	for i := 1; i <= 5; i++ {
		f.up(i)
	}
	lead := f.leader()
	lost := 1 + lead%5
	f.until("it has what the leader has", f.nodes[lost].server.cluster.current.Load)
	doors[lost].set(true)
	f.town.status(nameOf(lost), catalog.MemberFailed)
	f.until("the lost server is removed", func() bool { return len(f.peers(lead)) == 4 })
	d := f.nodes[lost].server.cluster.dismissed
	f.until("it finds out", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.said })
	doors[lost].set(false)
	f.town.status(nameOf(lost), catalog.MemberAlive)
	f.until("it votes again", func() bool { return f.votes(lost, lead) })
}

// tookPart waits until a server has taken part for so long that it will know that it
// was an operator who removed it.
func (f *fleet) tookPart(i int) {
	f.t.Helper()
	d := f.nodes[i].server.cluster.dismissed
	f.until("it takes part", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return !d.since.IsZero() && time.Since(d.since) > d.tempo.lonely+d.tempo.lonely/2
	})
}

// TestRemovedServerIsTold: a server that an operator removes says so, takes part in
// nothing, and joins anew when it is started again.
func TestRemovedServerIsTold(t *testing.T) {
	f := newFleet(t, 3)
	f.change = quick
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	lead := f.leader()
	victim := 1 + lead%3
	f.put(lead, "before", "x")
	f.tookPart(victim)
	if _, err := f.nodes[lead].operators().ChangeRaft(t.Context(), &wire.ChangeRaftRequest{ID: idOf(victim)}); err != nil {
		t.Fatal(err)
	}
	f.until("it knows", func() bool { return f.nodes[victim].server.cluster.dismissed.is() })
	if _, ok := f.peers(lead)[idOf(victim)]; ok {
		t.Error("it was taken in again although nobody restarted it")
	}
	if _, err := f.nodes[victim].Apply(t.Context(), &wire.ApplyRequest{Command: wire.Command{Command: &catalog.DeleteKey{Key: "before"}}}); !errors.Is(err, catalog.ErrNoLeader) {
		t.Error("a write by the removed server:", err)
	}
	f.down(victim)
	f.up(victim)
	f.until("it votes again", func() bool { return f.votes(victim, f.leader()) })
}

// TestRemovalOutlivesLeadership: a server that an operator removed stays out also when
// another leads next, which knows nothing of it: because it was the leader that was
// removed, or because leadership moved then.
func TestRemovalOutlivesLeadership(t *testing.T) {
	f := newFleet(t, 5)
	f.change = quick
	for i := 1; i <= 5; i++ {
		f.up(i)
	}
	remove := func(victim, by int) {
		t.Helper()
		if _, err := f.nodes[by].operators().ChangeRaft(t.Context(), &wire.ChangeRaftRequest{ID: idOf(victim)}); err != nil {
			t.Fatal(err)
		}
	}
	staysOut := func(victim int) {
		t.Helper()
		f.until("it knows", func() bool { return f.nodes[victim].server.cluster.dismissed.is() })
		for i := range f.nodes {
			f.until("all know", func() bool { _, ok := f.peers(i)[idOf(victim)]; return i == victim || !ok })
		}
		if !f.nodes[victim].server.cluster.dismissed.is() {
			t.Error("it was taken in again although nobody restarted it")
		}
	}
	first := f.leader()
	for i := range f.nodes {
		f.until("all vote", f.nodes[i].server.cluster.current.Load)
		f.tookPart(i)
	}
	remove(first, first)
	staysOut(first)
	f.down(first)

	second := f.leader()
	victim := 1 + second%5
	if victim == first {
		victim = 1 + victim%5
	}
	remove(victim, second)
	if err := f.nodes[second].server.raft.TransferLeadership(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	staysOut(victim)
}

// TestRaftPort: who may speak Raft.
func TestRaftPort(t *testing.T) {
	f := newFleet(t, 3)
	f.change = func(_ int, cfg *Config) { cfg.Raft.Heartbeat = time.Second } // nobody is missed meanwhile
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	lead := f.leader()
	addr := f.nodes[lead].server.cfg.Addr
	dial := func(c *enroll.Credentials) error {
		conn, err := dialTLS(t.Context(), addr, c, enroll.ProtoRaft)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write([]byte{3}); err != nil { // TimeoutNow, without its body
			return err
		}
		_, err = conn.Read(make([]byte, 1))
		return err
	}
	server := func(secret enroll.Secret, id, dc string) *enroll.Credentials {
		c, err := enroll.NewServer(enroll.ServerConfig{Secret: secret, Node: "x", NodeID: id, Datacenter: dc})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, c := range map[string]*enroll.Credentials{
		"a server that takes no part": server(f.secret, idOf(9), "dc1"),
		"the node ID of the server":   server(f.secret, idOf(lead), "dc1"),
		"another datacenter":          server(f.secret, idOf(1+lead%3), "dc2"),
		"another cluster":             server(enroll.NewSecret(), idOf(1+lead%3), "dc1"),
		"an agent":                    f.agent(lead, "a1", idOf(7)),
	} {
		if err := dial(c); err == nil {
			t.Errorf("%s was let in", name)
		} else if errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s was kept waiting", name)
		}
	}
	// Nothing of that has moved the cluster.
	if now := f.leader(); now != lead {
		t.Error("another leads")
	}
}

// agent enrols an agent with a server and gives its credentials.
func (f *fleet) agent(i int, node, id string) *enroll.Credentials {
	f.t.Helper()
	token, err := f.secret.Mint(enroll.MintOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := enroll.NewAgent(enroll.AgentConfig{
		Dir: f.t.TempDir(), Token: func() (string, error) { return token.Text(), nil },
		Servers: func() []string { return []string{f.nodes[i].server.cfg.Addr} },
		Node:    node, NodeID: id, Datacenter: "dc1", Version: "1.2.3",
	})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := c.Enroll(ctx); err != nil {
		f.t.Fatal("enrol:", err)
	}
	return c
}

// TestAgentsSpeakForThemselves: an agent's certificate lets it state its own host,
// by whatever server, and nothing that is an operator's.
func TestAgentsSpeakForThemselves(t *testing.T) {
	f := newFleet(t, 3)
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	follower := 1 + f.leader()%3
	cc := f.client(follower, f.agent(follower, "a1", idOf(7)))
	at, ops := wire.NewClient(cc), wire.NewOperatorsClient(cc)
	state := func(node, id string) *wire.SyncRequest {
		return &wire.SyncRequest{State: catalog.NodeState{Node: &catalog.Node{ID: id, Node: node, Address: "10.0.0.7", Datacenter: "dc1"}}}
	}
	if _, err := at.Sync(t.Context(), state("a1", idOf(7))); err != nil {
		t.Error("its own host:", err)
	}
	for name, err := range map[string]error{
		"another node":       second(at.Sync(t.Context(), state("a2", idOf(7)))),
		"another ID":         second(at.Sync(t.Context(), state("a1", idOf(8)))),
		"by Apply":           second(at.Apply(t.Context(), apply(&catalog.SyncNode{State: state("s1", idOf(1)).State}))),
		"coordinates":        second(at.Apply(t.Context(), apply(&catalog.SetCoordinates{Updates: []*catalog.NodeCoordinate{{Node: "s1", Coord: catalog.Coordinate{Vec: make([]float64, 8)}}}}))),
		"autopilot":          second(at.Apply(t.Context(), apply(&catalog.SetAutopilot{Config: catalog.DefaultAutopilot()}))),
		"raft":               second(ops.ChangeRaft(t.Context(), &wire.ChangeRaftRequest{TransferLeader: true})),
		"snapshot":           ops.SaveSnapshot(t.Context(), &wire.SaveSnapshotRequest{}, func(*wire.SnapshotPiece) error { return nil }),
		"the servers' calls": second(wire.NewPeersClient(cc).Standing(t.Context(), &wire.StandingRequest{})),
	} {
		if !errors.Is(err, catalog.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	big := &catalog.SetKey{Pair: catalog.KVPair{Key: "k", Value: make([]byte, wire.MaxRequest)}}
	if _, err := at.Apply(t.Context(), apply(big)); !errors.Is(err, catalog.ErrTooLarge) && !errors.Is(err, catalog.ErrInvalid) {
		t.Error("an oversized request:", err)
	}
	if _, err := at.Status(t.Context(), &wire.StatusRequest{}); err != nil {
		t.Error("after it:", err)
	}
	if _, err := ops.RaftPeers(t.Context(), &wire.RaftPeersRequest{}); err != nil {
		t.Error("to look is allowed:", err)
	}
}

func second[T any](_ T, err error) error { return err }

func apply(cmd catalog.Command) *wire.ApplyRequest {
	return &wire.ApplyRequest{Command: wire.Command{Command: cmd}}
}

// TestRevokedNodeIsCutOff: its open connections end, and it comes back by none.
func TestRevokedNodeIsCutOff(t *testing.T) {
	f := newFleet(t, 1)
	f.up(1)
	f.leader()
	creds := f.agent(1, "a1", idOf(7))
	at := wire.NewClient(f.client(1, creds))
	broken := make(chan error, 1)
	began := make(chan struct{}, 64)
	go func() {
		broken <- at.Watch(context.WithoutCancel(t.Context()), &wire.WatchRequest{Query: catalog.Query{Kind: catalog.QueryNodes}},
			func(*wire.WatchEvent) error { began <- struct{}{}; return nil })
	}()
	<-began
	f.nodes[1].apply(&catalog.Revoke{Revocation: catalog.Revocation{Kind: catalog.RevokedNode, ID: idOf(7), Node: "a1", At: time.Now()}})
	select {
	case err := <-broken:
		if !errors.Is(err, catalog.ErrUnavailable) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the connection of the revoked node goes on")
	}
	if f.letsIn(1, creds) {
		t.Error("it connects again")
	}
	f.town.mu.Lock()
	defer f.town.mu.Unlock()
	if !f.town.shun(idOf(7)) || f.town.shun(idOf(8)) {
		t.Error("gossip was not told whom to shun")
	}
}

// letsIn tells whether a server keeps the connection of an agent.
func (f *fleet) letsIn(i int, creds *enroll.Credentials) bool {
	f.t.Helper()
	conn, err := dialTLS(f.t.Context(), f.nodes[i].server.cfg.Addr, creds, enroll.ProtoRPC)
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	// gRPC speaks first: it says its settings to whom it lets in.
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, err = conn.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		f.t.Fatal("the server neither speaks nor closes")
	}
	return err == nil
}

// TestRevokedNodeAfterRestart: a server that starts alone, without the others that could
// tell it what is committed, lets a node in no more that its log revokes.
func TestRevokedNodeAfterRestart(t *testing.T) {
	f := newFleet(t, 3)
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	lead := f.leader()
	bad, good := f.agent(lead, "a1", idOf(7)), f.agent(lead, "a2", idOf(8))
	if !f.letsIn(lead, bad) {
		t.Fatal("the node is not let in before it is revoked")
	}
	f.nodes[lead].apply(&catalog.Revoke{Revocation: catalog.Revocation{Kind: catalog.RevokedNode, ID: idOf(7), Node: "a1", At: time.Now()}})
	for i := 1; i <= 3; i++ {
		f.down(i)
	}
	f.up(lead)
	if f.letsIn(lead, bad) {
		t.Error("without a leader the revoked node is let in")
	}
	if !f.letsIn(lead, good) {
		t.Error("without a leader another node is not let in")
	}
	for i := 1; i <= 3; i++ {
		if i != lead {
			f.up(i)
		}
	}
	lead = f.leader()
	if f.letsIn(lead, bad) {
		t.Error("the revoked node is let in")
	}
	f.nodes[lead].apply(&catalog.Allow{Kind: catalog.RevokedNode, ID: idOf(7)})
	for i := 1; i <= 3; i++ {
		f.until("the node is let in again", func() bool { return f.letsIn(i, bad) })
	}
}

// TestNoSecondCluster: a server with an empty disk that is told to bootstrap does not
// begin a cluster beside one that there is.
func TestNoSecondCluster(t *testing.T) {
	f := newFleet(t, 3)
	f.change = quick
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	lead := f.leader()
	f.put(lead, "k", "x")
	for i := 4; i <= 6; i++ { // three more, with the same bootstrap_expect
		f.up(i)
	}
	for i := 4; i <= 6; i++ {
		f.until(fmt.Sprintf("server %d joined", i), func() bool { return f.votes(i, f.leader()) })
		// A new vote may cost an election, for which an agent would wait.
		f.until(fmt.Sprintf("server %d has what there is", i), func() bool { v, err := f.get(i, "k", wire.Default); return err == nil && v == "x" })
	}
}

// TestOddExpectations: servers that expect different numbers begin nothing.
func TestOddExpectations(t *testing.T) {
	f := newFleet(t, 3)
	f.change = func(i int, cfg *Config) { quick(i, cfg); cfg.Cluster.Expect = 2 + i%2 }
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	time.Sleep(3 * foundingEvery)
	for i, r := range f.nodes {
		if !r.server.raft.Fresh() {
			t.Errorf("server %d began a cluster", i)
		}
	}
	if err := f.nodes[1].server.cluster.founding.promise(&wire.PromiseRequest{Founder: idOf(1), Voters: []string{idOf(1), idOf(2), idOf(3)}}); err != nil {
		t.Fatal(err)
	}
	if err := f.nodes[1].server.cluster.founding.promise(&wire.PromiseRequest{Founder: idOf(2), Voters: []string{idOf(1), idOf(2), idOf(3)}}); !errors.Is(err, catalog.ErrConflict) {
		t.Error("it promised itself to two:", err)
	}
}

// TestRebuiltServer: a server whose host was built anew, with an empty disk and so
// another ID, takes the place of the one that was at its address, though too few voters
// remain for a dead one to be removed otherwise.
func TestRebuiltServer(t *testing.T) {
	f := newFleet(t, 3)
	f.change = quick
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	f.put(f.leader(), "old", "x")
	lost := 1 + f.leader()%3
	f.down(lost)
	const rebuilt = 9
	f.addrs[rebuilt] = f.addrs[lost]
	f.up(rebuilt)
	f.until("the rebuilt server votes", func() bool { return f.votes(rebuilt, f.leader()) })
	if all := f.peers(f.leader()); len(all) != 3 || all[idOf(lost)].ID != "" {
		t.Errorf("in Raft are %v", all)
	}
	f.until("it has what there is", func() bool { v, err := f.get(rebuilt, "old", wire.Default); return err == nil && v == "x" })
}

// TestTwoServersOneAddress: who says that it is where a living server is takes nobody's
// place.
func TestTwoServersOneAddress(t *testing.T) {
	f := newFleet(t, 3)
	f.change = quick
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	lead := f.leader()
	other := 1 + lead%3
	m := f.nodes[lead].server.cluster.servers()[idOf(other)]
	a := f.nodes[lead].server.leader.autopilot
	free, err := a.replace(t.Context(), idOf(9), m)
	if free || err != nil || len(f.peers(lead)) != 3 {
		t.Error(free, err, f.peers(lead))
	}
}

// TestLostDiskDoesNotVote: a server that comes back with an empty disk under its old
// ID helps nobody to lead who may lack what it had acknowledged. With the others back
// it is brought up to date and votes.
func TestLostDiskDoesNotVote(t *testing.T) {
	f := newFleet(t, 3)
	f.change = quick
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	lead := f.leader()
	f.put(lead, "k", "x")
	loser := 1 + lead%3
	f.down(loser)
	f.down(lead) // which hands over to the third, that cannot lead alone
	for _, r := range f.nodes {
		f.until("nobody leads", func() bool { id, _ := r.server.raft.LeaderID(); return id == "" })
	}
	f.dirs[loser] = t.TempDir()
	f.up(loser)
	time.Sleep(2 * time.Second) // many elections
	for i, r := range f.nodes {
		if id, _ := r.server.raft.LeaderID(); id != "" {
			t.Fatalf("server %d: %s leads by the vote of a server that lost its disk", i, id)
		}
	}
	f.up(lead)
	f.until("the server that lost its disk has everything", func() bool { v, err := f.get(loser, "k", wire.Default); return err == nil && v == "x" })
	f.until("and may vote", func() bool { return f.nodes[loser].server.cluster.current.Load() })
}

// TestForeignLog: a server that began a cluster of its own is not taken into another.
func TestForeignLog(t *testing.T) {
	f := newFleet(t, 1)
	f.change = quick
	f.up(2) // alone, it begins a cluster
	f.leader()
	for i := range 20 {
		f.put(2, fmt.Sprint("other-", i), "x")
	}
	f.down(2)
	dir := f.dirs[2]
	f.town, f.dirs[2] = newTown(), ""
	f.up(1)
	f.leader()
	f.put(1, "k", "x")
	f.dirs[2] = dir
	f.up(2)
	time.Sleep(time.Second)
	if _, ok := f.peers(1)[idOf(2)]; ok {
		t.Error("it was taken in")
	}
	if v, err := f.get(1, "k", wire.Default); err != nil || v != "x" {
		t.Error(v, err)
	}
	if _, ok := f.peers(2)[idOf(1)]; ok {
		t.Error("the other was taken in there")
	}
}

// TestTwoServersOneID: a server with the node ID of another is let in nowhere, and the
// cluster goes on.
func TestTwoServersOneID(t *testing.T) {
	f := newFleet(t, 3)
	f.change = quick
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	lead := f.leader()
	twin := 1 + lead%3
	f.change = func(i int, cfg *Config) {
		quick(i, cfg)
		if i == 9 {
			creds, err := enroll.NewServer(enroll.ServerConfig{Secret: f.secret, Node: nameOf(9), NodeID: idOf(twin), Datacenter: "dc1"})
			if err != nil {
				t.Fatal(err)
			}
			cfg.NodeID, cfg.Cluster.Credentials = idOf(twin), creds
		}
	}
	was := f.peers(lead)
	f.up(9)
	f.until("the leader has seen both", func() bool { return len(f.nodes[lead].server.cluster.clones()) == 1 })
	time.Sleep(10 * f.nodes[lead].server.cfg.tempo.autopilot)
	if now := f.peers(lead); len(now) != 3 || now[idOf(twin)].Address != was[idOf(twin)].Address {
		t.Errorf("the list of servers is %+v, was %+v", now, was)
	}
	if !f.nodes[9].server.raft.Fresh() {
		t.Error("the twin was taken in")
	}
	f.put(twin, "k", "x")
}

// TestSnapshotByFollower: an archive is taken and restored by way of a server that
// does not lead, and every server then has what is in it, and another epoch.
func TestSnapshotByFollower(t *testing.T) {
	f := newFleet(t, 3)
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	follower := 1 + f.leader()%3
	ops := f.nodes[follower].operators()
	f.put(follower, "k", "before")
	revoke := func(id string) {
		f.nodes[follower].apply(&catalog.Revoke{Revocation: catalog.Revocation{Kind: catalog.RevokedNode, ID: id, At: time.Now()}})
	}
	turnedAway := func(i int, id string) bool {
		return f.nodes[i].server.cluster.registrar.admit(enroll.Peer{Role: enroll.RoleAgent, Node: "a", NodeID: id, Datacenter: "dc1"}) != nil
	}
	revoke(idOf(8))
	archive := save(t, ops)
	f.put(follower, "k", "after")
	revoke(idOf(7))
	f.nodes[follower].apply(&catalog.Allow{Kind: catalog.RevokedNode, ID: idOf(8)})
	for i := 1; i <= 3; i++ {
		f.until(fmt.Sprintf("server %d lets in who is allowed", i), func() bool { return !turnedAway(i, idOf(8)) })
	}
	if err := restore(t, ops, archive); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 3; i++ {
		f.until(fmt.Sprintf("server %d has the archive", i), func() bool { v, err := f.get(i, "k", wire.Default); return err == nil && v == "before" })
		f.until(fmt.Sprintf("server %d shuts out who is revoked, and who was", i), func() bool { return turnedAway(i, idOf(7)) && turnedAway(i, idOf(8)) })
	}
	f.put(follower, "k", "again")
	for i := 1; i <= 3; i++ {
		if v, err := f.get(i, "k", wire.Default); err != nil || v != "again" {
			t.Error(i, v, err)
		}
	}
}

// TestAgentsLeaveLivingHostsAlone: what an agent may register by the catalog's API is
// its own host, and those for which no agent speaks; it gets no other agent's name.
func TestAgentsLeaveLivingHostsAlone(t *testing.T) {
	f := newFleet(t, 1)
	f.up(1)
	f.leader()
	f.town.set(catalog.Member{Name: "a2", ID: idOf(8), Addr: "10.0.0.8", Port: 8301, Status: catalog.MemberAlive, Tags: map[string]string{"role": "node", "dc": "dc1"}})
	at := wire.NewClient(f.client(1, f.agent(1, "a1", idOf(7))))
	read := func(q catalog.Query) *catalog.View {
		rep, err := at.Read(t.Context(), &wire.ReadRequest{Query: q})
		if err != nil {
			t.Fatal(err)
		}
		return rep.View
	}
	f.until("a2 is in the catalog", func() bool { return len(read(catalog.Query{Kind: catalog.QueryNodeChecks, Name: "a2"}).Checks) == 1 })

	db := &catalog.Service{ID: "db", Service: "db", Port: 1}
	node := func(name, id string) *catalog.Node {
		return &catalog.Node{ID: id, Node: name, Address: "10.0.0.66", Datacenter: "dc1"}
	}
	txn := func(op catalog.TxnOp) *wire.TxnRequest {
		return &wire.TxnRequest{Txn: catalog.Txn{Ops: []catalog.TxnOp{op}}}
	}
	var domain string
	f.until("there is an authority", func() bool {
		c := read(catalog.Query{Kind: catalog.QueryRoots}).CAConfig
		if c != nil {
			domain = catalog.TrustDomain(c.ClusterID)
		}
		return c != nil
	})
	for name, err := range map[string]error{
		"a service of another":  second(at.Apply(t.Context(), apply(&catalog.Register{Node: node("a2", ""), Service: db}))),
		"a new name of another": second(at.Apply(t.Context(), apply(&catalog.Register{Node: node("x", idOf(8))}))),
		"another goes":          second(at.Apply(t.Context(), apply(&catalog.Deregister{Node: "a2"}))),
		"its check goes":        second(at.Apply(t.Context(), apply(&catalog.Deregister{Node: "a2", CheckID: catalog.NodeCheckID}))),
		"a server goes":         second(at.Apply(t.Context(), apply(&catalog.Deregister{Node: nameOf(1)}))),
		"a node, by txn":        second(at.Txn(t.Context(), txn(catalog.TxnOp{Node: &catalog.NodeOp{Verb: catalog.TxnDelete, Node: catalog.Node{Node: "a2"}}}))),
		"a service, by txn":     second(at.Txn(t.Context(), txn(catalog.TxnOp{Service: &catalog.ServiceOp{Verb: catalog.TxnSet, Node: "a2", Service: *db}}))),
		"a check, by txn": second(at.Txn(t.Context(), txn(catalog.TxnOp{Check: &catalog.CheckOp{
			Verb: catalog.TxnSet, Check: catalog.Check{Node: "a2", CheckID: "x", Name: "x", Status: catalog.StatusCritical},
		}}))),
		"another agent's name": second(at.Sign(t.Context(), &wire.SignRequest{CSR: csrFor(t, identity.AgentID{TrustDomain: domain, Datacenter: "dc1", Node: "a2"})})),
	} {
		if !errors.Is(err, catalog.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"its own host":           second(at.Apply(t.Context(), apply(&catalog.Register{Node: node("a1", ""), Service: db}))),
		"a host without agent":   second(at.Apply(t.Context(), apply(&catalog.Register{Node: node("external", ""), Service: db}))),
		"that one again":         second(at.Apply(t.Context(), apply(&catalog.Deregister{Node: "external"}))),
		"to read others, by txn": second(at.Txn(t.Context(), txn(catalog.TxnOp{Node: &catalog.NodeOp{Verb: catalog.TxnGet, Node: catalog.Node{Node: "a2"}}}))),
		"its own name":           second(at.Sign(t.Context(), &wire.SignRequest{CSR: csrFor(t, identity.AgentID{TrustDomain: domain, Datacenter: "dc1", Node: "a1"})})),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, r := range read(catalog.Query{Kind: catalog.QueryRoots}).Roots {
		if len(r.SealedKey) > 0 {
			t.Error("an agent reads the sealed key of a root")
		}
	}
}

// TestRevokedTokenAfterRestart: a server that was restarted and hears no leader knows
// of its log only what a backup holds, and lets nobody in by a token that may have
// been revoked since.
func TestRevokedTokenAfterRestart(t *testing.T) {
	f := newFleet(t, 3)
	for i := 1; i <= 3; i++ {
		f.up(i)
	}
	lead := f.leader()
	token, err := f.secret.Mint(enroll.MintOptions{})
	if err != nil {
		t.Fatal(err)
	}
	join := func(i int) error { return f.join(i, token, idOf(7)) }
	if err := join(lead); err != nil {
		t.Fatal("a good token:", err)
	}
	_, err = f.nodes[lead].Apply(t.Context(), apply(&catalog.Revoke{Revocation: catalog.Revocation{Kind: catalog.RevokedToken, ID: token.ID, At: time.Now(), Expires: token.Expires}}))
	if err != nil {
		t.Fatal(err)
	}
	if err := join(lead); enroll.ReasonOf(err) != enroll.ReasonTokenRevoked {
		t.Error("a revoked token:", err)
	}
	for i := 1; i <= 3; i++ {
		f.down(i)
	}
	f.up(lead)
	if err := join(lead); enroll.ReasonOf(err) != enroll.ReasonUnavailable {
		t.Error("a revoked token at a server that was restarted:", err)
	}
}

func csrFor(t *testing.T, id identity.ID) []byte {
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewCSRFor(key, id)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}
