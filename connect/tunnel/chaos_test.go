//go:build linux

package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// plan is what one side of a connection does; both sides can compute both plans.
type plan struct {
	bytes int  // to send
	reset bool // then reset, instead of ending
	stop  int  // reset after having read so many; -1: read to the end
	slow  bool
}

func planOf(seed uint64, side byte) plan {
	rng := rand.New(rand.NewPCG(seed, uint64(side)))
	p := plan{bytes: rng.IntN(200_000), stop: -1, slow: rng.IntN(5) == 0}
	if rng.IntN(3) == 0 {
		p.bytes = rng.IntN(100)
	}
	p.reset = rng.IntN(6) == 0
	if rng.IntN(8) == 0 {
		p.stop = rng.IntN(50_000)
	}
	return p
}

func (p plan) peaceful() bool { return !p.reset && p.stop < 0 }

// act plays one side and reports what must not be.
func act(c *net.TCPConn, seed uint64, side byte) error {
	mine, theirs := planOf(seed, side), planOf(seed, 1-side)
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	var once sync.Once
	kill := func() { once.Do(func() { _ = c.SetLinger(0); c.Close() }) }
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(pattern(seed*2+uint64(side), mine.bytes))
		switch {
		case err == nil && mine.reset:
			kill()
		case err == nil:
			err = c.CloseWrite()
		}
		sent <- err
	}()
	want := pattern(seed*2+uint64(1-side), theirs.bytes)
	buf := make([]byte, 20_000)
	got := 0
	var rerr error
	for rerr == nil && (mine.stop < 0 || got < mine.stop) {
		var n int
		n, rerr = c.Read(buf)
		if got+n > len(want) || !bytes.Equal(buf[:n], want[got:got+n]) {
			return fmt.Errorf("other bytes than sent after %d", got)
		}
		got += n
		if mine.slow {
			time.Sleep(time.Millisecond)
		}
	}
	if mine.stop >= 0 {
		kill()
	}
	serr := <-sent
	if rerr != io.EOF || serr != nil {
		kill()
	}
	c.Close()
	switch {
	case rerr == io.EOF && (got != len(want) || theirs.reset) && serr == nil:
		// (After a failed write the kernel has used the reset up and says EOF.)
		return fmt.Errorf("an end after %d of %d bytes, sender resets: %v", got, len(want), theirs.reset)
	case mine.peaceful() && theirs.peaceful() && (rerr != io.EOF || serr != nil):
		return fmt.Errorf("peaceful, but read %w, write %v", rerr, serr)
	}
	return nil
}

// TestChaos has many connections end in every way at once, in small windows, with
// the tunnel lost at the end, and holds: what is read is what was sent; an end is
// only seen where one was meant, and after all bytes; every flow is reported once.
func TestChaos(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		var mu sync.Mutex
		var failures []string
		note := func(side byte, seed uint64, err error) {
			if err != nil {
				mu.Lock()
				failures = append(failures, fmt.Sprintf("seed %d side %d: %v", seed, side, err))
				mu.Unlock()
			}
		}
		var backends atomic.Int32 // that are at work: one more may come while the test waits for them
		r := newRig(t, d, rigOptions{cfg: Config{Window: 20_000, MaxStreams: 100}, backend: func(c net.Conn) {
			backends.Add(1)
			defer backends.Add(-1)
			var id [8]byte
			if _, err := io.ReadFull(c, id[:]); err != nil {
				return // reset before it came
			}
			seed := binary.BigEndian.Uint64(id[:])
			note(1, seed, act(c.(*net.TCPConn), seed, 1))
		}})
		const n = 200
		var wg sync.WaitGroup
		slots := make(chan struct{}, 60)
		for seed := range uint64(n) {
			slots <- struct{}{}
			c, _ := r.app("")
			wg.Go(func() {
				defer func() { <-slots }()
				if _, err := c.Write(binary.BigEndian.AppendUint64(nil, seed)); err != nil {
					note(0, seed, err)
					return
				}
				note(0, seed, act(c, seed, 0))
			})
		}
		wg.Wait()
		for range n {
			wait(t, r.clientEnds, "client end")
			wait(t, r.serverEnds, "server end")
		}
		if len(r.clientEnds)+len(r.serverEnds) > 0 {
			t.Error("an end was reported twice")
		}
		eventually(t, "all streams gone", func() bool { return r.client.Status().Streams+r.server.Status().Streams == 0 })
		eventually(t, "all backends done", func() bool { return backends.Load() == 0 })
		mu.Lock()
		defer mu.Unlock()
		if len(failures) > 0 {
			t.Fatal(len(failures), failures[0])
		}
	})
}

func TestChaosOfPairs(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		cd, sd := d.start(t, Config{})
		var wg sync.WaitGroup
		slots := make(chan struct{}, 20)
		for seed := range uint64(100) {
			slots <- struct{}{}
			r := newPairRig(t, cd, sd)
			var sides sync.WaitGroup
			for side, c := range []*net.TCPConn{r.app, r.backend} {
				sides.Go(func() {
					if err := act(c, seed, byte(side)); err != nil {
						t.Errorf("seed %d side %d: %v", seed, side, err)
					}
				})
			}
			wg.Go(func() {
				defer func() { <-slots }()
				sides.Wait()
				wait(t, r.clientEnds, "client end")
				wait(t, r.serverEnds, "server end")
			})
		}
		wg.Wait()
	})
}
