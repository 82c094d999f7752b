package consensus

import (
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// A host that is late by so much of a timer gets so many times that added.
	lagWeight = 4
	// lagHalves is how long it takes until half of a lag is forgotten.
	lagHalves = 30 * time.Second
	// maxStretch bounds the heartbeat timeout. Heartbeats go out every tenth to
	// fifth of it, and that must stay within the lease, which cannot be changed.
	maxStretch = 4
	// The log after a backup must last for at least twice the time that it takes
	// to send one, or a server that lags never gets there.
	trailingMargin = 2
	maxTrailing    = 1 << 20
	// installForgotten is after how long without one the log gets shorter again.
	installForgotten = time.Hour
	rateEvery        = 5 * time.Second
)

// tuner sets Raft's timers by how late this host runs its own, and the length of
// the log after a backup by how long it takes to send one.
type tuner struct {
	base     Timers
	trailing uint64 // configured
	applied  func() uint64
	reload   func(change func(*raft.ReloadableConfig)) error
	log      *slog.Logger
	metrics  *diskMetrics

	mu        sync.Mutex
	peak      time.Duration
	beat      time.Duration // as it is set
	keep      uint64
	install   time.Duration // the longest of late
	installed time.Time
	rate      float64 // entries a second
	counted   time.Time
	count     uint64
}

// look is told, every lookEvery, by how much that came late.
func (t *tuner) look(lag time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	decay := math.Exp2(-float64(lookEvery) / float64(lagHalves))
	t.peak = max(lag, time.Duration(float64(t.peak)*decay))
	t.stretch()
	if now := time.Now(); now.Sub(t.counted) >= rateEvery {
		t.measureRate(now)
		t.lengthen(now)
	}
}

func (t *tuner) stretch() {
	want := min(t.base.Heartbeat+lagWeight*t.peak, maxStretch*t.base.Heartbeat)
	if want < t.base.Heartbeat*11/10 {
		want = t.base.Heartbeat
	}
	rises := want > t.beat*11/10
	falls := want < t.beat*8/10 || (want == t.base.Heartbeat && t.beat != want)
	if !rises && !falls {
		return
	}
	election := time.Duration(float64(t.base.Election) * float64(want) / float64(t.base.Heartbeat))
	err := t.reload(func(c *raft.ReloadableConfig) { c.HeartbeatTimeout, c.ElectionTimeout = want, max(election, want) })
	if err != nil {
		t.log.Warn("Raft's timers could not be changed", "err", err)
		return
	}
	switch {
	case rises && want >= 2*t.base.Heartbeat:
		t.log.Warn("this host runs late; Raft waits longer before it elects", "lag", t.peak, "heartbeat", want, "was", t.beat)
	case rises: // as every busy host does now and then
		t.log.Debug("this host runs late; Raft waits longer before it elects", "lag", t.peak, "heartbeat", want, "was", t.beat)
	case t.beat >= 2*t.base.Heartbeat:
		t.log.Info("Raft waits less before it elects", "heartbeat", want, "was", t.beat)
	}
	t.beat = want
	t.metrics.heartbeat.Set(want.Seconds())
}

func (t *tuner) measureRate(now time.Time) {
	count := t.applied()
	if !t.counted.IsZero() && count >= t.count {
		rate := float64(count-t.count) / now.Sub(t.counted).Seconds()
		t.rate = max(rate, t.rate*0.9)
	}
	t.counted, t.count = now, count
}

// tookInstall notes how long it took to bring a backup to a server.
func (t *tuner) tookInstall(d time.Duration) {
	t.mu.Lock()
	t.install, t.installed = max(d, t.install), time.Now()
	t.mu.Unlock()
	t.metrics.install.Observe(d.Seconds())
}

func (t *tuner) lengthen(now time.Time) {
	if t.install > 0 && now.Sub(t.installed) > installForgotten {
		t.install, t.installed = t.install/2, now
		if t.install < time.Second {
			t.install = 0
		}
	}
	want := uint64(trailingMargin * t.rate * t.install.Seconds())
	want = max(t.trailing, min(want, maxTrailing))
	if want == t.keep || (want > t.keep && want < t.keep*11/10) || (want < t.keep && t.install > 0) {
		return
	}
	if err := t.reload(func(c *raft.ReloadableConfig) { c.TrailingLogs = want }); err != nil {
		t.log.Warn("the length of the log could not be changed", "err", err)
		return
	}
	t.log.Info("the log after a backup has another length", "entries", want, "was", t.keep, "install", t.install, "entries_per_s", int(t.rate))
	t.keep = want
	t.metrics.trailing.Set(float64(want))
}
