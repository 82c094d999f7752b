//go:build faults && linux

package faults_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestP31NobodyTakesOver takes the data directory away in the middle of a hand-over, as
// a disk would that is full, so that no program can serve, neither the new one nor the
// old: the proxies go on, and a process takes over once the directory is back.
func TestP31NobodyTakesOver(t *testing.T) {
	proc.Need(t, "bash")
	t.Parallel()
	s, up := supervised(t)
	held := through(t, up)
	s.Upgrade(script(t, bash+`
for a; do [ "$p" = -data-dir ] && d=$a; p=$a; done
echo configured >&$WEFT_HANDOVER; read -r word <&$WEFT_HANDOVER
[ -e "$d.done" ] && exit 3
echo "taken away: $d"; touch "$d.done"; mv "$d" "$d.away"; : > "$d"; exit 3
`))
	old := s.Main()
	s.Tell(syscall.SIGUSR2)
	proc.Eventually(t, 60*time.Second, "several processes fail", func() error {
		if n := strings.Count(s.Log(), "another is started"); n < 3 {
			return fmt.Errorf("%d did", n)
		}
		return nil
	})
	s.Tell(syscall.SIGUSR2) // changes nothing
	if err := ping(held); err != nil || s.Main() != old {
		t.Errorf("a connection while nobody takes over: %v; the process is %d, was %d", err, s.Main(), old)
	}
	fresh := through(t, up)
	_, dir, _ := strings.Cut(s.Log(), "taken away: ")
	dir, _, _ = strings.Cut(dir, "\n")
	s.Upgrade(proc.Binary(t))
	must(t, errors.Join(os.Remove(dir), os.Rename(dir+".away", dir)))
	proc.Eventually(t, 60*time.Second, "another process takes over", func() error {
		if s.Main() == old {
			return errors.New("it has not")
		}
		return nil
	})
	s.WaitServing(30 * time.Second)
	if err := errors.Join(ping(held), ping(fresh)); err != nil {
		t.Errorf("connections of the old process: %v", err)
	}
	intend(t, s.Agent, "web", "db", api.IntentionActionDeny)
	cutWithin(t, held, 10*time.Second, "a connection of the old process")
	cutWithin(t, fresh, 10*time.Second, "one that it took while nobody served")
	proc.Gone(t, old, 20*time.Second)
	if n := s.Starts(); n != 1 {
		t.Errorf("the supervisor started %d processes", n)
	}
}

// ackedWrites are keys that are written, one after another, by several at once.
type ackedWrites struct {
	stop chan struct{}
	wg   sync.WaitGroup

	mu    sync.Mutex
	acked []string
	errs  map[string]int
}

func write(c *api.Client) *ackedWrites {
	w := &ackedWrites{stop: make(chan struct{}), errs: map[string]int{}}
	for k := range 4 {
		w.wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-w.stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
				key := fmt.Sprintf("p31/%d/%d", k, n)
				_, err := c.KV().Put(&api.KVPair{Key: key, Value: []byte("x")}, nil)
				w.note(key, err)
			}
		})
	}
	return w
}

func (w *ackedWrites) note(key string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.acked = append(w.acked, key)
		return
	}
	text := err.Error()
	if _, after, ok := strings.Cut(text, "Put \""); ok { // without the key
		_, text, _ = strings.Cut(after, "\"")
	}
	if len(w.errs) < 10 || w.errs[text] > 0 {
		w.errs[text]++
	}
}

func (w *ackedWrites) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("%d writes; failed: %v", len(w.acked), w.errs)
}

// end tells how many writes were acknowledged, and how many of these are not there.
func (w *ackedWrites) end(t *testing.T, c *api.Client) (acked int, lost []string) {
	t.Helper()
	close(w.stop)
	w.wg.Wait()
	keys, _, err := c.KV().Keys("p31/", "", nil)
	must(t, err)
	there := map[string]bool{}
	for _, k := range keys {
		there[k] = true
	}
	for _, k := range w.acked {
		if !there[k] {
			lost = append(lost, k)
		}
	}
	return len(w.acked), lost
}

// TestP31Signals hands the only server over while it writes, with signals that come
// twice and with SIGTERM at every stage: no write that was acknowledged is lost, and
// each time one process is left that serves.
func TestP31Signals(t *testing.T) {
	t.Parallel()
	s, up := supervised(t)
	w := write(s.Client)
	old := s.Main()
	s.Tell(syscall.SIGUSR2)
	s.Tell(syscall.SIGUSR2)
	proc.Eventually(t, 60*time.Second, "another process takes over", func() error {
		if s.Main() == old {
			return errors.New("it has not")
		}
		return nil
	})
	s.WaitServing(30 * time.Second)
	proc.Gone(t, old, 30*time.Second)
	if n := s.Starts(); n != 1 {
		t.Errorf("the supervisor started %d processes", n)
	}
	t.Logf("over the hand-over: %s", w)
	for _, ms := range proc.Count([]int{0, 30, 120}, []int{0, 5, 10, 20, 30, 50, 70, 90, 120, 150, 200, 300, 500}) {
		s.Tell(syscall.SIGUSR2)
		time.Sleep(time.Duration(ms) * time.Millisecond) // it is the moment that is tried
		told := s.Main()
		_ = syscall.Kill(told, syscall.SIGTERM) // gone already is as good
		proc.Gone(t, told, 60*time.Second)
		proc.Eventually(t, 60*time.Second, "a process is there", func() error {
			if now := s.Main(); now == 0 || now == told {
				return errors.New("not yet")
			}
			return nil
		})
		s.WaitServing(60 * time.Second)
		_ = through(t, up).Close()
	}
	acked, lost := w.end(t, s.Client)
	t.Logf("in all: %s", w)
	if len(lost) > 0 || acked == 0 {
		t.Errorf("%d of %d acknowledged writes are lost: %v", len(lost), acked, lost[:min(10, len(lost))])
	}
}
