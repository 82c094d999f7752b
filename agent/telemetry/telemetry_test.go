package telemetry

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNames(t *testing.T) {
	for name, want := range map[string]string{
		"consul_api_http": "consul.api.http", "consul_runtime_num_goroutines": "consul.runtime.num_goroutines",
		"weft_http_request_seconds": "weft_http_request_seconds", "go_threads": "go_threads",
	} {
		if got := (Names{}).Dotted(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
		if got, want := (Names{Prefix: "mesh.eu"}).Dotted(name), strings.Replace(want, "consul.", "mesh.eu.", 1); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

func TestRules(t *testing.T) {
	r := Rules{Default: true, Prefixes: []string{"-consul", "+consul.raft", "-consul.raft.fsm", "+consul.raft.fsm"}}
	for name, want := range map[string]bool{
		"weft_x": true, "consul.api": false, "consul.raft": true, "consul.raft.apply": true, "consul.raft.fsm.x": false,
	} {
		if got := r.Shows(name); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if (Rules{}).Shows("x") || !(Rules{Prefixes: []string{"+x"}}).Shows("xy") {
		t.Error("the default is wrong")
	}
	for _, bad := range []string{"", "+", "consul"} {
		if (Rules{Prefixes: []string{bad}}).Validate() == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if err := r.Validate(); err != nil {
		t.Error(err)
	}
}

// sinkhole takes packets.
func sinkhole(t *testing.T) (addr string, next func() []string) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.LocalAddr().String(), func() []string {
		t.Helper()
		b := make([]byte, 64<<10)
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, _, err := c.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		if n > maxPacket {
			t.Errorf("a packet of %d bytes", n)
		}
		return strings.Split(string(b[:n]), "\n")
	}
}

func TestSend(t *testing.T) {
	reg := prometheus.NewRegistry()
	queries := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "consul_dns_queries"}, []string{"node"})
	heap := prometheus.NewGauge(prometheus.GaugeOpts{Name: "consul_runtime_alloc_bytes"})
	below := prometheus.NewGauge(prometheus.GaugeOpts{Name: "below"})
	took := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_took_seconds"})
	quiet := prometheus.NewSummary(prometheus.SummaryOpts{Name: "consul_quiet"})
	reg.MustRegister(queries, heap, below, took, quiet)
	plain, nextPlain := sinkhole(t)
	dog, nextDog := sinkhole(t)
	s, err := New(Config{Gatherer: reg, Statsd: plain, DogStatsd: dog, Tags: []string{"env:a b"}, Hostname: "h1", Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	queries.WithLabelValues("n:1").Add(3)
	heap.Set(2e9)
	below.Set(-1)
	took.Observe(0.25)
	took.Observe(0.75)
	s.send()
	want := []string{
		"h1.below:0|g", "h1.below:-1|g", "consul.dns.queries.n_1:3|c",
		"consul.h1.runtime.alloc_bytes:2000000000|g", "weft_took_seconds:500|ms|@0.5",
	}
	if got := nextPlain(); !slices.Equal(got, want) {
		t.Errorf("statsd was sent %q, want %q", got, want)
	}
	want = []string{
		"below:0|g|#env:a_b", "below:-1|g|#env:a_b", "consul.dns.queries:3|c|#node:n:1,env:a_b",
		"consul.runtime.alloc_bytes:2000000000|g|#env:a_b", "weft_took_seconds:500|ms|@0.5|#env:a_b",
	}
	if got := nextDog(); !slices.Equal(got, want) {
		t.Errorf("dogstatsd was sent %q, want %q", got, want)
	}
	queries.WithLabelValues("n:1").Inc()
	s.send()
	if got := nextPlain(); !slices.Contains(got, "consul.dns.queries.n_1:1|c") || slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, "weft_took") }) {
		t.Errorf("the second time %q", got)
	}
}

// TestRunSendsWhatIsLeft: what was counted since the last time is sent at the end, and
// much of it in many packets.
func TestRunSendsWhatIsLeft(t *testing.T) {
	reg := prometheus.NewRegistry()
	many := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "many"}, []string{"l"})
	reg.MustRegister(many)
	for i := range 100 {
		many.WithLabelValues(strings.Repeat("y", i+1)).Inc()
	}
	addr, next := sinkhole(t)
	s, err := New(Config{Gatherer: reg, Statsd: addr, Every: time.Hour, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	lines := len(next())
	for lines < 100 {
		lines += len(next())
	}
}

// TestLineLongerThanAPacket: one that fits no datagram is lost alone, and said.
func TestLineLongerThanAPacket(t *testing.T) {
	reg := prometheus.NewRegistry()
	counts := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_some_total"}, []string{"l"})
	reg.MustRegister(counts)
	long := strings.Repeat("m", 70_000)
	for _, l := range []string{"a", long, "z"} {
		counts.WithLabelValues(l).Inc()
	}
	var log strings.Builder
	addr, next := sinkhole(t)
	s, err := New(Config{Gatherer: reg, Statsd: addr, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.send()
	if got := slices.Concat(next(), next()); !slices.Equal(got, []string{"weft_some_total.a:1|c", "weft_some_total.z:1|c"}) {
		t.Errorf("%q was sent", got)
	}
	if got := log.String(); !strings.Contains(got, "weft_some_total.mmm") || !strings.Contains(got, "of 70020 bytes") || len(got) > 1000 {
		t.Errorf("the log says %q", got)
	}
	counts.DeleteLabelValues(long)
	counts.WithLabelValues("a").Add(2)
	s.send()
	if got := next(); !slices.Equal(got, []string{"weft_some_total.a:2|c"}) || s.sinks[0].failing {
		t.Errorf("then %q", got)
	}
}

func TestAddressThatIsNobodys(t *testing.T) {
	reg := prometheus.NewRegistry()
	if _, err := New(Config{Gatherer: reg, Statsd: "no such host:1", Strict: true}); err == nil || !strings.Contains(err.Error(), "statsd at no such host:1") {
		t.Error(err)
	}
	s, err := New(Config{Gatherer: reg, Statsd: "no such host:1"})
	if err != nil {
		t.Fatal(err)
	}
	s.send()
	if !s.sinks[0].failing {
		t.Error("nobody noticed")
	}
}

// TestWhatOthersCountedBefore: what was counted before this process began is not sent
// again by it, and what has been since is.
func TestWhatOthersCountedBefore(t *testing.T) {
	counts := prometheus.NewDesc("weft_others_total", "", []string{"proxy"}, nil)
	took := prometheus.NewDesc("weft_others_seconds", "", []string{"process"}, nil)
	began := time.Now()
	total := 5.0
	g := prometheus.NewRegistry()
	g.MustRegister(collect(func(ch chan<- prometheus.Metric) {
		for proxy, since := range map[string]time.Time{"old": began.Add(-time.Hour), "new": began.Add(time.Second)} {
			m, err := prometheus.NewConstMetricWithCreatedTimestamp(counts, prometheus.CounterValue, total, since, proxy)
			if err != nil {
				t.Error(err)
			}
			ch <- m
		}
		m, err := prometheus.NewConstHistogramWithCreatedTimestamp(took, uint64(total), total/4, nil, began.Add(-time.Hour), "old")
		if err != nil {
			t.Error(err)
		}
		ch <- m
	}))
	addr, next := sinkhole(t)
	s, err := New(Config{Gatherer: g, Statsd: addr, Began: began})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.send()
	if got, want := next(), []string{"weft_others_total.new:5|c"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	total = 9
	s.send()
	want := []string{"weft_others_seconds.old:250|ms|@0.25", "weft_others_total.new:4|c", "weft_others_total.old:4|c"}
	if got := next(); !slices.Equal(got, want) {
		t.Errorf("then %q, want %q", got, want)
	}
}

// TestClockSetBack: what this process counts itself is sent, though by its clock that began
// before the process did.
func TestClockSetBack(t *testing.T) {
	reg := prometheus.NewRegistry()
	own := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_own_total"}, []string{"reason"})
	reg.MustRegister(own)
	addr, next := sinkhole(t)
	s, err := New(Config{Gatherer: reg, Statsd: addr, Began: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	own.WithLabelValues("denied").Add(7)
	s.send()
	if got, want := next(), []string{"weft_own_total.denied:7|c"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// others are counts that another process tells of.
type others struct {
	total float64
	since time.Time
	gone  bool
}

// sends gives how much of them is sent when they are gathered ten seconds later.
func (o *others) sends(t *testing.T, s *Sender) float64 {
	t.Helper()
	time.Sleep(defaultEvery)
	families, err := s.cfg.Gatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sent := 0.0
	for _, p := range s.points(families) {
		sent += p.value
	}
	return sent
}

func (o *others) sender(t *testing.T, began time.Time) *Sender {
	t.Helper()
	desc := prometheus.NewDesc("weft_others_total", "", []string{"proxy"}, nil)
	reg := prometheus.NewRegistry()
	reg.MustRegister(collect(func(ch chan<- prometheus.Metric) {
		if o.gone {
			return
		}
		m, err := prometheus.NewConstMetricWithCreatedTimestamp(desc, prometheus.CounterValue, o.total, o.since, "p")
		if err != nil {
			t.Error(err)
		}
		ch <- m
	}))
	s, err := New(Config{Gatherer: reg, Began: began})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestOthersComeAndGo: what another process has counted is sent once, though the agent does
// not hear of it for a while, and all of it is, though one that counted less was before it.
func TestOthersComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		first, second := began.Add(time.Second), began.Add(time.Minute)
		var o others
		s := o.sender(t, began)
		for i, step := range []struct {
			others
			after time.Duration
			want  float64
		}{
			{others{total: 1000, since: first}, 0, 1000},
			{others{gone: true}, 0, 0},
			{others{total: 1003, since: first}, 0, 3},
			{others{gone: true}, 0, 0},
			{others{total: 1003, since: first}, goneFor - 2*defaultEvery, 0},
			{others{total: 1500, since: second}, 0, 1500},
			{others{total: 1004, since: first}, 0, 1}, // which drains, while the new one is silent
			{others{total: 1501, since: second}, 0, 1},
		} {
			o = step.others
			time.Sleep(step.after)
			if got := o.sends(t, s); got != step.want {
				t.Errorf("step %d: %v is sent, want %v", i, got, step.want)
			}
		}
		o.gone = true
		time.Sleep(goneFor)
		if o.sends(t, s); len(s.last) != 0 {
			t.Errorf("%d series are remembered", len(s.last))
		}
	})
}

// TestOthersThatTellOfEverNew: what is remembered of series that are gone has an end, and
// is of those that were there last.
func TestOthersThatTellOfEverNew(t *testing.T) {
	s := (&others{gone: true}).sender(t, time.Now())
	now := time.Now()
	for i := range maxGone + 2 {
		s.last[strconv.Itoa(i)] = count{1, now.Add(-time.Duration(i+1) * time.Millisecond)}
	}
	s.last["there"] = count{1, now}
	s.forget(now)
	_, newest := s.last["0"]
	_, oldest := s.last[strconv.Itoa(maxGone)]
	if _, there := s.last["there"]; len(s.last) != maxGone+1 || !there || !newest || oldest {
		t.Errorf("%d are remembered: there %t, newest %t, oldest %t", len(s.last), there, newest, oldest)
	}
}

type collect func(ch chan<- prometheus.Metric)

func (collect) Describe(chan<- *prometheus.Desc) {}

func (c collect) Collect(ch chan<- prometheus.Metric) { c(ch) }
