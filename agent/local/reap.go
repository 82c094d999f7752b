package local

import (
	"context"
	"errors"
	"time"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
)

func (s *State) reap(ctx context.Context) {
	for id, cause := range s.overdue(time.Now()) {
		s.log.Warn("deregistering a service that was critical for too long", "service", id, "check", cause)
		err := s.Deregister(ctx, id)
		if err != nil && !errors.Is(err, catalog.ErrNotFound) {
			s.log.Error("cannot deregister a service that was critical for too long", "service", id, "err", err)
		}
	}
}

// overdue gives the services to reap, each with the check that says so.
func (s *State) overdue(now time.Time) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	for id, c := range s.checks {
		after := c.def.DeregisterCriticalServiceAfter
		if after <= 0 || c.def.ServiceID == "" || c.criticalSince.IsZero() {
			continue
		}
		if now.Sub(c.criticalSince) >= max(after, checks.MinDeregisterAfter) {
			out[c.def.ServiceID] = id
		}
	}
	return out
}
