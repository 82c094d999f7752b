package remote

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// TestP04ViewsConverge: watchers come, go and cancel while streams break, servers
// lag, vanish and restore backups. No watcher's index ever falls, and within an
// epoch no view's; at the end all of them have the last view. At full count they see a
// million views.
func TestP04ViewsConverge(t *testing.T) {
	seen, atLeast := 0, 0
	if os.Getenv("WEFT_PROMISE") == "full" {
		atLeast = 1_000_000
	}
	seed := uint64(0)
	for ; (seed < 8 || seen < atLeast) && !t.Failed(); seed++ {
		synctest.Test(t, func(t *testing.T) { seen += chaos(t, seed) })
	}
	t.Logf("%d views seen in %d histories", seen, seed)
}

// chaos is one history; it returns how many views its watchers saw.
func chaos(t *testing.T, seed uint64) (seen int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	f := newFake(1)
	r := inProcess(t, f, func(c *Config) { c.Linger = 3 * time.Second })
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	last := map[int]*catalog.View{}
	for id := range 40 {
		own := rand.New(rand.NewPCG(seed, uint64(id)+2))
		wg.Go(func() {
			w := r.Watch(dbQuery)
			var after uint64
			var held *catalog.View
			for ctx.Err() == nil {
				wait, stop := context.WithTimeout(ctx, time.Duration(own.IntN(8000))*time.Millisecond)
				v, i, err := w.Next(wait, after)
				stop()
				if err != nil {
					sleep(ctx, time.Duration(own.IntN(6000))*time.Millisecond)
					continue
				}
				if i <= after {
					t.Errorf("seed %d: index %d after %d", seed, i, after)
				}
				if held != nil && v.Epoch == held.Epoch && v.Index <= held.Index {
					t.Errorf("seed %d: view %d after %d in epoch %s", seed, v.Index, held.Index, v.Epoch)
				}
				after, held = i, v
				mu.Lock()
				seen++
				last[id] = v
				mu.Unlock()
			}
		})
	}
	index, epoch := uint64(1), 'a'
	for range 300 {
		time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
		switch rng.IntN(8) {
		case 0:
			f.breakStreams()
		case 1:
			f.setFail(catalog.ErrUnavailable)
			f.breakStreams()
		case 2:
			f.setFail(nil)
		case 3:
			f.setFail(catalog.ErrNoLeader)
		case 4:
			if rng.IntN(10) == 0 { // a backup is restored; its indexes may be lower
				epoch++
				index = 1 + rng.Uint64N(index)
				f.set(viewAt(index, string(epoch)))
			}
		default:
			index++
			f.set(viewAt(index, string(epoch)))
		}
	}
	f.setFail(nil)
	index++
	f.set(viewAt(index, string(epoch)))
	time.Sleep(2 * time.Minute) // the longest back-off, and the watchers' own pauses
	cancel()
	wg.Wait()
	for id, v := range last {
		if v.Index != index || v.Epoch != string(epoch) {
			t.Errorf("seed %d: watcher %d ended at %d in epoch %s, want %d in %c", seed, id, v.Index, v.Epoch, index, epoch)
		}
	}
	if len(last) != 40 {
		t.Errorf("seed %d: %d of 40 watchers saw anything", seed, len(last))
	}
	_ = r.Close()
	return seen
}
