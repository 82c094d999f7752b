package connect

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestP31RollingInstances stops one instance after another, and starts another in its
// place, under load: no caller sees it, though the source learns of it only afterwards.
func TestP31RollingInstances(t *testing.T) {
	ca := newTestCA(t, testDomain)
	app := serve(t, echo)
	n := times(4, 20)
	start := func() *sidecar {
		return startSidecar(t, ca, "db", func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", app, allow("web")
			s.Limits.DrainTimeout = 5 * time.Second
		})
	}
	var running []*sidecar
	addrs := func() (out []string) {
		for _, s := range running {
			out = append(out, s.inbound())
		}
		return out
	}
	for range n {
		running = append(running, start())
	}
	web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", addrs()...)} })
	addr := web.upstream("db")
	stop := make(chan struct{})
	var made, failed atomic.Int64
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := tryOnce(addr); err != nil {
					failed.Add(1)
					t.Errorf("a request was lost: %v", err)
					return
				}
				made.Add(1)
			}
		})
	}
	for range n {
		old := running[0]
		running = append(running[1:], start())
		old.close() // the source does not know yet
		at := made.Load()
		eventually(t, "requests after an instance went", func() bool { return made.Load() > at+5 || failed.Load() > 0 })
		list := addrs()
		web.update(func(s *Snapshot) {
			listen := s.Upstreams[0].Listen
			s.Upstreams = []Upstream{upstreamOf("db", list...)}
			s.Upstreams[0].Listen = listen
		})
	}
	close(stop)
	load.Wait()
	t.Logf("%d instances replaced, %d requests, %d lost", n, made.Load(), failed.Load())
}
