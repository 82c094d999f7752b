//go:build faults && linux

package faults_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// descriptors counts what a process has open.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	return len(list)
}

// operator asks agents who they are, over and over, until told to end.
type operator struct {
	stop  chan struct{}
	done  sync.WaitGroup
	times []time.Duration
	errs  []error
}

func watchAPI(nodes ...*proc.Node) *operator {
	o := &operator{stop: make(chan struct{})}
	o.done.Go(func() {
		for {
			for _, n := range nodes {
				at := time.Now()
				if _, err := n.Client.Agent().Self(); err != nil {
					o.errs = append(o.errs, fmt.Errorf("%s: %w", n.Name, err))
				}
				o.times = append(o.times, time.Since(at))
			}
			select {
			case <-o.stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return o
}

func (o *operator) end(t *testing.T) string {
	t.Helper()
	close(o.stop)
	o.done.Wait()
	for _, err := range o.errs[:min(len(o.errs), 5)] {
		t.Errorf("an operator got no answer: %v", err)
	}
	slices.Sort(o.times)
	return fmt.Sprintf("%d of %d questions of an operator failed, p99 %s", len(o.errs), len(o.times), p99(o.times))
}

// openMany has so many connections, each with an answer; the others were refused.
func openMany(addr string, n int) (open []net.Conn, refused int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 16 {
		wg.Go(func() {
			for next.Add(1) <= int64(n) {
				c, err := net.Dial("tcp", addr)
				if err == nil {
					if err = ping(c); err != nil {
						c.Close()
					}
				}
				mu.Lock()
				if err == nil {
					open = append(open, c)
				} else {
					refused++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return open, refused
}

func closeAll(list []net.Conn) {
	for _, c := range list {
		c.Close()
	}
}

// TestP34MoreConnectionsThanDescriptors fills the agent of destinations with streams
// until it has no descriptor to give: its API answers, what is carried goes on, and the
// rest is refused and served again later.
func TestP34MoreConnectionsThanDescriptors(t *testing.T) {
	t.Parallel()
	cases := []struct{ files, connections int }{{600, 900}}
	if proc.Full() {
		cases = append(cases, []struct{ files, connections int }{{4096, 8000}, {0, 19_000}}...)
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%d of %d", c.connections, c.files), func(t *testing.T) {
			h := newTwoHosts(t, c.files)
			db, cache := h.join("db", echoProcess(t), nil), h.join("cache", echoProcess(t), nil)
			var kept []net.Conn
			for range 10 {
				kept = append(kept, through(t, cache))
			}
			through(t, db).Close()
			base, memory := descriptors(t, h.to.PID()), residentKiB(t, h.to.PID())
			o := watchAPI(h.to, h.from)
			begin := time.Now()
			open, refused := openMany(db, c.connections)
			took := time.Since(begin)
			most := descriptors(t, h.to.PID())
			grown := residentKiB(t, h.to.PID()) - memory
			for _, list := range [][]net.Conn{open, kept} {
				for _, conn := range list {
					if err := ping(conn); err != nil {
						t.Errorf("a connection that was served is disturbed: %v", err)
						break
					}
				}
			}
			said := o.end(t)
			// Of one service, 16 tunnels of 1,024 streams are the most.
			logs := h.to.Log() + h.from.Log()
			if refused > 0 && !strings.Contains(logs, "no descriptors left") && !strings.Contains(logs, "too many tunnels are open") {
				t.Errorf("connections were refused, and no line says that a limit was reached:\n%s", tail(logs))
			}
			if c.files > 0 && refused == 0 {
				t.Errorf("%d connections are open where there are %d descriptors", len(open), c.files)
			}
			closeAll(open)
			proc.Eventually(t, time.Minute, "room again, and all descriptors given back", func() error {
				fresh, err := net.Dial("tcp", db)
				if err == nil {
					err = ping(fresh)
					fresh.Close()
				}
				if n := descriptors(t, h.to.PID()); n > base+20 {
					err = errors.Join(err, fmt.Errorf("%d are open, %d before", n, base))
				}
				return err
			})
			t.Logf("P34: %d connections over tunnels in %s, %d served and %d refused, %d descriptors in use of %d; %s; resident memory of the destination's agent +%d KiB",
				c.connections, took.Round(time.Millisecond), len(open), refused, most, c.files, said, grown)
		})
	}
}

// TestP34InboundCap: a service with a cap takes no more, and others do not notice.
func TestP34InboundCap(t *testing.T) {
	t.Parallel()
	h := newTwoHosts(t, 0)
	const limit = 50
	capped := h.join("capped", startEcho(t).port(), map[string]any{"max_inbound_connections": limit})
	free := h.join("free", startEcho(t).port(), nil)
	through(t, free).Close()
	first := through(t, capped)
	open, refused := openMany(capped, 3*limit)
	if n := len(open) + 1; n != limit || refused == 0 {
		t.Errorf("%d connections are open where %d may be, %d were refused", n, limit, refused)
	}
	others, hurt := openMany(free, 2*limit)
	if hurt > 0 {
		t.Errorf("%d connections of another service were refused", hurt)
	}
	must(t, ping(first))
	if !strings.Contains(h.to.Log(), "reason=limit") {
		t.Error("no line says that a limit was reached")
	}
	closeAll(open)
	closeAll(others)
	proc.Eventually(t, 20*time.Second, "room again", func() error {
		again, err := net.Dial("tcp", capped)
		if err != nil {
			return err
		}
		defer again.Close()
		return ping(again)
	})
	t.Logf("P34: a cap of %d: %d more refused; %d of %d connections of another service served meanwhile", limit, refused, len(others), 2*limit)
}

// TestP25HandshakeFlood has strangers begin handshakes at a proxy's port and not end
// them, as fast as they can, and hold connections that say nothing: who has a
// certificate comes through from another address, over tunnels and with handshakes of
// its own, and what strangers hold is gone soon.
func TestP25HandshakeFlood(t *testing.T) {
	t.Parallel()
	h := newTwoHosts(t, 0)
	up := h.join("db", startEcho(t).port(), nil)
	through(t, up).Close()
	at := h.inbound("db")
	leaf, _, err := h.from.Client.Agent().ConnectCALeaf("to-db", nil)
	must(t, err)
	pair, err := tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM))
	must(t, err)
	network := strings.Join(strings.Split(h.to.Addr, ".")[:3], ".")
	friend, stranger := dialFrom(network+".200"), dialFrom(network+".201")

	knock := func() (time.Duration, error) {
		begin := time.Now()
		c, err := friend("tcp", at)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		err = ping(tls.Client(c, &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true})) //nolint:gosec // the far end judges us
		return time.Since(begin), err
	}
	var calm []time.Duration
	for range 20 {
		d, err := knock()
		must(t, err)
		calm = append(calm, d)
	}
	base := descriptors(t, h.to.PID())

	f := startFlood(stranger, at, proc.Count(600, 4000))
	o := watchAPI(h.to)
	var busy, streams []time.Duration
	failed := 0
	for end := time.Now().Add(proc.Count(4*time.Second, time.Minute)); time.Now().Before(end); {
		d, err := knock()
		if err != nil {
			failed++
			t.Errorf("a caller with a certificate was not served: %v", err)
		}
		busy = append(busy, d)
		begin := time.Now()
		c, err := net.Dial("tcp", up)
		if err == nil {
			err = ping(c)
			c.Close()
		}
		if err != nil {
			failed++
			t.Errorf("a connection over a tunnel was not served: %v", err)
		}
		streams = append(streams, time.Since(begin))
	}
	said := o.end(t)
	longest, left := f.end()
	if left > 0 || proc.Full() && longest > 15*time.Second {
		t.Errorf("of the strangers' silent connections %d were still open after 30 s, and others after %s; want 15 s at most", left, longest)
	}
	proc.Eventually(t, time.Minute, "the descriptors of before", func() error {
		if n := descriptors(t, h.to.PID()); n > base+20 {
			return fmt.Errorf("%d are open, %d before", n, base)
		}
		return nil
	})
	for _, list := range [][]time.Duration{calm, busy, streams} {
		slices.Sort(list)
	}
	t.Logf("P25: %d silent connections, gone after %s at most, and %d handshakes that came to nothing: %d of %d callers failed; handshakes p50 %s, p99 %s (calm: %s), connections over tunnels p99 %s; %s",
		f.silent, longest.Round(time.Millisecond), f.made.Load(), failed, len(busy)+len(streams), half(busy), p99(busy), half(calm), p99(streams), said)
}

// dialFrom dials from an address of this host.
func dialFrom(ip string) func(network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	return d.Dial
}

// strangers are connections of one address.
type strangers struct {
	silent  int
	made    atomic.Int64 // handshakes that came to nothing
	longest atomic.Int64 // that a silent one was open
	left    atomic.Int64
	holding sync.WaitGroup
	pushing sync.WaitGroup
	stop    chan struct{}
}

// startFlood opens silent connections, half of which say a little, and begins
// handshakes over others, one after the other.
func startFlood(dial func(network, addr string) (net.Conn, error), addr string, silent int) *strangers {
	s := &strangers{silent: silent, stop: make(chan struct{})}
	places := make(chan struct{}, 64) // that are dialling
	for i := range silent {
		s.holding.Go(func() {
			places <- struct{}{}
			c, err := dial("tcp", addr)
			<-places
			if err != nil {
				return // refused at the door is an answer too
			}
			defer c.Close()
			begin := time.Now()
			if i%2 == 0 {
				_, _ = c.Write([]byte("\x16\x03\x01\x00\xc8\x01"))
			}
			_ = c.SetReadDeadline(begin.Add(30 * time.Second))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				s.left.Add(1)
			}
			for d := int64(time.Since(begin)); ; {
				if was := s.longest.Load(); d <= was || s.longest.CompareAndSwap(was, d) {
					return
				}
			}
		})
	}
	for range 8 {
		s.pushing.Go(func() {
			for {
				select {
				case <-s.stop:
					return
				default:
				}
				c, err := dial("tcp", addr)
				if err != nil {
					continue
				}
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				_, _ = tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Read(make([]byte, 1)) //nolint:gosec // it shows no certificate
				c.Close()
				s.made.Add(1)
			}
		})
	}
	return s
}

func (s *strangers) end() (longest time.Duration, left int64) {
	close(s.stop)
	s.pushing.Wait()
	s.holding.Wait()
	return time.Duration(s.longest.Load()), s.left.Load()
}
