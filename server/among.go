package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/consensus"
)

// enter gives the cluster its part of Raft.
func (c *cluster) enter(raft *consensus.Node, st *store.Store) {
	c.raft, c.store = raft, st
	if v, err := st.Read(catalog.Query{Kind: catalog.QueryRevocations}); err == nil {
		c.registrar.know(v)
	} else {
		c.log.Error("what is revoked cannot be read; nobody is let in until it can", "err", err)
	}
	c.current.Store(!raft.Fresh())
	c.reads.Ask = c.leaderIndex
	c.founding = &founding{
		self: c.self.ID, expect: c.cfg.Expect, cluster: c, fresh: raft.Fresh, begin: raft.Begin, now: time.Now, log: c.log,
	}
	c.entered.Store(true)
	c.lookout = &leaderless{self: c.self.ID, peers: raft.Servers, standings: c.standings, log: c.log, leads: func() (string, bool) {
		id, _ := raft.LeaderID()
		return id, id != "" || raft.Fresh() || c.dismissed.is()
	}}
	c.dismissed = &dismissal{self: c.self.ID, raft: raft, cluster: c, tempo: c.tempo, log: c.log}
}

// mayVote tells whether this server may vote. One that began with an empty disk may
// be one that lost it: until it has what the leader has, it votes for the founder of
// a new cluster only.
func (c *cluster) mayVote(candidate string, lastIndex uint64) bool {
	if !c.entered.Load() {
		return false // raft has asked before this server was put together
	}
	return c.current.Load() || c.founding.votesFor(candidate, lastIndex)
}

// follow brings a server that began with an empty disk up to date, once.
func (c *cluster) follow(ctx context.Context) {
	for !c.current.Load() {
		if err := c.caughtUp(ctx); err != nil && ctx.Err() != nil {
			return
		}
	}
}

// start runs this server's part among others, of which there are none where c is
// nil, until stop is called. What ends before is told to ended.
func (c *cluster) start(rpcs *grpc.Server, ended chan<- error) (stop func() error) {
	if c == nil {
		return func() error { return nil }
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.founding.run(ctx) })
	wg.Go(func() { c.dismissed.run(ctx) })
	wg.Go(func() { c.keepWarm(ctx) })
	wg.Go(func() { c.lookout.run(ctx) })
	wg.Go(func() { c.follow(ctx) })
	wg.Go(func() { c.registrar.settle(ctx, c.raft.CaughtUp, c.store) })
	wg.Go(func() { c.registrar.follow(ctx, c.store, c.mux.CloseIf) })
	wg.Go(func() {
		if err := c.serve(ctx); err != nil {
			ended <- err
		}
	})
	go func() { ended <- explainServing(rpcs.Serve(c.rpcIn)) }()
	return func() error {
		c.end()
		cancel()
		wg.Wait()
		c.leases.stop()
		c.peers.close()
		c.reads.Close()
		return nil
	}
}

// caughtUp waits until the store may be shown. A server that was taken into a
// cluster with an empty disk has nothing to show until it has what the leader had
// when it came.
func (c *cluster) caughtUp(ctx context.Context) error {
	waiting, cancel := context.WithTimeoutCause(ctx, catchUpWait,
		fmt.Errorf("%w: this server has not caught up with the leader yet; ask another", catalog.ErrUnavailable))
	defer cancel()
	if err := c.raft.CaughtUp(waiting); err != nil {
		return err
	}
	for pause := 10 * time.Millisecond; !c.current.Load(); pause = min(2*pause, time.Second) {
		if c.catchUp(waiting) == nil {
			c.current.Store(true)
			return nil
		}
		t := time.NewTimer(pause)
		select {
		case <-waiting.Done():
			t.Stop()
			return context.Cause(waiting)
		case <-t.C:
		}
	}
	return nil
}

func (c *cluster) catchUp(ctx context.Context) error {
	index, err := c.raft.ReadIndex(ctx)
	if errors.Is(err, catalog.ErrNoLeader) {
		index, err = c.reads.Index(ctx)
	}
	if err != nil {
		return err
	}
	return c.store.WaitIndex(ctx, index)
}

// leave takes this server out of Raft.
func (c *cluster) leave(ctx context.Context) error {
	if c == nil || c.raft.Fresh() {
		return nil
	}
	if peers, err := c.raft.Peers(); err != nil || len(peers) < 2 {
		return err
	}
	if member, _ := c.raft.Member(c.self.ID); !member {
		return nil
	}
	if _, self, err := c.raft.Leader(); err == nil && self {
		// Another leads when this one goes, so that it is that one which removes it.
		if err := c.raft.TransferLeadership(ctx, ""); err != nil {
			return fmt.Errorf("leave: %w", err)
		}
	}
	req := &wire.ChangeRaftRequest{ID: c.self.ID}
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		cc, err := c.leader()
		if err == nil {
			_, err = wire.NewOperatorsClient(cc).ChangeRaft(ctx, req)
		}
		if err == nil || errors.Is(err, catalog.ErrNotFound) {
			c.log.Info("this server left Raft")
			return nil
		}
		if !errors.Is(err, catalog.ErrNoLeader) && !errors.Is(err, catalog.ErrUnavailable) {
			return fmt.Errorf("leave: %w", err)
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("leave: %w: %w", err, context.Cause(ctx))
		case <-t.C:
		}
	}
}

// tellLost tells the leader of a host that lost its connection, for as long as that
// is news.
func (c *cluster) tellLost(node, id string) {
	ctx, cancel := context.WithTimeout(c.ctx, askTimeout)
	defer cancel()
	for {
		cc, err := c.leader()
		if err == nil {
			_, err = wire.NewPeersClient(cc).Lost(ctx, &wire.LostRequest{Node: node, NodeID: id})
		}
		if err == nil || ctx.Err() != nil {
			return // gossip will tell too
		}
		t := time.NewTimer(leaseGrace)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// stepDown lets another server lead before this one stops.
func stepDown(raft *consensus.Node, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), stepDownWait)
	defer cancel()
	if err := raft.StepDown(ctx); err != nil {
		log.Warn("leadership was not handed over; the others elect a leader when they miss this one", "err", err)
	}
}

// warmEvery is how often connections to the other servers are looked after, so that
// whoever leads next is reached at once.
const warmEvery = 2 * time.Second

func (c *cluster) keepWarm(ctx context.Context) {
	tick := time.NewTicker(warmEvery)
	defer tick.Stop()
	for {
		for id, m := range c.servers() {
			if addr := serverAddr(m); id != c.self.ID && addr != "" && c.isPeer(id) {
				if cc, err := c.peers.at(id, addr); err == nil {
					cc.cc.Connect()
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
