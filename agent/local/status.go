package local

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
)

// UpdateTTL sets the status of a TTL check and starts its time anew. Output is cut
// to the size that the check allows.
func (s *State) UpdateTTL(id string, status catalog.Status, output string) error {
	if !catalog.ValidStatus(status) {
		return refuse("Invalid check status: '%s'", status)
	}
	s.mu.Lock()
	c := s.checks[id]
	s.mu.Unlock()
	if c == nil {
		return unknownCheck(id)
	}
	if c.ttl == nil {
		return fmt.Errorf("CheckID %q does not have associated TTL", id)
	}
	_, expires := c.ttl.Update(status, output) // reports, and so must not be called under mu
	s.mu.Lock()
	defer s.mu.Unlock()
	c.expires, c.unsaved = expires, true
	poke(s.wake)
	return nil
}

// SetListening reports whether a proxy of this agent accepts connections, and what
// there is to say of it: the check "Connect Sidecar Listening". It may come before
// the registration that it is about.
func (s *State) SetListening(proxyID string, listening bool, output string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := catalog.StatusCritical
	if listening {
		status = catalog.StatusPassing
		s.facts[proxyID] = output
	} else {
		delete(s.facts, proxyID)
	}
	for _, c := range s.checks {
		if c.fact && c.def.ServiceID == proxyID {
			s.set(c, status, checks.Truncate(output, s.outputMax(c.def)))
		}
	}
}

// report takes a result of a runner. One of a check that is gone is dropped.
func (s *State) report(c *check, status catalog.Status, output string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.checks[c.def.CheckID] == c {
		s.set(c, status, output)
	}
}

// set records a result, settles the aliases that follow, and makes it known. s.mu is held.
func (s *State) set(c *check, status catalog.Status, output string) {
	changed, loud := s.record(c, status, output)
	if !changed {
		return
	}
	if s.settleAliases() {
		loud = true
	}
	if loud {
		s.changed()
		return
	}
	s.publish()
	poke(s.wake)
}

// record stores a result. loud tells whether the servers are to know soon: a change
// of output alone waits, and is sent with other news at the earliest. s.mu is held.
func (s *State) record(c *check, status catalog.Status, output string) (changed, loud bool) {
	if s.cfg.DiscardCheckOutput {
		output = ""
	}
	was := c.row
	if was.Status == status && was.Output == output {
		return false, false
	}
	row := *was
	row.Status, row.Output = status, output
	c.row = &row
	c.unsaved = true
	if was.Status == status {
		return true, !s.defers(c)
	}
	switch {
	case status != catalog.StatusCritical:
		c.criticalSince = time.Time{}
	case c.criticalSince.IsZero():
		c.criticalSince = time.Now()
	}
	s.log.Info("check changed", "check", c.def.CheckID, "service", c.def.ServiceID, "status", status, "was", was.Status)
	return true, true
}

// defers sets a time for sending output alone, unless there is one. It is false
// when the output is to be sent now.
func (s *State) defers(c *check) bool {
	wait := s.cfg.CheckUpdateInterval
	if wait <= 0 || c.sent == nil || c.sent.Status != c.row.Status {
		return false
	}
	if c.outputDue.IsZero() {
		c.outputDue = time.Now().Add(wait/2 + rand.N(wait/2+1))
	}
	return true
}

// settleAliases makes the aliases of local targets agree with them, in any order
// and however they are chained. It tells whether a status changed. s.mu is held.
func (s *State) settleAliases() bool {
	var aliases []*check
	byService := map[string][]*check{}
	for _, c := range s.checks {
		if c.kind == checks.TypeAlias && s.isLocalAlias(c.def) {
			aliases = append(aliases, c)
		}
		byService[c.def.ServiceID] = append(byService[c.def.ServiceID], c)
	}
	if len(aliases) == 0 {
		return false
	}
	r := &resolver{s: s, byService: byService, done: map[*check]*catalog.Check{}, busy: map[*check]bool{}}
	loud := false
	for _, c := range aliases {
		now := r.resolve(c)
		if _, l := s.record(c, now.Status, now.Output); l {
			loud = true
		}
	}
	return loud
}

// resolver finds the status of aliases of aliases. An alias on the way to itself
// counts for nothing, so that a ring of them is as good as what it rings.
type resolver struct {
	s         *State
	byService map[string][]*check
	done      map[*check]*catalog.Check
	busy      map[*check]bool
}

func (r *resolver) resolve(c *check) *catalog.Check {
	if row := r.done[c]; row != nil {
		return row
	}
	r.busy[c] = true
	defer delete(r.busy, c)
	target := checks.Target{Exists: true}
	if id := c.def.AliasService; id != "" {
		target.Exists = r.s.services[id] != nil
		target.Checks = r.rows(target.Checks, r.byService[id])
	}
	target.Checks = r.rows(target.Checks, r.byService[""])
	row := *c.row
	var output string
	row.Status, output = checks.AliasStatus(checks.AliasName(c.def), target)
	row.Output = checks.Truncate(output, r.s.outputMax(c.def))
	r.done[c] = &row
	return &row
}

func (r *resolver) rows(into []*catalog.Check, list []*check) []*catalog.Check {
	for _, c := range list {
		switch {
		case r.busy[c], c.def.ServiceID == "" && c.kind == checks.TypeAlias:
		case c.kind == checks.TypeAlias && r.s.isLocalAlias(c.def):
			into = append(into, r.resolve(c))
		default:
			into = append(into, c.row)
		}
	}
	return into
}
