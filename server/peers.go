package server

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

const (
	// maxPeers bounds the connections to other servers that are kept, but for those to
	// servers in Raft.
	maxPeers = 64
	// peerReady is how long a connection to a server may take to be there.
	peerReady = 2 * time.Second
)

// peers are the connections to the other servers, made when first needed. Each is to
// the one server that proves to have the node ID which is wanted.
type peers struct {
	dial   func(ctx context.Context, id, addr string) (net.Conn, error)
	member func(id string) bool // in Raft

	mu     sync.Mutex
	conns  map[string]*peerConn // by node ID
	closed bool
}

func newPeers(dial func(ctx context.Context, id, addr string) (net.Conn, error), member func(id string) bool) *peers {
	return &peers{dial: dial, member: member, conns: map[string]*peerConn{}}
}

// at gives the connection to a server.
func (p *peers) at(id, addr string) (*peerConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errStopping
	}
	have := p.conns[id]
	if have != nil && have.addr == addr {
		return have, nil
	}
	c := &peerConn{id: id, addr: addr}
	cc, err := grpc.NewClient("passthrough:///"+addr,
		// The handshake is done by dial.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := p.dial(ctx, id, addr)
			if err != nil {
				return nil, err
			}
			h := wire.Hear(conn)
			c.heard.Store(h)
			return h, nil
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: peerReady,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 2 * time.Second}),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithStatsHandler(sentMarker{}),
	)
	if err != nil {
		return nil, fmt.Errorf("server: connection to %s: %w", addr, err)
	}
	if have != nil {
		_ = have.cc.Close()
	}
	if have == nil {
		p.makeRoom()
	}
	c.cc = cc
	p.conns[id] = c
	return c, nil
}

// makeRoom ends a connection when there are many, but none to a server in Raft: of other
// servers there may be any number, by the word of any host that speaks gossip.
func (p *peers) makeRoom() {
	if len(p.conns) < maxPeers {
		return
	}
	for id, c := range p.conns {
		if !p.member(id) {
			_ = c.cc.Close()
			delete(p.conns, id)
			return
		}
	}
}

func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for id, c := range p.conns {
		_ = c.cc.Close()
		delete(p.conns, id)
	}
}

// peerConn is a connection to another server. What goes over it is marked as passed
// on. Where there is no connection nothing is sent, and the error wraps ErrNoLeader:
// the caller may ask again.
type peerConn struct {
	cc       *grpc.ClientConn
	id, addr string
	heard    atomic.Pointer[wire.Heard] // the connection of now; nil before the first
}

// hangUp ends a connection on which nothing was heard for long.
func (c *peerConn) hangUp() {
	if h := c.heard.Load(); h != nil && h.Silent() > wire.DeadAfter {
		_ = h.Close() // gRPC sees it end, and makes another
	}
}

// forgive is for a process that did not run.
func (c *peerConn) forgive() {
	if h := c.heard.Load(); h != nil {
		h.Forgive()
	}
}

var _ grpc.ClientConnInterface = (*peerConn)(nil)

func (c *peerConn) ready(ctx context.Context) (context.Context, error) {
	waiting, cancel := context.WithTimeout(ctx, peerReady)
	defer cancel()
	for {
		state := c.cc.GetState()
		switch state {
		case connectivity.Ready:
			return passOn(ctx)
		case connectivity.Idle:
			c.cc.Connect()
		case connectivity.TransientFailure, connectivity.Shutdown:
			return nil, fmt.Errorf("%w: server %s at %s cannot be reached; nothing was sent", catalog.ErrNoLeader, c.id, c.addr)
		case connectivity.Connecting:
		}
		if !c.cc.WaitForStateChange(waiting, state) {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, fmt.Errorf("%w: server %s at %s does not answer; nothing was sent", catalog.ErrNoLeader, c.id, c.addr)
		}
	}
}

// Invoke implements grpc.ClientConnInterface.
func (c *peerConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	ctx, err := c.ready(ctx)
	if err != nil {
		return err
	}
	return c.send(ctx, method, args, reply, opts...)
}

// send makes a call on the connection as it is now: it may have ended since it was
// ready, and then no other may have come.
func (c *peerConn) send(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	var sent atomic.Bool
	err := c.cc.Invoke(context.WithValue(ctx, sentKey{}, &sent), method, args, reply, opts...)
	if status.Code(err) == codes.Unavailable && !sent.Load() {
		return fmt.Errorf("%w: server %s at %s cannot be reached; nothing was sent (%s)", catalog.ErrNoLeader, c.id, c.addr, status.Convert(err).Message())
	}
	return err
}

type sentKey struct{}

// sentMarker notes of a call that its beginning was handed to a connection: gRPC's
// errors do not tell a call that was lost from one that was never sent.
type sentMarker struct{}

var _ stats.Handler = sentMarker{}

// TagRPC implements stats.Handler.
func (sentMarker) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (sentMarker) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, is := s.(*stats.OutHeader); !is {
		return
	}
	if sent, ok := ctx.Value(sentKey{}).(*atomic.Bool); ok {
		sent.Store(true)
	}
}

// TagConn implements stats.Handler.
func (sentMarker) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (sentMarker) HandleConn(context.Context, stats.ConnStats) {}

// NewStream implements grpc.ClientConnInterface.
func (c *peerConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, err := c.ready(ctx)
	if err != nil {
		return nil, err
	}
	return c.cc.NewStream(ctx, desc, method, opts...)
}
