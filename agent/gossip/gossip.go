package gossip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/coordinate"

	"github.com/weftmesh/weft/catalog"
)

// Config configures membership.
type Config struct {
	// NodeName is the name of this member, unique in the cluster. Required.
	NodeName string
	// NodeID is the UUID of the node; it travels as the tag "id".
	NodeID string
	// BindAddr and BindPort are where gossip listens, over TCP and UDP. Port 0 takes
	// a free one. The address is required.
	BindAddr string
	BindPort int
	// AdvertiseAddr and AdvertisePort are what others are told; empty: where it listens.
	AdvertiseAddr string
	AdvertisePort int
	// Tags say what this member is: role, dc, build, port … Encoded, they fit 512 bytes.
	Tags map[string]string
	// Label separates clusters: packets of another label are dropped.
	Label string
	// SecretKeys encrypt gossip with AES (16, 24 or 32 bytes): the first encrypts, all
	// decrypt. Empty: no encryption.
	SecretKeys [][]byte
	// KeyringFile keeps the keys that operators install over a restart; once it is
	// there, SecretKeys do nothing. Empty: they are kept in memory only.
	KeyringFile string
	// AwaitKeys encrypts with a key that nobody else has while there is none, until
	// Import brings those of the cluster. Until then no member can be joined.
	AwaitKeys bool
	// Warrant says who may change the keys. Nil: whoever has one.
	Warrant Warrant
	// PeersFile keeps where other members are, for the next start. Empty: nowhere.
	PeersFile string
	// HomeFile keeps since when this host lives at its address. Empty: nowhere.
	HomeFile string
	// RejoinAfterLeave keeps them also when this host leaves.
	RejoinAfterLeave bool
	// AllowedNets, where given, are the networks from which members are accepted.
	AllowedNets []net.IPNet
	// Admit, where given, refuses members by returning an error. It must not block.
	Admit func(m catalog.Member) error
	// ReapAfter is how long members that failed or left are remembered. Default 72 hours.
	ReapAfter time.Duration
	// Pace is how fast gossip goes.
	Pace   Pace
	Logger *slog.Logger

	start time.Time // of this member
	home  int64     // since when it lives here, in milliseconds
}

// startTag says when a member started, so that of two at one address all know which is
// there. It is not shown.
const startTag = "start"

const (
	defaultReapAfter = 72 * time.Hour
	housekeeping     = 30 * time.Second
	look             = 2 * time.Second
	keepEvery        = 4 * time.Second
	leaveTimeout     = 5 * time.Second
	updateTimeout    = 5 * time.Second
)

// Validate refuses a configuration that cannot work.
func (c *Config) Validate() error {
	switch {
	case c.NodeName == "":
		return fmt.Errorf("gossip: %w: no node name", catalog.ErrInvalid)
	case strings.Contains(c.NodeName, "/"):
		return fmt.Errorf("gossip: %w: node name %q has a slash", catalog.ErrInvalid, c.NodeName)
	case len(c.NodeName) > 128:
		return fmt.Errorf("gossip: %w: node name %q has %d bytes, at most 128 are allowed", catalog.ErrInvalid, c.NodeName, len(c.NodeName))
	case net.ParseIP(c.BindAddr) == nil:
		return fmt.Errorf("gossip: %w: bind address %q is no IP address", catalog.ErrInvalid, c.BindAddr)
	case c.AdvertiseAddr != "" && net.ParseIP(c.AdvertiseAddr) == nil:
		return fmt.Errorf("gossip: %w: advertise address %q is no IP address", catalog.ErrInvalid, c.AdvertiseAddr)
	}
	for _, k := range c.SecretKeys {
		if err := memberlist.ValidateKey(k); err != nil {
			return fmt.Errorf("gossip: %w: encryption key: %w", catalog.ErrInvalid, err)
		}
	}
	_, err := encodeTags(c.tags())
	return err
}

func (c *Config) tags() map[string]string {
	out := make(map[string]string, len(c.Tags)+1)
	for k, v := range c.Tags {
		out[k] = v
	}
	if c.NodeID != "" {
		out["id"] = c.NodeID
	}
	if !c.start.IsZero() {
		out[startTag] = strconv.FormatInt(c.start.UnixMilli(), 36)
	}
	if c.home != 0 {
		out[homeTag] = strconv.FormatInt(c.home, 36)
	}
	return out
}

// address is what others are told, "" where the port is whichever is free.
func (c *Config) address() string {
	addr, port := c.AdvertiseAddr, c.AdvertisePort
	if addr == "" {
		addr = c.BindAddr
	}
	if port == 0 {
		port = c.BindPort
	}
	if port == 0 {
		return ""
	}
	return net.JoinHostPort(addr, strconv.Itoa(port))
}

// claim is what this node is to memberlist. Where the address does not tell one start
// from another, chance does.
func (c *Config) claim() string {
	return claimOf(c.NodeName, cmp.Or(c.address(), strconv.FormatUint(rand.Uint64(), 36)))
}

// Gossip is this node's membership.
type Gossip struct {
	cfg      Config
	log      *slog.Logger
	list     *memberlist.Memberlist
	table    *table
	claim    string // what this node is to memberlist
	outgoing *memberlist.TransmitLimitedQueue
	keys     *keyring // nil: gossip is not encrypted
	peers    *peers
	vivaldi  *coordinate.Client // places this host by the times that probes take
	received chan []byte
	relayed  relayed

	talks  sync.WaitGroup // answers under way to other members
	life   sync.Mutex     // memberlist panics when it leaves after it was shut down
	closed bool

	mu    sync.Mutex
	meta  []byte
	home  home
	left  bool
	ended bool
}

// New binds, and is a cluster of one until Join. Close it unless Run is called.
func New(cfg Config) (*Gossip, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.ReapAfter <= 0 {
		cfg.ReapAfter = defaultReapAfter
	}
	cfg.start = time.Now()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	at := openHome(&cfg, cfg.address(), cfg.start)
	cfg.home = at.Since
	meta, err := encodeTags(cfg.tags())
	if err != nil {
		return nil, err
	}
	claim := cfg.claim()
	g := &Gossip{
		cfg: cfg, log: cfg.Logger, meta: meta, table: newTable(claim, cfg.Logger), claim: claim, home: at, received: make(chan []byte, maxReceived),
	}
	if g.peers, err = openPeers(cfg.PeersFile); err != nil {
		g.log.Warn("the members known last cannot be read", "file", cfg.PeersFile, "err", err)
	}
	if g.keys, err = openKeyring(cfg); err != nil {
		return nil, err
	}
	if g.vivaldi, err = coordinate.NewClient(coordinate.DefaultConfig()); err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	g.outgoing = &memberlist.TransmitLimitedQueue{NumNodes: g.table.size, RetransmitMult: retransmitMult}
	settings := g.settings()
	port, err := listen(settings)
	if err != nil {
		return nil, fmt.Errorf("gossip: cannot listen on %s: %w", net.JoinHostPort(cfg.BindAddr, strconv.Itoa(cfg.BindPort)), explainListen(err))
	}
	settings.Transport = port
	g.home.settle(g.log)
	list, err := memberlist.Create(settings)
	if err != nil {
		_ = port.Shutdown()
		return nil, fmt.Errorf("gossip: %w", err)
	}
	g.list = list
	port.begin()
	return g, nil
}

// explainListen finds the cause again in an error that the library has flattened.
func explainListen(err error) error {
	switch text := err.Error(); {
	case strings.Contains(text, syscall.EADDRINUSE.Error()):
		return fmt.Errorf("%w: stop the process that has the port, or set ports.serf_lan", syscall.EADDRINUSE)
	case strings.Contains(text, syscall.EADDRNOTAVAIL.Error()):
		return fmt.Errorf("%w: bind_addr must be an address of this host", syscall.EADDRNOTAVAIL)
	}
	return err
}

const retransmitMult = 8

// settings are memberlist's for a LAN, changed so that a join is known to all in
// seconds. Failure detection keeps its defaults: shorter ones take busy hosts for
// dead.
func (g *Gossip) settings() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.claim
	c.BindAddr, c.BindPort = g.cfg.BindAddr, g.cfg.BindPort
	c.AdvertiseAddr = g.cfg.AdvertiseAddr
	c.AdvertisePort = g.cfg.AdvertisePort
	if c.AdvertisePort == 0 {
		c.AdvertisePort = g.cfg.BindPort
	}
	c.Label = g.cfg.Label
	c.RetransmitMult = retransmitMult
	c.PushPullInterval = 15 * time.Second
	c.GossipNodes = 4
	c.SuspicionMult = 4
	c.AwarenessMaxMultiplier = 8
	c.ProbeTimeout = 500 * time.Millisecond
	c.DeadNodeReclaimTime = 30 * time.Second
	g.cfg.Pace.apply(c)
	c.UDPBufferSize = 1400
	// Packets are filled before they are compressed, so that would save bytes, not
	// packets, and costs a writer of 80 KiB for each: most of what gossip costs.
	c.EnableCompression = false
	c.HandoffQueueDepth = 4096
	c.CIDRsAllowed = g.cfg.AllowedNets
	if g.keys != nil {
		c.Keyring = g.keys.ring
	}
	c.LogOutput = nil
	c.Logger = log.New(newLogAdapter(g.log), "", 0)
	d := &delegate{g: g}
	c.Delegate, c.Events, c.Conflict, c.Ping = d, d, d, d
	if g.cfg.Admit != nil {
		c.Alive, c.Merge = d, d
	}
	return c
}

// Run keeps membership until ctx ends: it forgets members that are long gone, tries
// failed ones again, which heals partitions, and keeps where the others are for the
// next start. It then stops without a word to the others; Leave says goodbye.
func (g *Gossip) Run(ctx context.Context) error {
	defer g.Close()
	var retries sync.WaitGroup
	defer retries.Wait()
	tick := time.NewTicker(look)
	defer tick.Stop()
	var kept, tidied time.Time
	for {
		select {
		case <-ctx.Done():
			g.keepPeers()
			return nil
		case now := <-tick.C:
			if now.Sub(kept) >= keepEvery {
				kept = now
				g.keepPeers()
			}
			seldom := now.Sub(tidied) >= housekeeping
			if seldom {
				tidied = now
				g.table.reap(now.Add(-g.cfg.ReapAfter))
				g.table.clashes(now)
			}
			for _, addr := range g.lost(seldom) {
				retries.Go(func() {
					if _, err := g.list.Join([]string{addr}); err == nil {
						g.log.Info("a member answers again", "addr", addr)
					}
				})
			}
		}
	}
}

// lost are the addresses to try now: of one failed member, seldom; of some that were
// there once, often, while this host is alone.
func (g *Gossip) lost(seldom bool) []string {
	if g.hasLeft() {
		return nil
	}
	if !seldom && !g.Alone() {
		return nil
	}
	members := g.table.members()
	var addrs, shunned []string
	for _, m := range members {
		if g.table.shuns(m.ID) {
			shunned = append(shunned, addrOf(m))
		}
	}
	for _, p := range g.peers.without(members) {
		addrs = append(addrs, p.Addr)
	}
	for _, m := range members {
		if a := addrOf(m); m.Status == catalog.MemberFailed && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	addrs = slices.DeleteFunc(addrs, func(a string) bool { return slices.Contains(shunned, a) })
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	if g.Alone() {
		return addrs[:min(len(addrs), 3)]
	}
	return addrs[:min(len(addrs), 1)]
}

// Servers counts the servers beside this host that are alive, and those that were
// once and are not, though they did not leave.
func (g *Gossip) Servers() (alive, missing int) {
	members := g.table.members()
	for _, m := range members {
		if m.Status == catalog.MemberAlive && m.Name != g.cfg.NodeName && m.Tags["role"] == "consul" {
			alive++
		}
	}
	for _, p := range g.peers.without(members) {
		if p.Server {
			missing++
		}
	}
	return alive, missing
}

// Knock tells whether a member listens at an address, by a connection on which it says
// no more than which cluster it is of: one that says nothing is logged there as a
// stranger's.
func (g *Gossip) Knock(ctx context.Context, addr string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_ = memberlist.AddLabelHeaderToStream(c, g.cfg.Label) // that it was accepted is the answer
	return c.Close()
}

func (g *Gossip) keepPeers() {
	if g.hasLeft() {
		return
	}
	if err := g.peers.keep(g.table.members(), g.cfg.NodeName, g.cfg.ReapAfter, time.Now()); err != nil {
		g.log.Warn("the members are not kept for the next start", "file", g.cfg.PeersFile, "err", err)
	}
}

// Alone tells whether no other member is alive, as far as this one knows.
func (g *Gossip) Alone() bool { return g.table.size() <= 1 }

// Peers are the addresses at which members were last, also before this start.
func (g *Gossip) Peers() []string { return g.peers.addrs() }

// Close stops gossip without leaving.
func (g *Gossip) Close() {
	g.life.Lock()
	defer g.life.Unlock()
	if g.closed {
		return
	}
	g.closed = true
	if err := g.list.Shutdown(); err != nil {
		g.log.Warn("gossip did not stop cleanly", "err", err)
	}
	g.mu.Lock()
	g.ended = true
	g.mu.Unlock()
	g.talks.Wait()
}

// Addr is the address that other members are told, "host:port".
func (g *Gossip) Addr() string { return g.list.LocalNode().Address() }

// Members gives all members, this one first, the others by name. Members that
// failed or left stay until they are reaped.
func (g *Gossip) Members() []catalog.Member { return g.table.members() }

// Doubles gives the living hosts that have name and ID of one that Members gives: copies
// of that, or one that has moved and is not missed at its old address yet.
func (g *Gossip) Doubles() []catalog.Member { return g.table.doubles() }

// Changed has a value whenever the members changed since the last one was taken.
// It is for one reader.
func (g *Gossip) Changed() <-chan struct{} { return g.table.changed }

// Join meets other members by their addresses, "host:port" or "host" with this
// member's own port. It tells how many it reached; the error is of those that it did
// not, and is nil when any was reached.
func (g *Gossip) Join(ctx context.Context, addrs []string) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, context.Cause(ctx)
	}
	targets := make([]string, 0, len(addrs))
	for _, a := range addrs {
		targets = append(targets, g.withPort(a))
	}
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := g.list.Join(targets)
		done <- result{n, err}
	}()
	select {
	case <-ctx.Done():
		return 0, fmt.Errorf("gossip: joining %v: %w", addrs, context.Cause(ctx))
	case r := <-done:
		if r.n == 0 && r.err != nil {
			return 0, fmt.Errorf("gossip: joining %v: %w", addrs, oneLine(r.err))
		}
		if r.err != nil {
			g.log.Warn("some members could not be joined", "err", oneLine(r.err))
		}
		return r.n, nil
	}
}

func (g *Gossip) withPort(addr string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	host := addr
	if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
		host = host[1 : len(host)-1]
	}
	return net.JoinHostPort(host, strconv.Itoa(int(g.list.LocalNode().Port)))
}

// Leave tells the others that this member goes, so that they do not take it for
// failed. Membership stops with Run.
func (g *Gossip) Leave(ctx context.Context) error {
	g.life.Lock()
	defer g.life.Unlock()
	if g.closed || g.hasLeft() {
		return nil
	}
	g.mu.Lock()
	g.left = true
	g.mu.Unlock()
	timeout := leaveTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	if timeout <= 0 {
		return fmt.Errorf("gossip: leaving: %w", context.DeadlineExceeded)
	}
	if !g.cfg.RejoinAfterLeave {
		if err := g.peers.forget(); err != nil {
			g.log.Warn("the members stay kept for the next start", "file", g.cfg.PeersFile, "err", err)
		}
	}
	g.spread(intent{Name: g.cfg.NodeName, Claim: g.claim, At: time.Now().UnixMilli()})
	if err := g.list.Leave(timeout); err != nil {
		return fmt.Errorf("gossip: leaving: %w", err)
	}
	g.table.set(g.cfg.NodeName, catalog.MemberLeft)
	return nil
}

func (g *Gossip) hasLeft() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.left
}

// ForceLeave makes all members take a failed one for one that left; prune makes
// them forget it. One that is alive is refused, unless it is shunned: it would only come
// back.
func (g *Gossip) ForceLeave(name string, prune bool) error {
	m, ok := g.table.get(name)
	switch {
	case !ok:
		return fmt.Errorf("member %s: %w", name, catalog.ErrNotFound)
	case name == g.cfg.NodeName:
		return fmt.Errorf("member %s: %w: it is this agent, which leaves by `weft leave`", name, catalog.ErrInvalid)
	case m.Status == catalog.MemberAlive:
		return fmt.Errorf("member %s: %w: it is alive; run `weft leave` there", name, catalog.ErrConflict)
	}
	g.applyIntent(intent{Name: name, Prune: prune, At: time.Now().UnixMilli()})
	return nil
}

// Shun takes members with some IDs for failed from now on, whether they live or not, in
// place of those that it was told before: they are sent no keys, and may be forced to leave.
// Who is not among them any more and lives is alive again.
func (g *Gossip) Shun(who func(id string) bool) { g.table.setShun(who) }

// SetTags replaces the tags of this member and tells the others.
func (g *Gossip) SetTags(tags map[string]string) error {
	next := g.cfg
	next.Tags = tags
	meta, err := encodeTags(next.tags())
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.meta = meta
	g.mu.Unlock()
	if err := g.list.UpdateNode(updateTimeout); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("gossip: tags are not known to all yet: %w", err)
	}
	return nil
}

func addrOf(m catalog.Member) string {
	return net.JoinHostPort(m.Addr, strconv.Itoa(int(m.Port)))
}
