package ca

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// maxWait is how long a request waits for its turn under CSRMaxPerSecond.
const maxWait = 500 * time.Millisecond

// queuePerSigner bounds the requests that wait for one that is being signed; a
// core signs thousands a second, so the last one waits for some tenths of one.
const queuePerSigner = 1024

// maxSigners bounds CSRMaxConcurrent.
const maxSigners = 1024

// ErrLimited means that too many certificates are wanted at once. It is a
// catalog.ErrUnavailable: another server or a later moment may do.
var ErrLimited = fmt.Errorf("%w: the CA is at its rate limit, try again later", catalog.ErrUnavailable)

// Limiter bounds signing. By default the bound is the CPU: as many at a time as
// there are processors, the others wait in a bounded queue. CSRMaxConcurrent sets
// that number; CSRMaxPerSecond, when set, bounds the rate as well.
type Limiter struct {
	slots chan struct{}
	queue chan struct{}

	mu   sync.Mutex
	gap  time.Duration // between two signatures; 0: no limit of the rate
	next time.Time     // when the next one may start
}

// NewLimiter reads the limits of cfg.
func NewLimiter(cfg Config) *Limiter {
	n := min(or(cfg.CSRMaxConcurrent, runtime.GOMAXPROCS(0)), maxSigners)
	l := &Limiter{slots: make(chan struct{}, n), queue: make(chan struct{}, n*(1+queuePerSigner))}
	if cfg.CSRMaxPerSecond > 0 {
		l.gap = time.Duration(min(float64(time.Second)/cfg.CSRMaxPerSecond, float64(24*time.Hour)))
	}
	return l
}

// Acquire waits for the turn of one signature. Call release when it is done; it is
// never nil. Errors are ErrLimited and those of ctx.
func (l *Limiter) Acquire(ctx context.Context) (release func(), err error) {
	release = func() {}
	select {
	case l.queue <- struct{}{}:
	default:
		return release, ErrLimited
	}
	leave := func() { <-l.queue }
	wait, err := l.reserve(time.Now())
	if err != nil {
		leave()
		return release, err
	}
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			leave()
			return release, ctx.Err()
		}
	}
	select {
	case l.slots <- struct{}{}:
		return func() { <-l.slots; leave() }, nil
	case <-ctx.Done():
		leave()
		return release, ctx.Err()
	}
}

// reserve takes the next place in the schedule. Up to a second's worth of places
// that nobody took can be taken at once.
func (l *Limiter) reserve(now time.Time) (time.Duration, error) {
	if l.gap == 0 {
		return 0, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if earliest := now.Add(l.gap - max(l.gap, time.Second)); l.next.Before(earliest) {
		l.next = earliest
	}
	wait := l.next.Sub(now)
	if wait > maxWait {
		return 0, ErrLimited
	}
	l.next = l.next.Add(l.gap)
	return max(wait, 0), nil
}
