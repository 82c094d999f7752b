package httpapi

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of the API itself. Labels come from closed sets: routes, not
// paths, and known methods.
type metrics struct {
	requests *prometheus.HistogramVec
	consul   *prometheus.SummaryVec
	shared   prometheus.Counter
	waiting  prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "weft_http_request_seconds",
		Help:    "Time to answer a request to the HTTP API, waiting of blocking queries included.",
		Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 30, 330},
	}, []string{"path", "method", "code"})}
	m.consul = prometheus.NewSummaryVec(prometheus.SummaryOpts{
		Name: "consul_api_http", Help: "Milliseconds to answer a request to the HTTP API, as Consul counts them.",
	}, []string{"method", "path"})
	m.shared = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "weft_http_shared_answers_total",
		Help: "Answers to blocking queries that were encoded, each once for all who waited for it.",
	})
	m.waiting = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "weft_http_waiting_clients",
		Help: "Clients whose blocked query waits, over plain HTTP, for something to change.",
	})
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.requests), reg.Register(m.consul), reg.Register(m.shared), reg.Register(m.waiting))
}

func (m *metrics) observe(path, method string, status int, d time.Duration) {
	switch method {
	case http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodOptions, http.MethodHead, http.MethodPatch:
	default:
		method = "other"
	}
	m.consul.WithLabelValues(method, strings.ReplaceAll(strings.Trim(path, "/"), "/", "_")).Observe(float64(d) / float64(time.Millisecond))
	m.requests.WithLabelValues(path, method, strconv.Itoa(status/100)+"xx").Observe(d.Seconds())
}
