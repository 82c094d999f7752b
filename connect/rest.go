package connect

import (
	"context"
	"time"
)

// Rest asks an instance to come to rest: it is in maintenance, or its checks are
// critical, so that others prefer other instances. Connections that run may finish
// within Grace. New ones are taken still, and stay: who comes now has nowhere else to go.
type Rest struct {
	Why   string
	Grace time.Duration
}

// restKnown is how long others may take to hear of a rest: who comes until then had
// somewhere else to go.
const restKnown = time.Second

// resting is a rest under way.
type resting struct {
	Rest
	known  time.Time // to others
	cancel context.CancelFunc
}

// reconcileRest begins a rest, ends one, or lets it go on; p.mu is held.
func (p *Proxy) reconcileRest(live context.Context, snap *Snapshot) {
	switch {
	case snap.Rest == nil && p.resting != nil:
		p.log.Info("the instance serves again; its connections go on", "service", snap.Service)
		p.endRest()
		return
	case snap.Rest == nil, p.resting != nil && p.resting.Rest == *snap.Rest:
		return
	}
	grace := snap.Rest.Grace
	known := p.svc.now().Add(min(grace, restKnown))
	if p.resting != nil { // it goes on for another reason, or to another end
		known = p.resting.known
	}
	p.endRest()
	ctx, cancel := context.WithCancel(live)
	p.resting = &resting{Rest: *snap.Rest, known: known, cancel: cancel}
	p.log.Info("the instance comes to rest; its connections may finish", "service", snap.Service, "reason", snap.Rest.Why, "dur", snap.Rest.Grace)
	p.cuts.Go(func() {
		if !pause(ctx, grace) {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		for _, r := range p.svc.table.all(func(r *row) bool { return !r.outbound && r.started.Before(known) }) {
			r.kill(ending{reason: ReasonDraining})
		}
	})
}

// endRest forgets a rest; p.mu is held.
func (p *Proxy) endRest() {
	if p.resting != nil {
		p.resting.cancel()
		p.resting = nil
	}
}
