package tunnel

import (
	"math/bits"
	"sync"
)

// queue holds the bytes of a stream that the application has not taken yet, in
// pooled chunks. Its length is bounded by the stream's window.
type queue struct {
	head, tail *chunk
	n          int
	account    *account // of the memory; may be nil
}

type chunk struct {
	next *chunk
	r, w int
	buf  []byte
}

const (
	smallChunk = 1 << 10
	bigChunk   = 32 << 10
)

// chunkPools are of chunks of 1, 2, 4 … 32 KiB: what a peer sends in odd sizes must not
// cost many times as much.
var chunkPools [6]sync.Pool

func chunkClass(n int) int {
	return max(0, bits.Len(uint(min(n, bigChunk)-1))-bits.Len(uint(smallChunk-1)))
}

func newChunk(n int) *chunk {
	k := chunkClass(n)
	if c, ok := chunkPools[k].Get().(*chunk); ok {
		return c
	}
	return &chunk{buf: make([]byte, smallChunk<<k)}
}

func (c *chunk) free() {
	c.next, c.r, c.w = nil, 0, 0
	chunkPools[chunkClass(len(c.buf))].Put(c)
}

// count notes that the queue holds n bytes of memory more.
func (q *queue) count(n int) {
	if q.account != nil {
		q.account.add(n)
	}
}

// bytes is what c still holds.
func (c *chunk) bytes() []byte { return c.buf[c.r:c.w] }

func (q *queue) push(p []byte) {
	q.n += len(p)
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == len(q.tail.buf) {
			c := newChunk(len(p))
			q.count(len(c.buf))
			if q.tail == nil {
				q.head = c
			} else {
				q.tail.next = c
			}
			q.tail = c
		}
		n := copy(q.tail.buf[q.tail.w:], p)
		q.tail.w += n
		p = p[n:]
	}
}

// front is the first contiguous part.
func (q *queue) front() []byte {
	if q.head == nil {
		return nil
	}
	return q.head.bytes()
}

// drop removes n bytes, at most those of front.
func (q *queue) drop(n int) {
	q.n -= n
	q.head.r += n
	if q.head.r == q.head.w {
		c := q.head
		if q.head = c.next; q.head == nil {
			q.tail = nil
		}
		q.count(-len(c.buf))
		c.free()
	}
}

// take removes the first chunk; the caller frees it.
func (q *queue) take() *chunk {
	c := q.head
	if c == nil {
		return nil
	}
	if q.head = c.next; q.head == nil {
		q.tail = nil
	}
	q.n -= c.w - c.r
	q.count(-len(c.buf))
	return c
}

func (q *queue) clear() {
	for c := q.take(); c != nil; c = q.take() {
		c.free()
	}
}

// Buffers for reading bulk; held only while data is in flight.
var bulkBuffers = sync.Pool{New: func() any { b := make([]byte, MaxData); return &b }}
