package local

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
)

const (
	// coalesce is the least time between two statements: the first change is sent
	// at once, those that follow it together.
	coalesce = 100 * time.Millisecond
	// retryMin and retryMax bound the wait after a statement that failed.
	retryMin = 250 * time.Millisecond
	retryMax = 10 * time.Second
	// statementTimeout bounds one statement.
	statementTimeout = 30 * time.Second
	// saveEvery is the least time between two writes of check states.
	saveEvery = time.Second
	// reapEvery is how often services that were critical for too long are looked for.
	reapEvery = 30 * time.Second
)

// Run makes the checks and repeats the statement of this host to the servers until
// ctx ends. What it knows of checks is then on disk.
func (s *State) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.dropOrphans()
	s.mu.Lock()
	if s.runCtx != nil {
		s.mu.Unlock()
		return fmt.Errorf("local state of %s: already running", s.cfg.Node.Node)
	}
	s.runCtx = ctx
	for _, c := range s.checks {
		s.start(c)
	}
	s.mu.Unlock()

	var loops sync.WaitGroup
	loops.Go(func() { s.syncLoop(ctx) })
	loops.Go(func() { s.saveLoop(ctx) })
	loops.Go(func() { s.reapLoop(ctx) })
	<-ctx.Done()
	loops.Wait()
	s.mu.Lock()
	s.runCtx = nil // no runner starts from here on
	for _, c := range s.checks {
		c.stop = nil
	}
	s.mu.Unlock()
	s.runners.Wait()
	s.saveStates()
	return nil
}

// saveLoop saves check states when syncLoop says so, which goes on while the disk hangs.
func (s *State) saveLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.save:
			s.saveStates()
		}
	}
}

// syncLoop decides when to speak to the servers and when to save check states.
func (s *State) syncLoop(ctx context.Context) {
	var (
		failures            int
		lastSync, lastSaved time.Time
		nextSync            = time.Now()
		again               <-chan struct{} // closed when a server was reached since the last try began
	)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var reached <-chan struct{}
		if failures > 0 && s.cfg.Reached != nil {
			reached = again
		}
		select {
		case <-ctx.Done():
			return
		case <-reached:
			nextSync = time.Now()
		case <-s.dirty:
			if failures == 0 { // otherwise the retry takes it along
				nextSync = later(lastSync.Add(coalesce), time.Now())
			}
		case <-s.wake:
		case <-timer.C:
		}
		due, unsaved := s.pending()
		if failures == 0 && !due.IsZero() && due.Before(nextSync) {
			nextSync = later(due, lastSync.Add(coalesce))
		}
		if !time.Now().Before(nextSync) {
			lastSync = time.Now()
			if s.cfg.Reached != nil {
				again = s.cfg.Reached()
			}
			if err := s.say(ctx); err != nil {
				failures++
				nextSync = time.Now().Add(backoff(failures))
				s.logFailure(ctx, err, failures)
			} else {
				failures = 0
				nextSync = time.Now().Add(s.quiet())
			}
			due, unsaved = s.pending()
		}
		wakeAt := nextSync
		if failures == 0 && !due.IsZero() {
			wakeAt = earlier(wakeAt, due)
		}
		if unsaved || time.Since(lastSaved) >= s.cfg.SyncInterval {
			if time.Since(lastSaved) >= saveEvery {
				poke(s.save)
				lastSaved = time.Now()
			} else {
				wakeAt = earlier(wakeAt, lastSaved.Add(saveEvery))
			}
		}
		timer.Reset(max(time.Until(wakeAt), 0))
	}
}

// scaleFrom is from how many hosts on full statements grow rarer.
const scaleFrom = 128

// quiet is the time to the next full statement when nothing changes. It grows by one
// interval each time the cluster doubles, and its jitter with it, so that the servers
// hear about as much of a large cluster as of a small one and never of all at once.
func (s *State) quiet() time.Duration {
	d := s.cfg.SyncInterval
	if s.cfg.Hosts != nil {
		if n := s.cfg.Hosts(); n > scaleFrom {
			d *= time.Duration(1 + math.Ceil(math.Log2(float64(n)/scaleFrom)))
		}
	}
	return d + rand.N(d/4+1)
}

func (s *State) logFailure(ctx context.Context, err error, failures int) {
	if ctx.Err() == nil && (failures == 1 || failures%10 == 0) {
		s.log.Warn("the servers do not know of this host's services yet, will retry", "node", s.cfg.Node.Node, "err", err)
	}
}

func backoff(failures int) time.Duration {
	d := retryMax
	if failures < 8 {
		d = min(retryMin<<(failures-1), retryMax)
	}
	return d/2 + rand.N(d/2+1)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// pending tells when the next output is due, zero for never, and whether check
// states wait to be saved.
func (s *State) pending() (due time.Time, unsaved bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.checks {
		if !c.outputDue.IsZero() && (due.IsZero() || c.outputDue.Before(due)) {
			due = c.outputDue
		}
		unsaved = unsaved || c.unsaved
	}
	return due, unsaved && s.disk.dir != ""
}

// say states the whole host to the servers, once.
func (s *State) say(ctx context.Context) error {
	s.saying.Lock()
	defer s.saying.Unlock()
	s.mu.Lock()
	if s.left {
		s.mu.Unlock()
		return nil
	}
	gen := s.gen
	state, sent := s.statement()
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	_, err := s.cfg.Syncer.Sync(ctx, state)
	tooLarge := errors.Is(err, catalog.ErrTooLarge)
	if tooLarge {
		if !s.cut {
			s.log.Error("the outputs of this host's checks are more than the servers take at once, and are cut in the catalog",
				"node", s.cfg.Node.Node, "err", err, "hint", "lower check_output_max_size")
		}
		_, err = s.cfg.Syncer.Sync(ctx, withShortOutputs(state))
	}
	s.cut = tooLarge

	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastErr = err
	if err != nil {
		return err
	}
	for c, row := range sent {
		c.sent = row
		if row == c.row {
			c.outputDue = time.Time{}
		}
	}
	s.synced.Set(gen, nil)
	return nil
}

// shortOutput is what is left of an output, in bytes, where all of them are too much.
const shortOutput = 128

// withShortOutputs leaves out of a statement what it can do without: that a check is
// critical is to be known, whatever it had to say.
func withShortOutputs(state catalog.NodeState) catalog.NodeState {
	state.Checks = slices.Clone(state.Checks)
	for i, c := range state.Checks {
		short := *c
		short.Output = checks.Truncate(c.Output, shortOutput)
		state.Checks[i] = &short
	}
	return state
}

// statement is what the servers are to know now: of checks whose output alone
// changed, for a while, the old output. s.mu is held.
func (s *State) statement() (catalog.NodeState, map[*check]*catalog.Check) {
	now := time.Now()
	state := catalog.NodeState{
		Node:     s.node,
		Services: make([]*catalog.Service, 0, len(s.services)),
		Checks:   make([]*catalog.Check, 0, len(s.checks)),
	}
	for _, e := range s.services {
		state.Services = append(state.Services, e.svc)
	}
	sent := make(map[*check]*catalog.Check, len(s.checks))
	for _, c := range s.checks {
		row := c.row
		if c.outputDue.After(now) && c.sent != nil && c.sent.Status == row.Status {
			row = c.sent
		}
		sent[c] = row
		state.Checks = append(state.Checks, row)
	}
	slices.SortFunc(state.Services, func(a, b *catalog.Service) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(state.Checks, func(a, b *catalog.Check) int { return strings.Compare(a.CheckID, b.CheckID) })
	return state, sent
}

// WaitSynced waits until the servers agree to all that is registered now.
func (s *State) WaitSynced(ctx context.Context) error {
	s.mu.Lock()
	gen := s.gen
	s.mu.Unlock()
	_, _, err := s.synced.Next(ctx, gen-1)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastErr != nil && !errors.Is(s.lastErr, ErrUnstated) {
		return fmt.Errorf("%w; the last attempt: %w", err, s.lastErr)
	}
	return err
}

// Failure is why the servers did not take the last statement, ErrUnstated before the first
// has ended; nil when they took it.
func (s *State) Failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastErr
}

// Leave takes this host's services and checks out of the catalog and says nothing
// more. What is registered here, and on disk, stays for the next start.
func (s *State) Leave(ctx context.Context) error {
	s.saying.Lock()
	defer s.saying.Unlock()
	s.mu.Lock()
	s.left = true
	node := s.node
	s.mu.Unlock()
	_, err := s.cfg.Syncer.Sync(ctx, catalog.NodeState{Node: node})
	return err
}

// reapLoop deregisters services whose checks ask for it when they are critical for long.
func (s *State) reapLoop(ctx context.Context) {
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.reap(ctx)
		}
	}
}
