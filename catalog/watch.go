package catalog

import (
	"context"
	"sync"
)

// Watch yields successive versions of a value. Next blocks until a version newer
// than after exists. Versions may be skipped; they never repeat and never go back.
type Watch[T any] interface {
	Next(ctx context.Context, after uint64) (v T, index uint64, err error)
}

// Latest is a Watch that holds one value, its index, and wakes every waiter on
// change. The zero value is ready: it holds nothing, at index 0.
type Latest[T any] struct {
	mu      sync.Mutex
	value   T
	index   uint64
	err     error
	changed chan struct{}
}

// Set publishes v at index. It reports false, and changes nothing, when index is
// not newer than the one held, or the watch was closed.
func (l *Latest[T]) Set(index uint64, v T) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if index <= l.index || l.err != nil {
		return false
	}
	l.value, l.index = v, index
	l.wake()
	return true
}

// Publish sets v at the next index, for values with no index of their own.
func (l *Latest[T]) Publish(v T) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.value = v
		l.index++
		l.wake()
	}
	return l.index
}

// Close ends the watch: every present and future Next returns err, once the
// versions newer than its argument are delivered. err must not be nil.
func (l *Latest[T]) Close(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		l.wake()
	}
}

// Get returns the value held and its index, 0 when there is none yet.
func (l *Latest[T]) Get() (T, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.value, l.index
}

// Next implements Watch.
func (l *Latest[T]) Next(ctx context.Context, after uint64) (T, uint64, error) {
	for {
		l.mu.Lock()
		if l.index > after {
			v, i := l.value, l.index
			l.mu.Unlock()
			return v, i, nil
		}
		if l.err != nil {
			err := l.err
			l.mu.Unlock()
			var zero T
			return zero, 0, err
		}
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		ch := l.changed
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			var zero T
			return zero, 0, context.Cause(ctx)
		case <-ch:
		}
	}
}

func (l *Latest[T]) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}
