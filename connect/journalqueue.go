package connect

import (
	"fmt"
	"sync"
)

// maxQueued bounds the lines that wait to be written; a line is about 400 bytes.
const maxQueued = 16 << 10

// lineQueue takes the lines of connections on event loops, which must not wait for a
// disk or a terminal. A goroutine writes them while there are any.
type lineQueue struct {
	mu      sync.Mutex
	lines   []line
	spare   []line
	dropped int
	writing bool
}

// post has l written soon. When the log takes no more, lines are left out and counted.
func (j *journal) post(l line) {
	if !l.reason.failure() && j.access.leavesOut() {
		return
	}
	q := &j.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.lines) >= maxQueued {
		q.dropped++
		return
	}
	q.lines = append(q.lines, l)
	if !q.writing {
		q.writing = true
		go j.drain()
	}
}

// drain writes until there is nothing left.
func (j *journal) drain() {
	q := &j.queue
	for {
		q.mu.Lock()
		if len(q.lines) == 0 {
			q.writing = false
			q.mu.Unlock()
			return
		}
		lines, dropped := q.lines, q.dropped
		q.lines, q.spare, q.dropped = q.spare[:0], nil, 0
		q.mu.Unlock()
		for i := range lines {
			j.write(&lines[i])
			lines[i] = line{}
		}
		if dropped > 0 {
			j.log.Warn("the log is too slow: lines of connections were left out", "suppressed", dropped)
		}
		q.mu.Lock()
		if cap(lines) <= 1024 {
			q.spare = lines
		}
		q.mu.Unlock()
	}
}

// panicked tells of a panic that cost one connection. It does not wait.
func (j *journal) panicked(peer string, v any, stack []byte) {
	go j.log.Error("panic while serving a connection", "peer", peer, "err", fmt.Sprint(v), "stack", string(stack))
}
