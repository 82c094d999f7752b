package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Watch returns a watch of q. All watches of one query share one hub, which
// recomputes the view once for all of them and lives while a Next waits, plus
// Config.Linger.
//
// Next fails with catalog.ErrStale, from then on always, once a restored backup
// began a new epoch: indexes held by the reader mean nothing there. Open a new
// watch and start it at 0. It fails with catalog.ErrUnavailable when too many
// different queries are watched, or the store was closed.
func (s *Store) Watch(q catalog.Query) catalog.Watch[*catalog.View] {
	return &watch{store: s, query: q, epoch: s.state.Load().epoch}
}

// WatchOwn is Watch for the server itself, which must not fail for how much others watch:
// it asks a few fixed queries.
func (s *Store) WatchOwn(q catalog.Query) catalog.Watch[*catalog.View] {
	return &watch{store: s, query: q, epoch: s.state.Load().epoch, own: true}
}

type watch struct {
	store *Store
	query catalog.Query
	epoch epoch
	own   bool
}

var errClosed = fmt.Errorf("store: closed: %w", catalog.ErrUnavailable)

func errNewEpoch(e epoch) error {
	return fmt.Errorf("a backup was restored, epoch %s ended: %w", e, catalog.ErrStale)
}

// Next implements catalog.Watch.
func (w *watch) Next(ctx context.Context, after uint64) (*catalog.View, uint64, error) {
	if err := w.query.Validate(); err != nil {
		return nil, 0, err
	}
	for {
		if w.store.state.Load().epoch != w.epoch {
			return nil, 0, errNewEpoch(w.epoch)
		}
		h, err := w.store.hubs.acquire(w.query, w.epoch, w.own)
		if err != nil {
			return nil, 0, err
		}
		v, index, err := h.latest.Next(ctx, after)
		w.store.hubs.release(h)
		if errors.Is(err, errHubGone) {
			continue
		}
		return v, index, err
	}
}

// hubs are the hubs of a store, by query.
type hubs struct {
	store *Store
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu     sync.Mutex
	byKey  map[catalog.Query]*hub
	closed bool
}

// hub keeps the latest view of one query.
type hub struct {
	query  catalog.Query
	epoch  epoch
	latest catalog.Latest[*catalog.View]
	cancel context.CancelFunc

	// Guarded by hubs.mu.
	readers int
	linger  *time.Timer
	gone    bool
}

// errHubGone is seen by a reader that took a hub in the moment it ended.
var errHubGone = errors.New("store: hub ended")

func (hs *hubs) init(s *Store) {
	hs.store = s
	hs.byKey = make(map[catalog.Query]*hub)
	hs.ctx, hs.stop = context.WithCancel(context.Background())
}

func (hs *hubs) close() {
	hs.mu.Lock()
	hs.closed = true
	for _, h := range hs.byKey {
		hs.dropLocked(h, errClosed)
	}
	hs.mu.Unlock()
	hs.stop()
	hs.wg.Wait()
}

// count is the number of hubs, for tests and metrics.
func (hs *hubs) count() int {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	return len(hs.byKey)
}

func (hs *hubs) acquire(q catalog.Query, e epoch, own bool) (*hub, error) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.closed {
		return nil, errClosed
	}
	h, ok := hs.byKey[q]
	if ok && h.epoch != e {
		// Of another epoch than this reader's; its own goroutine is about to see it.
		hs.dropLocked(h, errNewEpoch(h.epoch))
		ok = false
	}
	if !ok {
		if len(hs.byKey) >= hs.store.cfg.MaxHubs && !hs.evictLocked() && !own {
			return nil, fmt.Errorf("watch of %s: %d different queries are watched, the most allowed: %w",
				q, len(hs.byKey), catalog.ErrUnavailable)
		}
		h = hs.startLocked(q, e)
	}
	h.readers++
	if h.linger != nil {
		h.linger.Stop()
		h.linger = nil
	}
	return h, nil
}

func (hs *hubs) startLocked(q catalog.Query, e epoch) *hub {
	ctx, cancel := context.WithCancel(hs.ctx)
	h := &hub{query: q, epoch: e, cancel: cancel}
	hs.byKey[q] = h
	hs.wg.Go(func() {
		defer cancel()
		hs.run(ctx, h)
	})
	return h
}

// evictLocked ends a hub that nobody reads, if there is one.
func (hs *hubs) evictLocked() bool {
	for _, h := range hs.byKey {
		if h.readers == 0 {
			hs.dropLocked(h, errHubGone)
			return true
		}
	}
	return false
}

func (hs *hubs) release(h *hub) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h.readers--
	if h.readers > 0 || h.gone {
		return
	}
	h.linger = time.AfterFunc(hs.store.cfg.Linger, func() {
		hs.mu.Lock()
		defer hs.mu.Unlock()
		if h.readers == 0 && h.linger != nil {
			hs.dropLocked(h, errHubGone)
		}
	})
}

func (hs *hubs) drop(h *hub, err error) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.dropLocked(h, err)
}

func (hs *hubs) dropLocked(h *hub, err error) {
	if h.gone {
		return
	}
	h.gone = true
	if h.linger != nil {
		h.linger.Stop()
		h.linger = nil
	}
	if hs.byKey[h.query] == h {
		delete(hs.byKey, h.query)
	}
	h.latest.Close(err)
	h.cancel()
}

// run publishes the view of a hub's query whenever its index moves.
func (hs *hubs) run(ctx context.Context, h *hub) {
	var published uint64
	var at time.Time
	var b *bell
	defer func() { b.stop() }()
	for ctx.Err() == nil {
		st := hs.store.state.Load()
		if st.epoch != h.epoch {
			hs.drop(h, errNewEpoch(h.epoch))
			return
		}
		if b == nil || b.waits != &st.waits {
			b.stop()
			b = newBell(&st.waits)
		}
		b.quiet()
		on := &basis{}
		if i := st.read().queryIndex(on, h.query); i > published {
			if !sleep(ctx, hs.store.cfg.Coalesce-time.Since(at), published > 0) {
				return
			}
			published, at = hs.publish(h), time.Now()
			continue // what changed while waiting is in the view; watch from now on
		}
		if !b.hangsOn(on) {
			continue // what changed before it did is looked for once more
		}
		select {
		case <-ctx.Done():
			return
		case <-st.replaced:
		case <-b.rings:
		}
	}
}

// publish computes the view of now and returns its index.
func (hs *hubs) publish(h *hub) uint64 {
	st := hs.store.state.Load()
	if st.epoch != h.epoch {
		return 0 // the loop sees to it
	}
	v := hs.store.view(st.read(), st.epoch, h.query)
	h.latest.Set(v.Index, v)
	hs.store.views.Add(1)
	return v.Index
}

// sleep waits for d, unless needless, and reports false when ctx ended.
func sleep(ctx context.Context, d time.Duration, needed bool) bool {
	if !needed || d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
