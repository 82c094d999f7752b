package remote

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// Remote is the connection to the servers. All methods may be called from many
// goroutines. Errors wrap the sentinels of catalog.
type Remote struct {
	cfg     Config
	links   *links // nil in tests that call a server directly
	servers wire.Servers
	metrics *metrics

	views *views
	fresh *coalescer
	// leaderless notices a server that lost touch with the others.
	leaderless leaderless
	pace       pace

	closeOnce sync.Once
}

// New prepares the connection; the first call or watch opens it.
func New(cfg Config) (*Remote, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	l, err := newLinks(cfg)
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("remote: %w", err), l.close())
	}
	return build(cfg, l, wire.NewClient(l), m), nil
}

func build(cfg Config, l *links, servers wire.Servers, m *metrics) *Remote {
	r := &Remote{cfg: cfg, links: l, servers: servers, metrics: m, leaderless: leaderless{due: make(chan struct{}, 1)}}
	r.SetLimits(cfg.CallTimeout, cfg.Rate, cfg.Burst)
	r.views = newViews(cfg, servers, m, l.next)
	r.fresh = newCoalescer(r.readOnce)
	return r
}

// Run keeps the connection until ctx ends, then ends every watch and closes it.
// Now and then it goes over to another server of the pool, so that a server that
// was restarted gets its share again.
func (r *Remote) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	if r.cfg.Pool != nil && r.links != nil {
		wg.Go(func() { r.links.listen(ctx) })
		r.wander(ctx)
	}
	<-ctx.Done()
	wg.Wait()
	return r.Close()
}

// wander changes the server: after a while, and at once when the present one is
// no server any more or knows no leader for long.
func (r *Remote) wander(ctx context.Context) {
	for {
		t := time.NewTimer(r.cfg.Pool.stay())
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
			if len(r.cfg.Pool.Servers()) < 2 {
				continue
			}
		case <-r.leaderless.due:
			t.Stop()
			r.cfg.Logger.Warn("the server knows of no leader; another one is asked", "addr", r.links.server())
		case <-r.cfg.Pool.news:
			t.Stop()
			if addr := r.links.server(); addr == "" || r.cfg.Pool.holds(addr) {
				continue
			}
		}
		if err := r.links.move(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Logger.Debug("the server was not changed", "err", err)
		}
	}
}

// Close ends every watch and closes the connection. It is for a Remote that is
// never run; Run closes by itself.
func (r *Remote) Close() error {
	var err error
	r.closeOnce.Do(func() {
		r.views.close()
		r.fresh.close()
		if r.links != nil {
			err = r.links.close()
		}
	})
	return err
}

// Connected tells whether there is a connection to a server now.
func (r *Remote) Connected() bool {
	return r.links == nil || r.links.connected()
}

// Server is the address of the server that is spoken to, or was last; "" for none
// and for the one in this process.
func (r *Remote) Server() string {
	if r.links == nil {
		return ""
	}
	return r.links.server()
}

// Reached gives a channel that is closed at the next new connection to a server.
func (r *Remote) Reached() <-chan struct{} { return r.links.next() }

// Watch gives the answers to q as they change, from the view that all watchers of
// q share. Its indexes are View.Index until a backup is restored; from then on
// they are larger, so that they never fall. Errors are those that no retry mends.
func (r *Remote) Watch(q catalog.Query) catalog.Watch[*catalog.View] {
	return &watch{views: r.views, key: viewKey{query: q}}
}

// Sync states what is on this host (local.Syncer). It is tried once: who states it has
// perhaps something newer to say by the time that servers answer again.
func (r *Remote) Sync(ctx context.Context, want catalog.NodeState) (uint64, error) {
	rep, err := retry(ctx, r, "sync", retryNone, func(ctx context.Context) (*wire.SyncReply, error) {
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

// signPatience is how much longer a certificate may take: after a change of root the
// leader signs for everybody at once, and who gives up and asks again makes it longer.
const signPatience = 3

// Sign issues a leaf certificate.
func (r *Remote) Sign(ctx context.Context, req *wire.SignRequest) (*wire.SignReply, error) {
	return retryIn(ctx, r, "sign", retryAny, signPatience*r.pace.callTimeout(), func(ctx context.Context) (*wire.SignReply, error) {
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
