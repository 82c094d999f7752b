package remote

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// maxHeld bounds the answers kept of queries that nobody watches.
const maxHeld = 256

// genShift leaves 48 bits of a watch index for the Raft index, above them the
// generation: how often the epoch was seen to change.
const genShift = 48

// viewKey is what watchers must agree in to share a view. The token is part of
// it: what one caller may see is not what another may.
type viewKey struct {
	query catalog.Query
	token string
}

// views are the materialised views of this host.
type views struct {
	cfg     Config
	servers wire.Servers
	metrics *metrics
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	reached func() <-chan struct{} // closed at the next new connection
	shelf   *shelf                 // nil: nothing is kept on disk

	mu     sync.Mutex
	open   map[viewKey]*view
	held   map[viewKey]heldAnswer
	epoch  string // newest epoch seen, by any view
	gen    uint64 // its number
	down   bool   // the last thing heard was a failure
	closed bool
}

// heldAnswer is the last answer to a query that nobody watches.
type heldAnswer struct {
	view  *catalog.View
	meta  wire.Meta
	heard time.Time
}

func newViews(cfg Config, servers wire.Servers, m *metrics, reached func() <-chan struct{}) *views {
	ctx, cancel := context.WithCancel(context.Background())
	s := &views{
		cfg: cfg, servers: servers, metrics: m, ctx: ctx, cancel: cancel, reached: reached, shelf: openShelf(cfg.KeepDir, cfg.Logger),
		open: map[viewKey]*view{}, held: map[viewKey]heldAnswer{},
	}
	if s.shelf != nil {
		s.wg.Go(func() { s.shelf.run(ctx) })
	}
	return s
}

func (s *views) close() {
	s.mu.Lock()
	s.closed = true
	for _, v := range s.open {
		if v.timer != nil {
			v.timer.Stop()
		}
		v.latest.Close(fmt.Errorf("watch %s: the agent is stopping: %w", v.key.query, catalog.ErrUnavailable))
	}
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// acquire opens the view of key, or joins it. Every acquire has its release.
func (s *views) acquire(key viewKey) (*view, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("watch %s: the agent is stopping: %w", key.query, catalog.ErrUnavailable)
	}
	v := s.open[key]
	if v == nil {
		if len(s.open) >= s.cfg.MaxViews && !s.evictIdle() {
			return nil, fmt.Errorf("watch %s: %d queries are watched on this agent already: %w", key.query, len(s.open), catalog.ErrTooLarge)
		}
		ctx, cancel := context.WithCancel(s.ctx)
		v = &view{key: key, set: s, cancel: cancel}
		s.open[key] = v
		delete(s.held, key)
		s.metrics.views.Set(float64(len(s.open)))
		s.wg.Go(func() { v.run(ctx) })
	}
	v.refs++
	if v.timer != nil {
		v.timer.Stop()
		v.timer = nil
	}
	return v, nil
}

func (s *views) release(v *view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.refs--
	if v.refs == 0 && !s.closed && s.open[v.key] == v {
		v.timer = time.AfterFunc(s.cfg.Linger, func() { s.expire(v) })
	}
}

// expire drops a view that nobody waited for during the linger. While its stream
// is broken it is kept: it may be all that is known until the servers come back.
func (s *views) expire(v *view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.refs > 0 || s.closed || s.open[v.key] != v {
		return
	}
	if !v.isConnected() {
		v.timer = time.AfterFunc(s.cfg.Linger, func() { s.expire(v) })
		return
	}
	s.drop(v)
}

// evictIdle makes room by dropping one view that nobody waits for now.
func (s *views) evictIdle() bool {
	for _, v := range s.open {
		if v.refs == 0 {
			s.drop(v)
			return true
		}
	}
	return false
}

// drop forgets v; s.mu is held. Its last answer is kept for stale reads.
func (s *views) drop(v *view) {
	if s.open[v.key] != v {
		return
	}
	delete(s.open, v.key)
	s.metrics.views.Set(float64(len(s.open)))
	if v.timer != nil {
		v.timer.Stop()
	}
	v.cancel()
	if cur, meta := v.current(); cur != nil {
		s.hold(v.key, heldAnswer{view: cur, meta: meta, heard: time.Now()})
	}
}

// keep remembers an answer for stale reads while the servers are gone. It gives the
// answer with the view that others of this host already have of that version, if
// they do, so that what is made of a view is made once.
func (s *views) keep(key viewKey, rep *wire.ReadReply) *wire.ReadReply {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hear(nil)
	v := s.open[key]
	if v == nil {
		if old := s.held[key].view; old == nil || rep.View != nil && (old.Index != rep.View.Index || old.Epoch != rep.View.Epoch) {
			s.shelf.put(key, rep.View)
		}
		s.hold(key, heldAnswer{view: rep.View, meta: rep.Meta, heard: time.Now()})
		return rep
	}
	if one := v.one(rep.View); one != rep.View {
		same := *rep
		same.View = one
		rep = &same
	}
	return rep
}

// maxHeldValues bounds the values of keys in one held answer: an answer is kept for
// when the servers are gone, and a large one is not worth its room.
const maxHeldValues = 64 << 10

func (s *views) hold(key viewKey, a heldAnswer) {
	values := 0
	if a.view == nil {
		return
	}
	for _, p := range a.view.Pairs {
		values += len(p.Key) + len(p.Value)
	}
	if values > maxHeldValues {
		delete(s.held, key)
		return
	}
	if _, there := s.held[key]; !there && len(s.held) >= maxHeld {
		for k, other := range s.held { // any one
			if isNothing(key.query.Kind, a.view) && !isNothing(k.query.Kind, other.view) {
				return // that there is no such name is worth less
			}
			delete(s.held, k)
			break
		}
	}
	s.held[key] = a
}

// last is what is known of key without asking anybody, marked as old.
func (s *views) last(key viewKey) (*wire.ReadReply, bool) {
	s.mu.Lock()
	v, h := s.open[key], s.held[key]
	s.mu.Unlock()
	if v != nil {
		if cur, meta := v.current(); cur != nil {
			return &wire.ReadReply{View: cur, Meta: meta}, true
		}
	}
	if h.view == nil {
		var there bool
		if h, there = s.shelf.get(key); !there {
			return nil, false
		}
		s.mu.Lock()
		if s.held[key].view == nil {
			s.hold(key, h)
		}
		s.mu.Unlock()
	}
	return &wire.ReadReply{View: h.view, Meta: wire.Meta{LastContact: h.meta.LastContact + time.Since(h.heard)}}, true
}

// isDown tells whether the servers did not answer when they were last asked.
func (s *views) isDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

func (s *views) heard(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hear(err)
}

// hear logs when the servers go and come, once for all views. s.mu is held.
func (s *views) hear(err error) {
	switch {
	case err != nil && !s.down:
		s.down = true
		s.cfg.Logger.Warn("servers do not answer; what is known goes on being served", "err", err)
	case err == nil && s.down:
		s.down = false
		s.cfg.Logger.Info("servers answer again")
	}
}

// generation numbers an epoch. An epoch other than the newest seen is a new
// generation, even one seen before: what the servers say now is what counts.
func (s *views) generation(epoch string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != epoch {
		if s.epoch != "" {
			s.gen++
		}
		s.epoch = epoch
	}
	return s.gen
}

// watch is a catalog.Watch over a shared view. It refers to the view only while
// a Next waits.
type watch struct {
	views *views
	key   viewKey
}

// Next implements catalog.Watch.
func (w *watch) Next(ctx context.Context, after uint64) (*catalog.View, uint64, error) {
	if err := w.key.query.Validate(); err != nil {
		return nil, 0, err
	}
	v, err := w.views.acquire(w.key)
	if err != nil {
		return nil, 0, err
	}
	defer w.views.release(v)
	return v.latest.Next(ctx, after)
}

// view is one query kept current by a stream.
type view struct {
	key    viewKey
	set    *views
	cancel context.CancelFunc
	latest catalog.Latest[*catalog.View]

	refs  int         // guarded by set.mu
	timer *time.Timer // guarded by set.mu

	epoch string // of run alone
	gen   uint64 // of run alone

	mu        sync.Mutex
	meta      wire.Meta
	first     *catalog.View // read or heard of, whichever came first
	heardAt   time.Time
	connected bool // the stream has spoken and is not broken
}

// errEpoch ends a stream whose server speaks of another epoch than the view.
var errEpoch = errors.New("the servers' state was replaced")

// run keeps the stream open until ctx ends or the servers refuse the query.
func (v *view) run(ctx context.Context) {
	defer v.cancel()
	pause := newBackoff(v.set.cfg.MaxBackoff)
	for {
		spoke, again := false, v.set.reached()
		err := v.set.servers.Watch(ctx, v.request(), func(ev *wire.WatchEvent) error {
			spoke = true
			return v.event(ev)
		})
		v.broken()
		if ctx.Err() != nil {
			return
		}
		if refused(err) {
			v.refuse(err)
			return
		}
		v.set.metrics.restarts.Inc()
		if spoke {
			pause = newBackoff(v.set.cfg.MaxBackoff)
		}
		// A stream that was cancelled, though not by us, goes on at another server.
		if err != nil && !errors.Is(err, errEpoch) && !errors.Is(err, context.Canceled) {
			v.set.heard(err)
		}
		v.set.cfg.Logger.Debug("stream of a view ended", "query", v.key.query.String(), "err", err)
		if !sleepUntil(ctx, pause.next(), again) {
			return
		}
	}
}

// refused tells whether asking again would get the same answer.
func refused(err error) bool {
	return errors.Is(err, catalog.ErrInvalid) || errors.Is(err, catalog.ErrDenied) || errors.Is(err, catalog.ErrNotFound)
}

// refuse ends the view with err; the next watcher asks anew.
func (v *view) refuse(err error) {
	v.set.mu.Lock()
	if v.set.open[v.key] == v {
		delete(v.set.open, v.key)
		v.set.metrics.views.Set(float64(len(v.set.open)))
	}
	v.set.mu.Unlock()
	v.latest.Close(fmt.Errorf("watch %s: %w", v.key.query, err))
}

func (v *view) request() *wire.WatchRequest {
	cur, _ := v.latest.Get()
	req := &wire.WatchRequest{Token: v.key.token, Query: v.key.query}
	if cur != nil {
		req.After, req.Epoch = cur.Index, cur.Epoch
	}
	return req
}

// event takes what the stream says. Locks are taken one after another: set.mu may
// be held by somebody who wants v.mu.
func (v *view) event(ev *wire.WatchEvent) error {
	v.set.heard(nil)
	v.set.metrics.fetched.WithLabelValues(strconv.FormatBool(ev.View == nil)).Inc()
	v.mu.Lock()
	v.meta, v.heardAt, v.connected = ev.Meta, time.Now(), true
	v.mu.Unlock()
	if ev.View == nil {
		if ev.Epoch != "" && v.epoch != "" && ev.Epoch != v.epoch {
			return errEpoch
		}
		return nil
	}
	if cur, _ := v.latest.Get(); cur == nil || v.epoch != ev.View.Epoch {
		v.epoch, v.gen = ev.View.Epoch, v.set.generation(ev.View.Epoch)
	}
	v.latest.Set(v.gen<<genShift|ev.View.Index, v.one(ev.View))
	v.set.shelf.put(v.key, ev.View)
	return nil
}

// one gives the view of got's version that was seen first: two of one version are
// equal, and whoever compares them by address should find them the same.
func (v *view) one(got *catalog.View) *catalog.View {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case got == nil:
	case v.first != nil && v.first.Epoch == got.Epoch && v.first.Index == got.Index:
		return v.first
	case v.first == nil || v.first.Epoch != got.Epoch || v.first.Index < got.Index:
		v.first = got
	}
	return got
}

func (v *view) broken() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.connected = false
}

func (v *view) isConnected() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.connected
}

// current gives the view held, nil before the first, and how good it is now.
func (v *view) current() (*catalog.View, wire.Meta) {
	cur, _ := v.latest.Get()
	v.mu.Lock()
	defer v.mu.Unlock()
	meta := v.meta
	if !v.connected {
		meta.KnownLeader = false
		if !v.heardAt.IsZero() {
			meta.LastContact += time.Since(v.heardAt)
		}
	}
	return cur, meta
}
