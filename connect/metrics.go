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

	mu       sync.Mutex
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
	pair := []string{"direction", "source", "destination"}
	with := func(more ...string) []string { return append(pair[:len(pair):len(pair)], more...) }
	m := &Metrics{
		pairs:    map[pairKey]*pairMetrics{},
		services: map[*Service]struct{}{},
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_proxy_connections_total",
			Help: "Connections that ended or were refused, by reason.",
		}, with("reason")),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "weft_proxy_connections_open",
			Help: "Connections open now.",
		}, pair),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_proxy_bytes_total",
			Help: "Bytes carried for applications; way in is from source to destination.",
		}, with("way")),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_proxy_handshake_failures_total",
			Help: "TLS handshakes that failed, by what was wrong.",
		}, []string{"direction", "reason"}),
		handshakes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "weft_proxy_handshake_seconds",
			Help:    "Duration of TLS handshakes that succeeded.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"direction"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "weft_proxy_connection_seconds",
			Help:    "How long connections that were let through lasted.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60, 600, 3600},
		}, pair),
		applied: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "weft_proxy_applied_index",
			Help: "Index of the snapshot that the proxy enforces.",
		}, []string{"proxy"}),
		expires: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "weft_proxy_certificate_expiry_timestamp_seconds",
			Help: "When the leaf certificate of the proxy expires, as a Unix time.",
		}, []string{"proxy"}),
		exposed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_proxy_exposed_requests_total",
			Help: "Requests in plaintext at addresses where paths are exposed, by class of the answer; 4xx are those for other paths, too.",
		}, []string{"service", "code"}),
		tunnels: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_proxy_tunnels_ended_total",
			Help: "Tunnels between proxies that ended, by how: in order (ok), lost, with a peer that fell silent, or by a violation of the protocol.",
		}, []string{"reason"}),
	}
	for _, why := range []string{tunnelOK, tunnelLost, tunnelSilent, string(ReasonViolation)} {
		m.tunnels.WithLabelValues(why)
	}
	if reg != nil {
		reg.MustRegister(m.tunnels, m.exposed, m.connections, m.open, settledBytes{m.bytes, m}, m.failures, m.handshakes, m.durations, m.applied, m.expires)
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
