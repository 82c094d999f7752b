//go:build linux

package tunnel

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The benchmarks run both proxies in one child process and the applications in
// this one, over loopback, so that proxy-cpu is what both proxies cost together. The
// relay is two goroutines a connection over crypto/tls, one TLS connection for each
// application's. Compare variants of one run with each other only.

type benchVariant struct {
	name string
	// path joins application connections to the backend at addr.
	path func(b testing.TB, addr string) func(app net.Conn)
}

func tunnelVariant(name string, make func(Config) (Driver, error), tunnels int) benchVariant {
	return benchVariant{name, func(b testing.TB, addr string) func(net.Conn) {
		cd, sd := driverPair{name, make, make}.start(b, Config{})
		benchLoops, _ = cd.(*Loops)
		var links []Link
		for range tunnels {
			links = append(links, newRigOn(b, cd, sd, rigOptions{accept: func(*Flow, []byte) Verdict {
				return Verdict{Addr: netip.MustParseAddrPort(addr)}
			}}).client)
		}
		var next atomic.Uint32
		return func(app net.Conn) {
			if _, err := links[int(next.Add(1))%tunnels].Carry(app, nil, nil); err != nil {
				b.Error(err)
				app.Close()
			}
		}
	}}
}

// relayTLS is the floor: copy with a buffer, both ways.
func relayTLS(app net.Conn, tc net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(tc, struct{ io.Reader }{app})
		if h, ok := tc.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
	}()
	_, _ = io.Copy(app, struct{ io.Reader }{tc})
	if h, ok := app.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
	}
	<-done
}

var relayVariant = benchVariant{"relay", func(b testing.TB, addr string) func(net.Conn) {
	cc, sc := testTLS()
	l, err := tls.Listen("tcp", "127.0.0.1:0", sc)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				app, err := net.Dial("tcp", addr)
				if err != nil {
					return
				}
				defer app.Close()
				relayTLS(app, c)
			}()
		}
	}()
	return func(app net.Conn) {
		go func() {
			defer app.Close()
			tc, err := tls.Dial("tcp", l.Addr().String(), cc)
			if err != nil {
				return
			}
			defer tc.Close()
			relayTLS(app, tc)
		}()
	}
}}

// pairVariant is one TLS connection for each application, on the driver.
func pairVariant(name string, make func(Config) (Driver, error)) benchVariant {
	return benchVariant{name, func(b testing.TB, addr string) func(net.Conn) {
		cd, sd := driverPair{name, make, make}.start(b, Config{})
		cc, sc := testTLS()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					tc := tls.Server(NewWire(c), sc)
					app, err := net.Dial("tcp", addr)
					if err == nil && tc.Handshake() == nil {
						_, _ = sd.Pair(tc, app, nil)
					}
				}()
			}
		}()
		return func(app net.Conn) {
			go func() {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					return
				}
				tc := tls.Client(NewWire(c), cc)
				if tc.Handshake() == nil {
					_, _ = cd.Pair(tc, app, nil)
				}
			}()
		}
	}}
}

// spliceVariant joins both applications in the kernel.
var spliceVariant = benchVariant{"splice", func(b testing.TB, addr string) func(net.Conn) {
	d, err := NewLoops(Config{}, 1)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	benchLoops = d
	to := netip.MustParseAddrPort(addr)
	return func(app net.Conn) {
		if _, err := d.Splice(app, func(*Flow, []byte) Verdict { return Verdict{Addr: to} }, nil); err != nil {
			b.Error(err)
			app.Close()
		}
	}
}}

// copyVariant is what Go does by itself in the clear, which splices too.
var copyVariant = benchVariant{"io.Copy", func(_ testing.TB, addr string) func(net.Conn) {
	return func(app net.Conn) {
		go func() {
			defer app.Close()
			far, err := net.Dial("tcp", addr)
			if err != nil {
				return
			}
			defer far.Close()
			go func() {
				_, _ = io.Copy(far, app)
				_ = far.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(app, far)
		}()
	}
}}

func oneLoop(c Config) (Driver, error) { return NewLoops(c, 1) }

var directVariant = benchVariant{name: "direct"}

var benchVariants = []benchVariant{
	directVariant, relayVariant,
	tunnelVariant("goroutines", goroutines, 1),
	tunnelVariant("loop", oneLoop, 1),
	tunnelVariant("loops-2-tunnels", loops, 2),
	tunnelVariant("loop-8-tunnels", oneLoop, 8),
	tunnelVariant("loop-64-tunnels", oneLoop, 64),
	pairVariant("goroutine-pairs", goroutines),
	pairVariant("loop-pairs", oneLoop),
	spliceVariant, copyVariant,
}

// TestBenchProxy is the child process of the benchmarks: both proxies of a variant.
func TestBenchProxy(t *testing.T) {
	name, addr, ok := strings.Cut(os.Getenv("TUNNEL_BENCH_PROXY"), "@")
	if !ok {
		return // only as a child of the benchmarks
	}
	for _, v := range benchVariants {
		if v.name == name {
			carry := v.path(t, addr)
			fmt.Println("listening", listenOn(t, carry))
		}
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
			time.Sleep(20 * time.Millisecond)
		}
		runtime.ReadMemStats(&m)
		fmt.Println("memory", m.HeapAlloc+m.StackInuse)
	}
	os.Exit(0)
}

var benchLoops *Loops

// listenOn accepts as the variant's driver does best.
func listenOn(t testing.TB, carry func(net.Conn)) string {
	if benchLoops == nil {
		return listen(t, carry)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if _, err := benchLoops.Listen(l, carry, func(error) {}); err != nil {
		t.Fatal(err)
	}
	return addr
}

// bench is a variant at work.
type bench struct {
	addr string // where applications connect
	pid  int
	tell io.Writer
	hear *bufio.Scanner
}

func (v benchVariant) start(b *testing.B, backend func(net.Conn)) *bench {
	addr := listen(b, backend)
	if v.path == nil {
		return &bench{addr: addr}
	}
	in, out, pid := child(b, "TestBenchProxy", "TUNNEL_BENCH_PROXY="+v.name+"@"+addr)
	x := &bench{pid: pid, tell: in, hear: bufio.NewScanner(out)}
	x.addr = x.line(b, "listening ")
	return x
}

func (x *bench) line(b *testing.B, prefix string) string {
	for x.hear.Scan() {
		if rest, ok := strings.CutPrefix(x.hear.Text(), prefix); ok {
			return rest
		}
	}
	b.Fatal("the proxy process ended")
	return ""
}

func (x *bench) memory(b *testing.B) float64 {
	if x.pid == 0 {
		return 0
	}
	fmt.Fprintln(x.tell, "memory")
	n, _ := strconv.ParseFloat(x.line(b, "memory "), 64)
	return n
}

func (x *bench) dial(b *testing.B) *net.TCPConn {
	c, err := net.Dial("tcp", x.addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// cpu is what the proxies have used, in steps of 10 ms.
func (x *bench) cpu() time.Duration {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", x.pid))
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

func answer(c net.Conn) {
	buf := make([]byte, 512)
	for {
		if _, err := io.ReadFull(c, buf[:100]); err != nil {
			c.Close()
			return
		}
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func ask(c net.Conn, buf []byte) error {
	if _, err := c.Write(buf[:100]); err != nil {
		return err
	}
	_, err := io.ReadFull(c, buf)
	return err
}

func BenchmarkRequests64(b *testing.B) { benchRequests(b, 64) }
func BenchmarkRequests1(b *testing.B)  { benchRequests(b, 1) }

func benchRequests(b *testing.B, conns int) {
	for _, v := range benchVariants {
		b.Run(v.name, func(b *testing.B) {
			x := v.start(b, answer)
			var cs []net.Conn
			for range conns {
				c := x.dial(b)
				if err := ask(c, make([]byte, 512)); err != nil {
					b.Fatal(err)
				}
				cs = append(cs, c)
			}
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			start := x.cpu()
			var wg sync.WaitGroup
			for _, c := range cs {
				wg.Go(func() {
					buf := make([]byte, 512)
					for left.Add(-1) >= 0 {
						if err := ask(c, buf); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64((x.cpu()-start).Microseconds())/float64(b.N), "proxy-cpu-us/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
		})
	}
}

func BenchmarkBulk1(b *testing.B) { benchBulk(b, 1) }
func BenchmarkBulk8(b *testing.B) { benchBulk(b, 8) }

func benchBulk(b *testing.B, streams int) {
	for _, v := range benchVariants {
		b.Run(v.name, func(b *testing.B) {
			x := v.start(b, func(c net.Conn) {
				_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
				_, _ = c.Write([]byte("x"))
				c.Close()
			})
			var cs []*net.TCPConn
			for range streams {
				cs = append(cs, x.dial(b))
			}
			const block = 1 << 20
			b.SetBytes(block)
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			start := x.cpu()
			var wg sync.WaitGroup
			for _, c := range cs {
				wg.Go(func() {
					buf := make([]byte, block)
					for left.Add(-1) >= 0 {
						if _, err := c.Write(buf); err != nil {
							b.Error(err)
							return
						}
					}
					_ = c.CloseWrite()
					if _, err := io.ReadFull(c, buf[:1]); err != nil {
						b.Error(err)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric((x.cpu()-start).Seconds()*1024/float64(b.N), "proxy-cpu-s/GB")
			b.ReportMetric(float64(b.N)*block*8/1e9/b.Elapsed().Seconds(), "Gbit/s")
		})
	}
}

func BenchmarkShortConnections(b *testing.B) {
	for _, v := range benchVariants {
		b.Run(v.name, func(b *testing.B) {
			x := v.start(b, func(c net.Conn) {
				buf := make([]byte, 512)
				if _, err := io.ReadFull(c, buf[:100]); err == nil {
					_, _ = c.Write(buf)
				}
				c.Close()
			})
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			start := x.cpu()
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					buf := make([]byte, 512)
					for left.Add(-1) >= 0 {
						c, err := net.Dial("tcp", x.addr)
						if err != nil {
							b.Error(err)
							return
						}
						err = ask(c, buf)
						c.Close()
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64((x.cpu()-start).Microseconds())/float64(b.N), "proxy-cpu-us/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
		})
	}
}

// BenchmarkIdleStream reports the heap and stacks that an idle connection costs both
// proxies together.
func BenchmarkIdleStream(b *testing.B) {
	const n = 900
	for _, v := range benchVariants {
		b.Run(v.name, func(b *testing.B) {
			for range b.N {
				x := v.start(b, answer)
				before := x.memory(b)
				for range n {
					if err := ask(x.dial(b), make([]byte, 512)); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric((x.memory(b)-before)/n/1024, "KiB/conn")
			}
		})
	}
}
