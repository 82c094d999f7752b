package rpc

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
)

type metrics struct {
	requests *prometheus.CounterVec
	equal    prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, waiting func() float64) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_rpc_requests_total", Help: "Requests that this server has answered.",
		}, []string{"method", "outcome"}),
		equal: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_rpc_sync_equal_total", Help: "Statements of hosts that the catalog agreed with already: no log entry.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	now := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "weft_rpc_waiting", Help: "Reads and watches that wait for a change.",
	}, waiting)
	for _, c := range []prometheus.Collector{m.requests, m.equal, now} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) count(method string, err *error) {
	m.requests.WithLabelValues(method, outcome(*err)).Inc()
}

// outcome is a word of a closed list.
func outcome(err error) string {
	for _, o := range []struct {
		is   error
		word string
	}{
		{nil, "ok"},
		{context.Canceled, "ended"},
		{catalog.ErrDenied, "denied"},
		{catalog.ErrInvalid, "invalid"},
		{catalog.ErrNotFound, "not_found"},
		{catalog.ErrConflict, "conflict"},
		{catalog.ErrTooLarge, "too_large"},
		{catalog.ErrTryElsewhere, "limited"},
		{catalog.ErrTryLater, "limited"},
		{catalog.ErrNoLeader, "no_leader"},
		{catalog.ErrUnavailable, "unavailable"},
		{context.DeadlineExceeded, "timeout"},
	} {
		if errors.Is(err, o.is) {
			return o.word
		}
	}
	return "error"
}
