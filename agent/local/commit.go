package local

import (
	"context"
	"maps"
	"time"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
)

// change makes one change: drafted, written to disk, then in memory.
func (s *State) change(ctx context.Context, edit func(*draft) error) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	d := s.newDraft()
	if err := edit(d); err != nil {
		return err
	}
	for _, svc := range d.placed {
		if err := d.clash(svc); err != nil {
			return err
		}
	}
	if maps.Equal(d.services, s.services) && maps.Equal(d.checks, s.checks) {
		return nil
	}
	if err := s.write(d); err != nil {
		return err
	}
	s.noteLeaving(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.checks {
		if d.checks[id] != c {
			s.stop(c)
		}
	}
	for id, c := range d.checks {
		if old := s.checks[id]; old != c {
			s.begin(c, old)
			delete(s.orphans, id)
		}
	}
	s.services, s.checks = d.services, d.checks
	s.expose()
	for _, c := range s.checks {
		s.start(c)
	}
	s.settleAliases()
	s.changed()
	return nil
}

// write makes the disk agree with a draft, or leaves it as it was.
func (s *State) write(d *draft) error {
	var undo []func() error
	for _, op := range s.operations(d) {
		if err := op.do(); err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				if uerr := undo[i](); uerr != nil {
					s.log.Error("cannot undo a half-written registration", "err", uerr)
				}
			}
			return err
		}
		undo = append(undo, op.undo)
	}
	return nil
}

type operation struct{ do, undo func() error }

func (s *State) operations(d *draft) []operation {
	var ops []operation
	for id, e := range d.services {
		old := s.services[id]
		switch {
		case old == e:
		case !e.fromFile:
			ops = append(ops, operation{
				do:   func() error { return s.disk.putService(e) },
				undo: func() error { return s.disk.restoreService(id, old) },
			})
		case old != nil && !old.fromFile:
			ops = append(ops, s.dropService(id, old))
		}
	}
	for id, c := range d.checks {
		old := s.checks[id]
		switch {
		case old == c:
		case !c.fromFile:
			ops = append(ops, operation{
				do:   func() error { return s.disk.putCheck(c) },
				undo: func() error { return s.disk.restoreCheck(id, old) },
			})
		case old != nil && !old.fromFile:
			ops = append(ops, s.dropCheck(id, old))
		}
	}
	for id, old := range s.checks {
		if d.checks[id] == nil {
			ops = append(ops, s.dropCheck(id, old))
		}
	}
	for id, old := range s.services {
		if d.services[id] == nil && !old.fromFile {
			ops = append(ops, s.dropService(id, old))
		}
	}
	return ops
}

func (s *State) dropService(id string, old *service) operation {
	return operation{
		do:   func() error { return s.disk.remove(dirServices, id) },
		undo: func() error { return s.disk.restoreService(id, old) },
	}
}

func (s *State) dropCheck(id string, old *check) operation {
	return operation{
		do: func() error {
			if err := s.disk.remove(dirStates, id); err != nil {
				return err
			}
			if old.fromFile {
				return nil
			}
			return s.disk.remove(dirChecks, id)
		},
		undo: func() error { return s.disk.restoreCheck(id, old) },
	}
}

// begin sets the first status of a new check: what the one that it replaces had
// found, else what was found before a restart, else what its definition says.
// s.mu is held.
func (s *State) begin(c, old *check) {
	row := *c.row
	var remaining time.Duration
	saved, restored := s.disk.takeState(c.def.CheckID)
	switch {
	case c.kind == checks.TypeMaintenance:
	case old != nil && old.def.ServiceID == c.def.ServiceID && c.def.Status == "":
		row.Status, row.Output = old.row.Status, old.row.Output
		c.criticalSince = old.criticalSince
	case restored && s.disk.fresh(saved, c.kind, time.Now()):
		row.Status, row.Output = saved.Status, saved.Output
		remaining = time.Until(saved.Expires)
		c.expires = saved.Expires
	}
	if c.fact {
		if said, listens := s.facts[c.def.ServiceID]; listens {
			row.Status, row.Output = catalog.StatusPassing, said
		}
	}
	if old != nil {
		c.through, row.ExposedPort = old.through, old.row.ExposedPort // expose looks at it anew
	}
	c.row = &row
	if row.Status == catalog.StatusCritical && c.criticalSince.IsZero() {
		c.criticalSince = time.Now()
	}
	if c.kind == checks.TypeTTL {
		c.ttl = checks.NewTTL(s.bounded(c.def), s.reporter(c), remaining, row.Output)
	}
}

// start runs a check, where there is something to run. s.mu is held.
func (s *State) start(c *check) {
	if s.runCtx == nil || c.stop != nil {
		return
	}
	run, err := s.runner(c)
	if err != nil {
		s.log.Error("check cannot run", "check", c.def.CheckID, "err", err)
		return
	}
	if run == nil {
		return
	}
	ctx, cancel := context.WithCancel(s.runCtx)
	c.stop = cancel
	s.runners.Go(func() { run.Run(ctx) })
}

func (s *State) stop(c *check) {
	if c.stop != nil {
		c.stop()
	}
}

// runner is nil for checks whose answer this package knows.
func (s *State) runner(c *check) (checks.Runner, error) {
	opt := checks.Options{Report: s.reporter(c), Logger: s.log, TLS: s.cfg.CheckTLS}
	switch {
	case c.fact, c.kind == checks.TypeMaintenance:
		return nil, nil
	case c.kind == checks.TypeTTL:
		return c.ttl, nil
	case c.kind == checks.TypeAlias:
		if s.isLocalAlias(c.def) {
			return nil, nil
		}
		if s.cfg.AliasTarget != nil {
			opt.Target = s.cfg.AliasTarget(c.def.AliasNode, c.def.AliasService)
		}
	}
	return checks.New(led(s.bounded(c.def), c.through), opt)
}

// bounded is a definition with a limit to its output.
func (s *State) bounded(def *catalog.CheckDefinition) *catalog.CheckDefinition {
	out := *def
	out.OutputMaxSize = s.outputMax(def)
	return &out
}

// outputMax is what the definition asks for, but no more than the agent allows.
func (s *State) outputMax(def *catalog.CheckDefinition) int {
	if def.OutputMaxSize > 0 {
		return min(def.OutputMaxSize, s.cfg.CheckOutputMaxSize)
	}
	return s.cfg.CheckOutputMaxSize
}

func (s *State) reporter(c *check) checks.Report {
	return func(status catalog.Status, output string) { s.report(c, status, output) }
}
