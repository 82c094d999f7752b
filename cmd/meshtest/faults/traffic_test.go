//go:build faults && linux

package faults_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// twoHosts is a cluster of which one agent has the sources and the other the
// destinations, so that everything between them goes through tunnels.
type twoHosts struct {
	t        *testing.T
	c        *proc.Cluster
	from, to *proc.Node
}

// newTwoHosts lets the destinations' agent have so many descriptors; 0: as many as the test.
func newTwoHosts(t *testing.T, files int) *twoHosts {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 1, Agents: 2, Unstarted: true})
	if files > 0 {
		c.Agents[1].LimitFiles(files)
	}
	c.Start()
	return &twoHosts{t, c, c.Agents[0], c.Agents[1]}
}

// join registers a destination at port, with settings of its proxy, and a source of its
// own for it; it gives the address of the source's upstream.
func (h *twoHosts) join(name string, port int, config map[string]any) (upstream string) {
	h.t.Helper()
	s := sidecar(name, port)
	s.Connect.SidecarService.Proxy = &api.AgentServiceConnectProxyConfig{Config: config}
	register(h.t, h.to.Agent, s)
	up := proc.FreePorts(h.t, 1)[0]
	register(h.t, h.from.Agent, sidecar("to-"+name, 1, api.Upstream{DestinationName: name, LocalBindPort: up}))
	intend(h.t, h.from.Agent, "to-"+name, name, api.IntentionActionAllow)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(up))
}

// inbound is the port of a destination that strangers can reach.
func (h *twoHosts) inbound(name string) string {
	h.t.Helper()
	svc, _, err := h.to.Client.Agent().Service(name+"-sidecar-proxy", nil)
	must(h.t, err)
	return net.JoinHostPort(h.to.Addr, strconv.Itoa(svc.Port))
}

// act is what a client asks of the destination below. It is the first that it sends.
type act struct {
	Kind     uint8
	Seed     uint64
	Up, Down uint64 // bytes the client sends, and the destination
	Cut      bool   // the client resets in the middle of what it sends
}

const (
	actExchange = iota // both send, and end when they have sent all
	actAfter           // the destination sends once the client has ended
	actReset           // it resets in the middle of what it sends
	actPour            // it sends for as long as it is read
)

// bytesOf are so many that a seed stands for.
func bytesOf(seed, n uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return io.LimitReader(rand.NewChaCha8(key), int64(n)) //nolint:gosec // sizes of ours
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// copyAll is io.Copy without splice and its kin: the bytes must be seen.
func copyAll(w io.Writer, r io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, *buf)
}

// acted counts how the destination saw clients end that reset.
var acted struct{ resets, ends atomic.Int64 }

// acting serves acts.
func acting(c *net.TCPConn) {
	defer c.Close()
	var a act
	if binary.Read(c, binary.LittleEndian, &a) != nil {
		return
	}
	if a.Cut { // a reset before it got here would be no end of anything
		_, _ = c.Write([]byte{0})
	}
	switch a.Kind {
	case actReset:
		_, _ = copyAll(c, bytesOf(a.Seed+1, a.Down/2))
		_ = c.SetLinger(0)
		return
	case actPour:
		_, _ = copyAll(c, bytesOf(a.Seed+1, 1<<40))
		return
	}
	var wg sync.WaitGroup
	if a.Kind == actExchange {
		wg.Go(func() { _, _ = copyAll(c, bytesOf(a.Seed+1, a.Down)) })
	}
	h := sha256.New()
	_, err := copyAll(h, c)
	wg.Wait()
	switch {
	case a.Cut && errors.Is(err, syscall.ECONNRESET):
		acted.resets.Add(1)
	case a.Cut:
		acted.ends.Add(1)
	}
	if err != nil {
		_ = c.SetLinger(0)
		return
	}
	if a.Kind == actAfter {
		_, _ = copyAll(c, bytesOf(a.Seed+1, a.Down))
	}
	_, _ = c.Write(h.Sum(nil)) // what arrived
}

// do is the client's half.
func (a act) do(addr string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	c := conn.(*net.TCPConn)
	defer c.Close()
	if err := binary.Write(c, binary.LittleEndian, a); err != nil {
		return err
	}
	if a.Cut {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			return err
		}
		_, _ = copyAll(c, bytesOf(a.Seed, a.Up/2))
		return c.SetLinger(0)
	}
	sent, sending := sha256.New(), make(chan error, 1)
	go func() {
		_, err := copyAll(c, io.TeeReader(bytesOf(a.Seed, a.Up), sent))
		sending <- errors.Join(err, c.CloseWrite())
	}()
	got, want := sha256.New(), sha256.New()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Minute))
	n, err := copyAll(got, io.LimitReader(c, int64(a.Down))) //nolint:gosec // sizes of ours
	if a.Kind == actReset {                                  // which the reading half meets, or the writing one
		if werr := <-sending; !errors.Is(err, syscall.ECONNRESET) && !errors.Is(werr, syscall.ECONNRESET) {
			return fmt.Errorf("reset in the middle: %d bytes, then %w, and %w", n, cmpErr(err), cmpErr(werr))
		}
		return nil
	}
	if err == nil {
		err = <-sending
	}
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, a.Down, err)
	}
	_, _ = copyAll(want, bytesOf(a.Seed+1, a.Down))
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return fmt.Errorf("%d bytes came, and are others than were sent", n)
	}
	arrived, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(arrived, sent.Sum(nil)) {
		return fmt.Errorf("the %d bytes that were sent are not those that arrived: %w", a.Up, cmpErr(err))
	}
	return nil
}

// cmpErr is err, or says that there was none.
func cmpErr(err error) error {
	if err == nil {
		return errors.New("no error")
	}
	return err
}

// TestP30EveryByteEveryEnd carries what applications do to connections over two agents:
// large transfers both ways at once, half-closes and resets in any order, destinations
// that speak first, readers that are slow, and streams that rest.
func TestP30EveryByteEveryEnd(t *testing.T) {
	t.Parallel()
	h := newTwoHosts(t, 0)
	up := h.join("db", serveTCP(t, acting), nil)
	greeter := h.join("greeter", serveTCP(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "ready\n")
		_, _ = io.Copy(c, c)
		c.Close()
	}), nil)
	proc.Eventually(t, 30*time.Second, "both to be reached", func() error {
		return errors.Join((act{Up: 10, Down: 10}).do(up), greeted(greeter, 0))
	})

	idle := proc.Count(3*time.Second, 5*time.Minute)
	resting := make(chan error, 1)
	go func() { resting <- greeted(greeter, idle) }()

	size := proc.Count[uint64](48<<20, 1<<30)
	begin := time.Now()
	must(t, act{Kind: actExchange, Seed: 1, Up: size, Down: size}.do(up))
	t.Logf("%d MiB both ways at once: %s, byte-exact", size>>20, time.Since(begin).Round(time.Millisecond))

	h.ends(up, proc.Count(400, 10_000))
	h.slowReaders(up, greeter)
	if err := <-resting; err != nil {
		t.Errorf("a stream that rested for %s: %v", idle, err)
	}
	t.Logf("a stream that rested for %s goes on", idle)
}

// serveTCP gives the port at which f serves until the test ends.
func serveTCP(t *testing.T, f func(c *net.TCPConn)) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go f(c.(*net.TCPConn))
		}
	}()
	return ln.Addr().(*net.TCPAddr).Port
}

// greeted takes what a destination says first, rests, and is answered.
func greeted(addr string, rest time.Duration) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(rest + 30*time.Second))
	said := make([]byte, 6)
	if _, err := io.ReadFull(c, said); err != nil || string(said) != "ready\n" {
		return fmt.Errorf("it greets with %q: %w", said, cmpErr(err))
	}
	time.Sleep(rest) //nolint:forbidigo // resting is what is tried
	return ping(c)
}

// ends does n random exchanges, half-closes and resets.
func (h *twoHosts) ends(up string, n int) {
	h.t.Helper()
	const workers = 16
	var kinds [4]atomic.Int64
	var wrong atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(30, uint64(w)))
			for i := range n / workers {
				a := act{Kind: uint8(rng.IntN(3)), Seed: rng.Uint64(), Up: rng.Uint64N(96 << 10), Down: rng.Uint64N(96 << 10)}
				kind := int(a.Kind)
				if a.Cut = rng.IntN(4) == 0; a.Cut {
					kind, a.Kind = 3, actAfter
				}
				kinds[kind].Add(1)
				if err := a.do(up); err != nil && wrong.Add(1) < 10 {
					h.t.Errorf("exchange %d of worker %d, %+v: %v", i, w, a, err)
				}
			}
		})
	}
	wg.Wait()
	proc.Eventually(h.t, 30*time.Second, "the destination to see every end", func() error {
		if n := acted.resets.Load() + acted.ends.Load(); n != kinds[3].Load() {
			return fmt.Errorf("%d of %d", n, kinds[3].Load())
		}
		return nil
	})
	if n := acted.ends.Load(); n > 0 {
		h.t.Errorf("%d of %d resets of clients reached the destination as something else", n, kinds[3].Load())
	}
	h.t.Logf("%d exchanges at once, %d answered after the client's end, %d reset by the destination, %d by the client: %d wrong",
		kinds[0].Load(), kinds[1].Load(), kinds[2].Load(), kinds[3].Load(), wrong.Load())
}

// slowReaders ask for much and read nothing: others are served, the agents' memory does
// not grow with what waits, and all is there for who reads at last.
func (h *twoHosts) slowReaders(up, greeter string) {
	h.t.Helper()
	n := proc.Count(40, 500)
	before := [2]int{residentKiB(h.t, h.from.PID()), residentKiB(h.t, h.to.PID())}
	var open []net.Conn
	for i := range n {
		c, err := net.Dial("tcp", up)
		must(h.t, err)
		defer c.Close()
		must(h.t, binary.Write(c, binary.LittleEndian, act{Kind: actPour, Seed: uint64(i)})) //nolint:gosec // small
		open = append(open, c)
	}
	var worst time.Duration
	most := before
	for end := time.Now().Add(proc.Count(3*time.Second, 30*time.Second)); time.Now().Before(end); {
		at := time.Now()
		if err := greeted(greeter, 0); err != nil {
			h.t.Errorf("beside slow readers: %v", err)
		}
		worst = max(worst, time.Since(at))
		for i, a := range []*proc.Node{h.from, h.to} {
			most[i] = max(most[i], residentKiB(h.t, a.PID()))
		}
	}
	grown := [2]int{(most[0] - before[0]) / n, (most[1] - before[1]) / n}
	for i, c := range open {
		const part = 4 << 20
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		got, want := sha256.New(), sha256.New()
		if k, err := copyAll(got, io.LimitReader(c, part)); k != part {
			h.t.Errorf("reader %d had %d bytes at last: %v", i, k, cmpErr(err))
			continue
		}
		_, _ = copyAll(want, bytesOf(uint64(i)+1, part)) //nolint:gosec // small
		if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			h.t.Errorf("reader %d had other bytes than were sent", i)
		}
		c.Close()
	}
	h.t.Logf("%d readers that do not read: others answered within %s at worst; resident memory +%d and +%d KiB each, source's and destination's agent",
		n, worst.Round(time.Millisecond), grown[0], grown[1])
	if max(grown[0], grown[1]) > 1<<10 {
		h.t.Errorf("an agent holds %d KiB for each slow reader", max(grown[0], grown[1]))
	}
}
