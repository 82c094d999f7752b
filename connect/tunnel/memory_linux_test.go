package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMemoryProxy is the child process of tests that measure memory: the far side of
// tunnels. Streams that say so get an echo, others an application that is never there.
func TestMemoryProxy(t *testing.T) {
	spec := strings.Split(os.Getenv("TUNNEL_MEMORY_PROXY"), "@")
	if len(spec) != 2 {
		return // only as a child
	}
	make := loops
	if spec[0] == "goroutines" {
		make = goroutines
	}
	d, err := make(Config{Window: 256 << 10, MaxStreams: 256, Memory: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, sc := testTLS()
	sc = sc.Clone()
	sc.ClientAuth = tls.RequireAnyClientCert // each process has its own authority
	fmt.Println("listening", l.Addr())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = d.Server(context.Background(), tls.Server(NewWire(c), sc), func(_ *Flow, meta []byte) Verdict {
					if string(meta) == "echo" {
						return Verdict{Addr: netip.MustParseAddrPort(spec[1])}
					}
					return Verdict{Timeout: time.Minute, Dial: func(ctx context.Context) (net.Conn, error) {
						<-ctx.Done()
						return nil, ctx.Err()
					}}
				})
			}()
		}
	}()
	bufio.NewScanner(os.Stdin).Scan() // until the parent ends
	os.Exit(0)
}

type memoryProxy struct {
	addr string
	pid  int
}

func startMemoryProxy(t *testing.T, driver, echo string) memoryProxy {
	t.Helper()
	_, out, pid := child(t, "TestMemoryProxy", "TUNNEL_MEMORY_PROXY="+driver+"@"+echo)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if addr, ok := strings.CutPrefix(lines.Text(), "listening "); ok {
			return memoryProxy{addr, pid}
		}
	}
	t.Fatal("the proxy process ended")
	return memoryProxy{}
}

// resident is the memory of a process, in MiB; the most it ever had, with VmHWM.
func resident(t *testing.T, pid int, field string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return n >> 10
		}
	}
	t.Fatal("no " + field)
	return 0
}

func (p memoryProxy) tunnel(t *testing.T) *Tunnel {
	t.Helper()
	c, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	cc, _ := testTLS()
	cc = cc.Clone()
	cc.InsecureSkipVerify = true //nolint:gosec // each process has its own authority
	tu, err := Client(context.Background(), tls.Client(NewWire(c), cc), Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tu.Close() })
	return tu
}

// TestHostileStreamsStayWithinTheBudget fills the windows of many streams whose
// applications never read: 256 MiB, where 16 are allowed. The process must not grow by
// that, and an honest tunnel beside them must not be the one that pays.
func TestHostileStreamsStayWithinTheBudget(t *testing.T) {
	for _, driver := range []string{"loops", "goroutines"} {
		t.Run(driver, func(t *testing.T) {
			p := startMemoryProxy(t, driver, listen(t, echo))
			honest := p.tunnel(t)
			s, err := honest.Open([]byte("echo"))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			before := resident(t, p.pid, "VmRSS")
			var attack sync.WaitGroup
			var sent, refused [4]int
			for i := range 4 {
				tu := p.tunnel(t)
				attack.Go(func() { sent[i], refused[i] = fillWindows(tu) })
			}
			done := make(chan struct{})
			go func() { attack.Wait(); close(done) }()
			buf := pattern(1, 1000)
			for i, over := 0, false; !over || i < 20; i++ {
				select {
				case <-done:
					over = true
				default:
				}
				_ = s.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := s.Write(buf); err != nil {
					t.Fatalf("honest stream beside it: %v", err)
				}
				for n := 0; n < len(buf); {
					k, err := s.Read(make([]byte, len(buf)-n))
					if n += k; err != nil {
						t.Fatalf("honest stream beside it: %v", err)
					}
				}
			}
			sum, cut := 0, 0
			for i := range sent {
				sum, cut = sum+sent[i], cut+refused[i]
			}
			grew := resident(t, p.pid, "VmHWM") - before
			t.Logf("%d MiB sent, %d streams cut: resident memory grew by %d MiB at most", sum>>20, cut, grew)
			if cut < 100 || grew > 180 { // the race detector needs a multiple of what is held
				t.Fatalf("%d streams cut, %d MiB more", cut, grew)
			}
		})
	}
}

// fillWindows opens all streams that a tunnel takes, and sends each what it takes.
func fillWindows(tu *Tunnel) (sent, cut int) {
	big := make([]byte, 256<<10)
	var open []*Stream
	for range 250 {
		s, err := tu.Open(nil)
		if err != nil {
			break
		}
		_ = s.SetWriteDeadline(time.Now().Add(5 * time.Second))
		n, _ := s.Write(big)
		sent += n
		open = append(open, s)
	}
	if s, err := tu.Open([]byte("echo")); err == nil { // what came before it has been judged when it is answered
		_ = s.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = s.Write([]byte("x"))
		_, _ = s.Read(make([]byte, 1))
		s.Close()
	}
	for _, s := range open {
		if s.failure() != nil {
			cut++
		}
		s.Reset(CodeCancelled)
	}
	return sent, cut
}
