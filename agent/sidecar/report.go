package sidecar

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect"
)

// Reporter takes what this host enforces to a server: agent/remote does.
type Reporter interface {
	Report(ctx context.Context, req *wire.ReportRequest) (*wire.ReportReply, error)
}

const (
	// reportEvery is how often a report is repeated without news; servers forget one
	// after three times that.
	reportEvery = 10 * time.Second
	// reportBehind is how often it is while something that drains is behind its proxy.
	reportBehind = time.Second
	// reportGather is how long news is gathered that follows a report.
	reportGather = 10 * time.Millisecond
	reportRetry  = 200 * time.Millisecond
)

// basis are the views of servers that a snapshot was made of.
type basis struct {
	epoch      string
	intentions uint64
	roots      uint64
}

// progress is what of a sidecar's snapshots is in force.
type progress struct {
	made    uint64 // index of the newest snapshot
	of      basis  // what it is made of
	handed  uint64 // index of the newest that a proxy was given
	inForce basis
	reached uint64 // index of the newest that a proxy enforces
	kept    uint64 // index of the newest that is on disk, where any is
}

// feed is the watch that the proxy itself follows. That it asks for what comes after
// a snapshot says that this one is in force.
type feed struct{ s *sidecar }

// Next implements catalog.Watch.
func (f feed) Next(ctx context.Context, after uint64) (*connect.Snapshot, uint64, error) {
	f.s.reached(after)
	if f.s.external && after > 0 {
		defer f.s.outside.asks()()
	}
	snap, index, err := f.s.out.Next(ctx, after)
	if err == nil {
		f.s.mu.Lock()
		f.s.progress.handed = max(f.s.progress.handed, index)
		f.s.mu.Unlock()
	}
	return snap, index, err
}

// reached notes that the proxy enforces the snapshot of an index, which counts only
// if it was given one of this run of the agent.
func (s *sidecar) reached(index uint64) {
	s.mu.Lock()
	p := &s.progress
	p.reached = max(p.reached, min(index, p.handed))
	s.fed.reached(p.reached)
	news := s.advance()
	s.mu.Unlock()
	if news {
		s.cfg.news()
	}
}

// kept notes that the snapshot of an index is on disk, or cannot be.
func (s *sidecar) kept(index uint64) {
	s.mu.Lock()
	s.progress.kept = max(s.progress.kept, index)
	news := s.advance()
	s.mu.Unlock()
	if news {
		s.cfg.news()
	}
}

// madeOf notes what the newest snapshot is made of, which may change while it stays
// the same; s.mu is held.
func (s *sidecar) madeOf(index uint64) {
	s.progress.made, s.progress.of = index, s.basis
	if s.advance() {
		s.cfg.news()
	}
}

// advance tells whether the proxy enforces other views than were known; s.mu is held.
func (s *sidecar) advance() bool {
	p := &s.progress
	if p.reached < p.made || p.made == 0 || p.inForce == p.of || s.file != nil && p.kept < p.made {
		return false
	}
	p.inForce = p.of
	return true
}

// enforces says what the proxy enforces.
func (s *sidecar) enforces() wire.ProxyReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.progress.inForce.report(s.id, s.service)
}

// learned notes the version of a view that policy is made of; s.mu is held. Indexes
// of another epoch mean nothing beside those of this one.
func (s *sidecar) learned(v *catalog.View) {
	b := &s.basis
	if b.epoch != v.Epoch {
		*b = basis{epoch: v.Epoch}
	}
	switch v.Query.Kind {
	case catalog.QueryRoots:
		b.roots = v.Index
	case catalog.QueryIntentionsDest:
		b.intentions = v.Index
	}
}

// reporting tells the servers what is enforced, at each change and now and then,
// until ctx ends.
func (m *Manager) reporting(ctx context.Context) {
	if m.cfg.Reporter == nil {
		return
	}
	pause := reportRetry
	failing := false
	seq := uint64(0)
	for {
		seq = max(seq+1, uint64(time.Now().UnixNano())) //nolint:gosec // not before 1970
		list, behind := m.enforced(m.others())
		slices.SortFunc(list, func(a, b wire.ProxyReport) int { return strings.Compare(a.ID, b.ID) })
		_, err := m.cfg.Reporter.Report(ctx, &wire.ReportRequest{Node: m.cfg.Node, Seq: seq, Proxies: list})
		wait := reportEvery
		if behind { // the end of a process is no news
			wait = reportBehind
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !failing {
				m.cfg.Logger.Debug("the servers were not told what is enforced, will retry", "err", err)
			}
			failing, wait, pause = true, pause, min(2*pause, reportEvery)
		default:
			failing, pause = false, reportRetry
		}
		if !m.untilNews(ctx, wait, failing) {
			return
		}
	}
}

// untilNews waits for news, which is gathered for a moment, or for the repetition.
func (m *Manager) untilNews(ctx context.Context, wait time.Duration, failing bool) bool {
	if failing { // news does not make a server answer
		return sleep(ctx, wait)
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	if !sleep(ctx, reportGather) {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-m.news:
	}
	return true
}
