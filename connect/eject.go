package connect

import "time"

// Ejection says when an instance of an upstream that fails is left alone for a
// while. The panic rule holds whatever it says: instances that are left alone are
// tried last, never not at all.
type Ejection struct {
	// Failures in a row that it takes; 0 is 1.
	Failures int `json:",omitempty"`
	// Within is how long after a failure the next one still counts as in a row; 0: for ever.
	Within time.Duration `json:",omitempty"`
	// Base is for how long the first time; it doubles with each further failure, up to
	// the larger of a minute and ten times Base. 0 is 1 s.
	Base time.Duration `json:",omitempty"`
	// MaxPercent bounds the share of instances that are left alone at a time; one may
	// always be. 0 is 100.
	MaxPercent int `json:",omitempty"`
}

// strikesOut is how many connections in a row that an instance took, and ended
// before it said a byte, count as one failure: its application may be down.
const strikesOut = 3

func (e Ejection) skipFor(fails int) time.Duration {
	base, most := skipMin, skipMax
	if e.Base > 0 {
		base, most = e.Base, max(skipMax, 10*e.Base)
	}
	return min(base<<min(max(fails-1, 0), 10), most)
}

// failedOnce counts a failure and ejects the instance where its rule says so; b.mu
// is held. What was picked before the last ejection, or in spite of it, met what that
// was for: all that one event fails together is left alone for once, and no longer.
func (b *balancer) failedOnce(s *endpoint, picked time.Time, reached bool, why string) {
	if picked.Before(s.ejectedAt) {
		return
	}
	now := b.now()
	if w := s.rule.Within; w > 0 && now.Sub(s.failedAt) > w {
		s.fails = 0
	}
	s.fails++
	s.failedAt, s.err, s.unserved = now, why, s.unserved || reached
	over := s.fails - max(s.rule.Failures, 1) + 1
	if over < 1 || !b.mayEject(s, now) {
		return
	}
	s.until, s.ejectedAt = now.Add(s.rule.skipFor(over)), now
}

// mayEject keeps the share of ejected instances of an upstream below its bound.
func (b *balancer) mayEject(s *endpoint, now time.Time) bool {
	if s.rule.MaxPercent <= 0 || s.rule.MaxPercent >= 100 || now.Before(s.until) {
		return true
	}
	out := 0
	for k, o := range b.all {
		if k.upstream == s.upstream && now.Before(o.until) {
			out++
		}
	}
	return out == 0 || (out+1)*100 <= s.rule.MaxPercent*s.of
}

// spoke judges an instance by how a connection that it took has ended.
func (b *balancer) spoke(s *endpoint, began time.Time, why Reason, bytes int64) {
	if bytes == 0 && why != ReasonServerClosed && why != ReasonOK {
		return // nobody asked it anything, or it was not its doing
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if bytes > 0 || why == ReasonOK {
		s.answered(began)
		if bytes > 0 {
			s.strikes = 0
		}
		return
	}
	if s.strikes++; s.strikes >= strikesOut {
		s.strikes = 0
		b.failedOnce(s, began, true, "it takes connections and ends them before it says anything")
	}
}

// heardOut is for how long an instance that says nothing has to listen to be seen as one
// that serves: not all have something to answer.
const heardOut = 10 * time.Second

// heard clears the instances that have answered since they failed, or have listened for
// long, over connections that are open yet: some are for days.
func (s *Service) heard(now time.Time) {
	failing := s.balancer.failing()
	if failing == nil {
		return
	}
	for _, r := range s.table.all(func(r *row) bool {
		at, bad := failing[r.endpoint]
		return bad && !r.started.Before(at)
	}) {
		if in, out := r.bytes(); out > 0 || in > 0 && now.Sub(r.started) >= heardOut {
			s.balancer.answered(r.endpoint, r.started)
		}
	}
}
