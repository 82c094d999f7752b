package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// retryRule says after which failures a call may be made again.
type retryRule int

const (
	retryNone     retryRule = iota
	retryNoLeader           // the servers said that they did nothing
	retryAny                // the call is idempotent
)

func (r retryRule) again(err error) bool {
	switch {
	case errors.Is(err, catalog.ErrNoLeader), errors.Is(err, catalog.ErrTryElsewhere):
		return r != retryNone
	case errors.Is(err, catalog.ErrUnavailable):
		return r == retryAny
	default:
		return false
	}
}

// retry makes a call, and makes it again as rule allows until the hold time is
// over: long enough for the servers to elect a leader.
func retry[T any](ctx context.Context, r *Remote, call string, rule retryRule, do func(context.Context) (T, error)) (T, error) {
	return retryIn(ctx, r, call, rule, r.pace.callTimeout(), do)
}

// retryIn is the same with a time of its own for each call.
func retryIn[T any](ctx context.Context, r *Remote, call string, rule retryRule, timeout time.Duration, do func(context.Context) (T, error)) (T, error) {
	pause := newBackoff(time.Second)
	end := time.Now().Add(r.cfg.HoldTimeout)
	for {
		v, err := once(ctx, r, call, timeout, do)
		if err == nil || !rule.again(err) || r.cfg.Pool == nil && errors.Is(err, catalog.ErrTryElsewhere) {
			return v, err // a server that asks itself has nowhere else to go
		}
		wait := pause.next()
		if time.Now().Add(wait).After(end) {
			return v, err
		}
		if !sleep(ctx, wait) {
			return v, err
		}
		r.metrics.retries.WithLabelValues(call).Inc()
	}
}

// once makes one try of a call under its own deadline. A try that got no answer
// is ErrUnavailable; a caller who went away gets its own cause.
func once[T any](ctx context.Context, r *Remote, call string, timeout time.Duration, do func(context.Context) (T, error)) (T, error) {
	if !r.pace.allow(call) {
		r.metrics.exceeded.Inc()
		var zero T
		return zero, fmt.Errorf("%w: this agent asks its servers too often, see limits.rpc_rate", catalog.ErrRPCRate)
	}
	try, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r.metrics.calls.WithLabelValues(call).Inc()
	v, err := do(try)
	r.leaderless.heard(err)
	if err == nil {
		return v, nil
	}
	r.metrics.failed.WithLabelValues(call).Inc()
	var zero T
	switch {
	case ctx.Err() != nil:
		return zero, context.Cause(ctx)
	case try.Err() != nil:
		return zero, fmt.Errorf("%s: no answer in %s: %w", call, timeout, catalog.ErrUnavailable)
	default:
		return zero, err
	}
}

// leaderlessFor is how long a server may know of no leader before another is
// asked: longer than an election.
const leaderlessFor = 3 * time.Second

// leaderless notices when the server that is spoken to has known of no leader for
// long, as one that is cut off from the others.
type leaderless struct {
	due chan struct{} // has a value when it is time to ask another

	mu    sync.Mutex
	since time.Time // zero: there was a leader when last asked
}

func (l *leaderless) heard(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !errors.Is(err, catalog.ErrNoLeader):
		l.since = time.Time{}
	case l.since.IsZero():
		l.since = time.Now()
	case time.Since(l.since) > leaderlessFor:
		l.since = time.Time{}
		select {
		case l.due <- struct{}{}:
		default:
		}
	}
}

// backoff yields pauses that double up to a limit, each with jitter of half its
// length, so that what broke together does not come back together.
type backoff struct{ step, limit time.Duration }

// firstPause is how long a backoff waits at first.
const firstPause = 50 * time.Millisecond

func newBackoff(limit time.Duration) *backoff {
	return &backoff{step: min(firstPause, limit), limit: limit}
}

func (b *backoff) next() time.Duration {
	d := b.step
	b.step = min(b.step*2, b.limit)
	return d/2 + rand.N(d/2+1)
}

// sleepUntil waits for d, or until again is closed, and reports false when ctx ended
// first.
func sleepUntil(ctx context.Context, d time.Duration, again <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-again:
	case <-t.C:
	}
	return true
}

// sleep waits for d, and reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
