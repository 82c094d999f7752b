package connect

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
)

// paths are the two ways to the same echo application: with no proxy, and through
// a pair of them.
func paths(b *testing.B, handle func(*net.TCPConn), bench func(b *testing.B, addr string)) {
	b.Run("direct", func(b *testing.B) { bench(b, serve(b, handle)) })
	b.Run("mesh", func(b *testing.B) { bench(b, newPair(b, handle).addr) })
}

func pingPong(c *net.TCPConn) {
	buf := make([]byte, 128)
	for {
		if _, err := io.ReadFull(c, buf); err != nil {
			return
		}
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, conns := range []int{1, 64} {
		b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) {
			paths(b, pingPong, func(b *testing.B, addr string) {
				b.SetParallelism(max(conns/runtime.GOMAXPROCS(0), 1))
				b.ReportAllocs()
				request := func(next func() bool) {
					c, err := net.Dial("tcp", addr)
					if err != nil {
						b.Error(err)
						return
					}
					defer c.Close()
					buf := make([]byte, 128)
					for next() {
						if _, err := c.Write(buf); err != nil {
							b.Error(err)
							return
						}
						if _, err := io.ReadFull(c, buf); err != nil {
							b.Error(err)
							return
						}
					}
				}
				if conns == 1 {
					request(b.Loop)
					return
				}
				b.RunParallel(func(pb *testing.PB) { request(pb.Next) })
			})
		})
	}
}

func BenchmarkNewConnection(b *testing.B) {
	paths(b, pingPong, func(b *testing.B, addr string) {
		b.ReportAllocs()
		buf := make([]byte, 128)
		b.RunParallel(func(pb *testing.PB) {
			buf := append([]byte(nil), buf...)
			for pb.Next() {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					b.Error(err)
					return
				}
				_, err = c.Write(buf)
				if err == nil {
					_, err = io.ReadFull(c, buf)
				}
				if err != nil {
					b.Error(err)
				}
				c.Close()
			}
		})
	})
}

func BenchmarkBulk(b *testing.B) {
	const block = 1 << 20
	handle := func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, struct{ io.Reader }{c}) }
	paths(b, handle, func(b *testing.B, addr string) {
		c, err := net.Dial("tcp", addr)
		must(b, err)
		defer c.Close()
		buf := make([]byte, block)
		b.SetBytes(block)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkIdle reports the memory that an idle connection costs both proxies
// together, beyond one to the application itself, with its sockets' Go side and
// goroutines; kernel memory is not counted.
func BenchmarkIdle(b *testing.B) {
	const n = 1000
	for name, after := range map[string]int{"fresh": 128, "after-bulk": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			p := newPair(b, echo)
			direct := serve(b, echo)
			for b.Loop() {
				own := idleMemory(b, direct, n, after)
				b.ReportMetric((idleMemory(b, p.addr, n, after)-own)/n/1024, "KiB/conn")
				eventually(b, "connections gone", func() bool { return len(p.db.Connections(0))+len(p.web.Connections(0)) == 0 })
			}
		})
	}
}

// idleMemory is what n connections that have echoed so many bytes each keep in use, in bytes.
func idleMemory(b *testing.B, addr string, n, after int) float64 {
	before := inUse()
	buf := make([]byte, 64<<10)
	for range n {
		c, err := net.Dial("tcp", addr)
		must(b, err)
		defer c.Close()
		for sent := 0; sent < after; sent += len(buf) {
			part := buf[:min(len(buf), after-sent)]
			_, err := c.Write(part)
			must(b, err)
			_, err = io.ReadFull(c, part)
			must(b, err)
		}
	}
	return float64(inUse()) - float64(before)
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// The judgement of a connection is on the path of each, and must cost little.
func BenchmarkAuthorize(b *testing.B) {
	ca := newTestCA(b, testDomain)
	s, err := NewService(ServiceConfig{ID: "db", Signer: ca, Logger: logNothing})
	must(b, err)
	snap := &Snapshot{Service: "db", Datacenter: testDC, TrustDomain: testDomain, Roots: []string{ca.pem}, Intentions: allow("web")}
	s.Update(snap)
	id := s.world.Load().id
	id.Service = "web"
	before := s.world.Load()
	b.ReportAllocs()
	for b.Loop() {
		c, err := s.authorize(&Conn{wire: newWire(&deadConn{}), peer: id}, tlsState, before)
		must(b, err)
		c.row.finish(ending{reason: ReasonOK}, false)
	}
}
