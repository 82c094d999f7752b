package server

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/rpc"
)

// TestLimits: one agent's requests end at its limit, another's do not, and servers
// and the process itself have none.
func TestLimits(t *testing.T) {
	at := time.Unix(1e9, 0)
	l := newLimits()
	l.now = func() time.Time { return at }
	one, two := rpc.Caller{Agent: true, NodeID: "1"}, rpc.Caller{Agent: true, NodeID: "2"}
	for _, waits := range []bool{false, true} {
		var ends []func()
		for {
			end, err := l.begin(one, waits)
			if err != nil {
				if !errors.Is(wire.FromStatus(err), catalog.ErrUnavailable) {
					t.Error(err)
				}
				break
			}
			ends = append(ends, end)
		}
		if want := map[bool]int{false: maxAgentCalls, true: maxAgentWaits}[waits]; len(ends) != want {
			t.Errorf("%d requests, want %d", len(ends), want)
		}
		for _, c := range []rpc.Caller{two, {Server: true, NodeID: "1"}, {}} {
			end, err := l.begin(c, waits)
			if err != nil {
				t.Errorf("%s is refused: %v", c, err)
				continue
			}
			end()
		}
		ends[0]()
		if end, err := l.begin(one, waits); err != nil {
			t.Error("a place that was given back is not there:", err)
		} else {
			end()
		}
		for _, end := range ends[1:] {
			end()
		}
	}
	said := 0
	for l.sync(one) == nil {
		said++
	}
	if said != syncBurst {
		t.Errorf("%d statements at once", said)
	}
	at = at.Add(time.Second)
	for said = 0; l.sync(one) == nil; said++ {
	}
	if said != syncRate {
		t.Errorf("%d statements after a second", said)
	}
	if l.sync(two) != nil || l.sync(rpc.Caller{}) != nil {
		t.Error("others are refused")
	}
	for i := range 3 * sweepAt {
		at = at.Add(time.Second)
		end, err := l.begin(rpc.Caller{Agent: true, NodeID: fmt.Sprint("n", i)}, false)
		if err != nil {
			t.Fatal(err)
		}
		end()
	}
	if len(l.agents) > sweepAt {
		t.Errorf("%d agents are remembered", len(l.agents))
	}
}
