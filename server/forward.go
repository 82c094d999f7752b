package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// leader gives the connection to the leader.
func (c *cluster) leader() (*peerConn, error) {
	if c.dismissed.is() { // Raft may believe in the leader for a moment longer
		return nil, errDismissed
	}
	id, addr := c.raft.LeaderID()
	if id == "" {
		return nil, catalog.ErrNoLeader
	}
	if now := c.addressOf(id); now != "" {
		addr = now
	}
	return c.peers.at(id, addr)
}

var errDismissed = fmt.Errorf("this server was removed from the cluster; restart it to let it join again, or ask another: %w", catalog.ErrNoLeader)

const (
	// leaderHold is how long a request waits here for the others to elect a leader.
	leaderHold = 3 * time.Second
	// leaderAgain is how often such a request looks for one.
	leaderAgain = 20 * time.Millisecond
	// doubtEvery is how often a request that is under way looks who leads.
	doubtEvery = 100 * time.Millisecond
	// deposedGrace is how long a server that leads no more may take to say what
	// became of a request.
	deposedGrace = 500 * time.Millisecond
)

// leaderConn goes to whoever leads. A request that nobody has acted on, as nobody
// leads or the leader that this server believes in is gone, waits for the next leader.
type leaderConn struct{ c *cluster }

var _ grpc.ClientConnInterface = leaderConn{}

// Invoke implements grpc.ClientConnInterface.
func (l leaderConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	end := time.Now().Add(leaderHold)
	for {
		cc, err := l.c.leader()
		if err == nil {
			err = l.ask(ctx, cc, method, args, reply, opts...)
		}
		if err == nil || !errors.Is(wire.FromStatus(err), catalog.ErrNoLeader) || time.Now().After(end) {
			return err
		}
		t := time.NewTimer(leaderAgain)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-l.c.ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
	}
}

// NewStream implements grpc.ClientConnInterface.
func (l leaderConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	cc, err := l.c.leader()
	if err != nil {
		return nil, err
	}
	return cc.NewStream(ctx, desc, method, opts...)
}

// ask asks a server for as long as it may still lead. One that froze, or whose cable
// was cut, never answers, and nobody else can say what became of the request: who
// only looks asks the next leader, others are told that the outcome is not known.
func (l leaderConn) ask(ctx context.Context, cc *peerConn, method string, args, reply any, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	_, looks := args.(*wire.ReadIndexRequest)
	d := &doubt{at: cc, leads: l.c.raft.LeaderID, looks: looks, giveUp: cancel, seen: time.Now()}
	d.mu.Lock()
	d.timer = time.AfterFunc(doubtEvery, d.look)
	d.mu.Unlock()
	defer d.end()
	err := cc.Invoke(ctx, method, args, reply, opts...)
	if gone := context.Cause(ctx); err != nil && errors.Is(gone, errSilent) {
		return gone
	}
	return err
}

// errSilent is why a server is not waited for any longer.
var errSilent = errors.New("it led, and does not answer")

// doubt looks, while a request is under way, whether its answer may yet come.
type doubt struct {
	at     *peerConn
	leads  func() (id, addr string)
	looks  bool // the request changes nothing
	giveUp context.CancelCauseFunc

	mu    sync.Mutex
	timer *time.Timer
	ended bool
	seen  time.Time // when this was looked at last
	other time.Time // since when another leads, zero when none does
	none  time.Time // since when nobody leads
}

func (d *doubt) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	d.timer.Stop()
}

func (d *doubt) look() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return
	}
	now := time.Now()
	if now.Sub(d.seen) > 5*doubtEvery { // this process did not run: it cannot have heard
		d.at.forgive()
		d.other, d.none = time.Time{}, time.Time{}
	}
	d.seen = now
	d.at.hangUp()
	if err := d.judge(now); err != nil {
		d.giveUp(err)
		return
	}
	d.timer.Reset(doubtEvery)
}

// judge says why the answer is not waited for, nil while it is.
func (d *doubt) judge(now time.Time) error {
	since := func(at *time.Time, is bool) time.Duration {
		switch {
		case !is:
			*at = time.Time{}
			return -1
		case at.IsZero():
			*at = now
		}
		return now.Sub(*at)
	}
	id, _ := d.leads()
	other, none := since(&d.other, id != "" && id != d.at.id), since(&d.none, id == "")
	switch {
	case d.looks && other >= 0:
		return fmt.Errorf("%w: server %s: %w", catalog.ErrNoLeader, d.at.id, errSilent)
	case other > deposedGrace, none > leaderHold:
		return fmt.Errorf("%w: the outcome is not known: server %s: %w", catalog.ErrUnavailable, d.at.id, errSilent)
	}
	return nil
}

// leaderIndex asks the leader for its ReadIndex.
func (c *cluster) leaderIndex() (uint64, error) {
	ctx, cancel := context.WithTimeout(c.ctx, leaderHold)
	defer cancel()
	rep, err := wire.NewPeersClient(leaderConn{c}).ReadIndex(ctx, &wire.ReadIndexRequest{Term: c.raft.Term()})
	if err != nil {
		return 0, err
	}
	return rep.Index, nil
}
