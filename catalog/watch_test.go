package catalog

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Latest[string]
		if v, i := l.Get(); v != "" || i != 0 {
			t.Fatalf("the zero value holds %q at %d", v, i)
		}
		type got struct {
			v   string
			i   uint64
			err error
		}
		res := make(chan got, 1)
		next := func(ctx context.Context, after uint64) {
			go func() { v, i, err := l.Next(ctx, after); res <- got{v, i, err} }()
			synctest.Wait()
		}
		next(t.Context(), 0)
		if !l.Set(5, "five") {
			t.Fatal("Set refused the first value")
		}
		if g := <-res; g != (got{"five", 5, nil}) {
			t.Fatalf("%+v", g)
		}
		if l.Set(5, "again") || l.Set(4, "older") {
			t.Fatal("Set took a value that is not newer")
		}
		next(t.Context(), 4)
		if g := <-res; g != (got{"five", 5, nil}) {
			t.Fatalf("a reader behind did not get the value at once: %+v", g)
		}
		cause := errors.New("tired")
		ctx, cancel := context.WithCancelCause(t.Context())
		next(ctx, 5)
		cancel(cause)
		if g := <-res; !errors.Is(g.err, cause) {
			t.Fatalf("%+v", g)
		}
		timeout, stop := context.WithTimeout(t.Context(), time.Hour)
		defer stop()
		if _, _, err := l.Next(timeout, 5); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if i := l.Publish("six"); i != 6 {
			t.Fatalf("Publish gave %d", i)
		}
		next(t.Context(), 6)
		l.Close(io.EOF)
		l.Close(io.ErrUnexpectedEOF)
		if g := <-res; !errors.Is(g.err, io.EOF) {
			t.Fatalf("%+v", g)
		}
		if l.Set(9, "late") || l.Publish("late") != 6 {
			t.Fatal("a closed watch took a value")
		}
		next(t.Context(), 5)
		if g := <-res; g != (got{"six", 6, nil}) {
			t.Fatalf("the last value was lost to Close: %+v", g)
		}
	})
}

// Many readers, one writer: every reader sees indexes that only grow, each with
// its own value, and all see the last.
func TestLatestRace(t *testing.T) {
	const last = 2000
	var l Latest[uint64]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var after uint64
			for after < last {
				v, i, err := l.Next(t.Context(), after)
				if err != nil || i <= after || v != i {
					t.Errorf("value %d at %d after %d: %v", v, i, after, err)
					return
				}
				after = i
			}
		})
	}
	for i := uint64(1); i <= last; i++ {
		l.Set(i, i)
	}
	wg.Wait()
}
