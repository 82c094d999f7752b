package remote

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// pace bounds what is asked of the servers. It may change at any time.
type pace struct {
	timeout atomic.Int64
	limiter atomic.Pointer[rate.Limiter] // nil: no limit
}

// defaultBurst is Config.Burst.
const defaultBurst = 1000

// SetLimits changes Config.CallTimeout, Rate and Burst; 0 is their default.
func (r *Remote) SetLimits(callTimeout time.Duration, perSecond float64, burst int) {
	r.pace.timeout.Store(int64(orDefault(callTimeout, defaultCallTimeout)))
	if perSecond <= 0 {
		r.pace.limiter.Store(nil)
		return
	}
	if burst == 0 {
		burst = defaultBurst
	}
	if l := r.pace.limiter.Load(); l != nil {
		l.SetLimit(rate.Limit(perSecond))
		l.SetBurst(burst)
		return
	}
	r.pace.limiter.Store(rate.NewLimiter(rate.Limit(perSecond), burst))
}

func (p *pace) callTimeout() time.Duration { return time.Duration(p.timeout.Load()) }

// allow tells whether a call may be made. What the host says of itself, what its
// proxies live on, and what operators do always may.
func (p *pace) allow(call string) bool {
	switch call {
	case "read", "apply", "txn", "renew_session", "set_ca_config":
		l := p.limiter.Load()
		return l == nil || l.Allow()
	}
	return true
}
