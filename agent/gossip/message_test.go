package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func TestMessagesReachEveryMemberOnce(t *testing.T) {
	a, stopA := start(t, "a", nil)
	defer stopA()
	b, stopB := start(t, "b", nil)
	defer stopB()
	c, stopC := start(t, "c", nil)
	defer stopC()
	for _, g := range []*Gossip{b, c} {
		if _, err := g.Join(t.Context(), []string{a.Addr()}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 20*time.Second, "three members", func() bool {
		return len(a.Members()) == 3 && len(b.Members()) == 3 && len(c.Members()) == 3
	})
	const n = 20
	for i := range n {
		if err := b.Send(fmt.Sprint(i), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range []*Gossip{a, c} {
		got := map[byte]bool{}
		for len(got) < n {
			select {
			case m := <-g.Received():
				if len(m) != 1 || got[m[0]] {
					t.Fatalf("got %v after %v", m, got)
				}
				got[m[0]] = true
			case <-time.After(20 * time.Second):
				t.Fatalf("only %d messages came", len(got))
			}
		}
	}
	select {
	case m := <-b.Received():
		t.Fatalf("the sender got its own message %v", m)
	default:
	}
	if err := a.Send("big", make([]byte, maxMessage)); !errors.Is(err, catalog.ErrTooLarge) {
		t.Fatal(err)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	g, stop := start(t, "alone", nil)
	defer stop()
	for i := range 3 * maxRelayed {
		g.deliver(append([]byte{msgUser}, fmt.Sprint(i)...))
	}
	if n := len(g.Received()); n != maxReceived {
		t.Fatalf("%d messages wait", n)
	}
	if n := g.outgoing.NumQueued(); n > maxOutgoing {
		t.Fatalf("%d messages wait to be spread", n)
	}
	if n := len(g.relayed.known); n > maxRelayed || n != len(g.relayed.order) {
		t.Fatalf("%d messages are remembered, in an order of %d", n, len(g.relayed.order))
	}
	(&delegate{g}).NotifyMsg(append([]byte{msgUser}, bytes.Repeat([]byte("x"), maxMessage)...))
	(&delegate{g}).NotifyMsg(nil)
	(&delegate{g}).NotifyMsg([]byte{77, 1})
}
