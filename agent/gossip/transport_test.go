package gossip

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// from is a connection of some host.
type from struct {
	net.Conn
	host string
}

func (f from) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(f.host), Port: 1} }
func (f from) Close() error         { return nil }

// port is a transport on a free port, and the configuration that names it.
func port(t *testing.T) (*transport, *memberlist.Config) {
	t.Helper()
	c := memberlist.DefaultLANConfig()
	c.BindAddr, c.BindPort, c.LogOutput = "127.0.0.1", 0, io.Discard
	tr, err := listen(c)
	if err != nil {
		t.Fatal(err)
	}
	return tr, c
}

// TestStrangersStreams: one source may hold no more than a few connections, all
// together no more than a bound, and what was closed makes room.
func TestStrangersStreams(t *testing.T) {
	tr, c := port(t)
	defer tr.Shutdown()
	if c.BindPort == 0 || c.AdvertisePort != c.BindPort {
		t.Errorf("port %d, advertised %d", c.BindPort, c.AdvertisePort)
	}
	enter := func(host string) net.Conn { return tr.enter(from{host: host}) }
	var open []net.Conn
	for i := range maxStreamsPerSource {
		if open = append(open, enter("10.0.0.1")); open[i] == nil {
			t.Fatal("connection", i, "is refused")
		}
	}
	if enter("::ffff:10.0.0.1") != nil {
		t.Error("one source has more than it may")
	}
	_ = open[0].Close()
	_ = open[0].Close() // memberlist closes some twice; it counts once
	if enter("10.0.0.1") == nil || enter("10.0.0.1") != nil {
		t.Error("one place was given back")
	}
	for i := maxStreamsPerSource; i < maxStreams; i++ {
		if enter(fmt.Sprintf("10.0.%d.%d", 1+i/200, i%200)) == nil {
			t.Fatal("connection", i, "is refused")
		}
	}
	if enter("10.9.9.9") != nil {
		t.Error("there are more than the most")
	}
}

// TestSilentStreamsEnd: the port closes although a stranger waits at it, and nobody
// takes what it accepted.
func TestSilentStreamsEnd(t *testing.T) {
	tr, c := port(t)
	for range 3 {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.BindPort))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	ended := make(chan struct{})
	go func() { _ = tr.Shutdown(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the port does not close")
	}
}

// TestStrangersLines: whatever address packets claim to come from, a flood of them
// writes a few lines.
func TestStrangersLines(t *testing.T) {
	var out strings.Builder
	a := newLogAdapter(slog.New(slog.NewTextHandler(&out, nil)))
	for i := range 1000 {
		fmt.Fprintf(a, "[ERR] memberlist: discarding packet with unacceptable label %q: from=10.0.%d.%d:%d", "", i/250, i%250, i)
	}
	if n := strings.Count(out.String(), "\n"); n < 1 || n > 20 || strings.Contains(out.String(), "ERROR") {
		t.Errorf("%d lines: %s", n, out.String())
	}
}

// TestNothingComesInBeforeItsOwnNode: packets that come before memberlist has its own
// node are lost, connections wait.
func TestNothingComesInBeforeItsOwnNode(t *testing.T) {
	tr, c := port(t)
	defer tr.Shutdown()
	addr := net.JoinHostPort("127.0.0.1", fmt.Sprint(c.BindPort))
	udp, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcp, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	for range 3 {
		if err := tr.IngestPacket(fed("early"), udp.LocalAddr(), time.Now(), false); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case p := <-tr.PacketCh():
		t.Fatalf("a packet came in: %q", p.Buf)
	case <-tr.StreamCh():
		t.Fatal("a connection came in")
	case <-time.After(10 * time.Millisecond):
	}
	tr.begin()
	if _, err := udp.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	if p := <-tr.PacketCh(); string(p.Buf) != "late" {
		t.Errorf("%q came in", p.Buf)
	}
	_ = (<-tr.StreamCh()).Close()
}

// fed is a connection that holds one packet.
func fed(text string) net.Conn {
	near, far := net.Pipe()
	go func() {
		_, _ = io.WriteString(far, text) // who reads it closes it
		_ = far.Close()
	}()
	return near
}
