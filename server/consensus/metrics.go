package consensus

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics carry Consul's names where they mean the same.
type metrics struct {
	applies prometheus.Counter
	commit  prometheus.Histogram
	leading prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, more ...prometheus.Collector) (*metrics, error) {
	m := &metrics{
		applies: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "consul_raft_apply", Help: "Commands that this server put through the Raft log.",
		}),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weft_raft_commit_seconds", Help: "Time from handing a command to Raft until it was applied here.",
			Buckets: prometheus.ExponentialBuckets(0.00005, 2, 18),
		}),
		leading: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "consul_server_isLeader", Help: "1 while this server leads and is ready to serve, else 0.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range append(more, m.applies, m.commit, m.leading) {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) applied(d time.Duration) {
	m.applies.Inc()
	m.commit.Observe(d.Seconds())
}
