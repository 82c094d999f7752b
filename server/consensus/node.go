package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
)

// Settings of Raft that are not configuration.
const (
	maxAppendEntries = 256
	snapshotsKept    = 2
	logCacheEntries  = 512
	notifyBuffer     = 16
	// closeGrace is how long Close waits for writes that are under way.
	closeGrace = time.Second
)

// Node is this server's part in Raft. All methods may be called from many goroutines.
type Node struct {
	cfg     Config
	log     *slog.Logger
	raft    *raft.Raft
	witness *witness // the transport, over gate
	gate    *gate
	inlet   *inlet
	network *network // what is under it; nil for another transport
	tuner   *tuner
	disk    *disk
	metrics *metrics

	notify     chan bool
	leadership catalog.Latest[Leadership]
	// readyTerm is the term in which this node leads and has applied all that was
	// committed in earlier ones; 0 when it does not lead.
	readyTerm atomic.Uint64
	restores  atomic.Int32 // of operators, under way here
	started   atomic.Bool  // raft is set
	reads     Rounds
	past      uint64                 // index of the last entry that the log had at the start
	due       atomic.Pointer[uint64] // index of the last command among those; nil: not known yet
	backed    uint64                 // index of the last entry that a backup had then

	halted  chan struct{} // the log cannot be followed any more
	haltErr error         // set before halted is closed

	pending  inFlight
	writes   inFlight
	closing  chan struct{} // no more work is begun
	ended    chan struct{} // Raft answers no more
	closed   sync.Once
	closeErr error
	wg       sync.WaitGroup
}

// Leadership says whether this node leads, ready to serve, and since which term.
type Leadership struct {
	Leading bool
	Term    uint64
}

// New opens the log and starts Raft. Run ends it; a caller that never runs it
// calls Close. Errors of the data directory name the file and what to do.
func New(cfg Config) (*Node, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, log: cfg.Logger,
		notify: make(chan bool, notifyBuffer), closing: make(chan struct{}), ended: make(chan struct{}), halted: make(chan struct{}),
	}
	var err error
	n.reads.Ask = n.readIndex
	if n.disk, err = openDisk(cfg); err != nil {
		return nil, err
	}
	if n.metrics, err = newMetrics(cfg.Registerer, n.disk.dog.metrics.collectors(n.disk)...); err != nil {
		return nil, errors.Join(fmt.Errorf("consensus: %w", err), n.disk.Close())
	}
	switch {
	case cfg.Network != nil:
		n.network = newNetwork(cfg, n.leads)
		cfg.Transport = n.network
		n.network.layer.configuration = n.servers
	case cfg.Transport == nil:
		cfg.Transport = loneTransport(raft.ServerAddress(cfg.Addr))
	}
	n.inlet = newInlet(cfg.Transport, n.judge, n.follows)
	n.gate = newGate(n.inlet, n.disk.dog.refuseLead)
	n.witness = newWitness(n.gate)
	if b := n.disk.base.Load(); b != nil {
		n.backed = b.index
	}
	if err := n.start(); err != nil {
		return nil, errors.Join(err, n.disk.Close(), n.witness.Close())
	}
	n.started.Store(true)
	n.inlet.serve()
	n.past = n.raft.LastIndex()
	n.watch()
	n.wg.Go(n.followLeadership)
	if n.longLog() {
		n.wg.Go(n.shorten)
	}
	if n.network != nil {
		n.network.layer.serve()
		n.network.layer.wg.Go(func() { n.network.outlive(n.network.layer.ctx, n) })
		n.wg.Go(n.attend)
	}
	if err := n.checkPast(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// loneTransport reaches nobody but this node itself.
func loneTransport(addr raft.ServerAddress) Transport {
	_, t := raft.NewInmemTransportWithTimeout(addr, 100*time.Millisecond)
	t.Connect(addr, t)
	return t
}

func (n *Node) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.cfg.NodeID)
	c.HeartbeatTimeout = n.cfg.Timers.Heartbeat
	c.ElectionTimeout = n.cfg.Timers.Election
	c.LeaderLeaseTimeout = n.cfg.Timers.Lease
	c.SnapshotInterval = n.cfg.Timers.Snapshot
	c.SnapshotThreshold = n.cfg.Log.Threshold
	c.TrailingLogs = n.cfg.Log.Trailing
	c.MaxAppendEntries = maxAppendEntries
	c.BatchApplyCh = true
	c.NoSnapshotRestoreOnStart = n.disk.restored
	c.ShutdownOnRemove = false
	c.NotifyCh = n.notify
	c.Logger = newHclog(n.log)
	return c
}

func (n *Node) start() (err error) {
	defer func() {
		// Raft panics when it cannot record its term; the reason is with the disk.
		if failure := n.disk.failure(); failure != nil {
			_ = recover()
			err = failure
		}
	}()
	conf := n.raftConfig()
	past, err := raft.HasExistingState(n.disk.logs, n.disk.stable, n.disk.snapshots)
	if err != nil {
		return n.disk.explain("read", err)
	}
	if err := n.disk.recognise(past); err != nil {
		return n.disk.explain("use", err)
	}
	if !past && n.cfg.Bootstrap {
		first := raft.Configuration{Servers: []raft.Server{{
			Suffrage: raft.Voter, ID: conf.LocalID, Address: n.witness.LocalAddr(),
		}}}
		if err := raft.BootstrapCluster(conf, n.disk.logs, n.disk.stable, n.disk.snapshots, n.witness, first); err != nil {
			return n.disk.explain("start a new cluster in", err)
		}
		past = true
	}
	if past {
		if err := n.recoverFromFile(conf); err != nil {
			return n.disk.explain("recover", err)
		}
		if err := n.disk.remember(); err != nil {
			return n.disk.explain("mark", err)
		}
	}
	fsm := &fsm{store: n.cfg.Store, log: n.log, observe: n.cfg.hooks.observe, stop: n.halt, applied: n.applied, closing: n.closing}
	n.raft, err = raft.NewRaft(conf, fsm, n.disk.logs, n.disk.stable, n.disk.snapshots, n.witness)
	if err != nil {
		return n.disk.explain("restore from", err)
	}
	n.disk.running.Store(true)
	return nil
}

// checkPast looks at who votes. A node that is the only voter need not wait to
// find out that nobody else leads.
func (n *Node) checkPast() error {
	servers, err := n.servers()
	if err != nil || len(servers) != 1 {
		return err
	}
	self := servers[0]
	if self.ID != raft.ServerID(n.cfg.NodeID) {
		return catalog.Conflictf("consensus: %s belongs to the server with node ID %s, this host's is %s; "+
			"give the host its old node_id back, or start with an empty data directory", n.disk.dir, self.ID, n.cfg.NodeID)
	}
	if self.Suffrage != raft.Voter {
		return nil
	}
	n.wg.Go(func() {
		if err := n.witness.TimeoutNow(self.ID, n.witness.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: n.header()}, &raft.TimeoutNowResponse{}); err != nil {
			n.log.Debug("the election waits for its timeout", "err", err) // only slower
		}
	})
	return nil
}

// Run serves until ctx ends, then hands leadership to another voter, if there is
// one, and closes everything. It returns an error when the disk failed.
func (n *Node) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-n.disk.failed:
		return errors.Join(n.disk.failure(), n.Close())
	case <-n.halted:
		return errors.Join(n.haltErr, n.Close())
	}
	if servers, err := n.servers(); err == nil && len(servers) > 1 && n.raft.State() == raft.Leader {
		if err := n.cede(context.Background(), n.raft.LeadershipTransfer); err != nil {
			n.log.Warn("leadership was not handed over; the others elect a leader when they miss this one", "err", err)
		}
	}
	return n.Close()
}

// applied is called when a batch is in the store.
func (n *Node) applied(index uint64) {
	if n.network != nil {
		n.network.layer.prompter.commit(index)
	}
}

// halt ends the following of the log, once.
func (n *Node) halt(err error) {
	n.haltErr = err
	n.log.Error("this server cannot follow the log any more and stops", "err", err)
	close(n.halted)
	n.cfg.OnFatal(err)
	runtime.Goexit() // raft's goroutine for the state: nothing is applied any more
}

// Close stops Raft and closes the log. It is safe to call more than once.
func (n *Node) Close() error {
	n.closed.Do(func() {
		close(n.closing)
		idle := n.pending.hold()
		select {
		case <-idle:
		case <-n.disk.failed:
		case <-n.halted:
		case <-time.After(closeGrace):
		}
		close(n.disk.closing)
		err := n.endRaft()
		close(n.ended)
		n.wg.Wait()
		n.reads.Close()
		n.leadership.Close(errStopped)
		if !errors.Is(err, errLeftBehind) {
			n.witness.wg.Wait()
			err = errors.Join(err, n.disk.Close()) // Raft has closed the transport
		}
		n.closeErr = err
	})
	return n.closeErr
}

var errStopped = unavailable("consensus: stopped")

// Leadership tells when this node begins and ceases to lead.
func (n *Node) Leadership() catalog.Watch[Leadership] { return &n.leadership }

// followLeadership drains what Raft says of leadership, which waits for it, and
// publishes it once the node is ready to serve.
func (n *Node) followLeadership() {
	for {
		select {
		case leads := <-n.notify:
			n.leadershipChanged(leads)
		case <-n.closing:
			n.readyTerm.Store(0)
			return
		}
	}
}

func (n *Node) leadershipChanged(leads bool) {
	term := n.raft.CurrentTerm()
	if !leads {
		n.readyTerm.Store(0)
		n.metrics.leading.Set(0)
		n.leadership.Publish(Leadership{Term: term})
		n.log.Info("this server leads no more", "term", term)
		return
	}
	// Everything committed in earlier terms must be in the store before the first read.
	if err := n.await(context.Background(), func() raft.Future { return n.raft.Barrier(0) }); err != nil {
		n.log.Info("leadership was lost again at once", "term", term, "err", err)
		return
	}
	if err := n.keepAddress(); err != nil {
		n.log.Warn("this server's address could not be updated", "err", err)
	}
	n.readyTerm.Store(term)
	n.metrics.leading.Set(1)
	n.leadership.Publish(Leadership{Leading: true, Term: term})
	n.log.Info("this server leads", "term", term, "index", n.cfg.Store.Index())
}

// CaughtUp waits until the store shows what this node's log held when it started.
// Before that it is in a state that was true long ago, or never: good for nothing,
// not even for readers who take old answers.
func (n *Node) CaughtUp(ctx context.Context) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		// A leader to be counts only once its barrier has gone through the store.
		if n.readyTerm.Load() != 0 || (n.raft.State() != raft.Leader && n.raft.AppliedIndex() >= n.past && n.shown()) {
			return nil
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-n.closing:
			t.Stop()
			return unavailable("this server stops")
		}
	}
}

// shown tells whether the store has the commands up to the end of the past log, all of
// which are committed. Raft calls an entry applied as soon as it has handed it over to be.
func (n *Node) shown() bool {
	if at := n.due.Load(); at != nil {
		return n.cfg.Store.Index() >= *at
	}
	for i := n.past; i > 0; i-- {
		// Below a backup the log may have a hole, and may not be that of the others.
		if b := n.disk.base.Load(); b != nil && i <= b.index {
			if n.raft.AppliedIndex() < b.index {
				return false // it came just now, and the store is yet to begin with it
			}
			break
		}
		var l raft.Log
		if err := n.disk.logs.GetLog(i, &l); err != nil {
			return false // cut off by a backup just now
		}
		if l.Type == raft.LogCommand {
			n.due.Store(&i)
			return n.cfg.Store.Index() >= i
		}
	}
	n.due.Store(new(uint64)) // what came before is in a backup that the store began with
	return true
}

// keepAddress corrects this node's own row after its address changed.
func (n *Node) keepAddress() error {
	servers, err := n.servers()
	if err != nil {
		return err
	}
	for _, s := range servers {
		if s.ID == raft.ServerID(n.cfg.NodeID) && s.Address != n.witness.LocalAddr() {
			return n.await(context.Background(), func() raft.Future {
				return n.raft.AddVoter(s.ID, n.witness.LocalAddr(), 0, 0)
			})
		}
	}
	return nil
}

func (n *Node) servers() ([]raft.Server, error) {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, err
	}
	return f.Configuration().Servers, nil
}

// header is what this node's own questions to others begin with.
func (n *Node) header() raft.RPCHeader {
	id := raft.ServerID(n.cfg.NodeID)
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: n.witness.EncodePeer(id, n.witness.LocalAddr())}
}

// leads tells whether this node leads in a term.
func (n *Node) leads(term uint64) bool {
	return n.started.Load() && n.raft.State() == raft.Leader && n.raft.CurrentTerm() == term
}

// Leader returns the address of the leader and whether that is this node. The
// error wraps catalog.ErrNoLeader when none is known.
func (n *Node) Leader() (addr string, self bool, err error) {
	id, addr := n.LeaderID()
	if addr == "" {
		return "", false, errNoLeader
	}
	return addr, id == n.cfg.NodeID, nil
}

// LastContact is the time since this node heard from the leader, 0 on the leader
// itself and a negative value when it never has.
func (n *Node) LastContact() time.Duration {
	if n.raft.State() == raft.Leader {
		return 0
	}
	at := n.raft.LastContact()
	if at.IsZero() {
		return -1
	}
	return time.Since(at)
}

// Peers gives the addresses of all servers in the configuration.
func (n *Node) Peers() ([]string, error) {
	servers, err := n.servers()
	if err != nil {
		return nil, unavailable("consensus: %w", err)
	}
	out := make([]string, 0, len(servers))
	for _, s := range servers {
		out = append(out, string(s.Address))
	}
	return out, nil
}

// Disk is how this node's disk fares.
func (n *Node) Disk() DiskState { return n.disk.dog.state(time.Now()) }

// Stats are Raft's counters, as Consul shows them.
func (n *Node) Stats() map[string]string { return n.raft.Stats() }

// Backup writes the state to the backups beside the log and truncates that. It is
// done by itself as the log grows; this does it now.
func (n *Node) Backup(ctx context.Context) error {
	err := n.await(ctx, func() raft.Future { return n.raft.Snapshot() })
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// longLog tells whether a backup is due at the start.
func (n *Node) longLog() bool {
	kept, err := n.disk.snapshots.List()
	if err != nil || len(kept) == 0 { // what is wrong with them shows when one is written or read
		return n.past >= n.cfg.Log.Threshold
	}
	return n.past >= kept[0].Index+n.cfg.Log.Threshold
}

// shorten writes a backup at the start. Raft looks at the length of the log after half a
// minute for the first time, and a process that never lives so long would have a longer
// log, and a longer start, each time.
func (n *Node) shorten() {
	if n.CaughtUp(context.Background()) != nil {
		return // this node stops
	}
	if err := n.Backup(context.Background()); err != nil && !errors.Is(err, raft.ErrRaftShutdown) {
		n.log.Warn("the log is long, and no backup could be written to shorten it; it is tried again as it grows", "last", n.past, "err", err)
	}
}

var _ io.Closer = (*Node)(nil)
