//go:build linux

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// serverRig is a server's tunnel to a peer that the test plays.
func serverRig(t *testing.T, d driverPair, cfg Config, accept Accept) (Link, *farEnd) {
	t.Helper()
	_, sd := d.start(t, cfg)
	ct, st := tlsPair(t)
	made := make(chan Link, 1)
	go func() {
		l, err := sd.Server(context.Background(), st, accept)
		if err != nil {
			t.Error(err)
		}
		made <- l
	}()
	if _, err := ct.Write(hello{5000, 10}.append(nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := readHello(ct); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ct.Close() })
	return wait(t, made, "tunnel"), &farEnd{t, ct}
}

// A peer that opens and resets for ever ends its tunnel, before it has cost many
// connections to the application.
func TestRapidResetIsAViolation(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		var accepted atomic.Int32
		addr := netip.MustParseAddrPort(listen(t, echo))
		still := func() time.Duration { return time.Minute }
		l, far := serverRig(t, d, Config{MaxStreams: 100, clock: still}, func(*Flow, []byte) Verdict {
			accepted.Add(1)
			return Verdict{Addr: addr}
		})
		go func() { _, _ = io.Copy(io.Discard, far.conn) }()
		var b []byte
		for id := uint32(1); id <= 20000; id++ {
			b = appendWord(appendHeader(b, typeOpen, 0, id), typeReset, id, uint32(CodeCancelled))
		}
		go func() { _, _ = far.conn.Write(b) }()
		wait(t, l.Done(), "end of the tunnel")
		if err := l.Status().Err; !errors.Is(err, ErrProtocol) {
			t.Errorf("ended with %v", err)
		}
		if n := accepted.Load(); n > 1000 {
			t.Errorf("%d streams were judged", n)
		}
		if n := l.Status().Unjudged; n < 1000 {
			t.Errorf("%d counted as refused unjudged", n)
		}
	})
}

// What waits for the next turn is heard though the end of the tunnel is behind it.
func TestBacklogBeforeTheEnd(t *testing.T) {
	got := make(chan string, 1)
	app := netip.MustParseAddrPort(listen(t, func(c net.Conn) {
		_ = c.(*net.TCPConn).CloseWrite()
		b, err := io.ReadAll(c)
		got <- fmt.Sprintf("%s %v", b, err)
	}))
	var judged atomic.Int32
	l, far := serverRig(t, driverPairs[1], Config{}, func(*Flow, []byte) Verdict {
		if judged.Add(1) == 1 {
			return Verdict{Addr: app}
		}
		return Verdict{Refuse: CodeRefused}
	})
	far.write(appendHeader(nil, typeOpen, 0, 1))
	far.until(typeFin)
	release := holdLoop(l)
	var b []byte
	for id := range uint32(turnOpens + 10) {
		b = appendHeader(b, typeOpen, 0, id+2)
	}
	far.write(b)
	far.say(1, "the rest")
	far.write(appendHeader(nil, typeFin, 0, 1))
	far.conn.Close()
	release()
	if s := wait(t, got, "the application's end"); s != "the rest <nil>" {
		t.Errorf("the application got %s", s)
	}
	wait(t, l.Done(), "end of the tunnel")
	if n := judged.Load(); n > 1+turnOpens {
		t.Errorf("%d streams judged, %d of them in the last turn", n, n-1)
	}
}

// One tunnel's streams are judged in several turns when there are many, in their order.
func TestStreamsOfATurnAreBounded(t *testing.T) {
	const all = 1000
	d, err := NewLoops(Config{MaxStreams: all}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	inTurn := make(chan int, 1)
	done := make(chan struct{})
	n := 0
	pair := driverPair{client: goroutines, server: func(Config) (Driver, error) { return d, nil }}
	l, far := serverRig(t, pair, Config{}, func(_ *Flow, meta []byte) Verdict {
		if len(meta) != 2 || int(meta[0])<<8|int(meta[1]) != n {
			t.Errorf("stream %d says it is %x", n, meta)
		}
		switch n++; n {
		case 1:
			d.loops[0].post(func() { inTurn <- n })
		case all:
			close(done)
		}
		return Verdict{Refuse: CodeRefused}
	})
	var b []byte
	for i := range all {
		b = append(appendHeader(b, typeOpen, 2, uint32(i+1)), byte(i>>8), byte(i))
	}
	far.write(b) // one record
	if got := wait(t, inTurn, "end of the turn"); got > turnOpens {
		t.Errorf("%d streams in one turn", got)
	}
	wait(t, done, "the last stream")
	l.Close()
}
