package remote

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/connectivity"

	"github.com/weftmesh/weft/catalog/wire"
)

// listenEvery is how often the link is listened to.
const listenEvery = 200 * time.Millisecond

// listen goes over to another server when the present one falls silent: one that
// froze, or is behind a cut cable. A server lets every connection hear from it each
// wire.PingEvery. What only reads is asked again there, what changes something waits
// a little longer, as only that server can say what became of it.
func (l *links) listen(ctx context.Context) {
	tick := time.NewTicker(listenEvery)
	defer tick.Stop()
	last := time.Now()
	var doubted *wire.Heard
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		k := l.current()
		h := k.heard.Load()
		now := time.Now()
		stopped := now.Sub(last) > 3*listenEvery
		last = now
		switch {
		case h == nil || h == doubted || k.cc.GetState() != connectivity.Ready:
			continue
		case stopped:
			h.Forgive() // this process did not run: it cannot have heard
			continue
		case h.Silent() < wire.SilentAfter:
			continue
		}
		doubted = h
		l.cfg.Logger.Warn("the server is silent; another one is asked", "addr", l.server(), "dur", h.Silent().Round(time.Millisecond))
		wg.Go(func() { hangUp(ctx, h) })
		if err := l.move(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Logger.Debug("the server was not changed", "err", err)
		}
		if l.current() != k {
			k.forsake()
		}
		last = time.Now()
	}
}

// hangUp ends a connection unless it is heard from again.
func hangUp(ctx context.Context, h *wire.Heard) {
	tick := time.NewTicker(listenEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch s := h.Silent(); {
		case s > wire.DeadAfter:
			_ = h.Close() // gRPC sees it end
			return
		case s < wire.SilentAfter:
			return
		}
	}
}

func (l *links) current() *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cur
}
