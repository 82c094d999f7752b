package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/enroll"
)

// TestServersTurnOneAway: a server that others refuse says so in its own log, as its
// gossip and its Raft do not; that others are not there yet is nothing to shout about.
func TestServersTurnOneAway(t *testing.T) {
	refused := fmt.Errorf("10.0.0.1:8300: %w", enroll.Refuse(enroll.ReasonNodeIDInUse, "was this host cloned?"))
	for _, c := range []struct {
		name string
		err  error
		loud bool
	}{
		{"nothing", nil, false},
		{"not there", errors.New("connection refused"), false},
		{"busy", enroll.Refuse(enroll.ReasonUnavailable, "ask again"), false},
		{"refused", errors.Join(errors.New("no other server told what changed"), refused), true},
	} {
		var log bytes.Buffer
		j := &joiner{log: slog.New(slog.NewTextHandler(&log, nil)), node: "n", cfg: Join{
			Start: []string{"10.0.0.1"}, ServerPort: 8300,
			Refresh: func(context.Context, []string) error { return c.err },
		}, gossip: lonely{}}
		for range 3 {
			if err := j.refresh(t.Context()); !errors.Is(err, c.err) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if loud := strings.Contains(log.String(), "was this host cloned?") && strings.Contains(log.String(), "level=ERROR"); loud != c.loud || (!loud && log.Len() > 0) || strings.Count(log.String(), "\n") > 1 {
			t.Errorf("%s: %s", c.name, log.String())
		}
	}
}

// lonely is gossip that remembers nobody.
type lonely struct{ Gossip }

func (lonely) Peers() []string { return nil }

// together is gossip that misses nobody.
type together struct{ lonely }

func (together) Alone() bool                   { return false }
func (together) Members() []catalog.Member     { return nil }
func (together) Servers() (alive, missing int) { return 3, 0 }

// TestARefusalThatIsOverIsForgotten: a server that others turned away asks them again,
// also where gossip misses none, and says so no more once they answer.
func TestARefusalThatIsOverIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		j := &joiner{log: slog.New(slog.DiscardHandler), node: "n", ready: make(chan struct{}), met: make(chan struct{}), cfg: Join{
			Start: []string{"10.0.0.1"}, ServerPort: 8300, Server: true,
			Refresh: func(context.Context, []string) error {
				if asked.Add(1) > 2 {
					return nil
				}
				return enroll.Refuse(enroll.ReasonNameTaken, "another host has this name")
			},
		}, gossip: together{}}
		close(j.ready)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = j.run(ctx) })
		time.Sleep(askAgain + 2*joinLook)
		if j.turnedAway.Load() == nil {
			t.Error("a refusal is forgotten while it holds")
		}
		time.Sleep(10 * askAgain)
		if n := asked.Load(); n != 3 || j.turnedAway.Load() != nil {
			t.Errorf("asked %d times: %v", n, j.turnedAway.Load())
		}
		cancel()
		running.Wait()
	})
}

// TestFailedRenewalIsTriedWhileServersAreInSight: a host that could not renew its certificate
// while the servers were away does not wait for minutes once gossip sees them again.
func TestFailedRenewalIsTriedWhileServersAreInSight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		creds, err := enroll.NewAgent(enroll.AgentConfig{
			Node: "n", NodeID: "5f1c9b1e-8a5e-4b6a-9c57-0f6b6d0f8f11", Datacenter: "dc1", Servers: func() []string { return nil },
			Token: func() (string, error) { asked.Add(1); return "", errors.New("nothing to ask with") },
		})
		if err != nil {
			t.Fatal(err)
		}
		j := &joiner{log: slog.New(slog.DiscardHandler), node: "n", ready: make(chan struct{}), met: make(chan struct{}), cfg: Join{
			Start: []string{"10.0.0.1"}, ServerPort: 8300,
		}, gossip: together{}, creds: creds}
		close(j.ready)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = j.run(ctx) })
		time.Sleep(10 * askAgain)
		if n := asked.Load(); n != 0 {
			t.Errorf("asked %d times with nothing amiss", n)
		}
		if _, err := creds.Renew(ctx); err == nil {
			t.Error("renewed from nobody")
		}
		time.Sleep(askAgain + 3*joinLook) // at once, as nobody was asked for long, and again
		if n := asked.Load(); n != 3 {
			t.Errorf("asked %d times, want once more each %s", n, askAgain)
		}
		cancel()
		running.Wait()
	})
}
