package connect

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// family is what is counted under one name.
type family struct {
	name, help string
	kind       prometheus.ValueType // CounterValue or GaugeValue, where there are no buckets
	labels     []string
	buckets    []float64 // of a histogram
	// told describes it as a proxy outside the agent tells of it: with the proxy's ID;
	// drained as a process that drains does: with its number, or nil.
	told, drained *prometheus.Desc
}

const (
	labelProxy   = "proxy"
	labelProcess = "process"
)

func newFamily(f family) *family {
	labels := f.labels
	if !slices.Contains(labels, labelProxy) {
		labels = append(slices.Clone(labels), labelProxy)
		f.drained = prometheus.NewDesc(f.name, f.help, append(slices.Clone(f.labels), labelProcess), nil)
	}
	f.told = prometheus.NewDesc(f.name, f.help, labels, nil)
	return &f
}

var (
	familyConnections = newFamily(family{
		name: "weft_proxy_connections_total", kind: prometheus.CounterValue,
		help:   "Connections that ended or were refused, by reason.",
		labels: []string{"direction", "source", "destination", "reason"},
	})
	familyOpen = newFamily(family{
		name: "weft_proxy_connections_open", kind: prometheus.GaugeValue,
		help:   "Connections open now.",
		labels: []string{"direction", "source", "destination"},
	})
	familyBytes = newFamily(family{
		name: "weft_proxy_bytes_total", kind: prometheus.CounterValue,
		help:   "Bytes carried for applications; way in is from source to destination.",
		labels: []string{"direction", "source", "destination", "way"},
	})
	familyFailures = newFamily(family{
		name: "weft_proxy_handshake_failures_total", kind: prometheus.CounterValue,
		help:   "TLS handshakes that failed, by what was wrong.",
		labels: []string{"direction", "reason"},
	})
	familyHandshakes = newFamily(family{
		name:    "weft_proxy_handshake_seconds",
		help:    "Duration of TLS handshakes that succeeded.",
		buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		labels:  []string{"direction"},
	})
	familyDurations = newFamily(family{
		name:    "weft_proxy_connection_seconds",
		help:    "How long connections that were let through lasted.",
		buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60, 600, 3600},
		labels:  []string{"direction", "source", "destination"},
	})
	familyApplied = newFamily(family{
		name: "weft_proxy_applied_index", kind: prometheus.GaugeValue,
		help:   "Index of the snapshot that the proxy enforces.",
		labels: []string{labelProxy},
	})
	familyExpires = newFamily(family{
		name: "weft_proxy_certificate_expiry_timestamp_seconds", kind: prometheus.GaugeValue,
		help:   "When the leaf certificate of the proxy expires, as a Unix time.",
		labels: []string{labelProxy},
	})
	familyExposed = newFamily(family{
		name: "weft_proxy_exposed_requests_total", kind: prometheus.CounterValue,
		help:   "Requests in plaintext at addresses where paths are exposed, by class of the answer; 4xx are those for other paths, too.",
		labels: []string{"service", "code"},
	})
	familyTunnels = newFamily(family{
		name: "weft_proxy_tunnels_ended_total", kind: prometheus.CounterValue,
		help:   "Tunnels between proxies that ended, by how: in order (ok), lost, with a peer that fell silent, or by a violation of the protocol.",
		labels: []string{"reason"},
	})
	families = []*family{
		familyConnections, familyOpen, familyBytes, familyFailures, familyHandshakes, familyDurations, familyApplied, familyExpires,
		familyExposed, familyTunnels,
	}
)

func (f *family) counters() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: f.name, Help: f.help}, f.labels)
}

func (f *family) gauges() *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: f.name, Help: f.help}, f.labels)
}

func (f *family) histograms() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: f.name, Help: f.help, Buckets: f.buckets}, f.labels)
}

// gauge tells whether it is of the moment, and not what was counted until now.
func (f *family) gauge() bool { return f.buckets == nil && f.kind == prometheus.GaugeValue }
