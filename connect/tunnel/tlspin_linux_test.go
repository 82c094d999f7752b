package tunnel

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
)

// drip is a transport that has bytes now and then, and says so with the error that
// the event loop uses.
type drip struct {
	net.Conn
	in  []byte
	now int
	out bytes.Buffer
	end error
}

func (d *drip) Read(p []byte) (int, error) {
	if len(d.in) == 0 && d.end != nil {
		return 0, d.end
	}
	n := copy(p, d.in[:min(d.now, len(d.in))])
	d.in = d.in[n:]
	d.now -= n
	if n == 0 {
		return 0, wouldBlock{}
	}
	return n, nil
}

func (d *drip) Write(p []byte) (int, error) { return d.out.Write(p) }

// switched lets the handshake use the real connection.
type switched struct {
	net.Conn
	to net.Conn
}

func (s *switched) Read(p []byte) (int, error) {
	if s.to != nil {
		return s.to.Read(p)
	}
	return s.Conn.Read(p)
}

func (s *switched) Write(p []byte) (int, error) {
	if s.to != nil {
		return s.to.Write(p)
	}
	return s.Conn.Write(p)
}

// TestCryptoTLSResumesAfterWouldBlock pins what the event loop rests on and no
// documentation promises: an error of the transport's Read that is a net.Error and
// calls itself temporary leaves a tls.Conn usable, wherever in a record it comes,
// and no byte is lost or doubled; any other error is remembered.
func TestCryptoTLSResumesAfterWouldBlock(t *testing.T) {
	c, s := tcpPair(t)
	cs, ss := &switched{Conn: c}, &switched{Conn: s}
	cc, sc := testTLS()
	client, server := tls.Client(cs, cc), tls.Server(ss, sc)
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	up := &drip{Conn: c}
	cs.to = up
	want := pattern(1, 300_000)
	rng := rand.New(rand.NewPCG(1, 1))
	for p := want; len(p) > 0; {
		n := min(len(p), 1+rng.IntN(40_000))
		if _, err := client.Write(p[:n]); err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
	down := &drip{Conn: s, in: up.out.Bytes()}
	ss.to = down
	var got []byte
	buf := make([]byte, 20_000)
	blocked := 0
	for len(got) < len(want) {
		n, err := server.Read(buf)
		got = append(got, buf[:n]...)
		switch {
		case err == nil:
		case errors.Is(err, wouldBlock{}):
			blocked++
			down.now = 1 + rng.IntN(3000)
		default:
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
	}
	if !bytes.Equal(got, want) || blocked < 100 {
		t.Fatalf("%d bytes, %d times blocked", len(got), blocked)
	}
	// Any other error stays.
	down.end = io.ErrNoProgress
	if _, err := server.Read(buf); !errors.Is(err, io.ErrNoProgress) {
		t.Fatal(err)
	}
	down.end, down.now = nil, 0
	if _, err := server.Read(buf); !errors.Is(err, io.ErrNoProgress) {
		t.Fatalf("an error that is not temporary was forgotten: %v", err)
	}
}
