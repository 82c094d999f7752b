package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Config configures New.
type Config struct {
	// Gatherer knows the metrics. Required.
	Gatherer prometheus.Gatherer
	Names    Names
	// Statsd and DogStatsd are where metrics go, host:port of UDP. Empty: nowhere.
	Statsd, DogStatsd string
	// Tags are those of every metric that goes to dogstatsd, each "key:value".
	Tags []string
	// Hostname is in the name of gauges that go to statsd, as with Consul. Empty: not.
	Hostname string
	// Strict refuses addresses that cannot be resolved when New is called, rather than
	// trying again.
	Strict bool
	// Began is when this process did. What others, whose series have the label "proxy" or
	// "process", have counted before is not sent: the process before this one may have.
	// Zero: there are none.
	Began time.Time
	// Every is how often metrics are sent: 10 s.
	Every  time.Duration
	Logger *slog.Logger
	// Registerer is told how much is sent; nil: nobody is.
	Registerer prometheus.Registerer
}

const defaultEvery = 10 * time.Second

// Sender sends metrics to statsd and dogstatsd, over UDP: what is lost on the way is
// not known to anybody.
type Sender struct {
	cfg     Config
	sinks   []*sink
	metrics *senderMetrics
	// last are the counts that were sent, by series and when it began.
	last map[string]count
}

// count is what was sent of a series, and when the series was gathered last.
type count struct {
	total float64
	seen  time.Time
}

const (
	// goneFor is how long a series that is gone is remembered: those of a proxy of another
	// process come back when its registration was replaced, or it was silent.
	goneFor = time.Hour
	// maxGone bounds how many: a process can tell of other series each time.
	maxGone = 32 << 10
)

type senderMetrics struct{ packets, failures *prometheus.CounterVec }

// sink is one of both. Its lines differ in how they carry labels.
type sink struct {
	name, addr string
	dog        bool
	conn       net.Conn
	failing    bool // which was said
}

// New checks the configuration. Run sends.
func New(cfg Config) (*Sender, error) {
	if cfg.Gatherer == nil {
		return nil, errors.New("telemetry: there is nothing to gather from")
	}
	if cfg.Every <= 0 {
		cfg.Every = defaultEvery
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Sender{cfg: cfg, last: map[string]count{}}
	s.metrics = &senderMetrics{
		packets: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_telemetry_packets_total", Help: "Packets of metrics that were sent to statsd and dogstatsd.",
		}, []string{"sink"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_telemetry_failures_total", Help: "Packets of metrics that could not be sent, or addresses that could not be resolved.",
		}, []string{"sink"}),
	}
	if cfg.Statsd != "" {
		s.sinks = append(s.sinks, &sink{name: "statsd", addr: cfg.Statsd})
	}
	if cfg.DogStatsd != "" {
		s.sinks = append(s.sinks, &sink{name: "dogstatsd", addr: cfg.DogStatsd, dog: true})
	}
	for _, k := range s.sinks {
		if err := k.open(); err != nil && cfg.Strict {
			s.close()
			return nil, fmt.Errorf("telemetry: %s at %s: %w", k.name, k.addr, err)
		}
	}
	if cfg.Registerer != nil && len(s.sinks) > 0 {
		if err := errors.Join(cfg.Registerer.Register(s.metrics.packets), cfg.Registerer.Register(s.metrics.failures)); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (k *sink) open() error {
	c, err := net.Dial("udp", k.addr) //nolint:noctx // it resolves a name and sends nothing
	if err == nil {
		k.conn = c
	}
	return err
}

func (s *Sender) close() {
	for _, k := range s.sinks {
		if k.conn != nil {
			_ = k.conn.Close()
			k.conn = nil
		}
	}
}

// Run sends until ctx ends, and once more then.
func (s *Sender) Run(ctx context.Context) error {
	defer s.close()
	if len(s.sinks) == 0 {
		<-ctx.Done()
		return nil
	}
	t := time.NewTicker(s.cfg.Every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			s.send()
			return nil
		case <-t.C:
			s.send()
		}
	}
}

// send takes the metrics of now to all sinks.
func (s *Sender) send() {
	families, err := s.cfg.Gatherer.Gather()
	if err != nil {
		s.cfg.Logger.Warn("not all metrics could be gathered", "err", err)
	}
	points := s.points(families)
	for _, k := range s.sinks {
		if err := s.sendTo(k, points); err != nil {
			s.metrics.failures.WithLabelValues(k.name).Inc()
			if !k.failing {
				s.cfg.Logger.Warn("metrics cannot be sent; it is tried again", "sink", k.name, "addr", k.addr, "every", s.cfg.Every.String(), "err", err)
			}
			k.failing = true
			continue
		}
		if k.failing {
			s.cfg.Logger.Info("metrics are sent again", "sink", k.name, "addr", k.addr)
		}
		k.failing = false
	}
}

// point is one value on its way out.
type point struct {
	name   string
	labels []*dto.LabelPair
	value  float64
	kind   string // "c", "g" or "ms"
	// times is how many values this one stands for.
	times float64
}

// points are the values of gauges, and what counters and samples have gained since
// they were asked last.
func (s *Sender) points(families []*dto.MetricFamily) []point {
	var out []point
	now := time.Now()
	gained := func(key string, others bool, total float64, since *timestamppb.Timestamp) float64 {
		if since != nil { // what another process counts under the same name has another beginning
			key += "\x00" + strconv.FormatInt(since.AsTime().UnixMicro(), 36)
		}
		last, known := s.last[key]
		s.last[key] = count{total, now}
		switch d := total - last.total; {
		case !known && others && since != nil && since.AsTime().Before(s.cfg.Began):
			return 0
		case d < 0:
			return total // it began anew
		default:
			return d
		}
	}
	for _, f := range families {
		name := s.cfg.Names.Dotted(f.GetName())
		for _, m := range f.GetMetric() {
			p := point{name: name, labels: m.GetLabel(), times: 1}
			key, others := series(name, m.GetLabel()), ofOthers(m.GetLabel())
			switch {
			case m.GetCounter() != nil:
				p.kind, p.value = "c", gained(key, others, m.GetCounter().GetValue(), m.GetCounter().GetCreatedTimestamp())
				if p.value == 0 {
					continue
				}
			case m.GetHistogram() != nil || m.GetSummary() != nil:
				count, sum, since := m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum(), m.GetHistogram().GetCreatedTimestamp()
				if m.GetSummary() != nil {
					count, sum, since = m.GetSummary().GetSampleCount(), m.GetSummary().GetSampleSum(), m.GetSummary().GetCreatedTimestamp()
				}
				p.kind, p.times = "ms", gained(key, others, float64(count), since)
				total := gained(key+"\x00sum", others, sum, since)
				if p.times == 0 {
					continue
				}
				if p.value = total / p.times; strings.HasSuffix(name, "_seconds") {
					p.value *= 1000
				}
			case m.GetGauge() != nil:
				p.kind, p.value = "g", m.GetGauge().GetValue()
			default:
				p.kind, p.value = "g", m.GetUntyped().GetValue()
			}
			if !math.IsNaN(p.value) && !math.IsInf(p.value, 0) {
				out = append(out, p)
			}
		}
	}
	s.forget(now)
	return out
}

// forget drops series that are gone for long, and those gone longest where there are many.
func (s *Sender) forget(now time.Time) {
	var gone []string
	for key, c := range s.last {
		switch ago := now.Sub(c.seen); {
		case ago > goneFor:
			delete(s.last, key)
		case ago > 0:
			gone = append(gone, key)
		}
	}
	if len(gone) <= maxGone {
		return
	}
	slices.SortFunc(gone, func(a, b string) int { return s.last[a].seen.Compare(s.last[b].seen) })
	for _, key := range gone[:len(gone)-maxGone] {
		delete(s.last, key)
	}
}

// ofOthers tells whether another process counts this. What this one counts is new whatever
// its clock says, which may have been set back since it began.
func ofOthers(labels []*dto.LabelPair) bool {
	return slices.ContainsFunc(labels, func(l *dto.LabelPair) bool { return l.GetName() == "proxy" || l.GetName() == "process" })
}

func series(name string, labels []*dto.LabelPair) string {
	var b strings.Builder
	b.WriteString(name)
	for _, l := range labels {
		b.WriteByte(0)
		b.WriteString(l.GetName())
		b.WriteByte('=')
		b.WriteString(l.GetValue())
	}
	return b.String()
}

// maxPacket keeps packets in one frame of most networks.
const maxPacket = 1400

func (s *Sender) sendTo(k *sink, points []point) error {
	if k.conn == nil {
		if err := k.open(); err != nil {
			return err
		}
	}
	var packet []byte
	var failed, tooLong error
	flush := func() {
		if len(packet) == 0 || failed != nil {
			return
		}
		switch _, err := k.conn.Write(packet); {
		case err == nil:
			s.metrics.packets.WithLabelValues(k.name).Inc()
		case errors.Is(err, syscall.EMSGSIZE): // a line that is alone in its packet; others are not lost with it
			tooLong = fmt.Errorf("%.60q…, of %d bytes, is left out; all that is shorter is sent: %w", packet, len(packet), err)
		default:
			failed = err
		}
		packet = packet[:0]
	}
	for i := range points {
		line := s.line(k, &points[i])
		if len(packet)+1+len(line) > maxPacket {
			flush()
		}
		if len(packet) > 0 {
			packet = append(packet, '\n')
		}
		packet = append(packet, line...)
	}
	flush()
	if failed != nil {
		_ = k.conn.Close() // the name may lead elsewhere by now
		k.conn = nil
		return failed
	}
	return tooLong
}

// line is a point as a sink reads it: labels are further parts of the name for
// statsd, and tags for dogstatsd.
func (s *Sender) line(k *sink, p *point) string {
	var b strings.Builder
	name := p.name
	if !k.dog && p.kind == "g" && s.cfg.Hostname != "" {
		if prefix, rest, ok := strings.Cut(name, "."); ok {
			name = prefix + "." + s.cfg.Hostname + "." + rest
		} else {
			name = s.cfg.Hostname + "." + name
		}
	}
	b.WriteString(clean(name))
	if !k.dog {
		for _, l := range p.labels {
			b.WriteByte('.')
			b.WriteString(clean(l.GetValue()))
		}
	}
	if p.kind == "g" && p.value < 0 { // a sign means a change of a gauge
		line := b.String()
		return line + ":0|g" + s.tags(k, p) + "\n" + line + ":" + number(p.value) + "|g" + s.tags(k, p)
	}
	b.WriteString(":" + number(p.value) + "|" + p.kind)
	if p.times > 1 {
		b.WriteString("|@" + number(1/p.times))
	}
	b.WriteString(s.tags(k, p))
	return b.String()
}

func (s *Sender) tags(k *sink, p *point) string {
	if !k.dog || len(p.labels)+len(s.cfg.Tags) == 0 {
		return ""
	}
	var list []string
	for _, l := range p.labels {
		list = append(list, clean(l.GetName())+":"+cleanTag(l.GetValue()))
	}
	for _, t := range s.cfg.Tags {
		list = append(list, cleanTag(t))
	}
	return "|#" + strings.Join(list, ",")
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// clean takes out of a name what has a meaning to statsd, or none.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f || strings.ContainsRune(":|@#,", r) {
			return '_'
		}
		return r
	}, s)
}

// cleanTag leaves the colon, which is between a key and its value.
func cleanTag(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f || strings.ContainsRune("|,", r) {
			return '_'
		}
		return r
	}, s)
}
