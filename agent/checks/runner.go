package checks

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Limits and defaults that Consul documents.
const (
	// MinInterval is the shortest time between two runs; shorter ones are raised to it.
	MinInterval = time.Second
	// MinDeregisterAfter is the shortest DeregisterCriticalServiceAfter; shorter ones are raised to it.
	MinDeregisterAfter = time.Minute
	// DefaultTimeout ends a run that has no timeout of its own.
	DefaultTimeout = 10 * time.Second
	// DefaultOutputMaxSize cuts output that has no limit of its own, in bytes.
	DefaultOutputMaxSize = 4096
	// UserAgent is what http checks call themselves.
	UserAgent = "Consul Health Check"
)

// firstRunWithin bounds the wait before a first verdict. Later runs are spread
// over the whole interval, so that a restarted host does not probe in bursts.
const firstRunWithin = time.Second

// Report takes the status and output of a check after a run that decided something.
// It must not block for long; it may be called until Run has returned.
type Report func(status catalog.Status, output string)

// Runner makes one check, again and again, until ctx ends.
type Runner interface {
	Run(ctx context.Context)
}

// Options are what a Runner needs beside its definition.
type Options struct {
	Report Report
	Logger *slog.Logger
	// TLS is what checks over TLS show of this host and whom they trust. Nil: nothing, and
	// the authorities of the system.
	TLS *tls.Config
	// Target is what an alias follows. Only alias checks need it.
	Target catalog.Watch[Target]
}

// New returns the runner of a valid definition. TTL checks, which are told their
// result rather than find it, are made by NewTTL. Errors wrap catalog.ErrInvalid.
func New(def *catalog.CheckDefinition, o Options) (Runner, error) {
	if _, err := Validate(def); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	var run probe
	switch TypeOf(def) {
	case TypeHTTP:
		run = httpProbe(def, o.TLS)
	case TypeTCP:
		run = tcpProbe(def, o.TLS)
	case TypeUDP:
		run = udpProbe(def)
	case TypeGRPC:
		run = grpcProbe(def, o.TLS)
	case TypeH2PING:
		run = h2pingProbe(def, o.TLS)
	case TypeScript:
		run = scriptProbe(def)
	case TypeOSService:
		run = osServiceProbe(def)
	case TypeAlias:
		return newAlias(def, o)
	default:
		return nil, refuse("a %s check does not run by itself", TypeOf(def))
	}
	p := &periodic{
		probe:    run,
		interval: max(def.Interval, MinInterval),
		timeout:  def.Timeout,
		judge:    newThresholds(def, o.Report),
	}
	if p.timeout <= 0 {
		p.timeout = DefaultTimeout
		if TypeOf(def) == TypeScript {
			p.timeout = scriptTimeout
		}
	}
	return p, nil
}

// probe makes a check once, within ctx.
type probe func(ctx context.Context) (catalog.Status, string)

// periodic runs a probe at an interval and reports what the thresholds make of it.
type periodic struct {
	probe    probe
	interval time.Duration
	timeout  time.Duration
	judge    *thresholds
}

// Run implements Runner. The first run comes within firstRunWithin, the second at a
// random moment of the interval, the others one interval apart.
func (p *periodic) Run(ctx context.Context) {
	timer := time.NewTimer(rand.N(min(p.interval, firstRunWithin)))
	defer timer.Stop()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		p.once(ctx)
		next := p.interval
		if first {
			next = p.interval/2 + rand.N(p.interval/2)
		}
		timer.Reset(next)
	}
}

func (p *periodic) once(ctx context.Context) {
	runCtx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	status, output := p.probe(runCtx)
	if ctx.Err() != nil {
		return // stopped in the middle: what was seen says nothing of the target
	}
	p.judge.result(status, output)
}
