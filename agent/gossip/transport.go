package gossip

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/memberlist"
)

// What strangers may hold open at the port of gossip: a connection that says nothing
// costs a goroutine and a descriptor for the ten seconds that memberlist waits.
const (
	maxStreams          = 512
	maxStreamsPerSource = 64 // a host needs one or two
)

// transport is memberlist's, with the connections that come in bounded, and with
// nothing that comes in before memberlist knows of its own node: it listens first, and
// when others tell it of an earlier process in that moment, it takes that one's tags
// for its own, takes itself for dead, and says so to all.
type transport struct {
	*memberlist.NetTransport
	in      chan net.Conn
	packets chan *memberlist.Packet
	begun   chan struct{} // closed when memberlist may hear of others
	done    chan struct{} // closed when it is to end,
	ended   chan struct{} // and when nothing comes in any more
	stop    sync.Once

	mu      sync.Mutex
	total   int
	sources map[netip.Addr]int // those that have connections open
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// listen opens the port; of port 0 it takes one that is free for TCP and UDP.
func listen(c *memberlist.Config) (*transport, error) {
	tries := 1
	if c.BindPort == 0 {
		tries = 10
	}
	var nt *memberlist.NetTransport
	var err error
	for ; tries > 0; tries-- {
		nt, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{c.BindAddr}, BindPort: c.BindPort, Logger: c.Logger, MetricLabels: c.MetricLabels,
		})
		if err == nil || !strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if c.BindPort == 0 {
		c.BindPort = nt.GetAutoBindPort()
		c.AdvertisePort = c.BindPort
	}
	t := &transport{
		NetTransport: nt, in: make(chan net.Conn), packets: make(chan *memberlist.Packet),
		begun: make(chan struct{}), done: make(chan struct{}), ended: make(chan struct{}), sources: map[netip.Addr]int{},
	}
	go t.admit()
	go t.relay()
	return t, nil
}

// begin lets in what others say. It is for the time after memberlist.Create.
func (t *transport) begin() { close(t.begun) }

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// relay hands packets on. Those that come too early are lost, as packets may be.
func (t *transport) relay() {
	for {
		select {
		case p := <-t.NetTransport.PacketCh():
			select {
			case <-t.begun:
			default:
				continue
			}
			select {
			case t.packets <- p:
			case <-t.done:
				return
			}
		case <-t.done:
			return
		}
	}
}

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.in }

// Shutdown implements memberlist.Transport. What waits for memberlist is dropped, so
// that the listeners below can end.
func (t *transport) Shutdown() error {
	var err error
	t.stop.Do(func() {
		close(t.done)
		err = t.NetTransport.Shutdown()
		close(t.ended)
	})
	return err
}

func (t *transport) admit() {
	select {
	case <-t.begun:
	case <-t.done:
		t.drain()
		return
	}
	for {
		select {
		case <-t.done:
			t.drain()
			return
		case raw := <-t.NetTransport.StreamCh():
			c := t.enter(raw)
			if c == nil {
				_ = raw.Close()
				continue
			}
			select {
			case t.in <- c:
			case <-t.done:
				_ = c.Close()
				t.drain()
				return
			}
		}
	}
}

// drain takes what nobody else takes any more.
func (t *transport) drain() {
	for {
		select {
		case c := <-t.NetTransport.StreamCh():
			_ = c.Close()
		case <-t.NetTransport.PacketCh():
		case <-t.ended:
			return
		}
	}
}

func (t *transport) enter(raw net.Conn) net.Conn {
	a, err := netip.ParseAddrPort(raw.RemoteAddr().String())
	if err != nil {
		return nil
	}
	from := a.Addr().Unmap().WithZone("")
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.total >= maxStreams || (t.sources[from] >= maxStreamsPerSource && !from.IsLoopback()) {
		return nil
	}
	t.total++
	t.sources[from]++
	return &stream{Conn: raw, left: sync.OnceFunc(func() { t.leave(from) })}
}

func (t *transport) leave(from netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total--
	if t.sources[from]--; t.sources[from] <= 0 {
		delete(t.sources, from)
	}
}

// stream is a connection that is counted until it is closed.
type stream struct {
	net.Conn
	left func()
}

// Close implements net.Conn.
func (s *stream) Close() error {
	defer s.left()
	return s.Conn.Close()
}
