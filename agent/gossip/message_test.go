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

// Who joins late hears the messages of the last minutes, once.
func TestLateJoinersHear(t *testing.T) {
	a, stopA := start(t, "a", nil)
	defer stopA()
	for i := range maxRecent + 10 {
		if err := a.Send(fmt.Sprint(i), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	b, stopB := start(t, "b", nil)
	defer stopB()
	if _, err := b.Join(t.Context(), []string{a.Addr()}); err != nil {
		t.Fatal(err)
	}
	got := map[byte]bool{}
	for len(got) < maxRecent {
		select {
		case m := <-b.Received():
			if len(m) != 1 || got[m[0]] {
				t.Fatalf("got %v after %v", m, got)
			}
			got[m[0]] = true
		case <-time.After(20 * time.Second):
			t.Fatalf("only %d messages came", len(got))
		}
	}
}

func TestRecentMessages(t *testing.T) {
	now := time.Unix(1000, 0)
	var r relayed
	r.first([]byte{msgUser, 1}, now.Add(-2*recentAge))
	r.first([]byte{msgUser, 2}, now.Add(-time.Minute))
	r.first([]byte{msgUser, 3}, now.Add(time.Second)) // the clock was set back
	b := r.encode(now)
	got := decodeRecent(b, now)
	if len(got) != 2 || got[0].msg[1] != 2 || !got[0].at.Equal(now.Add(-time.Minute)) || got[1].msg[1] != 3 || !got[1].at.Equal(now) {
		t.Errorf("%v", got)
	}
	for n := range b {
		if got := decodeRecent(b[:n], now); len(got) > 1 {
			t.Errorf("cut to %d bytes: %v", n, got)
		}
	}
	for _, bad := range [][]byte{
		nil,
		{2, 0, 2, msgUser, 1},
		{recentVersion, 0, 0},
		{recentVersion, 0, 2, msgLeave, 1},
		{recentVersion, 0, 0xff, 0xff, 0xff, 0xff, 0x7f, msgUser},
		bytes.Repeat([]byte{0xff}, 100), make([]byte, maxState+1),
		{recentVersion, 0xff, 0xff, 0xff, 0xff, 0x7f, 2, msgUser, 1},
	} {
		if got := decodeRecent(bad, now); len(got) != 0 {
			t.Errorf("%.20v: %v", bad, got)
		}
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
