package dns

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// staleCounted is from what age on an answer counts as stale in the metrics.
const staleCounted = 5 * time.Second

// readTimeout bounds a read that this host cannot answer by itself. Clients wait
// about five seconds: told sooner that nobody knows, they ask another resolver,
// and names that nobody knows leave room for those that somebody does.
const readTimeout = 2 * time.Second

// viewTimeout is how long a view may take to get its first answer.
const viewTimeout = 500 * time.Millisecond

// ViewsConfig configures NewViews.
type ViewsConfig struct {
	// Reader is the way to the servers. Required.
	Reader interface {
		Read(ctx context.Context, req *wire.ReadRequest) (*wire.ReadReply, error)
	}
	// Watch gives views that are kept current on this host, for UseCache.
	Watch func(catalog.Query) catalog.Watch[*catalog.View]
	// Token is sent with reads; nil: none. It is asked each time, since it may be
	// set while the agent runs.
	Token func() string

	// AllowStale lets any server answer, or this host when none does.
	AllowStale bool
	// MaxStale is how old such an answer may be before the leader is asked. 0: no bound.
	MaxStale time.Duration
	// UseCache answers from views that stay on this host and are kept current by
	// the servers. It holds with AllowStale and without a token alone.
	UseCache bool

	Registerer prometheus.Registerer // nil: no metrics
}

// NewViews makes Views of an agent's connection to the servers, as dns_config's
// allow_stale, max_stale and use_cache ask.
func NewViews(cfg ViewsConfig) (Views, error) {
	if cfg.Reader == nil {
		return nil, errors.New("dns: there is no way to the servers")
	}
	if cfg.Token == nil {
		cfg.Token = func() string { return "" }
	}
	v := &views{cfg: cfg, stale: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "consul_dns_stale_queries", Help: "DNS lookups answered from a view older than 5 s.",
	})}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(v.stale); err != nil {
			return nil, err
		}
	}
	return v, nil
}

type views struct {
	cfg   ViewsConfig
	stale prometheus.Counter
}

// Read implements Views.
func (v *views) Read(ctx context.Context, q catalog.Query) (*catalog.View, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	token := v.cfg.Token()
	if v.cfg.UseCache && v.cfg.AllowStale && token == "" && v.cfg.Watch != nil {
		soon, stop := context.WithTimeout(ctx, viewTimeout)
		view, _, err := v.cfg.Watch(q).Next(soon, 0)
		stop()
		// With more queries than views a server is asked; with no answer yet, after a
		// start without servers, what was kept on disk may do.
		if !errors.Is(err, catalog.ErrTooLarge) && !errors.Is(err, context.DeadlineExceeded) {
			return view, err
		}
	}
	req := &wire.ReadRequest{Token: token, Query: q, Consistency: wire.Default}
	if v.cfg.AllowStale {
		req.Consistency = wire.Stale
	}
	rep, err := v.cfg.Reader.Read(ctx, req)
	if err == nil && v.cfg.AllowStale && v.cfg.MaxStale > 0 && rep.Meta.LastContact > v.cfg.MaxStale {
		req.Consistency = wire.Default
		rep, err = v.cfg.Reader.Read(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	if rep.Meta.LastContact > staleCounted {
		v.stale.Inc()
	}
	return rep.View, nil
}
