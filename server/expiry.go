package server

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
)

const (
	// sessionGrace multiplies the TTL of a session: a TTL promises that the session
	// lives at least so long after a renewal, and clocks, networks and elections are
	// allowed for.
	sessionGrace = 2
	// expiryRetry is after how long an end that was put into the log, and of which
	// nothing was heard, is put there again.
	expiryRetry = 2 * time.Second
	// expiryBatch bounds the ends in one log entry.
	expiryBatch = 256
)

// expiry ends what ends by time: sessions whose TTL passes without a renewal, and
// the delays that keep keys from being locked. It runs on the leader alone and
// measures with the monotonic clock, so that setting the clock does nothing. A new
// leader starts all timers anew: a session may live longer than its TTL, never
// shorter.
type expiry struct {
	store   watcher
	raft    applier
	log     *slog.Logger
	expired prometheus.Counter

	sessions *countdown[string]
	delays   *countdown[delayKey]
}

type watcher interface {
	WatchOwn(q catalog.Query) catalog.Watch[*catalog.View]
}

// delayKey is a delay after one end of a session.
type delayKey struct {
	key string
	at  uint64
}

func newExpiry(store watcher, raft applier, log *slog.Logger, reg prometheus.Registerer) (*expiry, error) {
	e := &expiry{
		store: store, raft: raft, log: log, sessions: newCountdown[string](), delays: newCountdown[delayKey](),
		expired: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_sessions_expired_total", Help: "Sessions that this leader ended because their TTL passed without a renewal.",
		}),
	}
	if reg == nil {
		return e, nil
	}
	timed := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "consul_session_ttl_active", Help: "Sessions with a TTL that this leader watches over.",
	}, func() float64 { return float64(e.sessions.len()) })
	return e, errors.Join(reg.Register(e.expired), reg.Register(timed))
}

// Renew implements rpc.Sessions.
func (e *expiry) Renew(id string) bool { return e.sessions.renew(id) }

// run serves one term of leadership.
func (e *expiry) run(ctx context.Context) {
	e.sessions.reset()
	e.delays.reset()
	defer e.sessions.reset()
	var wg sync.WaitGroup
	wg.Go(func() {
		e.follow(ctx, catalog.QuerySessions, func(v *catalog.View) { e.sessions.set(sessionTimes(v)) })
	})
	wg.Go(func() { e.follow(ctx, catalog.QueryKeyDelays, func(v *catalog.View) { e.delays.set(delayTimes(v)) }) })
	wg.Go(func() { e.sessions.run(ctx, e.endSessions) })
	e.delays.run(ctx, e.endDelays)
	wg.Wait()
}

// follow gives every version of what a query answers to take.
func (e *expiry) follow(ctx context.Context, kind catalog.QueryKind, take func(*catalog.View)) {
	for ctx.Err() == nil {
		w := e.store.WatchOwn(catalog.Query{Kind: kind})
		for after := uint64(0); ; {
			v, index, err := w.Next(ctx, after)
			if errors.Is(err, catalog.ErrStale) {
				break // a backup was restored: begin anew
			}
			if err != nil {
				return // the term ended, or the store did
			}
			after = index
			take(v)
		}
	}
}

func sessionTimes(v *catalog.View) map[string]time.Duration {
	out := map[string]time.Duration{}
	for _, s := range v.Sessions {
		if ttl := s.Timeout(); ttl > 0 {
			out[s.ID] = sessionGrace * ttl
		}
	}
	return out
}

func delayTimes(v *catalog.View) map[delayKey]time.Duration {
	out := map[delayKey]time.Duration{}
	for _, d := range v.Delays {
		out[delayKey{d.Key, d.ModifyIndex}] = d.Delay
	}
	return out
}

func (e *expiry) endSessions(ctx context.Context, ids []string) {
	_, _, err := e.raft.Apply(ctx, &catalog.DestroySessions{IDs: ids})
	if err != nil {
		e.failed(ctx, "end of sessions", err)
		return
	}
	e.expired.Add(float64(len(ids)))
	for _, id := range ids {
		e.log.Info("a session ended: its TTL passed without a renewal", "id", id)
	}
}

func (e *expiry) endDelays(ctx context.Context, keys []delayKey) {
	cmd := &catalog.EndKeyDelays{}
	for _, k := range keys {
		cmd.Delays = append(cmd.Delays, catalog.KeyDelay{Key: k.key, RaftIndex: catalog.RaftIndex{ModifyIndex: k.at}})
	}
	if _, _, err := e.raft.Apply(ctx, cmd); err != nil {
		e.failed(ctx, "end of lock delays", err)
	}
}

func (e *expiry) failed(ctx context.Context, duty string, err error) {
	if ctx.Err() == nil {
		e.log.Warn("a duty of the leader failed and is tried again", "duty", duty, "err", err)
	}
}

// countdown is a set of timers, each of one thing.
type countdown[K comparable] struct {
	mu    sync.Mutex
	items map[K]*timed
	wake  chan struct{}
}

type timed struct {
	lasts time.Duration
	ends  time.Time
	// ending is set once the end is on its way: from then on it is too late to renew.
	ending bool
}

func newCountdown[K comparable]() *countdown[K] {
	return &countdown[K]{items: map[K]*timed{}, wake: make(chan struct{}, 1)}
}

func (c *countdown[K]) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.items)
}

func (c *countdown[K]) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.items)
}

// set says which things there are, and how long each lasts. The timers of those
// that are new start now.
func (c *countdown[K]) set(things map[K]time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.items {
		if _, ok := things[k]; !ok {
			delete(c.items, k)
		}
	}
	now := time.Now()
	for k, d := range things {
		if c.items[k] == nil {
			c.items[k] = &timed{lasts: d, ends: now.Add(d)}
		}
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// renew starts a timer anew, and reports false when it had ended. One that is not
// known yet starts when it is.
func (c *countdown[K]) renew(k K) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.items[k]
	if t == nil {
		return true
	}
	if t.ending {
		return false
	}
	t.ends = time.Now().Add(t.lasts)
	return true
}

// due takes the things whose time is over, and tells when to look again. Renewals
// only put that off, so nobody needs to wake run for them.
func (c *countdown[K]) due() (over []K, next time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	next = time.Hour
	for k, t := range c.items {
		left := t.ends.Sub(now)
		if left <= 0 && len(over) < expiryBatch {
			over = append(over, k)
			t.ending, t.ends = true, now.Add(expiryRetry)
			left = expiryRetry
		}
		next = min(next, left)
	}
	return over, max(next, 0)
}

// run ends things when their time is over, until ctx ends.
func (c *countdown[K]) run(ctx context.Context, end func(context.Context, []K)) {
	for ctx.Err() == nil {
		over, next := c.due()
		if len(over) > 0 {
			end(ctx, over)
			continue
		}
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-c.wake:
		}
		t.Stop()
	}
}
