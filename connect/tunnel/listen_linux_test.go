package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onLoop listens on a loop of d.
func onLoop(t *testing.T, d *Loops, accept func(net.Conn)) (addr string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = ln.Addr().String()
	stop, err = d.Listen(ln, accept, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return addr, stop
}

func TestListenOnALoop(t *testing.T) {
	d, err := NewLoops(Config{}, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	r := newRigOn(t, d, d, rigOptions{backend: echo})
	addr, stop := onLoop(t, d, func(c net.Conn) {
		if _, err := r.client.Carry(c, nil, nil); err != nil {
			t.Error(err)
			c.Close()
		}
	})
	for i := range uint64(100) { // more than one turn accepts
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(c.(*net.TCPConn), pattern(i, 10_000), i); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	eventually(t, "nobody listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
}

// TestAcceptedConnectionIsAConn uses what a loop accepted without carrying it, and
// carries one that was used before.
func TestAcceptedConnectionIsAConn(t *testing.T) {
	d, err := NewLoops(Config{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	r := newRigOn(t, d, d, rigOptions{backend: echo})
	got := make(chan net.Conn, 1)
	addr, _ := onLoop(t, d, func(c net.Conn) { got <- c })
	dial := func() (*net.TCPConn, net.Conn) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		return c.(*net.TCPConn), wait(t, got, "connection")
	}
	mine, theirs := dial()
	if theirs.RemoteAddr().String() != mine.LocalAddr().String() || theirs.LocalAddr().String() != addr {
		t.Fatalf("addresses %v, %v", theirs.LocalAddr(), theirs.RemoteAddr())
	}
	go echo(theirs)
	if err := exchange(mine, pattern(1, 100_000), 1); err != nil {
		t.Fatal(err)
	}

	mine, theirs = dial()
	_, _ = mine.Write([]byte("!"))
	if _, err := io.ReadFull(theirs, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Carry(theirs, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := exchange(mine, pattern(2, 100_000), 2); err != nil {
		t.Fatal(err)
	}

	mine, theirs = dial()
	abort(theirs)
	expectReset(t, mine, "aborted")
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	if _, err := r.client.Carry(theirs, nil, nil); err == nil {
		t.Fatal("a closed connection was carried")
	}
	eventually(t, "its place is free", func() bool { return r.client.Status().Streams == 0 })
}

// TestListenerFollowsItsTunnel: the loop that carries what a listener accepts accepts it,
// too; while it moves nobody is refused, and the address is freed as ever.
func TestListenerFollowsItsTunnel(t *testing.T) {
	d, err := NewLoops(Config{}, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	r := newRigOn(t, d, d, rigOptions{backend: echo})
	home := r.client.(*loopTunnel).l
	var moved int
	for range 2 { // one of two listeners begins elsewhere
		addr, stop := onLoop(t, d, func(c net.Conn) {
			if _, err := r.client.Carry(c, nil, nil); err != nil {
				t.Error(err)
				c.Close()
			}
		})
		before := listenersOf(t, home)
		for i := range uint64(3 * followAfter) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			if err := exchange(c.(*net.TCPConn), pattern(i, 1000), i); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the listener is where its tunnel is", func() bool { return listenersOf(t, home) == 1 })
		moved += 1 - before
		stop()
		if n := listenersOf(t, home); n != 0 {
			t.Fatalf("%d listeners after stop", n)
		}
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			t.Fatal("somebody listens after stop")
		}
	}
	if moved != 1 {
		t.Fatalf("%d of 2 listeners moved", moved)
	}
}

func listenersOf(t *testing.T, l *loop) int {
	t.Helper()
	n := make(chan int, 1)
	if !l.post(func() { n <- len(l.listeners) }) {
		t.Fatal("the loop has ended")
	}
	return wait(t, n, "answer of a loop")
}

// A listener whose socket another process goes on with wakes the loop no more.
func TestStoppedListenerLeavesTheSet(t *testing.T) {
	d, err := NewLoops(Config{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	watched := func() int {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", d.loops[0].epfd))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "tfd:")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := ln.(*net.TCPListener).File() // what the successor has
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	before := watched()
	stop, err := d.Listen(ln, func(c net.Conn) { c.Close() }, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	if n := watched(); n != before+1 {
		t.Errorf("%d descriptors are watched with a listener, and %d without", n, before)
	}
	if stop(); watched() != before {
		t.Errorf("%d descriptors are watched after it was stopped, and %d before", watched(), before)
	}
}

// Sockets of the loopback network are not paced, whatever the host's default is.
func TestDontPace(t *testing.T) {
	fd, e := rawSocket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if e != 0 {
		t.Fatal(e)
	}
	defer rawClose(fd)
	dontPace(fd, netip.MustParseAddr("127.0.0.1"))
	name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if err != nil || strings.HasPrefix(name, "bbr") {
		t.Errorf("it is %q, %v", name, err)
	}
}
