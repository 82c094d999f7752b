package server

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/mux"
)

// Modes of RequestLimits.
const (
	LimitsDisabled   = "disabled"   // requests are not counted
	LimitsPermissive = "permissive" // what is over a rate is answered, counted and logged
	LimitsEnforcing  = "enforcing"  // what is over a rate is refused, counted and logged
)

// RequestLimits bound how many requests a second this server answers, of all callers
// together. What a host says of itself, certificates, watches and what servers say to
// each other are not counted: the mesh lives on them, and each has a bound of its own.
type RequestLimits struct {
	Mode string // "": disabled
	// ReadRate and WriteRate are in requests a second; negative: no limit.
	ReadRate, WriteRate float64
}

func (l RequestLimits) validate() error {
	switch l.Mode {
	case "", LimitsDisabled, LimitsPermissive, LimitsEnforcing:
	default:
		return fmt.Errorf("server: %w: the mode of request limits is %q, want disabled, permissive or enforcing", catalog.ErrInvalid, l.Mode)
	}
	if math.IsNaN(l.ReadRate) || math.IsNaN(l.WriteRate) {
		return fmt.Errorf("server: %w: a rate of requests is no number", catalog.ErrInvalid)
	}
	return nil
}

// requestLimits enforces RequestLimits.
type requestLimits struct {
	now     atomic.Pointer[rates]
	leads   func() bool
	log     *slog.Logger
	noise   mux.Noise
	over    *prometheus.CounterVec
	dropped prometheus.Counter
}

// rates are the limits of now; nil limiters let everything pass.
type rates struct {
	mode        string
	read, write *rate.Limiter
}

func newRequestLimits(cfg Config, leads func() bool) (*requestLimits, error) {
	l := &requestLimits{
		leads: leads, log: cfg.Logger,
		over: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "consul_rpc_rate_limit_exceeded", Help: "Requests over limits.request_limits, whether they were refused or not.",
		}, []string{"limit_type", "op", "mode"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "consul_rpc_rate_limit_log_dropped", Help: "Log lines about requests over limits.request_limits that were left out.",
		}),
	}
	l.set(cfg.Requests)
	if cfg.Registerer == nil {
		return l, nil
	}
	for _, c := range []prometheus.Collector{l.over, l.dropped} {
		if err := cfg.Registerer.Register(c); err != nil {
			return nil, fmt.Errorf("server: %w", err)
		}
	}
	return l, nil
}

func (l *requestLimits) set(r RequestLimits) {
	if r.Mode == "" {
		r.Mode = LimitsDisabled
	}
	l.now.Store(&rates{r.Mode, limiterOf(r.ReadRate), limiterOf(r.WriteRate)})
}

// limiterOf lets a second's worth come at once.
func limiterOf(perSecond float64) *rate.Limiter {
	if perSecond < 0 || math.IsInf(perSecond, 1) {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), int(min(math.Ceil(perSecond), math.MaxInt32)))
}

// kindOf says what a request is limited as; op is "" for one that is not.
func kindOf(req any) (op string, write bool) {
	switch r := req.(type) {
	case *wire.ReadRequest:
		return "Read", false
	case *wire.ApplyRequest:
		return "Apply", true
	case *wire.TxnRequest:
		return "Txn", !r.Txn.ReadOnly()
	case *wire.RenewSessionRequest:
		return "RenewSession", true
	case *wire.SetCAConfigRequest:
		return "SetCAConfig", true
	default:
		return "", false
	}
}

// calls is a grpc.UnaryServerInterceptor.
func (l *requestLimits) calls(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := l.allow(ctx, req); err != nil {
		return nil, wire.ToStatus(err)
	}
	return next(ctx, req)
}

func (l *requestLimits) allow(ctx context.Context, req any) error {
	r := l.now.Load()
	if r.mode == LimitsDisabled {
		return nil
	}
	op, write := kindOf(req)
	limiter, kind := r.read, "global/read"
	if write {
		limiter, kind = r.write, "global/write"
	}
	if op == "" || limiter == nil || limiter.Allow() {
		return nil
	}
	l.over.WithLabelValues(kind, op, r.mode).Inc()
	from := "this process"
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil && p.Addr.Network() == "tcp" {
		from = p.Addr.String()
	}
	if !l.noise.Say(func(untold int) {
		l.log.Warn("RPC exceeded allowed rate limit", "rpc", op, "source_addr", from, "limit_type", kind,
			"limit_enforced", r.mode == LimitsEnforcing, "untold", untold)
	}) {
		l.dropped.Inc()
	}
	switch {
	case r.mode != LimitsEnforcing:
		return nil
	case write && l.leads():
		return catalog.ErrTryLater
	default:
		return catalog.ErrTryElsewhere
	}
}

// SetLimits changes how many requests this server answers and, where others reach it,
// what connections to its port may cost. What is invalid changes nothing.
func (s *Server) SetLimits(requests RequestLimits, port PortLimits) error {
	if err := requests.validate(); err != nil {
		return err
	}
	if err := port.validate(); err != nil {
		return err
	}
	s.requests.set(requests)
	if s.cluster != nil {
		s.cluster.mux.SetLimits(port.HandshakeTimeout, port.ConnsPerSource)
	}
	return nil
}
