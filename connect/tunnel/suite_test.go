//go:build linux

package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"
)

// pattern is the bytes that a stream carries.
func pattern(seed uint64, n int) []byte {
	p := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = rng.Read(p)
	return p
}

// exchange sends p in odd pieces, half-closes, and wants it back exactly.
func exchange(c *net.TCPConn, p []byte, seed uint64) error {
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	sent := make(chan error, 1)
	go func() {
		rng := rand.New(rand.NewPCG(seed, 2))
		for q := p; len(q) > 0; {
			n := min(len(q), 1+rng.IntN(100_000))
			if _, err := c.Write(q[:n]); err != nil {
				sent <- err
				return
			}
			q = q[n:]
		}
		sent <- c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if err := <-sent; err != nil {
		return err
	}
	if !bytes.Equal(got, p) {
		return errors.New("other bytes came back: " + strconv.Itoa(len(got)) + " of " + strconv.Itoa(len(p)))
	}
	return c.Close()
}

func TestFortyStreamsByteExact(t *testing.T) {
	for name, window := range map[string]int{"default window": 0, "5000 bytes": 5000} {
		t.Run(name, func(t *testing.T) {
			eachDriver(t, func(t *testing.T, d driverPair) {
				r := newRig(t, d, rigOptions{cfg: Config{Window: window}, backend: echo})
				size := 1 << 20
				if window != 0 {
					size = 200_000
				}
				var wg sync.WaitGroup
				for i := range uint64(40) {
					c, _ := r.app("")
					wg.Go(func() {
						n := size
						if i%4 == 0 {
							n = int(i) // small and empty ones among them
						}
						if err := exchange(c, pattern(i, n), i); err != nil {
							t.Errorf("stream %d: %v", i, err)
						}
					})
				}
				wg.Wait()
				for range 40 {
					for _, e := range []ended{wait(t, r.clientEnds, "client end"), wait(t, r.serverEnds, "server end")} {
						if e.end.Cause != CauseDone || e.flow.Sent() != e.flow.Received() {
							t.Errorf("end %+v, sent %d, received %d", e.end, e.flow.Sent(), e.flow.Received())
						}
					}
				}
				if s := r.client.Status(); s.Streams != 0 {
					t.Errorf("%d streams left", s.Streams)
				}
			})
		})
	}
}

func TestHalfCloseEitherWay(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		metas := make(chan string, 2)
		read := make(chan struct{})
		r := newRig(t, d, rigOptions{metas: metas, backend: func(c net.Conn) {
			defer close(read)
			// Speaks first, ends, and only then reads.
			_, _ = c.Write([]byte("hello"))
			_ = c.(*net.TCPConn).CloseWrite()
			b, err := io.ReadAll(c)
			if err != nil || string(b) != "late words" {
				t.Errorf("backend got %q, %v", b, err)
			}
			c.Close()
		}})
		c, _ := r.app("who am I")
		b, err := io.ReadAll(c)
		if err != nil || string(b) != "hello" {
			t.Fatalf("got %q, %v", b, err)
		}
		if got := wait(t, metas, "metadata"); got != "who am I" {
			t.Fatalf("metadata %q", got)
		}
		_, _ = c.Write([]byte("late words"))
		c.Close()
		wait(t, read, "end of the backend")
		if e := wait(t, r.clientEnds, "client end"); e.end.Cause != CauseDone || e.flow.Sent() != 10 || e.flow.Received() != 5 {
			t.Errorf("end %+v, %d, %d", e.end, e.flow.Sent(), e.flow.Received())
		}
		if e := wait(t, r.serverEnds, "server end"); e.end.Cause != CauseDone {
			t.Errorf("end %+v", e.end)
		}
	})
}

func TestPeersThatDoNotRead(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		stop := make(chan struct{})
		r := newRig(t, d, rigOptions{backend: func(c net.Conn) {
			kind := make([]byte, 1)
			if _, err := io.ReadFull(c, kind); err != nil {
				return
			}
			switch kind[0] {
			case 'e':
				echo(c)
			case 'd': // deaf
				<-stop
				c.Close()
			case 'f': // floods who does not read
				big := make([]byte, 1<<20)
				for {
					if _, err := c.Write(big); err != nil {
						return
					}
				}
			}
		}})
		defer close(stop)
		var stalled []*Flow
		for range 4 {
			deaf, f := r.app("")
			go func() {
				_, _ = deaf.Write([]byte("d"))
				big := make([]byte, 1<<20)
				for {
					if _, err := deaf.Write(big); err != nil {
						return
					}
				}
			}()
			flood, g := r.app("")
			_, _ = flood.Write([]byte("f"))
			stalled = append(stalled, f, g)
		}
		// All stand still, the window full.
		eventually(t, "stalled", func() bool {
			before := moved(stalled)
			time.Sleep(30 * time.Millisecond)
			return before > 1<<20 && before == moved(stalled)
		})
		for i := range uint64(5) {
			c, _ := r.app("")
			_, _ = c.Write([]byte("e"))
			if err := exchange(c, pattern(i, 300_000), i); err != nil {
				t.Fatalf("beside stalled streams: %v", err)
			}
		}
		for _, f := range stalled {
			f.Reset(CodeIdle)
		}
		for range len(stalled) {
			var e ended
			for e = wait(t, r.clientEnds, "client end"); e.end.Cause == CauseDone; e = wait(t, r.clientEnds, "client end") {
			}
			if e.end.Cause != CauseOwner || e.end.Code != CodeIdle {
				t.Fatalf("end %+v", e.end)
			}
		}
	})
}

func moved(fs []*Flow) (n int64) {
	for _, f := range fs {
		n += f.Sent() + f.Received()
	}
	return n
}

func TestResetsAreSeenAsResets(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		backends := make(chan *net.TCPConn, 1)
		r := newRig(t, d, rigOptions{backend: func(c net.Conn) {
			_, _ = c.Write([]byte("x"))
			backends <- c.(*net.TCPConn)
		}})
		open := func() (*net.TCPConn, *net.TCPConn, *Flow) {
			c, f := r.app("")
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			return c, wait(t, backends, "backend"), f
		}
		ends := func(client, server Cause, clientCode, serverCode Code) {
			t.Helper()
			if e := wait(t, r.clientEnds, "client end").end; e.Cause != client || e.Code != clientCode {
				t.Errorf("client end %v %v (%v), want %v %v", e.Cause, e.Code, e.Err, client, clientCode)
			}
			if e := wait(t, r.serverEnds, "server end").end; e.Cause != server || e.Code != serverCode {
				t.Errorf("server end %v %v (%v), want %v %v", e.Cause, e.Code, e.Err, server, serverCode)
			}
		}

		c, b, _ := open()
		_ = c.SetLinger(0)
		c.Close()
		expectReset(t, b, "backend, client reset")
		ends(CauseApp, CausePeer, CodeCancelled, CodeCancelled)

		c, b, _ = open()
		_ = b.SetLinger(0)
		b.Close()
		expectReset(t, c, "client, backend reset")
		ends(CausePeer, CauseApp, CodeCancelled, CodeCancelled)

		// A reset after half of it must not look like an end.
		c, b, _ = open()
		_ = c.CloseWrite()
		if _, err := io.ReadAll(b); err != nil {
			t.Fatal(err)
		}
		_, _ = b.Write(make([]byte, 100_000))
		_ = b.SetLinger(0)
		b.Close()
		expectReset(t, c, "client, half an answer")
		ends(CausePeer, CauseApp, CodeCancelled, CodeCancelled)

		c, b, f := open()
		f.Reset(CodeRevoked)
		expectReset(t, c, "client, owner's reset")
		expectReset(t, b, "backend, owner's reset")
		ends(CauseOwner, CausePeer, CodeRevoked, CodeRevoked)
		f.Reset(CodeIdle) // of no effect, and harmless

		for len(r.flows) > 0 {
			<-r.flows
		}
		c, b, _ = open()
		f = wait(t, r.flows, "server flow")
		f.Reset(CodeRevoked)
		expectReset(t, c, "client, server owner's reset")
		expectReset(t, b, "backend, server owner's reset")
		ends(CausePeer, CauseOwner, CodeRevoked, CodeRevoked)
	})
}

func TestTunnelLossResetsItsStreams(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		backends := make(chan *net.TCPConn, 1)
		cd, sd := d.start(t, Config{})
		ct, st, cut := tlsPairCut(t)
		r := newRigOver(t, cd, sd, rigOptions{backend: func(c net.Conn) {
			_, _ = c.Write([]byte("x"))
			backends <- c.(*net.TCPConn)
		}}, ct, st)
		c, _ := r.app("")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		b := wait(t, backends, "backend")
		// A bare FIN: both directions of the transport end without a word.
		cut()
		expectReset(t, c, "client")
		expectReset(t, b, "backend")
		wait(t, r.client.Done(), "end of the client's tunnel")
		wait(t, r.server.Done(), "end of the server's tunnel")
		if e := wait(t, r.clientEnds, "client end").end; e.Cause != CauseLost {
			t.Errorf("client end %+v", e)
		}
		if e := wait(t, r.serverEnds, "server end").end; e.Cause != CauseLost {
			t.Errorf("server end %+v", e)
		}
		if r.client.Status().Err == nil || r.server.Status().Err == nil {
			t.Error("a lost tunnel without an error")
		}
		mine, theirs := tcpPair(t)
		if _, err := r.client.Carry(theirs, nil, nil); !errors.Is(err, ErrLost) {
			t.Errorf("carry over a lost tunnel: %v", err)
		}
		mine.Close()
	})
}

func TestRefusedAndFailedDial(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		r := newRig(t, d, rigOptions{accept: func(_ *Flow, meta []byte) Verdict {
			switch string(meta) {
			case "no":
				return Verdict{Refuse: CodeRefused}
			case "closed port":
				return Verdict{Addr: netip.MustParseAddrPort("127.0.0.1:1")}
			case "nowhere":
				return Verdict{}
			case "too slow":
				return Verdict{Timeout: 20 * time.Millisecond, Dial: func(ctx context.Context) (net.Conn, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				}}
			}
			return Verdict{Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("nobody there") }}
		}})
		c, _ := r.app("no")
		expectReset(t, c, "refused")
		if e := wait(t, r.clientEnds, "end").end; e.Cause != CausePeer || e.Code != CodeRefused {
			t.Fatalf("end %+v", e)
		}
		for _, meta := range []string{"error", "closed port", "nowhere", "too slow"} {
			c, _ = r.app(meta)
			if _, err := c.Write(make([]byte, 10)); err == nil { // a failed write has used the reset up
				expectReset(t, c, meta)
			}
			if e := wait(t, r.clientEnds, "end").end; e.Cause != CausePeer || e.Code != CodeDialFailed {
				t.Fatalf("%s: end %+v", meta, e)
			}
			if e := wait(t, r.serverEnds, "end").end; e.Cause != CauseDial {
				t.Fatalf("%s: end %+v", meta, e)
			}
		}
	})
}

func TestDialIsCancelledWithItsStream(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		dialling := make(chan struct{}, 1)
		r := newRig(t, d, rigOptions{accept: func(*Flow, []byte) Verdict {
			return Verdict{Dial: func(ctx context.Context) (net.Conn, error) {
				dialling <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			}}
		}})
		c, _ := r.app("")
		wait(t, dialling, "dial")
		_ = c.SetLinger(0)
		c.Close()
		if e := wait(t, r.serverEnds, "end").end; e.Cause != CausePeer || e.Code != CodeCancelled {
			t.Fatalf("end %+v", e)
		}
	})
}

func TestDrainFinishesWhatRuns(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			eachDriver(t, func(t *testing.T, d driverPair) {
				r := newRig(t, d, rigOptions{backend: echo})
				c, _ := r.app("")
				if _, err := c.Write([]byte("a")); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				if side == "client" {
					r.client.Drain(CodeDraining)
				} else {
					r.server.Drain(CodeDraining)
				}
				eventually(t, "draining", func() bool { return r.client.Status().Draining })
				_, theirs := tcpPair(t)
				if _, err := r.client.Carry(theirs, nil, nil); !errors.Is(err, ErrDraining) {
					t.Fatalf("carry: %v", err)
				}
				if err := exchange(c, pattern(1, 500_000), 1); err != nil {
					t.Fatal(err)
				}
				wait(t, r.client.Done(), "end of the client's tunnel")
				wait(t, r.server.Done(), "end of the server's tunnel")
				for _, s := range []Status{r.client.Status(), r.server.Status()} {
					if s.Err != nil {
						t.Errorf("a drained tunnel ended with %v", s.Err)
					}
				}
			})
		})
	}
}

func TestStreamsAreCapped(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		r := newRig(t, d, rigOptions{cfg: Config{MaxStreams: 3}, backend: echo})
		var apps []*net.TCPConn
		for range 3 {
			c, _ := r.app("")
			apps = append(apps, c)
		}
		_, theirs := tcpPair(t)
		if _, err := r.client.Carry(theirs, nil, nil); !errors.Is(err, ErrFull) {
			t.Fatalf("fourth stream: %v", err)
		}
		if err := exchange(apps[0], []byte("x"), 1); err != nil {
			t.Fatal(err)
		}
		wait(t, r.clientEnds, "end")
		eventually(t, "room again", func() bool {
			mine, theirs := tcpPair(t)
			_, err := r.client.Carry(theirs, nil, nil)
			if err != nil {
				return false
			}
			return exchange(mine, []byte("y"), 2) == nil
		})
	})
}

// TestEarlyAnswer plays a server that answers in full and leaves while the client
// still sends: the client must get the whole answer.
func TestEarlyAnswer(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		answer := pattern(3, 100_000)
		r := newRig(t, d, rigOptions{backend: func(c net.Conn) {
			_, _ = io.ReadFull(c, make([]byte, 1000))
			_, _ = c.Write(answer)
			_ = c.(*net.TCPConn).CloseWrite()
			// Reads on for a moment, as a good server does, and then has enough.
			_, _ = io.ReadFull(c, make([]byte, 600_000))
			c.Close()
		}})
		c, _ := r.app("")
		go func() {
			for {
				if _, err := c.Write(make([]byte, 50_000)); err != nil {
					return
				}
			}
		}()
		got := make([]byte, len(answer))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, answer) {
			t.Fatalf("answer: %v", err)
		}
		if n, err := c.Read(got); n != 0 || err != io.EOF {
			t.Fatalf("after the answer: %d, %v", n, err)
		}
		c.Close()
		wait(t, r.clientEnds, "client end")
		wait(t, r.serverEnds, "server end")
	})
}

func TestShortConnectionsLeaveNothing(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		r := newRig(t, d, rigOptions{backend: echo})
		before := descriptors(t)
		defer func() {
			eventually(t, "descriptors given back", func() bool { return descriptors(t) <= before+2 })
		}()
		var wg sync.WaitGroup
		for w := range uint64(8) {
			wg.Go(func() {
				for i := range uint64(40) {
					c, _ := r.app("")
					if err := exchange(c, pattern(w, int(1+i*10)), i); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		for range 8 * 40 {
			wait(t, r.clientEnds, "client end")
			wait(t, r.serverEnds, "server end")
		}
		if c, s := r.client.Status(), r.server.Status(); c.Streams+s.Streams != 0 {
			t.Fatalf("streams left: %d, %d", c.Streams, s.Streams)
		}
	})
}

// TestHostilePeer speaks the protocol wrongly after the greeting.
func TestHostilePeer(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"garbage":     []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"id 0":        appendHeader(nil, typeOpen, 0, 0),
		"over window": append(appendHeader(appendHeader(nil, typeOpen, 0, 1), typeData, 6000, 1), make([]byte, 6000)...),
	} {
		t.Run(name, func(t *testing.T) {
			eachDriver(t, func(t *testing.T, d driverPair) {
				_, sd := d.start(t, Config{Window: 5000})
				ct, st := tlsPair(t)
				made := make(chan Link, 1)
				addr := listen(t, echo)
				go func() {
					l, err := sd.Server(context.Background(), st, func(*Flow, []byte) Verdict {
						return Verdict{Dial: dialTo(addr)}
					})
					if err != nil {
						t.Error(err)
					}
					made <- l
				}()
				if _, err := ct.Write(append(hello{5000, 10}.append(nil), bytes...)); err != nil {
					t.Fatal(err)
				}
				l := wait(t, made, "tunnel")
				wait(t, l.Done(), "end of the tunnel")
				if err := l.Status().Err; !errors.Is(err, ErrProtocol) {
					t.Fatalf("ended with %v", err)
				}
				_ = ct.SetReadDeadline(time.Now().Add(10 * time.Second))
				if _, err := io.Copy(io.Discard, ct); err == nil || errors.Is(err, context.DeadlineExceeded) {
					t.Logf("peer saw %v", err)
				}
				ct.Close()
			})
		})
	}
}

// TestPeerThatOnlyAsks opens and pings without ever reading what comes back.
func TestPeerThatOnlyAsks(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		_, sd := d.start(t, Config{Keepalive: 100 * time.Millisecond, MaxStreams: 100})
		ct, st := tlsPair(t)
		made := make(chan Link, 1)
		go func() {
			l, _ := sd.Server(context.Background(), st, func(*Flow, []byte) Verdict { return Verdict{Refuse: CodeRefused} })
			made <- l
		}()
		_, _ = ct.Write(hello{5000, 10}.append(nil))
		l := wait(t, made, "tunnel")
		done := make(chan struct{})
		go func() {
			defer close(done)
			for id := uint32(1); ; {
				var b []byte
				for range 1000 {
					b = appendHeader(b, typeOpen, 0, id)
					b = append(appendHeader(b, typePing, 8, 0), make([]byte, 8)...)
					b = appendWord(b, typeReset, id, 1)
					id++
				}
				if _, err := ct.Write(b); err != nil {
					return
				}
			}
		}()
		select {
		case <-l.Done(): // its output stood still
		case <-time.After(time.Second):
		}
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		if mem.HeapInuse > 256<<20 {
			t.Fatalf("%d bytes of heap", mem.HeapInuse)
		}
		if s := l.Status(); s.Streams > 100 {
			t.Fatalf("%d streams", s.Streams)
		}
		l.Close()
		wait(t, done, "end of the peer")
		ct.Close()
	})
}

func TestSilentPeerIsGivenUp(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		cd, _ := d.start(t, Config{Keepalive: 20 * time.Millisecond})
		ct, st := tlsPair(t)
		go func() { _, _ = st.Write(hello{5000, 10}.append(nil)) }()
		l, err := cd.Client(context.Background(), ct, 0)
		if err != nil {
			t.Fatal(err)
		}
		wait(t, l.Done(), "end")
		if err := l.Status().Err; !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		st.Close()
	})
}

func TestKeepaliveKeepsAnIdleTunnel(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		r := newRig(t, d, rigOptions{cfg: Config{Keepalive: time.Hour}, backend: echo})
		asked := 0
		for range 20 {
			for _, l := range []Link{r.client, r.server} {
				if tick(l) {
					asked++
					eventually(t, "an answer", func() bool { return hears(l) })
				}
			}
		}
		if asked < 10 {
			t.Errorf("of 40 periods of silence %d led to a question", asked)
		}
		c, _ := r.app("")
		if err := exchange(c, []byte("still here"), 1); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNoGreeting(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		cd, _ := d.start(t, Config{})
		ct, st := tlsPair(t) //nolint:staticcheck,wastedassign // the far end only has to be there
		ctx, cancel := context.WithCancel(context.Background())
		go cancel()
		if _, err := cd.Client(ctx, ct, 0); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		ct, st = tlsPair(t)
		_, _ = st.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		if _, err := cd.Client(context.Background(), ct, 0); !errors.Is(err, ErrProtocol) {
			t.Fatal(err)
		}
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// TestResetBeforeTheTunnelsTurn ends streams that no turn has opened yet.
func TestResetBeforeTheTunnelsTurn(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		r := newRig(t, d, rigOptions{backend: echo})
		release := holdLoop(r.client)
		_, f := r.app("")
		f.Reset(CodeRevoked)
		release()
		if e := wait(t, r.clientEnds, "client end").end; e.Cause != CauseOwner || e.Code != CodeRevoked {
			t.Errorf("client end %+v", e)
		}
		c, _ := r.app("")
		if err := exchange(c, []byte("the next one"), 1); err != nil {
			t.Error(err)
		}
		eventually(t, "no stream left", func() bool { return r.client.Status().Streams == 0 })
	})
}
