package connect

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestAccessLog(t *testing.T) {
	const n = 2000
	for name, tc := range map[string]struct {
		log        AccessLog
		least, top int
		failures   int
	}{
		"all":     {AccessLog{}, n, n, 1},
		"a tenth": {AccessLog{Skip: 0.9}, n / 20, n / 5, 1},
		"none":    {AccessLog{Skip: 1}, 0, 0, 1},
		"off":     {AccessLog{Off: true}, 0, 0, 0},
	} {
		book := &logBook{}
		j := &journal{}
		j.access.Store(&tc.log)
		j.init(book.logger(), time.Now)
		for range n {
			j.post(line{reason: ReasonOK, source: "web", destination: "db", dur: 1})
		}
		j.post(line{reason: ReasonDenied, source: "evil", destination: "db", err: errors.New("no")})
		eventually(t, "the lines to be written", func() bool {
			j.queue.mu.Lock()
			defer j.queue.mu.Unlock()
			return !j.queue.writing
		})
		if got := strings.Count(book.String(), "reason=ok"); got < tc.least || got > tc.top {
			t.Errorf("%s: %d lines, want %d to %d", name, got, tc.least, tc.top)
		}
		if got := strings.Count(book.String(), "source=evil"); got != tc.failures {
			t.Errorf("%s: %d lines of refusals, want %d", name, got, tc.failures)
		}
		if len(j.failures()) != 1 {
			t.Errorf("%s: status knows of %d refusals, want 1", name, len(j.failures()))
		}
	}
}

// Sources beyond the bound share one series, in counters and histograms.
func TestMetricsAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	for i := range 3 * maxPairs {
		p := m.pair(false, strings.Repeat("s", i%200)+string(rune('a'+i/200)), "db")
		p.count(ReasonOK)
		p.lasted(time.Second)
	}
	families, err := reg.Gather()
	must(t, err)
	seen := 0
	for _, f := range families {
		switch f.GetName() {
		case "weft_proxy_connections_total", "weft_proxy_connection_seconds":
			seen++
			if n := len(f.GetMetric()); n > maxPairs+1 {
				t.Errorf("%s has %d series, want at most %d", f.GetName(), n, maxPairs+1)
			}
		}
	}
	if seen != 2 {
		t.Errorf("%d of 2 families are there", seen)
	}
}
