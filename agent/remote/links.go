package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft/catalog"
)

// A connection that is silent for pingAfter is asked whether it is alive, and
// dropped without an answer in pingTimeout. A stream of a server that froze, or
// that is behind a cut cable, would otherwise look as if nothing ever changed.
const (
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
	// connectTimeout bounds one attempt to reach another server.
	connectTimeout = 10 * time.Second
	// seekTimeout bounds the search for any server. While they are silent, and do not
	// refuse, it is one search, which asks again and again.
	seekTimeout = time.Minute
)

// watchStream is the stream that is opened again elsewhere when its link retires;
// other streams carry something that must not be cut, and end by themselves.
const watchStream = "Watch"

// links is the connection to the servers: one link at a time, replaced by another
// without failing a call. It is the grpc.ClientConnInterface of all clients.
type links struct {
	cfg Config

	mu      sync.Mutex
	cur     *link
	reached chan struct{} // closed and replaced at each new connection
	closed  bool
}

// link is one connection, to whichever server answered. It closes once it is
// retired and the calls on it have ended.
type link struct {
	cc     *grpc.ClientConn
	addr   atomic.Pointer[string] // of the server; nil before the first connection
	life   context.Context
	retire context.CancelFunc

	mu    sync.Mutex
	calls int
	gone  bool // retired: the last call closes it
}

func newLinks(cfg Config) (*links, error) {
	l := &links{cfg: cfg, reached: make(chan struct{})}
	var err error
	l.cur, err = l.open("")
	return l, err
}

// open prepares a link that prefers any server but the one at avoid.
func (l *links) open(avoid string) (*link, error) {
	k := &link{}
	k.life, k.retire = context.WithCancel(context.Background())
	var err error
	k.cc, err = grpc.NewClient("passthrough:///servers",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return l.dial(ctx, k, avoid)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the dialler has secured it
		// Our own retries know which calls may be repeated; gRPC's do not.
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: pingAfter, Timeout: pingTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: seekTimeout,
		}),
	)
	if err != nil {
		k.retire()
		return nil, fmt.Errorf("remote: %w", err)
	}
	return k, nil
}

func (l *links) dial(ctx context.Context, k *link, avoid string) (net.Conn, error) {
	if l.cfg.Pool == nil {
		return l.cfg.Dial(ctx)
	}
	if was := k.addr.Load(); was != nil {
		avoid = *was // it was just lost
	}
	c, addr, err := l.cfg.Pool.dial(ctx, avoid)
	if err != nil {
		return nil, err
	}
	k.addr.Store(&addr)
	l.cfg.Logger.Info("connected to a server", "addr", addr)
	l.mu.Lock()
	close(l.reached)
	l.reached = make(chan struct{})
	l.mu.Unlock()
	return c, nil
}

// next is closed at the next new connection: whoever pauses since there was none need
// not pause any longer.
func (l *links) next() <-chan struct{} {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reached
}

// Invoke implements grpc.ClientConnInterface.
func (l *links) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	k := l.take()
	if k == nil {
		return errLinksClosed
	}
	defer k.give()
	return k.cc.Invoke(ctx, method, args, reply, opts...)
}

// NewStream implements grpc.ClientConnInterface.
func (l *links) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	k := l.take()
	if k == nil {
		return nil, errLinksClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := func() bool { return true }
	if desc.StreamName == watchStream {
		stop = context.AfterFunc(k.life, cancel)
	}
	s, err := k.cc.NewStream(ctx, desc, method, opts...)
	if err != nil {
		stop()
		cancel()
		k.give()
		return nil, err
	}
	// gRPC ends the context of a stream when the stream ends, for whatever reason.
	context.AfterFunc(s.Context(), func() {
		stop()
		cancel()
		k.give()
	})
	return s, nil
}

var errLinksClosed = status.Error(codes.Unavailable, "the agent is stopping")

func (l *links) take() *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.cur.mu.Lock()
	defer l.cur.mu.Unlock()
	l.cur.calls++
	return l.cur
}

func (k *link) give() {
	k.mu.Lock()
	k.calls--
	last := k.gone && k.calls == 0
	k.mu.Unlock()
	if last {
		_ = k.cc.Close() // nothing runs on it
	}
}

// end retires the link: its watches are opened again elsewhere, its other calls
// may finish.
func (k *link) end() {
	k.retire()
	k.mu.Lock()
	idle := !k.gone && k.calls == 0
	k.gone = true
	k.mu.Unlock()
	if idle {
		_ = k.cc.Close() // nothing runs on it
	}
}

// move goes over to another server, if one other than the present one answers.
func (l *links) move(ctx context.Context) error {
	from := l.server()
	next, err := l.open(from)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := next.ready(ctx); err != nil {
		next.end()
		return err
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		next.end()
		return errLinksClosed
	}
	if to := next.addr.Load(); to != nil && *to == from && l.cur.cc.GetState() == connectivity.Ready {
		l.mu.Unlock()
		next.end() // no other answers
		return nil
	}
	old := l.cur
	l.cur = next
	l.mu.Unlock()
	old.end()
	return nil
}

// ready waits until the link is connected.
func (k *link) ready(ctx context.Context) error {
	k.cc.Connect()
	for {
		switch s := k.cc.GetState(); s {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return fmt.Errorf("remote: no other server answers: %w", catalog.ErrUnavailable)
		default:
			if !k.cc.WaitForStateChange(ctx, s) {
				return fmt.Errorf("remote: no other server answers: %w", errors.Join(catalog.ErrUnavailable, context.Cause(ctx)))
			}
		}
	}
}

// server is the address of the server that is spoken to, or was last; "" for none.
func (l *links) server() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.cur.addr.Load(); a != nil {
		return *a
	}
	return ""
}

func (l *links) connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cur.cc.GetState() == connectivity.Ready
}

func (l *links) close() error {
	l.mu.Lock()
	l.closed = true
	k := l.cur
	l.mu.Unlock()
	k.retire()
	return k.cc.Close()
}
