package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// Remote is the connection to the servers. All methods may be called from many
// goroutines. Errors wrap the sentinels of catalog.
type Remote struct {
	cfg     Config
	cc      *grpc.ClientConn
	servers wire.Servers
	metrics *metrics

	views *views
	fresh *coalescer

	closeOnce sync.Once
}

// A connection that is silent for pingAfter is asked whether it is alive, and
// dropped without an answer in pingTimeout. A stream of a server that froze, or
// that is behind a cut cable, would otherwise look as if nothing ever changed.
const (
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
)

// New prepares the connection; the first call or watch opens it.
func New(cfg Config) (*Remote, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	cc, err := grpc.NewClient("passthrough:///servers",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return cfg.Dial(ctx) }),
		grpc.WithTransportCredentials(cfg.Credentials),
		// Our own retries know which calls may be repeated; gRPC's do not.
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: pingAfter, Timeout: pingTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("remote: %w", err)
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("remote: %w", err), cc.Close())
	}
	return build(cfg, cc, wire.NewClient(cc), m), nil
}

func build(cfg Config, cc *grpc.ClientConn, servers wire.Servers, m *metrics) *Remote {
	r := &Remote{cfg: cfg, cc: cc, servers: servers, metrics: m}
	r.views = newViews(cfg, servers, m)
	r.fresh = newCoalescer(r.readOnce)
	return r
}

// Run keeps the connection until ctx ends, then ends every watch and closes it.
func (r *Remote) Run(ctx context.Context) error {
	<-ctx.Done()
	return r.Close()
}

// Close ends every watch and closes the connection. It is for a Remote that is
// never run; Run closes by itself.
func (r *Remote) Close() error {
	var err error
	r.closeOnce.Do(func() {
		r.views.close()
		r.fresh.close()
		if r.cc != nil {
			err = r.cc.Close()
		}
	})
	return err
}

// Connected tells whether there is a connection to a server now.
func (r *Remote) Connected() bool {
	return r.cc == nil || r.cc.GetState() == connectivity.Ready
}

// Watch gives the answers to q as they change, from the view that all watchers of
// q share. Its indexes are View.Index until a backup is restored; from then on
// they are larger, so that they never fall. Errors are those that no retry mends.
func (r *Remote) Watch(q catalog.Query) catalog.Watch[*catalog.View] {
	return &watch{views: r.views, key: viewKey{query: q}}
}

// Sync states what is on this host (local.Syncer).
func (r *Remote) Sync(ctx context.Context, want catalog.NodeState) (uint64, error) {
	rep, err := retry(ctx, r, "sync", retryAny, func(ctx context.Context) (*wire.SyncReply, error) {
		return r.servers.Sync(ctx, &wire.SyncRequest{State: want})
	})
	if err != nil {
		return 0, err
	}
	return rep.Index, nil
}

// Apply puts a command through the log. It is tried again only where it is sure
// that the first try changed nothing; ErrUnavailable means that the outcome is
// not known.
func (r *Remote) Apply(ctx context.Context, req *wire.ApplyRequest) (*wire.ApplyReply, error) {
	return retry(ctx, r, "apply", retryNoLeader, func(ctx context.Context) (*wire.ApplyReply, error) {
		return r.servers.Apply(ctx, req)
	})
}

// Sign issues a leaf certificate.
func (r *Remote) Sign(ctx context.Context, req *wire.SignRequest) (*wire.SignReply, error) {
	return retry(ctx, r, "sign", retryAny, func(ctx context.Context) (*wire.SignReply, error) {
		return r.servers.Sign(ctx, req)
	})
}

// SetCAConfig changes the certificate authority. A rotation is not repeated when
// its outcome is not known.
func (r *Remote) SetCAConfig(ctx context.Context, req *wire.SetCAConfigRequest) (*wire.SetCAConfigReply, error) {
	return retry(ctx, r, "set_ca_config", retryNoLeader, func(ctx context.Context) (*wire.SetCAConfigReply, error) {
		return r.servers.SetCAConfig(ctx, req)
	})
}

// Txn does a transaction. One that only reads is tried again as reads are, others
// as Apply.
func (r *Remote) Txn(ctx context.Context, req *wire.TxnRequest) (*wire.TxnReply, error) {
	rule := retryNoLeader
	if req.Txn.ReadOnly() {
		rule = retryAny
	}
	return retry(ctx, r, "txn", rule, func(ctx context.Context) (*wire.TxnReply, error) {
		return r.servers.Txn(ctx, req)
	})
}

// RenewSession lets the TTL of a session begin anew.
func (r *Remote) RenewSession(ctx context.Context, req *wire.RenewSessionRequest) (*wire.RenewSessionReply, error) {
	return retry(ctx, r, "renew_session", retryAny, func(ctx context.Context) (*wire.RenewSessionReply, error) {
		return r.servers.RenewSession(ctx, req)
	})
}

// Status asks a server about itself; while there is no leader it says so at once.
func (r *Remote) Status(ctx context.Context, req *wire.StatusRequest) (*wire.StatusReply, error) {
	return retry(ctx, r, "status", retryNone, func(ctx context.Context) (*wire.StatusReply, error) {
		return r.servers.Status(ctx, req)
	})
}
