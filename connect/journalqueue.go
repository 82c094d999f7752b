package connect

import (
	"fmt"
	"sync"
	"time"
)

const (
	// maxQueued bounds the lines that wait to be written; a line is about 400 bytes.
	maxQueued = 16 << 10
	// gatherLines is how long the writer rests between two batches. The first line after
	// a silence waits for nothing. Waking it for each line costs more than the line.
	gatherLines = 25 * time.Millisecond
)

// lineQueue takes the lines of connections on event loops, which must not wait for a
// disk or a terminal. A goroutine writes them while there are any.
type lineQueue struct {
	writes  sync.Mutex // one batch at a time
	mu      sync.Mutex
	lines   []line
	spare   []line
	dropped int
	writing bool
}

// post has l written soon. When the log takes no more, lines are left out and counted.
func (j *journal) post(l line) {
	if !l.reason.failure() && j.accessLog().leavesOut() {
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
	for !j.writeQueued() {
		time.Sleep(gatherLines)
	}
}

// writeQueued writes what there is; true: that was nothing, and the writer ends.
func (j *journal) writeQueued() bool {
	q := &j.queue
	q.writes.Lock()
	defer q.writes.Unlock()
	q.mu.Lock()
	if len(q.lines) == 0 {
		q.writing, q.lines, q.spare = false, nil, nil // there are many, and most are silent
		q.mu.Unlock()
		return true
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
	defer q.mu.Unlock()
	if cap(lines) <= 1024 {
		q.spare = lines
	}
	return false
}

// flush writes what is queued, at the end of a proxy: its process may end with it. It
// waits for a log that takes nothing no longer than a second.
func (j *journal) flush() {
	q := &j.queue
	q.mu.Lock()
	writing := q.writing
	q.mu.Unlock()
	if !writing {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		j.writeQueued()
	}()
	late := time.NewTimer(time.Second)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	}
}

// panicked tells of a panic that cost one connection. It does not wait.
func (j *journal) panicked(peer string, v any, stack []byte) {
	go j.log.Error("panic while serving a connection", "peer", peer, "err", fmt.Sprint(v), "stack", string(stack))
}
