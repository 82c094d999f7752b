package connect

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/connect/tunnel"
)

// path carries bytes to addr and back until it is cut, which tells neither end.
type path struct {
	addr string
	cut  sync.RWMutex // held for writing: nothing passes
}

func newPath(t *testing.T, to string) *path {
	p := &path{}
	var wg sync.WaitGroup
	ends := make(chan struct{})
	p.addr = serve(t, func(c *net.TCPConn) {
		far, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		wg.Go(func() { <-ends; c.Close(); far.Close() })
		wg.Go(func() { p.copy(far, c) })
		p.copy(c, far)
	})
	t.Cleanup(func() { close(ends); wg.Wait() })
	return p
}

func (p *path) copy(to, from net.Conn) {
	defer to.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		p.cut.RLock()
		if n > 0 {
			_, _ = to.Write(b[:n])
		}
		p.cut.RUnlock()
		if err != nil {
			return
		}
	}
}

// An instance whose path is cut, without a word, while a tunnel to it stands: new
// connections are served by the others as soon as one to one they would be, and what it
// carries goes on when the path is mended.
func TestSilentInstanceSwallowsNothing(t *testing.T) {
	for _, driver := range []string{"loops", "goroutines"} {
		t.Run(driver, func(t *testing.T) {
			if driver == "goroutines" {
				d, err := tunnel.NewGoroutines(tunnel.Config{})
				must(t, err)
				testDriver = d
				defer func() { testDriver = nil; d.Close() }()
			}
			silentInstance(t)
		})
	}
}

func silentInstance(t *testing.T) {
	ca := newTestCA(t, testDomain)
	app := serve(t, echo)
	start := func() *sidecar {
		return startSidecar(t, ca, "db", func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", app, allow("web")
		})
	}
	sick, well := newPath(t, start().inbound()), start().inbound()
	web := startSidecar(t, ca, "web", func(s *Snapshot) {
		s.Upstreams = []Upstream{upstreamOf("db", sick.addr, well)}
		s.Upstreams[0].ConnectTimeout = 500 * time.Millisecond
	})
	addr := web.upstream("db")
	var old []*net.TCPConn
	eventually(t, "a tunnel to each", func() bool {
		c := dialTCP(t, addr)
		must(t, roundTrip(c, "x"))
		old = append(old, c)
		fresh, _ := tunnelsOf(web, "outbound")
		return fresh == 2
	})
	sick.cut.Lock()
	mend := sync.OnceFunc(sick.cut.Unlock)
	defer mend()
	since := time.Now()
	eventually(t, "a silence", func() bool { return time.Since(since) > leastPatience/4 })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := tryOnce(addr); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(since); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	eventually(t, "the instance shown with its error", func() bool {
		for _, in := range web.Status().Upstreams[0].Instances {
			if in.Addr == sick.addr && in.Error != "" {
				return true
			}
		}
		must(t, tryOnce(addr))
		return false
	})
	b, up := &web.svc.balancer, web.svc.world.Load().upstreams["db"]
	for i := range up.Instances {
		e := &up.Instances[i]
		b.mu.Lock()
		if s := b.state(up, e); s.unserved {
			t.Errorf("%s was not there, and has to serve to be forgiven: %s", e.Addr, s.err)
		}
		b.mu.Unlock()
	}
	mend()
	for _, c := range old {
		must(t, roundTrip(c, "goes on"))
	}
}
