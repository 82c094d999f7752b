package connect

import "sync"

// census counts what a proxy serves, so that its end can wait for it. A WaitGroup
// would not do: streams are added while it is waited for.
type census struct {
	mu   sync.Mutex
	n    int
	zero chan struct{} // of who waits; closed at zero
}

func (c *census) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}

func (c *census) done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 && c.zero != nil {
		close(c.zero)
		c.zero = nil
	}
}

// empty is closed at a moment when nothing is served.
func (c *census) empty() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == 0 {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	if c.zero == nil {
		c.zero = make(chan struct{})
	}
	return c.zero
}
