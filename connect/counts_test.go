package connect

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// shown is what two proxies say, beside what the agent counts itself.
type shown map[string]*Counts

func (shown) Describe(chan<- *prometheus.Desc) {}

func (s shown) Collect(ch chan<- prometheus.Metric) {
	for id, c := range s {
		c.Collect(id, id != "silent", ch)
	}
}

// counted is a process that has counted something of everything.
func counted(proxyID string, times int) *Metrics {
	m := NewMetrics(nil)
	for range times {
		p := m.pair(true, "web", "db")
		p.count(ReasonOK)
		p.open.Inc()
		p.bytesIn.Add(10)
		p.lasted(200 * time.Millisecond)
		m.handshake(true, time.Millisecond)
		m.handshakeFailed(true, "expired")
		m.exposed.WithLabelValues("web", "2xx").Inc()
		m.tunnelEnded(nil)
	}
	m.certificate(proxyID, time.Unix(1e9, 0))
	m.appliedIndex(proxyID, 7)
	return m
}

// said is what arrives of what m has counted.
func said(t *testing.T, m *Metrics) *Counts {
	t.Helper()
	text, err := json.Marshal(m.Counts())
	must(t, err)
	c, err := ReadCounts(text)
	must(t, err)
	return c
}

func gathered(t *testing.T, g prometheus.Gatherer) map[string][]*dto.Metric {
	t.Helper()
	families, err := g.Gather()
	must(t, err)
	out := map[string][]*dto.Metric{}
	for _, f := range families {
		out[f.GetName()] = f.GetMetric()
	}
	return out
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// TestCountsOfOthers: what proxies in processes of their own tell is shown beside what is
// counted here, each series once and with their ID.
func TestCountsOfOthers(t *testing.T) {
	reg := prometheus.NewRegistry()
	own := NewMetrics(reg)
	own.pair(true, "web", "db").count(ReasonOK)
	own.appliedIndex("own", 3)
	reg.MustRegister(shown{"a": said(t, counted("a", 2)), "b": said(t, counted("a", 3)), "silent": said(t, counted("silent", 4))})
	all := gathered(t, reg)
	for name, want := range map[string]map[string]float64{
		familyConnections.name: {"": 1, "a": 2, "b": 3, "silent": 4},
		familyOpen.name:        {"a": 2, "b": 3, "": 0},
		familyApplied.name:     {"a": 7, "b": 7, "own": 3}, // b does not speak for a
		familyExpires.name:     {"a": 1e9, "b": 1e9},
		familyExposed.name:     {"a": 2, "b": 3, "silent": 4},
		familyFailures.name:    {"a": 2, "b": 3, "silent": 4},
	} {
		got := map[string]float64{}
		for _, m := range all[name] {
			got[label(m, labelProxy)] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	for _, m := range all[familyBytes.name] {
		if label(m, "proxy") == "b" && label(m, "way") == "in" && (m.GetCounter().GetValue() != 30 || label(m, "source") != "web" || label(m, "destination") != "db") {
			t.Errorf("bytes of b: %v", m)
		}
	}
	for _, name := range []string{familyDurations.name, familyHandshakes.name} {
		n := 0
		for _, m := range all[name] {
			if h := m.GetHistogram(); label(m, "proxy") == "b" && h.GetSampleCount() == 3 && h.GetBucket()[len(h.GetBucket())-1].GetCumulativeCount() == 3 &&
				!h.GetCreatedTimestamp().AsTime().After(time.Now()) && h.GetCreatedTimestamp().AsTime().After(time.Now().Add(-time.Hour)) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s: %v", name, all[name])
		}
	}
}

// TestHostileCounts: nothing that is told breaks what is shown, or makes it large.
func TestHostileCounts(t *testing.T) {
	ok := `{"Labels":["outbound","web","db","ok"],"Value":1}`
	long := func(n int) string {
		return `{"Series":{"weft_proxy_connections_open":[{"Labels":["inbound","` + strings.Repeat("x", n) + `","b"],"Value":1}]}}`
	}
	hist := func(buckets string) string {
		return `{"Series":{"weft_proxy_connection_seconds":[{"Labels":["inbound","a","b"],"Buckets":[` + buckets + `]}]}}`
	}
	for name, c := range map[string]struct {
		text    string
		samples int
		err     string
	}{
		"nothing":          {"", 0, ""},
		"null":             {"null", 0, ""},
		"no object":        {"[]", 0, "cannot unmarshal"},
		"infinite":         {`{"Series":{"weft_proxy_connections_total":[{"Labels":["a","b","c","d"],"Value":1e999}]}}`, 0, "1e999"},
		"another family":   {`{"Series":{"go_goroutines":[{"Value":1}],"weft_proxy_new_total":[{"Value":1}]}}`, 0, ""},
		"too few labels":   {`{"Series":{"weft_proxy_connections_total":[{"Labels":["a"],"Value":1}]}}`, 0, ""},
		"too many labels":  {`{"Series":{"weft_proxy_connections_total":[{"Labels":["a","b","c","d","e"],"Value":1}]}}`, 0, ""},
		"twice the same":   {`{"Series":{"weft_proxy_connections_total":[` + ok + `,` + ok + `]}}`, 1, ""},
		"bytes of no text": {"{\"Series\":{\"weft_proxy_connections_open\":[{\"Labels\":[\"\xff\",\"\\n\\\"\",\"\\ud800\"]},{\"Labels\":[\"\xfe\",\"\\n\\\"\",\"\\ud800\"]}]}}", 1, ""},
		"the longest name": {long(maxLabel), 1, ""},
		"a longer one":     {long(maxLabel + 1), 0, ""},
		"less than none":   {`{"Series":{"weft_proxy_connections_total":[{"Labels":["a","b","c","d"],"Value":-1}]}}`, 0, ""},
		"of others":        {`{"Series":{"weft_proxy_applied_index":[{"Labels":["x"],"Value":1},{"Labels":["y"],"Value":2}]}}`, 1, ""},
		"a histogram":      {hist("0,0,0,1,1,1,1,1,1,1,2"), 13, ""},
		"that goes down":   {hist("0,0,0,1,1,1,1,1,1,1,0"), 0, ""},
		"with too few":     {hist("0,0"), 0, ""},
		"counts buckets":   {`{"Series":{"weft_proxy_connections_total":[{"Labels":["a","b","c","d"],"Buckets":[1]}]}}`, 0, ""},
		"many elements":    {`{"Series":{"weft_proxy_connections_total":[` + strings.Repeat("{},", maxElements/2) + `{}]}}`, 0, "elements"},
		"many values":      {`{"Series":{"weft_proxy_connections_total":[` + many() + `]}}`, 0, "values"},
	} {
		c0, err := ReadCounts([]byte(c.text))
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v", name, err)
		}
		if c0 == nil {
			if c.samples > 0 {
				t.Errorf("%s: nothing was read", name)
			}
			continue
		}
		reg := prometheus.NewRegistry()
		NewMetrics(reg).pair(true, "web", "db").count(ReasonOK)
		reg.MustRegister(shown{"p": c0})
		gathered(t, reg)
		if n := c0.Samples(); n != c.samples {
			t.Errorf("%s: %d values, want %d", name, n, c.samples)
		}
	}
}

// many are more series than any proxy has.
func many() string {
	var all []string
	for i := range maxSamples + 1 {
		all = append(all, fmt.Sprintf(`{"Labels":["","","","%d"]}`, i))
	}
	return strings.Join(all, ",")
}

// TestCountsOfMany: a process that tells all its pairs apart can tell of them.
func TestCountsOfMany(t *testing.T) {
	m := NewMetrics(nil)
	reasons := []Reason{ReasonOK, ReasonClientClosed, ReasonServerClosed, ReasonDenied, ReasonTLSFailed, ReasonNoInstance, ReasonDialFailed, ReasonPolicyChanged, ReasonDraining, ReasonIdle, ReasonLimit}
	for i := range maxPairs + 1 {
		p := m.pair(i%2 == 0, fmt.Sprint("source-", i), "db")
		for _, why := range reasons {
			p.count(why)
		}
		p.lasted(time.Second)
	}
	if n := said(t, m).Samples(); n < maxPairs*(len(reasons)+1) {
		t.Errorf("%d values", n)
	}
}

// FuzzReadCounts: what is read can be shown.
func FuzzReadCounts(f *testing.F) {
	text, err := json.Marshal(counted("p", 2).Counts())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"Series":{"weft_proxy_connections_open":[{"Labels":["\ud800","",""],"Since":9223372036854775807,"Value":1e308}]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ReadCounts(text)
		if err != nil || c == nil {
			return
		}
		reg := prometheus.NewRegistry()
		NewMetrics(reg).pair(true, "web", "db").count(ReasonOK)
		reg.MustRegister(shown{"p": c})
		n := 0
		for _, metrics := range gathered(t, reg) {
			for _, m := range metrics {
				if label(m, labelProxy) == "p" {
					n++
				}
			}
		}
		want := 0
		for _, s := range c.Series {
			want += len(s)
		}
		if n != want {
			t.Errorf("%d of %d series are shown", n, want)
		}
	})
}
