package sidecar

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// silentAfter is when a proxy that runs outside the agent, and tells of itself every two
// seconds, is missed.
const silentAfter = 10 * time.Second

// outside is what a proxy that runs outside the agent says of itself.
type outside struct {
	mu     sync.Mutex
	status connect.Status
	heard  time.Time // zero: never
	asking int       // requests for what to enforce next that wait now
	since  time.Time // it has asked again and again
	left   time.Time // the last such request ended

	begun bool // the proxy of this ID that the agent ran before has ended
	tally
}

// tally is what another process has counted.
type tally struct {
	counts  *connect.Counts
	counted time.Time // when they came
}

// add takes what was told, unless that is older than what is known: nothing shown goes
// back but by another process. While an old one drains, the one that began last counts.
func (t *tally) add(c *connect.Counts) {
	if last := t.counts; last != nil {
		same := c.Began.Equal(last.Began)
		if same && c.Number <= last.Number || !same && c.Began.Before(last.Began) && t.fresh() {
			return
		}
	}
	t.counts, t.counted = c, time.Now()
}

// fresh tells whether the process may still say the same.
func (t *tally) fresh() bool { return time.Since(t.counted) <= silentAfter }

// begin notes that nothing else counts under this ID any more.
func (t *outside) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun = true
}

// samples is how many values it has told.
func (t *outside) samples() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		return 0
	}
	return t.counts.Samples()
}

// count takes what the proxy has counted.
func (t *outside) count(c *connect.Counts) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(c)
}

// collect shows what the proxy has counted: of one that is silent, what stays true.
func (t *outside) collect(proxyID string, ch chan<- prometheus.Metric) {
	t.mu.Lock()
	c, now, begun := t.counts, t.fresh(), t.begun
	t.mu.Unlock()
	if c != nil && begun {
		c.Collect(proxyID, now, ch)
	}
}

// asks notes that the proxy has policy and asks for the next, until done is called.
func (t *outside) asks() (done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.follows() {
		t.since = time.Now()
	}
	t.asking++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.asking--
		t.left = time.Now()
	}
}

// follows tells whether the proxy asks for policy; t.mu is held.
func (t *outside) follows() bool { return t.asking > 0 || time.Since(t.left) <= silentAfter }

func (t *outside) take(st connect.Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status, t.heard = st, time.Now()
}

// show gives what was said last, and whether it can be relied on.
func (t *outside) show() connect.Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := t.status
	switch silent := time.Since(t.heard); {
	case t.heard.IsZero() && t.follows() && time.Since(t.since) > silentAfter:
		st.Untold, st.Problem = true, "it runs outside the agent and follows its policy, but does not say how it is: weft connect proxy is of an older version there"
	case t.heard.IsZero():
		st.Ready, st.Problem = false, "it runs outside the agent, which has not heard of it: is weft connect proxy running?"
	case silent > silentAfter:
		st.Ready, st.Problem = false, fmt.Sprintf("it runs outside the agent, which last heard of it %s ago: is weft connect proxy running?", silent.Round(time.Second))
	}
	return st
}

// maxToldRows bounds the rows in all lists of what such a proxy says: a few bytes name one
// that takes hundreds. A proxy says less than 1 MiB, in which there is no room for more.
const maxToldRows = 16 << 10

// rows counts those in all lists of what a proxy says of itself.
func rows(st connect.Status) int {
	listener := func(l *connect.ListenerStatus) int {
		if l == nil {
			return 0
		}
		return len(l.Refused)
	}
	n := len(st.Upstreams) + len(st.Captured) + len(st.Exposed) + len(st.Peers) + len(st.Tunnels) + len(st.Drainers) + len(st.Errors)
	n += listener(st.Inbound)
	for i := range st.Captured {
		n += listener(&st.Captured[i])
	}
	for i := range st.Exposed {
		n += listener(&st.Exposed[i])
	}
	for _, u := range st.Upstreams {
		n += len(u.Instances) + len(u.Virtual) + listener(u.Listener)
	}
	for _, d := range st.Drainers {
		n += len(d.Peers)
	}
	return n
}

// bounded leaves out the lists where there is too much in them.
func bounded(st connect.Status) connect.Status {
	if rows(st) <= maxToldRows {
		return st
	}
	st.Upstreams, st.Captured, st.Exposed, st.Peers, st.Tunnels, st.Drainers, st.Errors = nil, nil, nil, nil, nil, nil, nil
	if st.Inbound != nil {
		in := *st.Inbound
		in.Refused = nil
		st.Inbound = &in
	}
	return st
}

// maxToldSamples bounds the values in what all such proxies of a host have counted.
const maxToldSamples = 64 << 10

// Tell takes what a proxy that runs outside the agent says of itself, and what it has
// counted, nil: that it does not say. The error is ErrNotFound where there is no such
// proxy, and ErrInvalid where the proxies of this host have counted too much to keep.
func (m *Manager) Tell(proxyID string, st connect.Status, counts *connect.Counts) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.running[proxyID]
	if s == nil || !s.external {
		return fmt.Errorf("proxy %s, outside the agent: %w", proxyID, catalog.ErrNotFound)
	}
	s.outside.take(bounded(st))
	if counts == nil {
		return nil
	}
	n := counts.Samples()
	for _, other := range m.running {
		if other != s && other.external {
			n += other.outside.samples()
		}
	}
	if n > maxToldSamples {
		return catalog.Invalidf("metrics of proxy %s are not taken: with them the proxies outside the agent have %d values, at most %d are kept", proxyID, n, maxToldSamples)
	}
	s.outside.count(counts)
	return nil
}

// Describe implements prometheus.Collector: what is told is not known before.
func (m *Manager) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector. It shows what the proxies outside the agent
// have counted, and earlier processes of it; those that it runs are in Config.Metrics.
func (m *Manager) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	running := maps.Clone(m.running)
	m.dropTallies()
	tallies := maps.Clone(m.tallies)
	m.mu.Unlock()
	for pid, t := range tallies {
		t.counts.CollectDrained(pid, t.fresh(), ch)
	}
	for id, s := range running {
		if s.external {
			s.outside.collect(id, ch)
		}
	}
}
