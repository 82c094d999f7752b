package connect

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// script is what both ends of a transfer do. The client sends it first.
type script struct {
	Seed        uint64
	Up, Down    uint32 // bytes the client sends, and the server
	ServerFirst bool   // the server does not wait for the client's end
	ClientWaits bool   // the client sends only after the server's end
	Reset       bool   // the server resets in the middle
	ChunkU      uint16 // sizes of the client's writes
}

func stream(seed uint64, n uint32) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// scripted is the server of the test below.
func scripted(c *net.TCPConn) {
	var s script
	if err := binary.Read(c, binary.LittleEndian, &s); err != nil {
		return
	}
	down := stream(s.Seed+1, s.Down)
	if s.Reset {
		_, _ = c.Write(down[:len(down)/2])
		_ = c.SetLinger(0)
		return
	}
	send := func() {
		_, _ = c.Write(down)
		_ = c.CloseWrite()
	}
	var wg sync.WaitGroup
	if s.ServerFirst {
		wg.Go(send)
	}
	up, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(up, stream(s.Seed, s.Up)) {
		err = errors.New("other bytes arrived")
	}
	wg.Wait()
	if err != nil {
		_ = c.SetLinger(0) // the client sees that something was wrong
		return
	}
	if !s.ServerFirst {
		send()
	}
}

func (s script) run(addr string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := conn.(*net.TCPConn)
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if err := binary.Write(c, binary.LittleEndian, &s); err != nil {
		return err
	}
	sent := make(chan error, 1)
	serverEnded := make(chan struct{})
	go func() {
		if s.ClientWaits {
			<-serverEnded
		}
		for up := stream(s.Seed, s.Up); len(up) > 0; {
			n := min(len(up), int(s.ChunkU)+1)
			if _, err := c.Write(up[:n]); err != nil {
				sent <- err
				return
			}
			up = up[n:]
		}
		sent <- c.CloseWrite()
	}()
	sum := sha256.New()
	n, err := io.Copy(sum, c)
	close(serverEnded)
	werr := <-sent
	if s.Reset {
		// A reset is told once, to the write or to the read that meets it first.
		if err == nil && werr == nil {
			return fmt.Errorf("a truncated stream looked complete after %d of %d bytes", n, s.Down)
		}
		return nil
	}
	if err != nil || werr != nil {
		return fmt.Errorf("read: %w, write: %w", err, werr)
	}
	if want := sha256.Sum256(stream(s.Seed+1, s.Down)); !bytes.Equal(sum.Sum(nil), want[:]) {
		return fmt.Errorf("%d bytes came, %d were sent, or they differ", n, s.Down)
	}
	return nil
}

// Random half-closes, resets and sizes, byte-exact both ways (promise P30).
func TestTransfersAreByteExact(t *testing.T) {
	p := newPair(t, scripted)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(seed, 1))
	size := func() uint32 {
		switch rnd.IntN(4) {
		case 0:
			return rnd.Uint32N(3)
		case 1:
			return rnd.Uint32N(2000)
		case 2:
			return 16<<10*(1+rnd.Uint32N(5)) - 2 + rnd.Uint32N(5) // around the edges of records
		}
		return rnd.Uint32N(2 << 20)
	}
	next := func() script {
		mu.Lock()
		defer mu.Unlock()
		s := script{Seed: rnd.Uint64(), Up: size(), Down: size(), ChunkU: uint16(rnd.Uint32())}
		switch rnd.IntN(4) {
		case 0:
			s.ServerFirst = true
		case 1:
			s.ServerFirst, s.ClientWaits = true, true
		case 2:
			s.Reset = true
		}
		if s.Up > 1<<16 {
			s.ChunkU |= 0x0fff
		}
		return s
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range times(20, 650) {
				s := next()
				if err := s.run(p.addr); err != nil {
					t.Errorf("%+v: %v", s, err)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "tables empty", func() bool { return len(p.db.Connections(0))+len(p.web.Connections(0)) == 0 })
	if p.db.svc.balancer.all != nil {
		t.Error("db has no upstreams")
	}
	if in := p.web.Status().Upstreams[0].Instances[0]; in.Active != 0 {
		t.Errorf("active connections at the end: %d", in.Active)
	}
}

func TestBigTransfer(t *testing.T) {
	p := newPair(t, scripted)
	n := uint32(times(8<<20, 1<<30))
	s := script{Seed: 7, Up: n, Down: n, ServerFirst: true, ChunkU: 60_000}
	must(t, s.run(p.addr))
}

// A slow reader holds up its sender; memory stays bounded by buffers and sockets.
func TestSlowReaderHoldsUpItsSender(t *testing.T) {
	written := make(chan int, 1)
	p := newPair(t, func(c *net.TCPConn) {
		_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, _ := c.Write(make([]byte, 256<<20))
		_ = c.SetLinger(0)
		written <- n
	})
	c := dialTCP(t, p.addr)
	if n := <-written; n > 64<<20 {
		t.Errorf("%d MiB went out to a client that reads nothing", n>>20)
	}
	c.Close()
}

// The end of TCP in a TLS connection that was not closed is a reset for the
// application, also when it falls between two records.
func TestTruncatedTLSIsNoEnd(t *testing.T) {
	ca := newTestCA(t, testDomain)
	cert := ca.leaf(t, "db", time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
	far := serve(t, func(c *net.TCPConn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAnyClientCert})
		_, _ = io.ReadFull(s, make([]byte, 1)) // not before the client's dial has returned
		_, _ = io.WriteString(s, "all of one record")
		_ = c.CloseWrite() // a FIN without close_notify
		_, _ = io.Copy(io.Discard, c)
	})
	web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", far)} })
	c := dialTCP(t, web.upstream("db"))
	_, err := c.Write([]byte{1})
	must(t, err)
	b, err := io.ReadAll(c)
	if !isReset(err) {
		t.Errorf("%q, %v: want a reset", b, err)
	}
	web.log.find(t, "reason=server_closed", "without close_notify")
}
