package server

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/enroll"
	"github.com/weftmesh/weft/server/rpc"
)

// TestStalledRequests: an agent that begins many large requests and ends none has a
// server hold few of them: the others get no room to be sent. Other agents notice nothing.
func TestStalledRequests(t *testing.T) {
	f := newFleet(t, 1)
	f.up(1)
	f.leader()
	conn, err := dialTLS(t.Context(), f.nodes[1].server.cfg.Addr, f.agent(1, "a1", idOf(7)), enroll.ProtoRPC)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var head writer
	enc := hpack.NewEncoder(&head)
	begin := func(stream uint32, method string) {
		head = head[:0]
		for _, h := range [][2]string{
			{":method", "POST"},
			{":scheme", "http"},
			{":path", "/weft.Servers/" + method},
			{":authority", "s"},
			{"content-type", "application/grpc+weft"},
			{"te", "trailers"},
		} {
			if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
				t.Fatal(err)
			}
		}
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head, EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		length := binary.BigEndian.AppendUint32([]byte{0}, wire.MaxRequest)
		if err := framer.WriteData(stream, false, append(length, 1)); err != nil {
			t.Fatal(err)
		}
	}
	// Both kinds of requests come in by turns, and one more than may be begun at a time.
	for i := range uint32(maxAgentUnread + 1) {
		begin(2*i+1, []string{"Apply", "Watch"}[i%2])
	}
	wide, refused := map[uint32]bool{}, 0
	for {
		if refused > 0 && len(wide) >= maxAgentReading { // is there more to come?
			_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		}
		frame, err := framer.ReadFrame()
		if errors.Is(err, os.ErrDeadlineExceeded) && refused > 0 && len(wide) >= maxAgentReading {
			break
		}
		if err != nil {
			t.Fatalf("%d requests may send all of it, %d were refused: %v", len(wide), refused, err)
		}
		switch frame := frame.(type) {
		case *http2.WindowUpdateFrame:
			if frame.StreamID != 0 && frame.Increment > window {
				wide[frame.StreamID] = true
			}
		case *http2.HeadersFrame:
			refused++
		}
	}
	if len(wide) != maxAgentReading || refused != 1 {
		t.Errorf("%d requests may send all of it, want %d; %d were refused, want 1", len(wide), maxAgentReading, refused)
	}
	other := wire.NewClient(f.client(1, f.agent(1, "a2", idOf(8))))
	if _, err := other.Status(t.Context(), &wire.StatusRequest{}); err != nil {
		t.Error("another agent:", err)
	}
}

type writer []byte

func (w *writer) Write(b []byte) (int, error) { *w = append(*w, b...); return len(b), nil }

// TestArrival: what an agent's requests are long together is bounded while they are
// under way, and places are given back.
func TestArrival(t *testing.T) {
	l := newLimits()
	one, two := rpc.Caller{Agent: true, NodeID: "1"}, rpc.Caller{Agent: true, NodeID: "2"}
	long := func(m any) error {
		if r, is := m.(*wire.Received); is {
			r.Size = wire.MaxRequest
		}
		return nil
	}
	var all []*arrival
	take := func(c rpc.Caller) error {
		a, err := l.arrive(c)
		if err != nil {
			return err
		}
		all = append(all, a)
		return a.receive(t.Context(), nil, long)
	}
	for range maxAgentBytes / wire.MaxRequest {
		if err := take(one); err != nil {
			t.Fatal(err)
		}
	}
	if err := take(one); !errors.Is(wire.FromStatus(err), catalog.ErrUnavailable) {
		t.Error("one that is too much:", err)
	}
	for _, c := range []rpc.Caller{two, {Server: true, NodeID: "1"}, {}} {
		if err := take(c); err != nil {
			t.Errorf("%s is refused: %v", c, err)
		}
	}
	for _, a := range all {
		a.end()
	}
	all = nil
	if err := take(one); err != nil {
		t.Error("after they ended:", err)
	}
	all[0].end()
	for range maxAgentUnread {
		if _, err := l.arrive(one); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.arrive(one); !errors.Is(wire.FromStatus(err), catalog.ErrUnavailable) {
		t.Error("one more that has not arrived:", err)
	}
	if u := l.agents["1"]; u.bytes != 0 || u.unread != maxAgentUnread {
		t.Errorf("%+v", u)
	}
}
