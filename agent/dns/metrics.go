package dns

import (
	"fmt"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the package's series. Labels take the values of typeLabel and
// rcodeLabel and nothing else. The summaries have Consul's names and unit.
type metrics struct {
	queries *prometheus.CounterVec
	dropped prometheus.Counter
	domain  prometheus.Summary
	ptr     prometheus.Summary
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	summary := func(name, help string) prometheus.Summary {
		return prometheus.NewSummary(prometheus.SummaryOpts{
			Name: name, Help: help, MaxAge: time.Minute, Objectives: map[float64]float64{0.5: 0.05, 0.9: 0.01, 0.99: 0.001},
		})
	}
	m := &metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_dns_queries_total", Help: "DNS queries answered."}, []string{"type", "rcode"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_dns_dropped_total", Help: "DNS queries dropped because too many were being answered."}),
		domain:  summary("consul_dns_domain_query", "Milliseconds to answer a DNS query."),
		ptr:     summary("consul_dns_ptr_query", "Milliseconds to answer a reverse DNS query."),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.queries, m.dropped, m.domain, m.ptr} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("dns: metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) answered(qtype uint16, rcode int, took time.Duration) {
	m.queries.WithLabelValues(typeLabel(qtype), rcodeLabel(rcode)).Inc()
	ms := float64(took) / float64(time.Millisecond)
	if qtype == dns.TypePTR {
		m.ptr.Observe(ms)
	} else {
		m.domain.Observe(ms)
	}
}

func typeLabel(t uint16) string {
	switch t {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypePTR, dns.TypeNS, dns.TypeSOA, dns.TypeCNAME, dns.TypeANY:
		return dns.TypeToString[t]
	default:
		return "other"
	}
}

func rcodeLabel(rcode int) string {
	switch rcode {
	case dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeFormatError, dns.RcodeNotImplemented:
		return dns.RcodeToString[rcode]
	default:
		return "other"
	}
}
