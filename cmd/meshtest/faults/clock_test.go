//go:build faults

package faults_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

const day = 24 * time.Hour

// clockJumps are what a promise names, and what NTP does to a host that begins with a
// wrong clock.
var clockJumps = []time.Duration{time.Hour, -time.Hour, 2 * day, -2 * day}

// timed is what runs by time while the clocks jump: a session with its lock that is
// renewed, one that is not, a check that has to be fed, writes at all servers, and a
// connection through the mesh.
type timed struct {
	t    *testing.T
	c    *proc.Cluster
	lock string // of the session that is renewed
	up   string // of the host that is restarted
	held net.Conn
	l    *load
	done chan struct{}
	wg   sync.WaitGroup

	mu    sync.Mutex
	wrong map[string]int
}

func startTimed(t *testing.T, c *proc.Cluster) *timed {
	t.Helper()
	a, b := c.Agents[0], c.Agents[1]
	e := startEcho(t)
	register(t, b.Agent, sidecar("echo", e.port()))
	ports := proc.FreePorts(t, 2)
	for i, n := range []*proc.Node{a, c.Agents[2]} {
		register(t, n.Agent, sidecar("client", 1, api.Upstream{DestinationName: "echo", LocalBindPort: ports[i]}))
	}
	register(t, a.Agent, &api.AgentServiceRegistration{Name: "fed", Port: 1, Check: &api.AgentServiceCheck{CheckID: "fed", TTL: "20s"}})
	intend(t, a.Agent, "client", "echo", api.IntentionActionAllow)
	w := &timed{t: t, c: c, up: fmt.Sprintf("127.0.0.1:%d", ports[1]), done: make(chan struct{}), wrong: map[string]int{}}
	w.held = through(t, fmt.Sprintf("127.0.0.1:%d", ports[0]))
	w.serves(20 * time.Second)
	w.feed()
	proc.Eventually(t, 20*time.Second, "the check that is fed passes", func() error {
		got, _, err := b.Client.Health().Service("fed", "", true, nil)
		if err == nil && len(got) != 1 {
			err = errors.New("the catalog has not heard of it")
		}
		return err
	})
	id, _, err := a.Client.Session().Create(&api.SessionEntry{TTL: "10s", LockDelay: time.Millisecond}, nil)
	must(t, err)
	if got, _, err := a.Client.KV().Acquire(&api.KVPair{Key: "lock", Session: id}, nil); err != nil || !got {
		t.Fatalf("%t, %v", got, err)
	}
	w.lock = id
	w.l = startLoad(t, "clock/", 3, 20*time.Millisecond, c.Servers...)
	w.wg.Go(w.live)
	return w
}

func (w *timed) feed() {
	if err := w.c.Agents[0].Client.Agent().UpdateTTL("fed", "", api.HealthPassing); err != nil {
		w.t.Error(err)
	}
}

func (w *timed) note(what string, bad bool) {
	if bad {
		w.mu.Lock()
		w.wrong[what]++
		w.mu.Unlock()
	}
}

// live renews, feeds and looks until the end.
func (w *timed) live() {
	a, asker := w.c.Agents[0], w.c.Agents[1]
	for n := 0; ; n++ {
		select {
		case <-w.done:
			return
		case <-time.After(100 * time.Millisecond):
		}
		if n%20 == 0 {
			w.feed()
			s, _, err := a.Client.Session().Renew(w.lock, nil)
			w.note("a session could not be renewed", err != nil || s == nil)
		}
		pair, _, err := asker.Client.KV().Get("lock", nil)
		w.note("a read failed", err != nil)
		w.note("a lock was lost", err == nil && (pair == nil || pair.Session != w.lock))
		got, _, err := asker.Client.Health().Service("fed", "", true, nil)
		w.note("a check that is fed failed", err == nil && len(got) != 1)
		w.note("an open connection broke", ping(w.held) != nil)
	}
}

// end reports the effects; there should be none.
func (w *timed) end() {
	close(w.done)
	w.wg.Wait()
	w.l.end()
	for what, n := range w.wrong {
		w.t.Errorf("%s %d times", what, n)
	}
}

// calm reports hosts that ask for certificates ever again.
func (w *timed) calm() {
	w.t.Helper()
	for _, n := range w.c.Agents {
		if asked := strings.Count(n.Log(), "certificate in use"); asked > 60*proc.Count(1, 25) {
			w.t.Errorf("%s got %d certificates", n.Name, asked)
		}
	}
}

// anew restarts the host of a client, which has to show its certificates then, to the
// servers and to the other end, and waits until it gets through.
func (w *timed) anew(within time.Duration) time.Duration {
	w.t.Helper()
	w.c.Agents[2].Restart()
	return w.serves(within)
}

// serves waits until new connections get through the mesh.
func (w *timed) serves(within time.Duration) time.Duration {
	w.t.Helper()
	began := time.Now()
	proc.Eventually(w.t, within, "new connections get through", func() error { return roundTripTo(w.up) })
	return time.Since(began)
}

// TestP21ClockJumps sets the wall clocks of real processes, of one host, of the leader,
// of all of them: sessions, locks, checks, writes, open connections and leadership take
// no notice, and new connections get through with certificates that suit the time, or
// are refused with the reason as long as two hosts disagree about it.
func TestP21ClockJumps(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 3, Clocks: true})
	w := startTimed(t, c)
	rng := seed(t)
	term, began := maxTerm(t, c), time.Now()
	var whole, alone []time.Duration
	for i := range proc.Count(1, 25) {
		for _, by := range shuffled(rng, clockJumps)[:proc.Count(2, 4)] {
			// All hosts, as when a hypervisor wakes them.
			var s string
			proc.Eventually(t, 20*time.Second, "a session", func() (err error) { // a jump back ends RPC connections once
				s, _, err = c.Agents[0].Client.Session().Create(&api.SessionEntry{TTL: "10s"}, nil)
				return err
			})
			began := time.Now()
			set(by, c.Nodes()...)
			took := w.anew(90 * time.Second)
			whole = append(whole, took)
			if left, _, err := c.Agents[0].Client.Session().Info(s, nil); err == nil && left == nil && time.Since(began) < 9*time.Second {
				t.Errorf("a session of 10 s ended after %s with the jump by %s", time.Since(began), by)
			}
			t.Logf("P21: round %d, all by %s: new connections after %s, longest time without a write %s", i, by,
				took.Round(time.Millisecond), w.l.gap(began).Round(time.Millisecond))
		}
	}
	set(0, c.Nodes()...)
	w.anew(60 * time.Second)
	w.calm()
	for i := range proc.Count(1, 16) {
		by := clockJumps[i/4%4]
		hosts := []*proc.Node{c.Leader(), c.Followers()[0], c.Agents[0], c.Agents[2]}
		host := hosts[i%4]
		if !proc.Full() {
			by, host = clockJumps[rng.IntN(4)], hosts[rng.IntN(4)]
		}
		at := time.Now()
		set(by, host)
		pause(6000)
		t.Logf("P21: %s alone by %s: longest time without a write %s", host.Name, by, w.l.gap(at).Round(time.Millisecond))
		set(0, host)
		alone = append(alone, w.anew(60*time.Second))
	}
	w.calm()
	w.end()
	acked := w.l.judge(t, c.Servers...)
	slices.Sort(whole)
	slices.Sort(alone)
	t.Logf("P21: %d jumps of one clock: once it is right again new connections after: %s", len(alone), spread(alone))
	t.Logf("P21: %d jumps of all clocks: new connections after: %s; %d writes, longest time without one %s; %d elections", len(whole), spread(whole),
		acked, w.l.gap(began).Round(time.Millisecond), maxTerm(t, c)-term)
}

func set(by time.Duration, hosts ...*proc.Node) {
	for _, n := range hosts {
		n.SetClock(by)
	}
}

func shuffled[T any](rng *rand.Rand, in []T) []T {
	out := slices.Clone(in)
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// TestP14SevenDays takes all servers away for seven days of the hosts' clocks, in which
// agents are restarted again and again: new handshakes succeed until the certificates
// end, are refused with that reason afterwards, and once the servers are back, all whose
// certificates ended days ago serve again by themselves.
func TestP14SevenDays(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2, Clocks: true})
	a, b := c.Agents[0], c.Agents[1]
	register(t, b.Agent, sidecar("echo", startEcho(t).port()))
	port := proc.FreePorts(t, 1)[0]
	register(t, a.Agent, sidecar("client", 1, api.Upstream{DestinationName: "echo", LocalBindPort: port}))
	intend(t, a.Agent, "client", "echo", api.IntentionActionAllow)
	up := fmt.Sprintf("127.0.0.1:%d", port)
	proc.Eventually(t, 20*time.Second, "client reaches echo", func() error { return roundTripTo(up) })
	pause(4000) // what was read is on disk within a second, where the disk does not pause
	for _, n := range c.Servers {
		n.Kill()
	}
	const life = 72 * time.Hour
	times, good, refused := []time.Duration{day, 71 * time.Hour, 4 * day}, 0, 0
	if proc.Full() {
		times = nil
		for at := 2 * time.Hour; at <= 7*day; at += 2 * time.Hour {
			times = append(times, at)
		}
	}
	for _, at := range times {
		set(at, a, b)
		restarted := []*proc.Node{a, b}[(good+refused)%2]
		restarted.Restart()
		switch {
		case at < life-time.Minute:
			proc.Eventually(t, 30*time.Second, fmt.Sprintf("client reaches echo after %s", at), func() error { return roundTripTo(up) })
			good++
		case at > life:
			proc.Eventually(t, 30*time.Second, "the log says that a certificate ended", func() error {
				if err := roundTripTo(up); err == nil {
					t.Fatalf("after %s a certificate of %s is taken", at, life)
				}
				if log := a.Log() + b.Log(); !strings.Contains(log, "reason=cert_expired") && !strings.Contains(log, "expired at") {
					return errors.New("it does not")
				}
				return nil
			})
			refused++
		}
	}
	began := time.Now()
	set(7*day, c.Nodes()...)
	for _, n := range c.Servers {
		n.Launch()
	}
	proc.Eventually(t, 90*time.Second, "with the servers back client reaches echo", func() error { return roundTripTo(up) })
	t.Logf("P14: %d restarts before the certificates' end, all served; %d after it, none; seven days later all serve %s after the start of the servers",
		good, refused, time.Since(began).Round(10*time.Millisecond))
}
