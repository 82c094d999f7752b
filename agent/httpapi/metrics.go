package httpapi

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/weftmesh/weft/agent/telemetry"
	"github.com/weftmesh/weft/catalog/acl"
)

// metricsAPI shows what the agent and its server count.
type metricsAPI struct {
	gatherer prometheus.Gatherer
	names    telemetry.Names
}

func (a metricsAPI) routes() []Route {
	return []Route{{
		Method: http.MethodGet, Path: "/v1/agent/metrics", Summary: "counters of the agent: as JSON, or for Prometheus",
		Params:     []Param{{"format", "prometheus: the text format; also taken from the header Accept"}},
		Permission: Permission{acl.Read, acl.Agent, ""}, MaxBody: bodyNone, params: paramsToken, local: true, handle: a.metrics,
	}}
}

func (a metricsAPI) metrics(c *call) (any, error) {
	// What could be gathered is shown even when some collector failed.
	families, err := a.gatherer.Gather()
	if err != nil && len(families) == 0 {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	accept := c.r.Header.Get("Accept")
	wanted := c.query.Get("format") == "prometheus" || strings.Contains(accept, "application/openmetrics-text") || strings.Contains(accept, "version=0.0.4")
	if !wanted {
		return viewMetrics(families, a.names, time.Now()), nil
	}
	a.names.Rename(families)
	format := expfmt.NegotiateIncludingOpenMetrics(c.r.Header)
	var buf bytes.Buffer
	enc := expfmt.NewEncoder(&buf, format)
	for _, f := range families {
		if err := enc.Encode(f); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	if closer, ok := enc.(expfmt.Closer); ok {
		if err := closer.Close(); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return raw{string(format), buf.Bytes()}, nil
}

// metricsView is what go-metrics shows of itself, which Consul's clients read.
type metricsView struct {
	Timestamp string
	Gauges    []gaugeView
	Points    []struct{}
	Counters  []sampleView
	Samples   []sampleView
}

type gaugeView struct {
	Name   string
	Value  float64
	Labels map[string]string
}

type sampleView struct {
	Name   string
	Count  uint64
	Rate   float64
	Sum    float64
	Min    float64
	Max    float64
	Mean   float64
	Stddev float64
	Labels map[string]string
}

func viewMetrics(families []*dto.MetricFamily, names telemetry.Names, now time.Time) metricsView {
	v := metricsView{
		Timestamp: now.UTC().Format("2006-01-02 15:04:05 +0000 UTC"),
		Gauges:    []gaugeView{}, Points: []struct{}{}, Counters: []sampleView{}, Samples: []sampleView{},
	}
	for _, f := range families {
		name := names.Dotted(f.GetName())
		for _, m := range f.GetMetric() {
			v.add(name, m)
		}
	}
	byName := func(a, b sampleView) int { return cmp.Compare(a.Name, b.Name) }
	slices.SortStableFunc(v.Gauges, func(a, b gaugeView) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(v.Counters, byName)
	slices.SortStableFunc(v.Samples, byName)
	return v
}

func (v *metricsView) add(name string, m *dto.Metric) {
	labels := map[string]string{}
	for _, l := range m.GetLabel() {
		labels[l.GetName()] = l.GetValue()
	}
	switch {
	case m.GetCounter() != nil:
		n := finite(m.GetCounter().GetValue())
		v.Counters = append(v.Counters, sampleView{Name: name, Count: uint64(max(n, 0)), Sum: n, Max: n, Mean: n, Labels: labels})
	case m.GetHistogram() != nil:
		v.Samples = append(v.Samples, sample(name, m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum(), labels))
	case m.GetSummary() != nil:
		v.Samples = append(v.Samples, sample(name, m.GetSummary().GetSampleCount(), m.GetSummary().GetSampleSum(), labels))
	case m.GetGauge() != nil:
		v.Gauges = append(v.Gauges, gaugeView{name, finite(m.GetGauge().GetValue()), labels})
	default:
		v.Gauges = append(v.Gauges, gaugeView{name, finite(m.GetUntyped().GetValue()), labels})
	}
}

func sample(name string, count uint64, sum float64, labels map[string]string) sampleView {
	s := sampleView{Name: name, Count: count, Sum: finite(sum), Labels: labels}
	if count > 0 {
		s.Mean = s.Sum / float64(count)
	}
	return s
}

// finite replaces what JSON cannot carry.
func finite(f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}
