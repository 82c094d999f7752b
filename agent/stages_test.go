package agent_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/meshtest"
)

// fakeGossip records what it is told.
type fakeGossip struct {
	fail  chan error
	elder string
	mu    sync.Mutex
	told  []string
}

func (g *fakeGossip) say(s string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.told = append(g.told, s)
}

func (g *fakeGossip) Members() []catalog.Member { return nil }

func (g *fakeGossip) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		g.say("stopped")
		return nil
	case err := <-g.fail:
		return err
	}
}

func (g *fakeGossip) Join(_ context.Context, addrs []string) (int, error) {
	g.say("join " + addrs[0])
	return 0, errors.New("nobody answers")
}

func (g *fakeGossip) Elder() string            { return g.elder }
func (g *fakeGossip) Disown(a string) error    { return errors.New("a copy of " + a) }
func (g *fakeGossip) Alone() bool              { return true }
func (g *fakeGossip) Servers() (int, int)      { return 0, 0 }
func (g *fakeGossip) Peers() []string          { return nil }
func (g *fakeGossip) Changed() <-chan struct{} { return nil }

func (g *fakeGossip) Leave(context.Context) error {
	g.say("left")
	return nil
}

func (g *fakeGossip) ForceLeave(name string, _ bool) error {
	g.say("force " + name)
	return nil
}

// alone starts an agent with no server and gives the end of its Run.
func alone(t *testing.T, g *fakeGossip, change func(*agent.Config)) (base string, stop func(), ended <-chan error) {
	t.Helper()
	cfg := agent.Config{
		NodeName: "n", NodeID: "0c4f6d1a-31a5-44c9-8f01-0d2c8bd3a9b1", Datacenter: "dc1", Advertise: "127.0.0.1",
		HTTP: httpapi.Config{Addrs: []string{"127.0.0.1:0"}}, Gossip: g, HoldTimeout: 50 * time.Millisecond,
		Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("no server answers") },
	}
	change(&cfg)
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	plain, _ := a.HTTPAddrs()
	return "http://" + plain[0].String(), cancel, done
}

func put(t *testing.T, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

func wait(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(meshtest.Patience):
		t.Fatal("the agent does not end")
		return nil
	}
}

func TestLeaveAnswersAndThenGoes(t *testing.T) {
	g := &fakeGossip{}
	base, stop, ended := alone(t, g, func(*agent.Config) {})
	defer stop()
	if status := put(t, base+"/v1/agent/join/127.0.0.1:1"); status != 500 {
		t.Errorf("join of nobody: %d", status)
	}
	if status := put(t, base+"/v1/agent/leave"); status != 200 {
		t.Errorf("leave: %d", status)
	}
	if err := wait(t, ended); err != nil {
		t.Errorf("run: %v", err)
	}
	if len(g.told) != 3 || g.told[0] != "join 127.0.0.1:1" || g.told[1] != "left" || g.told[2] != "stopped" {
		t.Errorf("gossip was told %q", g.told)
	}
}

func TestStopIsNoLeave(t *testing.T) {
	for _, leave := range []bool{false, true} {
		g := &fakeGossip{}
		_, stop, ended := alone(t, g, func(c *agent.Config) { c.LeaveOnStop = leave })
		stop()
		if err := wait(t, ended); err != nil {
			t.Errorf("run: %v", err)
		}
		if left := g.told[0] == "left"; left != leave {
			t.Errorf("LeaveOnStop %t: gossip was told %q", leave, g.told)
		}
	}
}

func TestAFailedComponentEndsTheAgent(t *testing.T) {
	g := &fakeGossip{fail: make(chan error, 1)}
	base, stop, ended := alone(t, g, func(*agent.Config) {})
	defer stop()
	g.fail <- errors.New("the socket is gone")
	err := wait(t, ended)
	if err == nil || err.Error() != "gossip: the socket is gone" {
		t.Errorf("run: %v", err)
	}
	if _, err := net.Dial("tcp", base[len("http://"):]); err == nil {
		t.Error("the API accepts still")
	}
}

// A server that turns out to be a copy of one that lives ends, unless it is the one that
// its cluster has.
func TestServerThatIsCopyEnds(t *testing.T) {
	for _, settled := range []bool{false, true} {
		g := &fakeGossip{elder: "10.0.0.1:8301"}
		asked := make(chan struct{}, 1)
		_, stop, ended := alone(t, g, func(c *agent.Config) {
			c.Join.Server, c.Join.Settled = true, func() bool {
				select {
				case asked <- struct{}{}:
				default:
				}
				return settled
			}
		})
		<-asked
		if settled {
			stop()
		}
		if err := wait(t, ended); settled == (err != nil) {
			t.Errorf("settled %t: %v", settled, err)
		}
		stop()
	}
}
