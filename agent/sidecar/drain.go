package sidecar

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// Fed is what the process that took over says of a proxy.
type Fed struct {
	// Snapshot is what it enforces; nil before it enforces anything.
	Snapshot *connect.Snapshot `json:",omitempty"`
	// Listens: it takes the proxy's connections itself.
	Listens bool `json:",omitempty"`
	// Gone: the proxy is not registered any more.
	Gone bool `json:",omitempty"`
	// Anew: another process may say this than what was heard before, and its indexes
	// mean nothing beside those.
	Anew bool `json:"-"`
}

// Feed is the process that took over, as the one before sees it.
type Feed interface {
	// Follow hands what the other process says of a proxy to take, until ctx ends or it
	// has said that the proxy is gone. carried, which waits until there is something to
	// tell, is what is told in return.
	Follow(ctx context.Context, proxyID string, carried func(ctx context.Context) Carried, take func(Fed))
}

// GiveUp leaves the proxies as they are: they go on taking connections under the
// policy known now, and nothing that they need is written or asked for any more. Drain
// comes next, once another process has taken over.
func (m *Manager) GiveUp() {
	for _, s := range m.book() {
		s.halt()
	}
}

// book writes down what this process carries, and gives what runs. A proxy that ends
// meanwhile says so afterwards.
func (m *Manager) book() []*sidecar {
	m.booking.Lock()
	defer m.booking.Unlock()
	m.mu.Lock()
	m.gaveUp = true
	list := slices.Collect(maps.Values(m.running))
	carried := map[string]catalog.Name{}
	for s := range m.alive {
		if !s.external {
			carried[s.id] = s.service
		}
	}
	m.mu.Unlock()
	if m.cfg.Ledger == nil {
		return list
	}
	if err := m.cfg.Ledger.Carry(carried); err != nil {
		m.cfg.Logger.Warn("the next process cannot read what this one carries; waiting for a policy to be enforced waits for this one only once that has heard of it", "err", err)
	}
	return list
}

// Drain follows the process that took over: each proxy stops to take connections when
// the other one does, and enforces what the other one says on those that it carries,
// until they have ended, or the grace is over, or ctx ends. It then returns.
func (m *Manager) Drain(ctx context.Context, feed Feed, grace time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	list := slices.Collect(maps.Values(m.running))
	m.mu.Unlock()
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	for _, s := range list {
		if s.external {
			m.end(s, errStopped)
			continue
		}
		following.Go(func() {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			go func() {
				select {
				case <-ctx.Done():
				case <-s.over: // nothing is left to be fed
					cancel()
				}
			}()
			m.drain(ctx, s, feed, grace)
		})
	}
	drained := make(chan struct{})
	go func() { m.wg.Wait(); close(drained) }()
	select {
	case <-drained:
		return
	case <-ctx.Done():
	}
	for _, s := range list {
		m.end(s, errStopped)
	}
	for { // one may come into being just then
		for _, s := range list {
			s.cut()
		}
		select {
		case <-drained:
			return
		case <-time.After(cutAgain):
		}
	}
}

// lastMoment is how long connections may take that came while proxies lingered. What
// comes then waits for the next process, and should not wait long.
const lastMoment = time.Second

// linger is for the end of a process whose listeners outlast it: connections that are
// open may finish, as ever, but those that come meanwhile are served, and not left to
// the next process.
func (m *Manager) linger(ctx context.Context) {
	if m.cfg.Sockets == nil || !m.cfg.Sockets.Outlasts() {
		return
	}
	eachCurrent(m, func(p interface {
		Linger(ctx context.Context, last time.Duration)
	},
	) {
		p.Linger(ctx, lastMoment)
	})
}

// restUpstreams has all proxies take no more connections for upstreams before any of them
// stops: who was taken just then may be going to one of the others.
func (m *Manager) restUpstreams(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastMoment)
	defer cancel()
	eachCurrent(m, func(p interface{ RestUpstreams(ctx context.Context) }) { p.RestUpstreams(ctx) })
}

// eachCurrent calls f with all proxies that run and can do what it needs, side by side.
func eachCurrent[P any](m *Manager, f func(P)) {
	m.mu.Lock()
	list := slices.Collect(maps.Values(m.running))
	m.mu.Unlock()
	var waiting sync.WaitGroup
	defer waiting.Wait()
	for _, s := range list {
		s.mu.Lock()
		p, ok := s.current.(P)
		s.mu.Unlock()
		if ok {
			waiting.Go(func() { f(p) })
		}
	}
}

// cutAgain is how often connections are looked for that are left at the end.
const cutAgain = 20 * time.Millisecond

// unheard is how long a proxy goes on listening when that of the process that took over
// does not say that it does: it may wait for just this port, which was bound here after
// the listeners were passed on. Those that it has got keep who connects meanwhile.
const unheard = 10 * time.Second

// drain is Drain for one proxy.
func (m *Manager) drain(ctx context.Context, s *sidecar, feed Feed, grace time.Duration) {
	var own time.Duration // how long the registration lets connections finish
	if snap, _ := s.out.Get(); snap != nil {
		own = snap.Limits.DrainTimeout
	}
	put := func(snap *connect.Snapshot) uint64 {
		late := *snap
		late.Limits.EndTimeout = grace
		return s.out.Publish(&late)
	}
	if last, _ := s.out.Get(); last != nil {
		put(last) // the drain begins with the grace that stands in the snapshot then
	}
	never := time.AfterFunc(min(grace, unheard), func() { m.end(s, errStopped) })
	defer never.Stop()
	gone := false
	// The port rests before those to whom it hands its connections. It may wait for who has
	// not said for whom he comes; policy does not.
	var ending sync.WaitGroup
	defer ending.Wait()
	end := sync.OnceFunc(func() {
		ending.Go(func() {
			if m.cfg.port != nil {
				m.cfg.port.Rest(ctx)
			}
			m.end(s, errStopped)
		})
	})
	feed.Follow(ctx, s.id, s.carried, func(f Fed) {
		if f.Anew {
			s.fed.anew()
		}
		if f.Snapshot != nil {
			s.fed.given(put(f.Snapshot), f.Snapshot.Index)
			s.reached(0) // it may be in force already
		}
		if f.Listens || f.Gone {
			end()
		}
		gone = f.Gone
	})
	ending.Wait()
	if gone && sleep(ctx, cmp.Or(own, 5*time.Second)) {
		s.cut()
	}
}

// end begins the end of a proxy, if that has not begun.
func (m *Manager) end(s *sidecar, why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running[s.id] == s {
		m.stop(s, why)
	}
}

// tellEvery is how often a process that drains says what it carries, without news.
const tellEvery = time.Second

// carried is what the process that took over is told: at once when another snapshot
// of its came in force.
func (s *sidecar) carried(ctx context.Context) Carried {
	t := time.NewTimer(tellEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-s.fed.news:
	}
	return Carried{Peers: s.peers(), Applied: s.fed.applied()}
}

// fed is what of another process's snapshots a proxy enforces.
type fed struct {
	news chan struct{} // capacity 1

	mu      sync.Mutex
	pending []fedIndex // not yet in force, oldest first
	index   uint64     // theirs, of the newest in force
}

// fedIndex is a snapshot under our index and under theirs.
type fedIndex struct{ ours, theirs uint64 }

// maxPending bounds the snapshots that are remembered until they are in force.
const maxPending = 64

// anew forgets the indexes of the process that was heard before.
func (f *fed) anew() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending, f.index = nil, 0
}

// given notes that the proxy is given a snapshot.
func (f *fed) given(ours, theirs uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = append(f.pending[:min(len(f.pending), maxPending-1)], fedIndex{ours, theirs})
}

// reached notes that the proxy enforces the snapshot of our index.
func (f *fed) reached(ours uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	news := false
	for len(f.pending) > 0 && f.pending[0].ours <= ours {
		f.index, f.pending, news = f.pending[0].theirs, f.pending[1:], true
	}
	if news {
		select {
		case f.news <- struct{}{}:
		default:
		}
	}
}

func (f *fed) applied() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.index
}

// peers are the open connections, by pair.
func (s *sidecar) peers() []connect.PeerStatus {
	s.mu.Lock()
	p := s.current
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	return p.Status().Peers
}

// cut ends the connections of the proxy that is carried still.
func (s *sidecar) cut() {
	s.mu.Lock()
	p := s.current
	s.mu.Unlock()
	if c, ok := p.(interface{ Service() *connect.Service }); ok {
		c.Service().Close(connect.ReasonDraining)
	}
}

// Listens tells whether the proxy of that ID takes all the connections that it is to
// take, so that the process before may stop to.
func (m *Manager) Listens(proxyID string) bool {
	m.mu.Lock()
	s := m.running[proxyID]
	m.mu.Unlock()
	if s == nil {
		return false
	}
	s.mu.Lock()
	p := s.current
	s.mu.Unlock()
	if p == nil {
		return false
	}
	st := p.Status()
	if !st.Ready || st.Applied == 0 || (st.Inbound != nil && !st.Inbound.Listening) {
		return false
	}
	for _, u := range st.Upstreams {
		if u.Listener != nil && !u.Listener.Listening && u.Listener.Error == "" {
			return false
		}
	}
	return true
}
