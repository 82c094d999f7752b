package connect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Counts is what the proxies of another process have counted, as it tells the agent: one
// outside the agent, or those of a process of the agent that drains.
type Counts struct {
	// Began is when the process began to count, and Number grows with each telling: what
	// arrives late is not taken for news.
	Began  time.Time
	Number uint64
	Series map[string][]Series // by the name of the metric
}

// Series is a metric with certain labels.
type Series struct {
	Labels []string // their values, in the order of the table in the documentation
	Since  int64    `json:",omitempty"` // when it was 0, as a Unix time in milliseconds; not of gauges
	Value  float64  `json:",omitempty"` // of a histogram: the sum
	// Buckets of a histogram are cumulative; the last is the number of all.
	Buckets []uint64 `json:",omitempty"`
}

const (
	// maxSamples bounds what is shown of one process. With all pairs that it tells apart,
	// and each reason, it has less.
	maxSamples = 16 << 10
	// maxElements bounds what is read: a few bytes of JSON make an element that takes many.
	maxElements = 128 << 10
	// maxLabel is what the name of a service may have, which are the longest labels.
	maxLabel = 512
)

// Counts gives what was counted until now.
func (m *Metrics) Counts() Counts {
	m.mu.Lock()
	m.tellings++
	out := Counts{Began: m.began, Number: m.tellings, Series: map[string][]Series{}}
	m.mu.Unlock()
	for f, c := range m.all {
		ch := make(chan prometheus.Metric, 64)
		go func() { defer close(ch); c.Collect(ch) }()
		for one := range ch {
			var d dto.Metric
			if one.Write(&d) == nil {
				out.Series[f.name] = append(out.Series[f.name], f.series(&d))
			}
		}
	}
	return out
}

func (f *family) series(d *dto.Metric) Series {
	s := Series{Labels: make([]string, len(f.labels))}
	for i, name := range f.labels {
		for _, l := range d.GetLabel() {
			if l.GetName() == name {
				s.Labels[i] = l.GetValue()
			}
		}
	}
	switch {
	case f.buckets != nil:
		h := d.GetHistogram()
		for _, b := range h.GetBucket() {
			s.Buckets = append(s.Buckets, b.GetCumulativeCount())
		}
		s.Buckets = append(s.Buckets, h.GetSampleCount())
		s.Value, s.Since = h.GetSampleSum(), h.GetCreatedTimestamp().AsTime().UnixMilli()
	case f.gauge():
		s.Value = d.GetGauge().GetValue()
	default:
		s.Value, s.Since = d.GetCounter().GetValue(), d.GetCounter().GetCreatedTimestamp().AsTime().UnixMilli()
	}
	return s
}

// ReadCounts reads what a proxy says that it has counted, nil where it says nothing. What
// is not known here is left out, as the proxy may be of another version: what is there can
// be shown, and is no more than any proxy counts.
func ReadCounts(text []byte) (*Counts, error) {
	if len(text) == 0 || string(text) == "null" {
		return nil, nil
	}
	n := 0
	for _, sep := range []string{",", "[", "{"} {
		n += bytes.Count(text, []byte(sep))
	}
	if n > maxElements {
		return nil, fmt.Errorf("metrics of a proxy: there are %d elements, at most %d are taken", n, maxElements)
	}
	var said Counts
	if err := json.Unmarshal(text, &said); err != nil {
		return nil, fmt.Errorf("metrics of a proxy: %w", err)
	}
	known := map[string][]Series{}
	for _, f := range families {
		if fit := f.fitting(said.Series[f.name]); len(fit) > 0 {
			known[f.name] = fit
		}
	}
	said.Series = known
	if n := said.Samples(); n > maxSamples {
		return nil, fmt.Errorf("metrics of a proxy: there are %d values, at most %d are taken", n, maxSamples)
	}
	return &said, nil
}

// fitting gives those that are of the family, each once.
func (f *family) fitting(all []Series) []Series {
	var out []Series
	seen := map[string]bool{}
	for _, s := range all {
		buckets := 0
		if f.buckets != nil {
			buckets = len(f.buckets) + 1
		}
		if len(s.Labels) != len(f.labels) || len(s.Buckets) != buckets || !slices.IsSorted(s.Buckets) || s.Value < 0 {
			continue
		}
		if i := slices.Index(f.labels, labelProxy); i >= 0 {
			s.Labels[i] = "" // who tells says whose it is
		}
		key := strings.Join(s.Labels, "\xff") // which is in no JSON
		if seen[key] || slices.ContainsFunc(s.Labels, func(l string) bool { return len(l) > maxLabel }) {
			continue
		}
		seen[key] = true
		out = append(out, s)
	}
	return out
}

// Samples is how many values there are to show.
func (c *Counts) Samples() int {
	n := 0
	for _, f := range families {
		each := 1
		if f.buckets != nil {
			each = len(f.buckets) + 3 // the bucket of all, the sum and the number
		}
		n += each * len(c.Series[f.name])
	}
	return n
}

// Collect shows what ReadCounts has read, as of this proxy; without the gauges, which are
// of the moment, where it is not now that the proxy said so.
func (c *Counts) Collect(proxyID string, now bool, ch chan<- prometheus.Metric) {
	c.collect(now, ch, func(f *family, s Series) (*prometheus.Desc, []string) {
		labels := append(slices.Clone(s.Labels), proxyID)
		if i := slices.Index(f.labels, labelProxy); i >= 0 {
			labels = slices.Delete(labels, i, i+1)
		}
		return f.told, labels
	})
}

// CollectDrained is Collect for a process of the agent, of this number, that drains. What
// is told proxy by proxy is of those that have followed.
func (c *Counts) CollectDrained(pid int, now bool, ch chan<- prometheus.Metric) {
	c.collect(now, ch, func(f *family, s Series) (*prometheus.Desc, []string) {
		return f.drained, append(slices.Clone(s.Labels), strconv.Itoa(pid))
	})
}

func (c *Counts) collect(now bool, ch chan<- prometheus.Metric, as func(*family, Series) (*prometheus.Desc, []string)) {
	for _, f := range families {
		if f.gauge() && !now {
			continue
		}
		for _, s := range c.Series[f.name] {
			d, labels := as(f, s)
			if d == nil {
				break
			}
			if m, err := f.metric(d, s, labels); err == nil {
				ch <- m
			}
		}
	}
}

func (f *family) metric(d *prometheus.Desc, s Series, labels []string) (prometheus.Metric, error) {
	since := time.UnixMilli(s.Since)
	switch {
	case f.buckets != nil:
		buckets := make(map[float64]uint64, len(f.buckets))
		for i, le := range f.buckets {
			buckets[le] = s.Buckets[i]
		}
		return prometheus.NewConstHistogramWithCreatedTimestamp(d, s.Buckets[len(f.buckets)], s.Value, buckets, since, labels...)
	case f.gauge():
		return prometheus.NewConstMetric(d, f.kind, s.Value, labels...)
	default:
		return prometheus.NewConstMetricWithCreatedTimestamp(d, f.kind, s.Value, since, labels...)
	}
}
