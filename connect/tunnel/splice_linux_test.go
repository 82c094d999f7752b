package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// spliceRig joins an application to backend by Splice.
type spliceRig struct {
	near, far chan ended
	flows     chan *Flow
	app       *net.TCPConn
	flow      *Flow
}

func newSplice(t *testing.T, accept func(f *Flow) Verdict) *spliceRig {
	t.Helper()
	d, err := NewLoops(Config{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	r := &spliceRig{near: make(chan ended, 4), far: make(chan ended, 4), flows: make(chan *Flow, 1)}
	mine, theirs := tcpPair(t)
	r.app = mine
	r.flow, err = d.Splice(theirs, func(f *Flow, _ []byte) Verdict {
		v := accept(f)
		v.End = func(f *Flow, e End) { r.far <- ended{f, e} }
		r.flows <- f
		return v
	}, func(f *Flow, e End) { r.near <- ended{f, e} })
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func toAddr(addr string) func(*Flow) Verdict {
	return func(*Flow) Verdict { return Verdict{Addr: netip.MustParseAddrPort(addr)} }
}

func TestSpliceIsByteExactWithHalfClose(t *testing.T) {
	for name, dial := range map[string]bool{"connected by the loop": false, "dialled": true} {
		t.Run(name, func(t *testing.T) {
			addr := listen(t, func(c net.Conn) {
				defer c.Close()
				h := sha256.New()
				n, _ := io.Copy(h, c)
				answer := make([]byte, n)
				_, _ = rand.NewChaCha8([32]byte(h.Sum(nil))).Read(answer)
				_, _ = c.Write(h.Sum(nil))
				_, _ = c.Write(answer)
			})
			r := newSplice(t, func(f *Flow) Verdict {
				if dial {
					return Verdict{Dial: dialTo(addr)}
				}
				return toAddr(addr)(f)
			})
			sent := make([]byte, 9<<20+17)
			_, _ = rand.NewChaCha8([32]byte{1}).Read(sent)
			h := sha256.New()
			for rest := sent; len(rest) > 0; {
				n := min(len(rest), 1+rand.IntN(100<<10))
				if _, err := r.app.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				h.Write(rest[:n])
				rest = rest[n:]
			}
			_ = r.app.CloseWrite()
			got, err := io.ReadAll(r.app)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, len(sent))
			_, _ = rand.NewChaCha8([32]byte(h.Sum(nil))).Read(want)
			if !bytes.Equal(got, append(h.Sum(nil), want...)) {
				t.Fatalf("%d bytes came back and are not what was answered", len(got))
			}
			near, far := wait(t, r.near, "end"), wait(t, r.far, "far end")
			if near.end.Cause != CauseDone || far.end.Cause != CauseDone {
				t.Errorf("ends %+v and %+v", near.end, far.end)
			}
			if s, n := near.flow.Sent(), int64(len(sent)); s != n || far.flow.Received() != n || far.flow.Sent() != near.flow.Received() || near.flow.Received() != n+32 {
				t.Errorf("counted %d and %d there, %d and %d back, of %d", s, far.flow.Received(), far.flow.Sent(), near.flow.Received(), n)
			}
		})
	}
}

func TestSpliceRefusedGivesTheApplicationBack(t *testing.T) {
	for name, v := range map[string]Verdict{
		"judged": {Refuse: CodeRefused},
		"nobody": {Addr: netip.MustParseAddrPort("127.0.0.1:1")},
		"dialled": {Dial: func(context.Context) (net.Conn, error) {
			return nil, io.ErrUnexpectedEOF
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSplice(t, func(*Flow) Verdict { return v })
			_, _ = r.app.Write([]byte("kept"))
			e := wait(t, r.near, "end").end
			want := CodeDialFailed
			if v.Refuse != 0 {
				want = v.Refuse
			} else if far := wait(t, r.far, "far end").end; far.Cause != CauseDial {
				t.Errorf("far end: %+v", far)
			}
			if e.Cause != CausePeer || e.Code != want || e.App == nil {
				t.Fatalf("end %+v, want one of the peer with code %v and the application", e, want)
			}
			got := make([]byte, 4)
			if _, err := io.ReadFull(e.App, got); err != nil || string(got) != "kept" {
				t.Errorf("read %q, %v", got, err)
			}
			e.App.Close()
		})
	}
}

func TestSpliceResetReachesBothApplications(t *testing.T) {
	for _, who := range []string{"near", "far", "source", "destination"} {
		t.Run(who, func(t *testing.T) {
			back := make(chan *net.TCPConn, 1)
			r := newSplice(t, toAddr(listen(t, func(c net.Conn) { back <- c.(*net.TCPConn) })))
			far := wait(t, r.flows, "flow")
			c := wait(t, back, "connection")
			switch who {
			case "near":
				r.flow.Reset(CodeRevoked)
			case "far":
				far.Reset(CodeRevoked)
			case "source":
				abort(r.app)
			case "destination":
				abort(c)
			}
			if who != "destination" {
				expectReset(t, c, "destination")
			}
			if who != "source" {
				expectReset(t, r.app, "source")
			}
			want := map[string][2]Cause{
				"near": {CauseOwner, CausePeer}, "far": {CausePeer, CauseOwner},
				"source": {CauseApp, CausePeer}, "destination": {CausePeer, CauseApp},
			}[who]
			n, f := wait(t, r.near, "end").end, wait(t, r.far, "far end").end
			if n.Cause != want[0] || f.Cause != want[1] {
				t.Errorf("ends %+v and %+v, want causes %v", n, f, want)
			}
		})
	}
}

func TestSpliceHoldsPipesOnlyWhileDataFlows(t *testing.T) {
	go1, took := make(chan struct{}), make(chan struct{})
	r := newSplice(t, toAddr(listen(t, func(c net.Conn) {
		defer c.Close()
		<-go1
		_, _ = io.Copy(c, struct{ io.Reader }{c})
	})))
	l := r.flow.target.(*joint).s.l
	go func() { // more than all buffers hold
		_, _ = r.app.Write(make([]byte, 32<<20))
		_ = r.app.CloseWrite()
	}()
	go func() {
		defer close(took)
		n, err := io.Copy(io.Discard, r.app)
		if n != 32<<20 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}()
	close(go1)
	<-took
	wait(t, r.near, "end")
	kept := make(chan int, 1)
	l.post(func() { kept <- len(l.pipes) })
	if n := wait(t, kept, "answer"); n == 0 || n > pipesAtHand {
		t.Errorf("%d pipes at hand afterwards, want 1 to %d", n, pipesAtHand)
	}
}

func TestSpliceDeafApplicationIsReadToItsEnd(t *testing.T) {
	r := newSplice(t, toAddr(listen(t, func(c net.Conn) {
		// It reads no more, and answers.
		_ = c.(*net.TCPConn).CloseRead()
		_, _ = c.Write([]byte("answer"))
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	})))
	_, _ = r.app.Write([]byte("question"))
	got := make([]byte, 6)
	if _, err := io.ReadFull(r.app, got); err != nil || string(got) != "answer" {
		t.Fatalf("%q, %v", got, err)
	}
	_ = r.app.CloseWrite()
	wait(t, r.near, "end")
}

func TestSplicePipesAreBounded(t *testing.T) {
	d, err := NewLoops(Config{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l := d.pick()
	done := make(chan struct{})
	l.post(func() {
		defer close(done)
		var held []*pipe
		for range pipesMost {
			p, err := l.pipe()
			if err != nil {
				t.Error(err)
				return
			}
			held = append(held, p)
		}
		if _, err := l.pipe(); err == nil {
			t.Errorf("%d pipes are in use and one more is given", pipesMost)
		}
		l.discard(held[0])
		if p, err := l.pipe(); err != nil {
			t.Errorf("one was given back, and none is to be had: %v", err)
		} else {
			held[0] = p
		}
		for _, p := range held {
			l.giveBack(p)
		}
		if l.piping != 0 || len(l.pipes) != pipesAtHand {
			t.Errorf("all were given back: %d in use, %d at hand", l.piping, len(l.pipes))
		}
	})
	wait(t, done, "the loop")
}

// TestLoopbackIsNotPaced: what the loops accept from applications of this host, and what
// they dial there, is not subject to a congestion control that paces.
func TestLoopbackIsNotPaced(t *testing.T) {
	d, err := NewLoops(Config{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	names := make(chan string, 2)
	stop, err := d.Listen(ln, func(c net.Conn) {
		fd, err := takeFD(c)
		if err != nil {
			t.Error(err)
			return
		}
		name, _ := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		names <- name
		_ = unix.Close(fd)
	}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	fd, _, err := d.pick().dialSocket(netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	dialled, _ := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if accepted := wait(t, names, "connection"); accepted != "reno" || dialled != "reno" {
		t.Errorf("congestion control %q of what was accepted, %q of what was dialled", accepted, dialled)
	}
}

// TestDescriptorsAreKept: applications are neither accepted nor dialled with a
// descriptor that is kept for others.
func TestDescriptorsAreKept(t *testing.T) {
	d, err := NewLoops(Config{Descriptors: 1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	failed := make(chan error, 1)
	stop, err := d.Listen(ln, func(c net.Conn) { t.Error("accepted") }, func(err error) { failed <- err })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	c, err := net.Dial("tcp", addr)
	switch {
	case err == nil:
		defer c.Close()
	case !errors.Is(err, unix.ECONNRESET): // it may be refused before Dial returns
		t.Fatal(err)
	}
	if err := wait(t, failed, "refusal"); !errors.Is(err, errTooHigh) {
		t.Error(err)
	}
	far := make(chan ended, 1)
	mine, theirs := tcpPair(t)
	near := make(chan ended, 1)
	_, err = d.Splice(theirs, func(*Flow, []byte) Verdict {
		return Verdict{Addr: netip.MustParseAddrPort(addr), End: func(f *Flow, e End) { far <- ended{f, e} }}
	}, func(f *Flow, e End) { near <- ended{f, e} })
	if err != nil {
		t.Fatal(err)
	}
	if e := wait(t, far, "far end").end; e.Cause != CauseDial || !errors.Is(e.Err, errTooHigh) {
		t.Errorf("far end %+v", e)
	}
	if e := wait(t, near, "end").end; e.App != nil {
		e.App.Close()
	}
	_ = mine
}
