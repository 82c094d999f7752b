//go:build linux

package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tunnelPair is two tunnels of the goroutine driver over TLS.
func tunnelPair(t *testing.T, cfg Config) (client, server *Tunnel) {
	t.Helper()
	c, s := tlsPair(t)
	return tunnelOver(t, c, s, cfg)
}

func tunnelOver(t *testing.T, c, s net.Conn, cfg Config) (client, server *Tunnel) {
	t.Helper()
	made := make(chan *Tunnel, 1)
	go func() {
		s, err := Server(context.Background(), s, cfg)
		if err != nil {
			t.Error(err)
		}
		made <- s
	}()
	client, err := Client(context.Background(), c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	server = <-made
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func openPair(t *testing.T, c, s *Tunnel) (opened, accepted *Stream) {
	t.Helper()
	opened, err := c.Open([]byte("m"))
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = s.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return opened, accepted
}

// The keepalive's clock may tick before the tunnel is given to its owner.
func TestFirstTickIsEarly(t *testing.T) {
	for range 20 {
		c, s := net.Pipe()
		tunnelOver(t, c, s, Config{Keepalive: 1})
	}
}

func TestStreamIsAConn(t *testing.T) {
	c, s := tunnelPair(t, Config{Window: 10_000})
	a, b := openPair(t, c, s)
	want := pattern(1, 100_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := a.Write(want); n != len(want) || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
		_ = a.CloseWrite()
		if _, err := a.Write([]byte("x")); err == nil {
			t.Error("write after CloseWrite")
		}
	})
	got, err := io.ReadAll(struct{ io.Reader }{b}) // Read, not WriteTo
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	wg.Wait()
	// The other direction still works.
	_, _ = b.Write([]byte("back"))
	_ = b.Close()
	if got, err := io.ReadAll(a); string(got) != "back" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	_ = a.Close()
	if _, err := a.Read(got); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("read after close: %v", err)
	}
	eventually(t, "both ends free", func() bool { return c.Streams()+s.Streams() == 0 })
}

func TestCloseTellsAPeerThatStillSends(t *testing.T) {
	c, s := tunnelPair(t, Config{Window: 10_000})
	a, b := openPair(t, c, s)
	_, _ = b.Write([]byte("all I have to say"))
	_ = b.Close()
	if got, err := io.ReadAll(a); string(got) != "all I have to say" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	var r *ResetError
	if _, err := a.Write(make([]byte, 100_000)); !errors.As(err, &r) || r.Code != CodeCancelled || !r.Remote {
		t.Fatalf("write to a closed peer: %v", err)
	}
	_ = a.Close()
}

func TestDeadlines(t *testing.T) {
	c, s := tunnelPair(t, Config{Window: 1000})
	a, b := openPair(t, c, s)
	_ = a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v", err)
	}
	_ = a.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read in the past: %v", err)
	}
	_ = a.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := a.Write(make([]byte, 5000)); n != 1000 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d, %v", n, err)
	}
	_ = a.SetDeadline(time.Time{})
	_, _ = b.Write([]byte("x"))
	if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, b, 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write([]byte("again")); err != nil {
		t.Fatal(err)
	}
}

func TestResetReachesWhoWaits(t *testing.T) {
	c, s := tunnelPair(t, Config{Window: 1000})
	a, b := openPair(t, c, s)
	errs := make(chan error, 2)
	go func() { _, err := a.Read(make([]byte, 1)); errs <- err }()
	go func() { _, err := a.Write(make([]byte, 5000)); errs <- err }()
	b.Reset(CodeRevoked)
	for range 2 {
		var r *ResetError
		if err := wait(t, errs, "error"); !errors.As(err, &r) || r.Code != CodeRevoked {
			t.Fatal(err)
		}
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
}

// TestEveryByteOrder writes to many streams of one tunnel at once through a writer
// that is always behind.
func TestManyWritersOneTunnel(t *testing.T) {
	c, s := tunnelPair(t, Config{})
	var wg sync.WaitGroup
	go func() {
		for {
			b, err := s.Accept(context.Background())
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(b, struct{ io.Reader }{b}); b.Close() }()
		}
	}()
	for i := range uint64(100) {
		wg.Go(func() {
			a, err := c.Open(nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer a.Close()
			want := pattern(i, 50_000)
			go func() { _, _ = a.Write(want); _ = a.CloseWrite() }()
			if got, err := io.ReadAll(a); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

func TestDrainServesStreamsThatCross(t *testing.T) {
	c, s := tunnelPair(t, Config{})
	_, accepted := openPair(t, c, s)
	go func() {
		for {
			b, err := s.Accept(t.Context())
			if err != nil {
				return
			}
			_, _ = b.Write([]byte("x"))
			_ = b.Close()
		}
	}()
	s.Drain(CodeDraining)
	for {
		a, err := c.Open(nil)
		if errors.Is(err, ErrDraining) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_ = a.Close()
	}
	_ = accepted.Close()
}

func TestUnacceptedStreamsAreBounded(t *testing.T) {
	c, s := tunnelPair(t, Config{MaxStreams: 10})
	for range 900 { // more are a violation
		a, err := c.Open(nil)
		if errors.Is(err, ErrFull) {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		a.Reset(CodeCancelled)
	}
	s.mu.Lock()
	n, held := len(s.accepted), s.held
	s.mu.Unlock()
	if n > 10 || held > 20 {
		t.Fatalf("%d streams wait to be accepted, %d held", n, held)
	}
}

// TestKeepaliveClock runs hours in no time: an idle tunnel lives, and one whose peer
// vanished is given up after three periods.
func TestKeepaliveClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cc, sc := net.Pipe()
		c, s := tunnelOver(t, cc, sc, Config{Keepalive: time.Minute})
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		a, b := openPair(t, c, s)
		_, _ = a.Write([]byte("x"))
		if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		c.Close()
		s.Close()

		cc, sc = net.Pipe()
		go func() { _, _ = sc.Write(hello{1000, 10}.append(nil)) }()
		go func() { _, _ = io.Copy(io.Discard, sc) }() // takes all and says nothing
		c, err := Client(context.Background(), cc, Config{Keepalive: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		<-c.Done()
		if took := time.Since(start); took < 2*time.Minute || took > 4*time.Minute || !errors.Is(c.Err(), ErrLost) {
			t.Fatalf("given up after %s: %v", took, c.Err())
		}
		sc.Close()
	})
}

func TestConfigIsValidated(t *testing.T) {
	for _, c := range []Config{{Window: -1}, {Window: maxWindow + 1}, {MaxStreams: -1}, {MaxStreams: 1 << 21}, {Keepalive: -1}} {
		if c.Validate() == nil {
			t.Errorf("%+v accepted", c)
		}
		if _, err := New(c); err == nil {
			t.Errorf("driver made of %+v", c)
		}
	}
}

// TestCrossingResets: both ends reset a stream at once, and the place is free again
// for the opener before the acceptor's RESET is written.
func TestCrossingResets(t *testing.T) {
	c, s := machinePair(1000, 1)
	out, st, _ := c.openStream(nil, nil)
	_ = drive(s, out, whole, func(event) {})
	s.reset(s.streams[1], CodeRefused)
	c.reset(st, CodeCancelled)
	out, _, err := c.openStream(c.appendControl(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := drive(s, out, whole, func(event) {}); err != nil {
		t.Fatal(err)
	}
	if left := s.appendControl(nil); len(left) != 0 {
		t.Fatalf("a reset that nobody waits for: % x", left)
	}
}
