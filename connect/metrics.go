package connect

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
	"github.com/weftmesh/weft/connect/tunnel"
)

const (
	// maxPairs bounds the pairs of source and destination told apart in metrics.
	maxPairs = 512
	other    = "other"
)

// Metrics counts for all services of a process. Its labels are from closed or
// bounded sets: sources beyond a limit are counted together as "other".
type Metrics struct {
	connections *prometheus.CounterVec
	open        *prometheus.GaugeVec
	bytes       *prometheus.CounterVec
	failures    *prometheus.CounterVec
	handshakes  *prometheus.HistogramVec
	durations   *prometheus.HistogramVec
	applied     *prometheus.GaugeVec
	expires     *prometheus.GaugeVec
	exposed     *prometheus.CounterVec
	tunnels     *prometheus.CounterVec
	all         map[*family]prometheus.Collector
	began       time.Time

	mu       sync.Mutex
	tellings uint64
	pairs    map[pairKey]*pairMetrics
	services map[*Service]struct{} // that run
}

// settledBytes brings the bytes of live connections in before it is collected, so
// that carrying them touches no shared counter.
type settledBytes struct {
	*prometheus.CounterVec
	m *Metrics
}

// Collect implements prometheus.Collector.
func (c settledBytes) Collect(ch chan<- prometheus.Metric) {
	c.m.mu.Lock()
	services := slices.Collect(maps.Keys(c.m.services))
	c.m.mu.Unlock()
	for _, s := range services {
		for _, r := range s.table.all(nil) {
			r.settle()
		}
	}
	c.CounterVec.Collect(ch)
}

// serve has the live connections of s counted until the function returned is called.
func (m *Metrics) serve(s *Service) (stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.services[s] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.services, s)
	}
}

type pairKey struct {
	outbound            bool
	source, destination catalog.Name
}

// pairMetrics holds the series of one pair, so that no connection looks them up.
type pairMetrics struct {
	ended             *prometheus.CounterVec // by reason
	open              prometheus.Gauge
	duration          prometheus.Observer
	bytesIn, bytesOut prometheus.Counter
}

// NewMetrics makes the collectors and registers them with reg; nil registers
// nowhere. Registering the same names twice panics, as with prometheus itself:
// a process makes one Metrics and shares it.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		began:       time.Now(),
		pairs:       map[pairKey]*pairMetrics{},
		services:    map[*Service]struct{}{},
		connections: familyConnections.counters(),
		open:        familyOpen.gauges(),
		bytes:       familyBytes.counters(),
		failures:    familyFailures.counters(),
		handshakes:  familyHandshakes.histograms(),
		durations:   familyDurations.histograms(),
		applied:     familyApplied.gauges(),
		expires:     familyExpires.gauges(),
		exposed:     familyExposed.counters(),
		tunnels:     familyTunnels.counters(),
	}
	m.all = map[*family]prometheus.Collector{
		familyConnections: m.connections, familyOpen: m.open, familyBytes: settledBytes{m.bytes, m}, familyFailures: m.failures,
		familyHandshakes: m.handshakes, familyDurations: m.durations, familyApplied: m.applied, familyExpires: m.expires,
		familyExposed: m.exposed, familyTunnels: m.tunnels,
	}
	for _, why := range []string{tunnelOK, tunnelLost, tunnelSilent, string(ReasonViolation)} {
		m.tunnels.WithLabelValues(why)
	}
	if reg != nil {
		reg.MustRegister(slices.Collect(maps.Values(m.all))...)
	}
	return m
}

// pair gives the series of a pair; a pair beyond the limit shares those of "other".
func (m *Metrics) pair(outbound bool, source, destination catalog.Name) *pairMetrics {
	k := pairKey{outbound, source, destination}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pairs[k]; p != nil {
		return p
	}
	if len(m.pairs) >= maxPairs {
		k = pairKey{outbound, other, other}
		if p := m.pairs[k]; p != nil {
			return p
		}
	}
	l := prometheus.Labels{"direction": direction(outbound), "source": k.source, "destination": k.destination}
	p := &pairMetrics{
		ended:    m.connections.MustCurryWith(l),
		open:     m.open.With(l),
		duration: m.durations.With(l),
		bytesIn:  m.bytes.MustCurryWith(l).WithLabelValues("in"),
		bytesOut: m.bytes.MustCurryWith(l).WithLabelValues("out"),
	}
	m.pairs[k] = p
	return p
}

func (p *pairMetrics) count(why Reason) { p.ended.WithLabelValues(string(why)).Inc() }

// lasted counts a connection that was let through, at its end.
func (p *pairMetrics) lasted(d time.Duration) { p.duration.Observe(d.Seconds()) }

func (m *Metrics) handshake(outbound bool, took time.Duration) {
	m.handshakes.WithLabelValues(direction(outbound)).Observe(took.Seconds())
}

// handshakeFailed takes a reason of package identity, which are a closed set.
func (m *Metrics) handshakeFailed(outbound bool, why identity.Reason) {
	m.failures.WithLabelValues(direction(outbound), string(why)).Inc()
}

// How tunnels end, beside ReasonViolation.
const (
	tunnelOK     = "ok"
	tunnelLost   = "lost"
	tunnelSilent = "silent"
)

// tunnelEnded takes why a tunnel ended, nil where that was in order.
func (m *Metrics) tunnelEnded(err error) {
	why := tunnelLost
	switch {
	case err == nil:
		why = tunnelOK
	case errors.Is(err, tunnel.ErrProtocol):
		why = string(ReasonViolation)
	case errors.Is(err, tunnel.ErrSilent):
		why = tunnelSilent
	}
	m.tunnels.WithLabelValues(why).Inc()
}

func (m *Metrics) certificate(id string, expires time.Time) {
	m.expires.WithLabelValues(id).Set(float64(expires.Unix()))
}

func (m *Metrics) appliedIndex(id string, index uint64) {
	m.applied.WithLabelValues(id).Set(float64(index))
}

// forget drops the series of a proxy that has ended.
func (m *Metrics) forget(id string) {
	m.expires.DeleteLabelValues(id)
	m.applied.DeleteLabelValues(id)
}
