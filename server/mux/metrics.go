package mux

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	refused    *prometheus.CounterVec // by reason
	handshakes prometheus.Histogram
}

// reasons are all that a connection may be refused for.
var reasons = []string{
	"too_many", "too_many_of_source", "too_fast", "too_many_handshakes", "evicted", "timeout", "closed", "not_tls", "handshake", "not_admitted", "no_listener",
}

func newMetrics(reg prometheus.Registerer, t *table) (*metrics, error) {
	m := &metrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_server_port_refused_total", Help: "Connections to the servers' port that were refused, by reason.",
		}, []string{"reason"}),
		handshakes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weft_server_port_handshake_seconds", Help: "How long handshakes at the servers' port took.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
	}
	for _, r := range reasons {
		m.refused.WithLabelValues(r)
	}
	if reg == nil {
		return m, nil
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	for _, c := range []prometheus.Collector{
		m.refused, m.handshakes,
		gauge("weft_server_port_connections", "Open connections to the servers' port.", func() float64 { n, _ := t.counts(); return float64(n) }),
		gauge("weft_server_port_handshakes", "Handshakes in progress at the servers' port.", func() float64 { _, n := t.counts(); return float64(n) }),
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("mux: %w", err)
		}
	}
	return m, nil
}

// reasonOf classifies what a handshake returned.
func reasonOf(err error, evicted bool) string {
	var record tls.RecordHeaderError
	var timeout net.Error
	switch {
	case evicted:
		return "evicted"
	case errors.As(err, &record):
		return "not_tls"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, context.Canceled), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "closed"
	}
	return "handshake"
}
