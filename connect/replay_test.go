package connect

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/connect/tunnel"
)

// Applications that go away while clients speak first cost no client anything, as long as
// another instance is well: what it has said is said again there (of promise P31).
func TestP31ApplicationsThatGoAreNotNoticed(t *testing.T) {
	for _, driver := range []string{"loops", "goroutines"} {
		t.Run(driver, func(t *testing.T) {
			if driver == "goroutines" {
				d, err := tunnel.NewGoroutines(tunnel.Config{})
				must(t, err)
				testDriver = d
				defer func() { testDriver = nil; d.Close() }()
			}
			t.Run("", applicationsThatGo)
		})
	}
}

func applicationsThatGo(t *testing.T) {
	ca := newTestCA(t, testDomain)
	app := serve(t, echo)
	gone := goneAddr(t)
	start := func() *sidecar {
		return startSidecar(t, ca, "db", func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions, s.Limits.DrainTimeout = "127.0.0.1:0", app, allow("web"), 10*time.Second
		})
	}
	db := []*sidecar{start(), start()}
	web := startSidecar(t, ca, "web", func(s *Snapshot) {
		s.Upstreams = []Upstream{upstreamOf("db", db[0].inbound(), db[1].inbound())}
		s.Upstreams[0].Ejection = Ejection{Base: time.Millisecond, MaxPercent: 1}
	})
	addr := web.upstream("db")
	stop := make(chan struct{})
	var load sync.WaitGroup
	var made [4]atomic.Int64
	for i := range 4 {
		load.Go(func() {
			said := make([]byte, []int{1, 100, 4000, 16 << 10}[i])
			_, _ = rand.Read(said)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := sayFirst(addr, said, n%2 == 0); err != nil {
					t.Errorf("%d bytes said first: %v", len(said), err)
					return
				}
				made[i].Add(1)
			}
		})
	}
	met := 0
	for i := range times(8, 100) {
		sick := db[i%2]
		sick.update(func(s *Snapshot) { s.Local = gone })
		eventually(t, "requests beside an instance without its application", func() bool {
			for _, in := range web.Status().Upstreams[0].Instances {
				if in.Addr == sick.inbound() && in.Error != "" {
					met++
					return true
				}
			}
			return t.Failed()
		})
		sick.update(func(s *Snapshot) { s.Local = app })
		// Who met it has been served elsewhere before that one's application goes.
		at0 := [4]int64{made[0].Load(), made[1].Load(), made[2].Load(), made[3].Load()}
		for i := range made {
			eventually(t, "requests of each client", func() bool { return made[i].Load() > at0[i]+1 || t.Failed() })
		}
	}
	close(stop)
	load.Wait()
	t.Logf("%d requests of the first client, %d times an instance without its application was met", made[0].Load(), met)
}

func sayFirst(addr string, said []byte, half bool) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write(said); err != nil {
		return err
	}
	if half {
		_ = c.(*net.TCPConn).CloseWrite()
	}
	got := make([]byte, len(said))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, said) {
		return fmt.Errorf("%d other bytes came back", len(got))
	}
	return nil
}

// goneAddr is an address at which nobody listens, and nobody will.
func goneAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c := dialTCP(t, ln.Addr().String()) // holds the port
	a, err := ln.Accept()
	must(t, err)
	t.Cleanup(func() { a.Close(); c.Close() })
	ln.Close()
	return ln.Addr().String()
}
