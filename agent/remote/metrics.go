package remote

import "github.com/prometheus/client_golang/prometheus"

// metrics are the package's series. The label "call" takes the names of the
// calls in remote.go and nothing else.
type metrics struct {
	calls    *prometheus.CounterVec
	failed   *prometheus.CounterVec
	retries  *prometheus.CounterVec
	views    prometheus.Gauge
	restarts prometheus.Counter
	fetched  *prometheus.CounterVec
	exceeded prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "consul_client_rpc", Help: "Calls to servers, tries included."}, []string{"call"}),
		failed:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "consul_client_rpc_failed", Help: "Calls to servers that failed, tries included."}, []string{"call"}),
		retries:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_remote_retries_total", Help: "Calls to servers that were tried again."}, []string{"call"}),
		views:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_remote_views", Help: "Queries that are kept current."}),
		exceeded: prometheus.NewCounter(prometheus.CounterOpts{Name: "consul_client_rpc_exceeded", Help: "Calls to servers that were not made, as limits.rpc_rate was exceeded."}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_remote_stream_restarts_total", Help: "Streams of views that broke and were opened again."}),
	}
	m.fetched = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "consul_cache_fetch_success", Help: "News from the servers about queries that are kept current; not_modified is true where it was that nothing changed.",
	}, []string{"result_not_modified"})
	for _, unchanged := range []string{"true", "false"} {
		m.fetched.WithLabelValues(unchanged)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.calls, m.failed, m.retries, m.views, m.restarts, m.fetched, m.exceeded} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
