package connect

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// collected gathers what is registered.
type collected struct {
	prometheus.Registerer
	all []prometheus.Collector
}

func (c *collected) MustRegister(all ...prometheus.Collector) { c.all = append(c.all, all...) }

var described = regexp.MustCompile(`fqName: "([^"]*)", help: "([^"]*)".*variableLabels: \{([^}]*)\}`)

// TestMetricsAreDocumented holds the table of the page on metrics to the code.
func TestMetricsAreDocumented(t *testing.T) {
	var reg collected
	NewMetrics(&reg)
	var want []string
	for _, c := range reg.all {
		kind := "counter"
		switch c.(type) {
		case *prometheus.GaugeVec:
			kind = "gauge"
		case *prometheus.HistogramVec:
			kind = "histogram"
		}
		descs := make(chan *prometheus.Desc, 1)
		c.Describe(descs)
		m := described.FindStringSubmatch((<-descs).String())
		if m == nil {
			t.Fatalf("%T says nothing of itself that is understood", c)
		}
		want = append(want, fmt.Sprintf("| `%s` | %s | `%s` | %s |", m[1], kind, strings.ReplaceAll(m[3], ",", "`, `"), m[2]))
	}
	slices.Sort(want)
	page, err := os.ReadFile("../website/content/docs/metrics.md")
	must(t, err)
	var got []string
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| `weft_proxy_") {
			got = append(got, strings.TrimSuffix(line, "\n"))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("website/content/docs/metrics.md is to have these rows:\n%s\nand has:\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
}
