package connect

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
)

const (
	skipMin = time.Second // after the first failure; doubles with each further one
	skipMax = time.Minute
)

// endpoint is what a service remembers of an instance, across snapshots.
type endpoint struct {
	active int64 // connections open or being opened
	fails  int   // in a row
	until  time.Time
	err    string

	failedAt  time.Time
	ejectedAt time.Time
	unserved  bool // one of the failures in a row was of one that could be reached
	strikes   int  // connections in a row that it ended without a byte
	rule      Ejection
	upstream  string
	of        int // instances of the upstream
}

type endpointKey struct{ upstream, addr string }

// balancer picks instances: the less loaded of two drawn by weight, those of a low
// priority number before others and passing ones before warning ones. An instance that could not be reached is skipped for a
// while, longer each time. The panic rule: skipped ones are tried last, never not
// at all, so that wrong suspicion costs time but refuses nobody.
type balancer struct {
	now func() time.Time
	mu  sync.Mutex
	all map[endpointKey]*endpoint
}

// candidate is an instance to try.
type candidate struct {
	*Endpoint
	state *endpoint
	at    time.Time // when it was picked; zero: while it was left alone, for want of others
}

// Tiers, best first: by priority, and within one passing before warning; then the
// same for those that are skipped.
const (
	tierPassing = iota
	tierWarning
	tiersEach // of a priority

	maxPriority = 1 << 16
	tierSkipped = tiersEach * (maxPriority + 1)
)

func (b *balancer) state(up *upstream, e *Endpoint) *endpoint {
	k := endpointKey{up.key, e.Addr}
	s := b.all[k]
	if s == nil {
		if b.all == nil {
			b.all = map[endpointKey]*endpoint{}
		}
		s = &endpoint{upstream: up.key}
		b.all[k] = s
	}
	return s
}

// pick chooses the next instance to try and counts a connection to it; tried marks
// those of up.Instances that had their turn. It is nil when all had.
func (b *balancer) pick(up *upstream, tried []bool) *candidate {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	best, chosen := math.MaxInt, []int(nil)
	for i := range up.Instances {
		if tried[i] {
			continue
		}
		t := tierOf(&up.Instances[i], b.state(up, &up.Instances[i]), now)
		if t < best {
			best, chosen = t, chosen[:0]
		}
		if t == best {
			chosen = append(chosen, i)
		}
	}
	if len(chosen) == 0 {
		return nil
	}
	i := b.draw(up, chosen)
	if best < tierSkipped && len(chosen) > 1 {
		others := slices.DeleteFunc(chosen, func(j int) bool { return j == i })
		if j := b.draw(up, others); b.load(up, j) < b.load(up, i) {
			i = j
		}
	}
	tried[i] = true
	e := &up.Instances[i]
	s := b.state(up, e)
	s.active++
	s.rule, s.of = up.Ejection, len(up.Instances)
	switch {
	case best >= tierSkipped:
		now = time.Time{}
	case s.fails >= max(s.rule.Failures, 1) && !s.until.IsZero():
		// One connection finds out whether it is back; the others keep away.
		s.until = now.Add(s.rule.skipFor(s.fails - max(s.rule.Failures, 1) + 1))
	}
	return &candidate{Endpoint: e, state: s, at: now}
}

func tierOf(e *Endpoint, s *endpoint, now time.Time) int {
	t := tierPassing
	if e.Status != "" && e.Status != catalog.StatusPassing {
		t = tierWarning
	}
	if now.Before(s.until) {
		t += tierSkipped
	}
	return t + tiersEach*min(max(e.Priority, 0), maxPriority)
}

// draw picks one of the chosen, each as likely as its weight says.
func (b *balancer) draw(up *upstream, chosen []int) int {
	total := 0
	for _, i := range chosen {
		total += weight(&up.Instances[i])
	}
	n := rand.IntN(total)
	for _, i := range chosen {
		if n -= weight(&up.Instances[i]); n < 0 {
			return i
		}
	}
	return chosen[0]
}

func (b *balancer) load(up *upstream, i int) float64 {
	e := &up.Instances[i]
	return float64(b.state(up, e).active) / float64(weight(e))
}

// weight is at least 1, and bounded so that sums cannot overflow.
func weight(e *Endpoint) int { return min(max(e.Weight, 1), 1<<16) }

// failed notes that no connection came about of one picked at a time; reached tells
// whether the instance was there and did not serve it.
func (b *balancer) failed(s *endpoint, picked time.Time, reached bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.active--
	b.failedOnce(s, picked, reached, err.Error())
}

// suspect notes that an instance took a connection and did not serve it.
func (b *balancer) suspect(s *endpoint, picked time.Time, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failedOnce(s, picked, true, err.Error())
}

// reached notes that an instance is there, which says nothing of its application. The
// connection stays counted until done.
func (b *balancer) reached(s *endpoint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !s.unserved {
		s.cleared()
	}
}

// answered notes that an instance served a connection that began at a time.
func (b *balancer) answered(s *endpoint, began time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.answered(began)
}

// answered forgets failures, but those of after the beginning.
func (s *endpoint) answered(began time.Time) {
	if !began.Before(s.failedAt) {
		s.cleared()
	}
}

func (s *endpoint) cleared() { s.fails, s.until, s.err, s.unserved = 0, time.Time{}, "", false }

// failing are the instances that failed and have not served since, and when they failed.
func (b *balancer) failing() map[*endpoint]time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out map[*endpoint]time.Time
	for _, s := range b.all {
		if s.fails > 0 {
			if out == nil {
				out = map[*endpoint]time.Time{}
			}
			out[s] = s.failedAt
		}
	}
	return out
}

// done takes back one count of pick.
func (b *balancer) done(s *endpoint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.active--
}

// again counts a connection that done has taken back too early.
func (b *balancer) again(s *endpoint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.active++
}

// keep forgets the instances that w does not list.
func (b *balancer) keep(w *world) {
	listed := map[endpointKey]bool{}
	for key, up := range w.upstreams {
		for i := range up.Instances {
			listed[endpointKey{key, up.Instances[i].Addr}] = true
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, s := range b.all {
		if !listed[k] && s.active == 0 {
			delete(b.all, k)
		}
	}
}

// status lists the instances of up as this service sees them.
func (b *balancer) status(up *upstream) []InstanceStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	out := make([]InstanceStatus, 0, len(up.Instances))
	for i := range up.Instances {
		e := &up.Instances[i]
		s := b.state(up, e)
		is := InstanceStatus{
			ID: e.ID, Node: e.Node, Addr: e.Addr, Status: e.Status, Weight: weight(e),
			Active: s.active, Error: s.err, Service: e.Service, Priority: e.Priority,
		}
		if until := s.until; now.Before(until) {
			is.SkippedUntil = &until
		}
		out = append(out, is)
	}
	return out
}
