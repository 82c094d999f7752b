package remote

import (
	"context"
	"fmt"
	"sync"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// readKey is what makes two reads the same question.
type readKey struct {
	viewKey
	consistency wire.Consistency
}

// coalescer joins reads of one question. A caller shares only a read that begins
// after it called, never one under way: that one may have looked at the store
// before, and its answer would be older than a linearizable read allows. So there
// is at most one read running and one waiting for each question, however many ask.
type coalescer struct {
	do     func(ctx context.Context, key readKey) (*wire.ReadReply, error)
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	lanes  map[readKey]*lane
	closed bool
	wg     sync.WaitGroup
}

type lane struct{ next *sharedRead }

type sharedRead struct {
	done chan struct{}
	rep  *wire.ReadReply
	err  error
}

func newCoalescer(do func(context.Context, readKey) (*wire.ReadReply, error)) *coalescer {
	ctx, cancel := context.WithCancel(context.Background())
	return &coalescer{do: do, ctx: ctx, cancel: cancel, lanes: map[readKey]*lane{}}
}

func (c *coalescer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}

// get reads key, alone or with others. The answer is shared and must not be changed.
func (c *coalescer) get(ctx context.Context, key readKey) (*wire.ReadReply, error) {
	shared := c.join(key)
	if shared == nil {
		return nil, fmt.Errorf("read %s: the agent is stopping: %w", key.query, catalog.ErrUnavailable)
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-shared.done:
		return shared.rep, shared.err
	}
}

// kick reads key for whoever comes later, unless such a read waits already.
func (c *coalescer) kick(key readKey) { c.join(key) }

// join gives the next read of key, nil once closed.
func (c *coalescer) join(key readKey) *sharedRead {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	l, running := c.lanes[key]
	if !running {
		l = &lane{}
		c.lanes[key] = l
	}
	if l.next == nil {
		l.next = &sharedRead{done: make(chan struct{})}
	}
	shared := l.next
	if !running {
		c.wg.Go(func() { c.serve(key, l) })
	}
	return shared
}

func (c *coalescer) serve(key readKey, l *lane) {
	for {
		c.mu.Lock()
		shared := l.next
		l.next = nil
		if shared == nil {
			delete(c.lanes, key)
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		shared.rep, shared.err = c.do(c.ctx, key)
		close(shared.done)
	}
}
