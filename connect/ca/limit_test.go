package ca

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func TestLimiterConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(Config{CSRMaxConcurrent: 2})
		one := must(l.Acquire(t.Context()))
		two := must(l.Acquire(t.Context()))
		got := make(chan error)
		go func() {
			release, err := l.Acquire(t.Context())
			release()
			got <- err
		}()
		synctest.Wait()
		select {
		case <-got:
			t.Fatal("a third one at once")
		default:
		}
		one()
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		three := must(l.Acquire(t.Context()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if release, err := l.Acquire(ctx); !errors.Is(err, context.DeadlineExceeded) || release == nil {
			t.Errorf("%v", err)
		}
		two()
		three()
		if len(l.queue) != 0 || len(l.slots) != 0 {
			t.Errorf("%d in the queue, %d signing", len(l.queue), len(l.slots))
		}
	})
}

func TestLimiterQueueIsBounded(t *testing.T) {
	l := NewLimiter(Config{CSRMaxConcurrent: 1})
	for range cap(l.queue) {
		l.queue <- struct{}{}
	}
	if _, err := l.Acquire(t.Context()); !errors.Is(err, ErrLimited) || !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if l := NewLimiter(Config{CSRMaxConcurrent: 1 << 60}); cap(l.slots) != maxSigners {
		t.Errorf("%d signers", cap(l.slots))
	}
}

func TestLimiterRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(Config{CSRMaxPerSecond: 10, CSRMaxConcurrent: 1})
		start := time.Now()
		take := func() error {
			release, err := l.Acquire(t.Context())
			release()
			return err
		}
		for range 10 { // a second's worth at once
			if err := take(); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("the burst took %s", d)
		}
		for range 20 {
			if err := take(); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("20 more took %s", d)
		}
		// Whoever would wait too long is told so at once.
		l.next = time.Now().Add(maxWait + time.Second)
		if err := take(); !errors.Is(err, ErrLimited) {
			t.Errorf("%v", err)
		}
		l.next = time.Now().Add(maxWait)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.Acquire(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		if len(l.queue) != 0 {
			t.Errorf("%d in the queue", len(l.queue))
		}
	})
	for _, rate := range []float64{1e-300, 1e300, 0.01} {
		l := NewLimiter(Config{CSRMaxPerSecond: rate})
		if release, err := l.Acquire(t.Context()); err != nil {
			t.Errorf("%v: %v", rate, err)
		} else {
			release()
		}
	}
}
