package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/enroll"
	"github.com/weftmesh/weft/server/consensus"
	"github.com/weftmesh/weft/server/mux"
)

const (
	// dialTimeout bounds a connection to another server, its handshake included.
	dialTimeout = 3 * time.Second
	// askTimeout bounds a question to another server.
	askTimeout = 2 * time.Second
	// catchUpWait is how long an agent is kept waiting by a server that has just come.
	catchUpWait = 5 * time.Second
	// stepDownWait bounds the handing over of leadership at the end.
	stepDownWait = 3 * time.Second
)

// cluster is this server's part among the others: the port they reach it by, the
// connections to them, and how it comes into Raft.
type cluster struct {
	gate       *enroll.Gate
	cfg        Cluster
	self       catalog.Member // as far as it is known before gossip
	datacenter string
	tempo      tempo
	members    func() []catalog.Member
	doubles    func() []catalog.Member
	log        *slog.Logger
	mux        *mux.Mux
	raftIn     net.Listener
	rpcIn      net.Listener
	joinIn     net.Listener
	peers      *peers
	registrar  *registrar
	leases     *leases
	ctx        context.Context // ends when the server stops
	end        context.CancelFunc

	// Set by enter.
	raft      *consensus.Node
	store     *store.Store
	founding  *founding
	dismissed *dismissal
	lookout   *leaderless // says when nobody leads
	reads     consensus.Rounds
	entered   atomic.Bool
	current   atomic.Bool // the store is as new as that of the leader once was
}

func newCluster(cfg Config) (*cluster, error) {
	c := &cluster{
		cfg: *cfg.Cluster, datacenter: cfg.Datacenter, tempo: cfg.tempo, members: membershipOf(cfg).Members, doubles: membershipOf(cfg).Doubles, log: cfg.Logger,
		self: alone(cfg).self, leases: &leases{conns: map[string]int{}},
	}
	c.ctx, c.end = context.WithCancel(context.Background())
	c.registrar = &registrar{
		servers: c.serverAddrs, keys: cfg.Cluster.GossipKeys, members: c.members, shun: membershipOf(cfg).Shun, log: cfg.Logger, datacenter: cfg.Datacenter, current: c.revocations,
	}
	var err error
	c.mux, err = mux.New(mux.Config{
		Listener: c.cfg.Listener, Admit: c.admit, HandshakeTimeout: cfg.Port.HandshakeTimeout, MaxPerSource: cfg.Port.ConnsPerSource, Logger: cfg.Logger, Registerer: cfg.Registerer,
		TLS: sync.OnceValue(func() *tls.Config {
			return c.cfg.Credentials.Server(enroll.ProtoRPC, enroll.ProtoRaft, enroll.ProtoJoin)
		}),
	})
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	if c.gate, err = enroll.NewGate(enroll.GateConfig{
		Secret: c.cfg.Secret, Datacenter: c.datacenter, Registrar: c.registrar, Logger: c.log, Registerer: cfg.Registerer,
	}); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	c.rpcIn, c.raftIn, c.joinIn = c.mux.Listen(enroll.ProtoRPC), c.mux.Listen(enroll.ProtoRaft), c.mux.Listen(enroll.ProtoJoin)
	c.peers = newPeers(func(ctx context.Context, id, addr string) (net.Conn, error) {
		return c.dial(ctx, enroll.ProtoRPC, id, addr)
	}, c.isPeer)
	return c, nil
}

// isPeer tells whether a server is in this one's list.
func (c *cluster) isPeer(id string) bool {
	if !c.entered.Load() {
		return false
	}
	member, _ := c.raft.Member(id)
	return member
}

// close releases what is not closed by run.
func (c *cluster) close() {
	c.end()
	c.peers.close()
	_ = c.cfg.Listener.Close()
}

// admissionWait is shorter than the gate's patience, so that its answer arrives.
const admissionWait = 3 * time.Second

// revocations are all that this server knew before it was restarted, and more. The
// log is behind what was committed until a leader says so. A server that began with an
// empty disk knows nothing of them until it has what the leader has. It tells another
// server all the same, which has the secret and could give itself any name: without the
// keys of gossip they may not meet to begin a cluster.
func (c *cluster) revocations(ctx context.Context, server bool) (*catalog.View, error) {
	ctx, cancel := context.WithTimeout(ctx, admissionWait)
	defer cancel()
	caughtUp := c.caughtUp
	if server {
		caughtUp = c.raft.CaughtUp
	}
	if err := caughtUp(ctx); err != nil {
		return nil, err
	}
	return c.store.Read(catalog.Query{Kind: catalog.QueryRevocations})
}

// admit judges a connection by its certificate alone. A newcomer has none.
func (c *cluster) admit(cs tls.ConnectionState) error {
	p, err := enroll.PeerOf(cs)
	if errors.Is(err, enroll.ErrNoPeer) && cs.NegotiatedProtocol == enroll.ProtoJoin {
		return nil
	}
	if err != nil {
		return err
	}
	if cs.NegotiatedProtocol == enroll.ProtoJoin {
		return nil // a gate that says why it refuses comes next
	}
	return c.registrar.admit(p)
}

// dial connects to the server with an ID, which must prove that it is it.
func (c *cluster) dial(ctx context.Context, proto, id, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	want := enroll.Peer{Role: enroll.RoleServer, NodeID: id, Datacenter: c.datacenter}
	conn := tls.Client(raw, c.cfg.Credentials.Client(proto, want))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("server %s at %s: %w", id, addr, err), raw.Close())
	}
	return conn, nil
}

// network is what Raft needs of the cluster.
func (c *cluster) network() *consensus.Network {
	return &consensus.Network{
		Listener: c.raftIn,
		Identify: c.identify,
		Dial: func(ctx context.Context, id, addr string) (net.Conn, error) {
			return c.dial(ctx, enroll.ProtoRaft, id, addr)
		},
		Address: c.addressOf,
		Vouch:   c.vouch,
		MayVote: c.mayVote,
	}
}

func (c *cluster) identify(conn net.Conn) (string, error) {
	tc, ok := conn.(*tls.Conn)
	if !ok {
		return "", fmt.Errorf("a %T has proved nothing", conn)
	}
	p, err := enroll.PeerOf(tc.ConnectionState())
	switch {
	case err != nil:
		return "", err
	case p.Role != enroll.RoleServer:
		return p.NodeID, fmt.Errorf("%s is no server", p)
	case p.NodeID == c.self.ID:
		return p.NodeID, fmt.Errorf("%s has the node ID of this server: two servers must not share one; "+
			"stop one of them, give it another node_id and an empty data directory, and start it again", p)
	}
	return p.NodeID, c.copied(p, conn.RemoteAddr())
}

// servers are the living servers of this datacenter that gossip knows, by node ID.
// Those that share an ID are left out: nobody knows which is meant.
func (c *cluster) servers() map[string]catalog.Member {
	out := map[string]catalog.Member{}
	copies := c.copies()
	for id, all := range c.byID() {
		if len(all) == 1 {
			out[id] = c.incumbent(all[0], copies[id])
		}
	}
	return out
}

// lookUp is one of servers. Raft asks for each message, and gossip may know many.
func (c *cluster) lookUp(id string, copies []catalog.Member) (catalog.Member, bool) {
	var found []catalog.Member
	for _, m := range c.members() {
		if m.ID == id && c.serves(m) {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		return catalog.Member{}, false
	}
	return c.incumbent(found[0], copies), true
}

// serves tells whether a member is a living server of this datacenter.
func (c *cluster) serves(m catalog.Member) bool {
	return m.Status == catalog.MemberAlive && m.Tags[tagRole] == roleServer && m.ID != "" && m.Tags[tagDC] == c.datacenter
}

// clones are the names of living servers that share a node ID, by that.
func (c *cluster) clones() map[string][]string {
	out := map[string][]string{}
	for id, all := range c.byID() {
		if len(all) == 1 {
			continue
		}
		for _, m := range all {
			out[id] = append(out[id], m.Name)
		}
	}
	return out
}

func (c *cluster) byID() map[string][]catalog.Member {
	out := map[string][]catalog.Member{}
	for _, m := range c.members() {
		if c.serves(m) {
			out[m.ID] = append(out[m.ID], m)
		}
	}
	return out
}

// serverAddr is where a server is reached, by its own word; "" when it says none.
func serverAddr(m catalog.Member) string {
	port := m.Tags[tagPort]
	if port == "" || port == "0" {
		return ""
	}
	return net.JoinHostPort(m.Addr, port)
}

// serverAddrs are the addresses of this server and of those in its list. Of others, that
// say in gossip that they are servers, there may be any number by the word of one host.
func (c *cluster) serverAddrs() []string {
	out := []string{serverAddr(c.self)}
	for id, m := range c.servers() {
		if a := serverAddr(m); a != "" && id != c.self.ID && c.isPeer(id) {
			out = append(out, a)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// addressOf is where a server is by gossip, "" when that does not know it.
func (c *cluster) addressOf(id string) string {
	if m, ok := c.lookUp(id, c.copies()[id]); ok {
		return serverAddr(m)
	}
	return ""
}

// ask gives a way to ask the server with an ID, at an address where gossip knows none.
func (c *cluster) ask(id, addr string) (wire.Peers, error) {
	if now := c.addressOf(id); now != "" {
		addr = now
	}
	if addr == "" {
		return nil, catalog.NotFoundf("no address of server %s is known", id)
	}
	cc, err := c.peers.at(id, addr)
	if err != nil {
		return nil, err
	}
	return wire.NewPeersClient(cc), nil
}

// standing asks a server where it is in Raft, with marks of its log or without.
func (c *cluster) standing(ctx context.Context, id, addr string, marks bool) (*wire.StandingReply, error) {
	at, err := c.ask(id, addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	rep, err := at.Standing(ctx, &wire.StandingRequest{Marks: marks})
	if err == nil && rep.NodeID != id {
		return nil, fmt.Errorf("server %s answers with the node ID %q", id, rep.NodeID)
	}
	return rep, err
}

// standings asks many servers, given by ID and address, at once. Those that do not
// answer are missing.
func (c *cluster) standings(ctx context.Context, whom map[string]string) map[string]*wire.StandingReply {
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[string]*wire.StandingReply{}
	for id, addr := range whom {
		if id == c.self.ID {
			continue
		}
		wg.Go(func() {
			rep, err := c.standing(ctx, id, addr, false)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[id] = rep
		})
	}
	wg.Wait()
	return out
}

// vouch asks those that this server knows about one that it does not.
func (c *cluster) vouch(ctx context.Context, id string, known map[string]string) error {
	for from, rep := range c.standings(ctx, known) {
		if from == id {
			continue
		}
		for _, p := range rep.Peers {
			if p.ID == id {
				return nil
			}
		}
	}
	return errors.New("it is not among the servers of this cluster, and none of those says that it is; " +
		"if all of them were replaced while this one was away, move the raft folder and the raft-id file out of its data directory and start it again")
}

// Tags by which servers find each other.
const (
	tagDC     = "dc"
	tagExpect = "expect"
)

// serve runs the port until ctx ends, but for RPC.
func (c *cluster) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts := []func(context.Context) error{
		c.mux.Run, c.cfg.Credentials.Run,
		func(ctx context.Context) error { return c.gate.Serve(ctx, c.joinIn) },
	}
	done := make(chan error, len(parts))
	for _, part := range parts {
		go func() { done <- part(ctx) }()
	}
	var first error
	for range parts {
		if err := <-done; err != nil && ctx.Err() == nil {
			first = fmt.Errorf("server: the server port: %w", err)
		}
		cancel()
	}
	return first
}
