package connect

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

const (
	// repeatEvery is how often a repeated refusal of one source is logged; those
	// between are counted into the next line.
	repeatEvery = 10 * time.Second
	// maxRepeaters bounds the sources told apart; the others share one line.
	maxRepeaters = 512
	// maxRecent bounds the refusals and failures shown by Status, of which equal ones are one.
	maxRecent = 16
	// maxErrText bounds what a peer can make us write.
	maxErrText = 1024
)

// line is what is known of a connection when it ends or is refused.
type line struct {
	reason      Reason
	outbound    bool
	source      catalog.Name
	destination catalog.Name
	self        string // SPIFFE ID of this end
	peer        string // that of the far end; proved where source is known
	addr        string
	upstream    catalog.Name
	instance    string // of the destination; inbound: the journal's own
	rule        string
	hint        string
	err         error
	in, out     int64
	dur         time.Duration
}

// journal writes one log line for each connection, and keeps repeated refusals
// from filling the disk.
type journal struct {
	log    *slog.Logger
	now    func() time.Time
	access atomic.Pointer[AccessLog] // nil: all lines are written
	own    string                    // the instance that speaks here

	queue lineQueue

	mu      sync.Mutex
	repeats map[repeatKey]*repeat
	swept   time.Time
	recent  []recentError
}

// recentError is a failure with what tells it from others.
type recentError struct {
	ErrorStatus
	key repeatKey
	err string // "" where key has what was wrong
}

type repeatKey struct {
	reason              Reason
	source, destination catalog.Name
	host                string
	// What was wrong, from closed lists: another rule, or a certificate that is
	// wrong in another way, is news.
	rule string
	tls  identity.Reason
}

type repeat struct {
	logged     time.Time
	suppressed int
}

func (j *journal) accessLog() AccessLog {
	if a := j.access.Load(); a != nil {
		return *a
	}
	return AccessLog{}
}

func (j *journal) init(log *slog.Logger, now func() time.Time) {
	j.log, j.now, j.repeats = log, now, map[repeatKey]*repeat{}
}

// write logs l. Failures are remembered for Status.
func (j *journal) write(l *line) {
	level, suppressed := slog.LevelInfo, 0
	if l.reason.failure() {
		var quiet bool
		if suppressed, quiet = j.repeated(l); quiet || j.accessLog().Off {
			return
		}
		if l.reason != ReasonDraining {
			level = slog.LevelWarn
		}
	}
	ctx := context.Background()
	if !j.log.Enabled(ctx, level) {
		return
	}
	var room [18]slog.Attr
	attrs := room[:0]
	if l.source != "" { // a peer that proved no identity has none
		attrs = append(attrs, slog.String("source", l.source))
	}
	attrs = append(attrs, slog.String("destination", l.destination), slog.String("reason", string(l.reason)))
	e := j.namesOf(l)
	for _, a := range [...]struct{ key, value string }{
		{"rule", l.rule},
		{"source_id", e.sourceID},
		{"source_instance", e.sourceInstance},
		{"destination_id", e.destinationID},
		{"instance", e.instance},
		{"peer", e.shown},
		{"addr", l.addr},
		{"upstream", l.upstream},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.key, a.value))
		}
	}
	if l.dur > 0 {
		attrs = append(attrs, slog.Int64("bytes_in", l.in), slog.Int64("bytes_out", l.out), slog.Duration("dur", l.dur))
	}
	if l.err != nil {
		attrs = append(attrs, slog.String("err", clip(l.err.Error())))
	}
	if l.hint != "" {
		attrs = append(attrs, slog.String("hint", l.hint))
	}
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	switch {
	case l.reason == ReasonViolation:
		j.log.LogAttrs(ctx, level, "tunnel ended", attrs...)
	case l.reason.refusal():
		j.log.LogAttrs(ctx, level, "connection refused", attrs...)
	default:
		j.log.LogAttrs(ctx, level, "connection ended", attrs...)
	}
}

// lineNames are who a connection is between, by identity and instance.
type lineNames struct {
	sourceID, sourceInstance string
	destinationID, instance  string
	shown                    string // the identity of a peer that did not prove it
}

func (j *journal) namesOf(l *line) lineNames {
	switch {
	case l.outbound:
		return lineNames{sourceID: l.self, sourceInstance: j.own, destinationID: l.peer, instance: l.instance}
	case l.source == "":
		return lineNames{destinationID: l.self, instance: j.own, shown: l.peer}
	default:
		return lineNames{sourceID: l.peer, destinationID: l.self, instance: j.own}
	}
}

// repeated remembers a failure and tells whether its line is to be left out, or
// how many like it were.
func (j *journal) repeated(l *line) (suppressed int, quiet bool) {
	now := j.now()
	j.mu.Lock()
	defer j.mu.Unlock()
	key := repeatKey{reason: l.reason, source: l.source, destination: l.destination, rule: l.rule}
	if l.reason == ReasonTLSFailed {
		key.tls = identity.ReasonOf(l.err)
	}
	if l.source == "" || !l.outbound {
		key.host = hostOf(l.addr)
	}
	j.remember(l, key, now)
	if !l.reason.refusal() {
		return 0, false
	}
	r := j.repeats[key]
	if r == nil && len(j.repeats) >= maxRepeaters {
		if now.Sub(j.swept) >= time.Second { // not for each line of a flood
			j.swept = now
			j.forget(now)
		}
		if len(j.repeats) >= maxRepeaters {
			key = repeatKey{reason: l.reason}
			r = j.repeats[key]
		}
	}
	if r == nil {
		r = &repeat{}
		j.repeats[key] = r
	}
	if !r.logged.IsZero() && now.Sub(r.logged) < repeatEvery {
		r.suppressed++
		return 0, true
	}
	suppressed, r.suppressed, r.logged = r.suppressed, 0, now
	return suppressed, false
}

// remember keeps a failure for Status, in the place of one that is equal; j.mu is held.
func (j *journal) remember(l *line, key repeatKey, now time.Time) {
	e := recentError{key: key, ErrorStatus: ErrorStatus{
		Time: now, Count: 1, Reason: l.reason, Source: l.source, Destination: l.destination,
		Addr: l.addr, Rule: l.rule, Hint: l.hint,
	}}
	if l.err != nil {
		e.Error = clip(l.err.Error())
	}
	if key.tls == "" {
		e.err = e.Error
	}
	i := slices.IndexFunc(j.recent, func(o recentError) bool { return o.key == key && o.err == e.err })
	switch {
	case i >= 0:
		e.Count += j.recent[i].Count
	case len(j.recent) == maxRecent:
		i = j.oldest()
	}
	if i >= 0 {
		j.recent = slices.Delete(j.recent, i, i+1)
	}
	j.recent = append(j.recent, e)
}

// oldest is the failure that the next one takes the place of. Peers that proved no
// identity may be anybody, and many: where they have more than half, it is one of theirs.
func (j *journal) oldest() int {
	strangers, first := 0, 0
	for i := range j.recent {
		if j.recent[i].Source != "" {
			continue
		}
		if strangers++; strangers == 1 {
			first = i
		}
	}
	if strangers > maxRecent/2 {
		return first
	}
	return 0
}

// forget drops the sources that have been quiet.
func (j *journal) forget(now time.Time) {
	for k, r := range j.repeats {
		if now.Sub(r.logged) >= repeatEvery && r.suppressed == 0 {
			delete(j.repeats, k)
		}
	}
	if len(j.repeats) < maxRepeaters {
		return
	}
	for k, r := range j.repeats {
		if now.Sub(r.logged) >= 6*repeatEvery {
			delete(j.repeats, k)
		}
	}
}

func (j *journal) failures() []ErrorStatus {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []ErrorStatus
	for i := range j.recent {
		out = append(out, j.recent[i].ErrorStatus)
	}
	return out
}

// refusal tells whether the connection never came about, or was no connection: a peer can
// have us write as many of these lines as it likes.
func (r Reason) refusal() bool {
	switch r {
	case ReasonDenied, ReasonTLSFailed, ReasonNoInstance, ReasonDialFailed, ReasonCertExpired, ReasonLimit, ReasonViolation:
		return true
	}
	return false
}

// failure tells whether an operator may want to know.
func (r Reason) failure() bool {
	switch r {
	case ReasonOK, ReasonClientClosed, ReasonServerClosed, ReasonIdle:
		return false
	}
	return true
}

func clip(s string) string {
	if len(s) > maxErrText {
		return s[:maxErrText] + "…"
	}
	return s
}
