package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/ca"
)

// Log is what of consensus the handlers need.
type Log interface {
	// Apply puts a command into the log and returns its index and its result.
	Apply(ctx context.Context, cmd catalog.Command) (index uint64, result any, err error)
	// ReadIndex proves that this server leads now, and gives an index that a store
	// must have applied to show every write that was acknowledged before.
	ReadIndex(ctx context.Context) (uint64, error)
	// Leader is the leader's address and whether that is this server.
	Leader() (addr string, self bool, err error)
	// LastContact is the time since the leader was heard, negative for never.
	LastContact() time.Duration
	// Peers are the addresses of all servers.
	Peers() ([]string, error)
}

// CA is the certificate authority.
type CA interface {
	Sign(ctx context.Context, req *ca.Request) (*catalog.Leaf, error)
	// Configure checks and sets a configuration, rotates the root where that asks
	// for it, and returns the index of the change.
	Configure(ctx context.Context, cfg catalog.CAConfig) (uint64, error)
}

// Limits bound what callers may cost. Zero fields take their defaults.
type Limits struct {
	// Waiting bounds the reads and watches that wait for a change: 65536.
	Waiting int
	// MaxWait bounds how long a read waits, whatever it asks for: 10 minutes.
	MaxWait time.Duration
	// Progress is how often, at most, a watch is told that nothing changed: 1 s.
	Progress time.Duration
	// MinSessionTTL is the shortest TTL of a session: 10 s.
	MinSessionTTL time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.Waiting == 0 {
		l.Waiting = 65536
	}
	if l.MaxWait == 0 {
		l.MaxWait = 10 * time.Minute
	}
	if l.Progress == 0 {
		l.Progress = time.Second
	}
	if l.MinSessionTTL == 0 {
		l.MinSessionTTL = catalog.MinSessionTTL
	}
	return l
}

// Config configures a Handler.
type Config struct {
	Store *store.Store
	Log   Log
	CA    CA
	// Sessions are the timers of sessions; nil for none.
	Sessions Sessions
	// Authorizer finds out what the bearer of a token may do. Nil: everything.
	Authorizer func(token string) (acl.Authorizer, error)
	// Forward reaches the leader, at addr, or waits for one where none is known and addr
	// is empty. There the request's Caller is Forwarded, so
	// that it crosses once. Nil: requests that only the leader can answer fail with
	// ErrNoLeader elsewhere.
	Forward func(addr string) (wire.Servers, error)
	// LeaderIndex asks the leader, where that is another server, for its ReadIndex, so
	// that reads are answered here. Nil: they are forwarded.
	LeaderIndex func(ctx context.Context) (uint64, error)
	// Introduce is called, where this server leads, before the first statement of a
	// host that the store does not know. May be nil.
	Introduce func(ctx context.Context, node string) error
	// CaughtUp waits until the store is as it was before this server restarted; no
	// watch is told of the states before. May be nil.
	CaughtUp func(ctx context.Context) error
	// Stats adds to Status what other parts of the server count. May be nil.
	Stats  func() map[string]map[string]string
	Limits Limits
	Now    func() time.Time // nil: time.Now

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// Handler answers agents and other servers.
type Handler struct {
	cfg     Config
	log     *slog.Logger
	waiting chan struct{} // one element for each read or watch that waits
	metrics *metrics

	// revoking is held for reading while something is revoked, and locked while a restore
	// has taken along what is revoked and is not in force yet.
	revoking sync.RWMutex
}

var _ wire.Servers = (*Handler)(nil)

// New makes a Handler.
func New(cfg Config) (*Handler, error) {
	switch {
	case cfg.Store == nil:
		return nil, catalog.Invalidf("rpc: no store")
	case cfg.Log == nil:
		return nil, catalog.Invalidf("rpc: no log")
	case cfg.CA == nil:
		return nil, catalog.Invalidf("rpc: no certificate authority")
	}
	if cfg.Authorizer == nil {
		cfg.Authorizer = func(string) (acl.Authorizer, error) { return acl.AllowAll(), nil }
	}
	if cfg.Sessions == nil {
		cfg.Sessions = noTimers{}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Limits = cfg.Limits.withDefaults()
	h := &Handler{cfg: cfg, log: cfg.Logger, waiting: make(chan struct{}, cfg.Limits.Waiting)}
	m, err := newMetrics(cfg.Registerer, func() float64 { return float64(len(h.waiting)) })
	if err != nil {
		return nil, fmt.Errorf("rpc: %w", err)
	}
	h.metrics = m
	return h, nil
}

// leader gives the leader when that is another server, and nil when this one is
// to answer. The proof that it leads comes with ReadIndex or Apply.
func (h *Handler) leader(ctx context.Context) (wire.Servers, error) {
	addr, self, err := h.cfg.Log.Leader()
	alone := h.cfg.Forward == nil || CallerOf(ctx).Forwarded
	switch {
	case err != nil && (alone || !errors.Is(err, catalog.ErrNoLeader)):
		return nil, err
	case self:
		return nil, nil
	case alone:
		return nil, fmt.Errorf("%w here, %s leads", catalog.ErrNoLeader, addr)
	}
	return h.cfg.Forward(addr)
}

// wait takes a place among those that wait.
func (h *Handler) wait() (done func(), err error) {
	select {
	case h.waiting <- struct{}{}:
		return func() { <-h.waiting }, nil
	default:
		return nil, fmt.Errorf("%w: %d reads and watches wait here already, the most allowed", catalog.ErrUnavailable, cap(h.waiting))
	}
}

func (h *Handler) meta() wire.Meta {
	_, _, err := h.cfg.Log.Leader()
	return wire.Meta{KnownLeader: err == nil, LastContact: max(0, h.cfg.Log.LastContact())}
}

// Status implements wire.Servers. Who leads is for everybody to know; the
// counters are for who may look at the agent.
func (h *Handler) Status(ctx context.Context, req *wire.StatusRequest) (_ *wire.StatusReply, err error) {
	defer h.metrics.count("Status", &err)
	may, err := h.cfg.Authorizer(req.Token)
	if err != nil {
		return nil, err
	}
	rep := &wire.StatusReply{}
	rep.Leader, rep.LeaderSelf, _ = h.cfg.Log.Leader() // none known is an answer
	if rep.Peers, err = h.cfg.Log.Peers(); err != nil {
		return nil, err
	}
	if h.cfg.Stats != nil && may.Allowed(acl.Read, acl.Agent, "") {
		rep.Stats = h.cfg.Stats()
	}
	rep.Index = h.cfg.Store.Index()
	if req.Fingerprint {
		if err := CallerOf(ctx).operate("to compare what servers have stored"); err != nil {
			return nil, err
		}
		if err := h.authorize(req.Token, need{acl.Read, acl.Operator, ""}); err != nil {
			return nil, err
		}
		rep.Fingerprint = h.cfg.Store.Fingerprint()
	}
	return rep, nil
}
