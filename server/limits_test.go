package server

import (
	"context"
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

// TestSweepsAreRare: agents that have watches open are not looked through at the end of
// each request.
func TestSweepsAreRare(t *testing.T) {
	at := time.Unix(1e9, 0)
	l := newLimits()
	l.now = func() time.Time { return at }
	ask := func(id string, waits bool) func() {
		t.Helper()
		end, err := l.begin(rpc.Caller{Agent: true, NodeID: id}, waits)
		if err != nil {
			t.Fatal(err)
		}
		return end
	}
	for i := range sweepAt {
		ask(fmt.Sprint("busy", i), true)
	}
	sweeps := 0
	for i := range 100 {
		before := l.swept
		ask(fmt.Sprint("idle", i), false)()
		if l.swept != before {
			sweeps++
		}
		at = at.Add(100 * time.Millisecond)
	}
	if sweeps != 2 {
		t.Errorf("%d sweeps in ten seconds", sweeps)
	}
	at = at.Add(2 * syncWhole)
	ask("last", false)()
	if len(l.agents) > sweepAt+1 {
		t.Errorf("%d agents are remembered", len(l.agents))
	}
}

func BenchmarkLimits(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("agents=%d", n), func(b *testing.B) {
			l := newLimits()
			for i := range n { // each has a watch open
				if _, err := l.begin(rpc.Caller{Agent: true, NodeID: fmt.Sprint(i)}, true); err != nil {
					b.Fatal(err)
				}
			}
			c := rpc.Caller{Agent: true, NodeID: "7"}
			for b.Loop() {
				a, _ := l.arrive(c)
				end, _ := l.begin(c, false)
				end()
				a.end()
			}
		})
	}
}

// TestPolicyQuestions: an agent may ask only a few times at once who enforces a
// policy, as each question makes the leader ask all servers until it is answered.
func TestPolicyQuestions(t *testing.T) {
	l := newLimits()
	one := rpc.WithCaller(t.Context(), rpc.Caller{Agent: true, NodeID: "1"})
	var ask func(left int) error
	ask = func(left int) error {
		if left == 0 {
			return nil
		}
		_, err := l.calls(one, &wire.EnforcedRequest{Destination: "db"}, nil, func(context.Context, any) (any, error) { return nil, ask(left - 1) })
		return err
	}
	if err := ask(maxAgentPolicies); err != nil {
		t.Error(err)
	}
	if err := ask(maxAgentPolicies + 1); !errors.Is(wire.FromStatus(err), catalog.ErrUnavailable) {
		t.Error("one more:", err)
	}
	if err := ask(maxAgentPolicies); err != nil {
		t.Error("after they were answered:", err)
	}
}
