//go:build faults

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/agent/gossip"
	"github.com/weftmesh/weft/cmd/meshtest/proc"
	"github.com/weftmesh/weft/connect/enroll"
)

// crowd is members of gossip in this process, beside the real hosts of a cluster.
type crowd struct {
	t      *testing.T
	c      *proc.Cluster
	secret enroll.Secret
	mu     sync.Mutex
	all    []*gossip.Gossip
	wg     sync.WaitGroup
	ctx    context.Context
}

func newCrowd(t *testing.T, c *proc.Cluster) *crowd {
	t.Helper()
	// Memberlist takes 64 KiB for each packet: of 200 members in one process half of all
	// processor time is collecting those.
	was := debug.SetGCPercent(800)
	t.Cleanup(func() { debug.SetGCPercent(was) })
	secret, err := enroll.ReadSecret(c.Secret)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &crowd{t: t, c: c, secret: secret, ctx: ctx}
	t.Cleanup(func() {
		cancel()
		w.wg.Wait()
	})
	return w
}

// join adds a member.
func (w *crowd) join(name string) error {
	id := fmt.Sprintf("%08x-0000-4000-8000-%012x", len(name), []byte(name))[:36]
	g, err := gossip.New(gossip.Config{
		NodeName: name, NodeID: id, BindAddr: w.c.Network.Base(),
		Tags:  map[string]string{"role": "node", "dc": "dc1", "build": "0.0.0-test"},
		Label: w.secret.ClusterID(), SecretKeys: [][]byte{w.secret.GossipKey()},
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.all = append(w.all, g)
	server := w.c.Servers[len(w.all)%3]
	w.mu.Unlock()
	w.wg.Go(func() { _ = g.Run(w.ctx) })
	for range 5 { // as a host does
		if _, err = g.Join(w.ctx, []string{net.JoinHostPort(server.Addr, "8301")}); err == nil {
			break
		}
	}
	return err
}

// duty stops a process for a part of each period, until the function that it returns
// is called: a host without processor time.
func duty(n *proc.Node, period, stopped time.Duration) func() {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			n.Signal(syscall.SIGSTOP)
			time.Sleep(stopped)
			n.Signal(syscall.SIGCONT)
			select {
			case <-done:
				return
			case <-time.After(period - stopped):
			}
		}
	}()
	return func() { close(done); <-ended }
}

// lateness looks how late this process is, which is the members of a crowd: while it
// does not run, none of them is healthy.
type lateness struct {
	mu   sync.Mutex
	late []delay // in their order, those worth knowing
	end  func()
}

// delay is a timer of this process that went off late.
type delay struct {
	at time.Time
	by time.Duration
}

func startLateness() *lateness {
	l, done, ended := &lateness{}, make(chan struct{}), make(chan struct{})
	l.end = func() { close(done); <-ended }
	go func() {
		defer close(ended)
		for {
			due := time.Now().Add(50 * time.Millisecond)
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
			l.note(time.Now(), time.Since(due))
		}
	}()
	return l
}

func (l *lateness) note(at time.Time, by time.Duration) {
	if by < time.Millisecond {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late = append(l.late, delay{at, by})
}

// suspicion is longer than gossip takes to hold a silent member of a crowd for dead.
const suspicion = 15 * time.Second

// since gives the longest delay after a moment, and all of them together.
func (l *lateness) since(from, to time.Time) (worst, sum time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range slices.Backward(l.late) {
		if d.at.Before(from) {
			break
		}
		if !d.at.After(to) {
			worst, sum = max(worst, d.by), sum+d.by
		}
	}
	return worst, sum
}

// healthy tells whether, at a moment, the members in this process had been healthy for
// as long as it takes to be held for dead.
func (l *lateness) healthy(at time.Time) bool {
	worst, sum := l.since(at.Add(-suspicion), at)
	return worst < time.Second && sum < suspicion/10
}

// marks are the members that a server holds for dead though they should be healthy.
type marks struct {
	late    *lateness
	now     map[string]bool
	wrong   map[string]bool // that were healthy then
	excused int             // that were not, as this process was late
	looks   int
	judged  int // looks at which a wrong mark would have counted
}

func newMarks(late *lateness) *marks {
	return &marks{late: late, now: map[string]bool{}, wrong: map[string]bool{}}
}

// look takes note of who is held for dead at a moment. A mark counts by when it was set.
func (m *marks) look(at time.Time, dead map[string]bool) {
	healthy := m.late.healthy(at)
	m.looks++
	if healthy {
		m.judged++
	}
	for name := range dead {
		switch {
		case m.now[name]:
		case healthy:
			m.wrong[name] = true
		default:
			m.excused++
		}
	}
	m.now = dead
}

// verdict says what is to fail. A machine that was too slow for most of the time has
// shown nothing, which is no success where all is counted.
func (m *marks) verdict(full bool) error {
	switch {
	case len(m.wrong) > 0:
		return fmt.Errorf("%d healthy members were taken for dead: %v", len(m.wrong), slices.Sorted(maps.Keys(m.wrong)))
	case full && 10*m.judged < 9*m.looks:
		return fmt.Errorf("this machine was too slow to judge: the members were healthy at %d of %d looks", m.judged, m.looks)
	}
	return nil
}

// TestMarks: a wrong mark counts unless this process was late just then.
func TestMarks(t *testing.T) {
	begin := time.Now()
	at := func(s int) time.Time { return begin.Add(time.Duration(s) * time.Second) }
	l := &lateness{}
	l.note(at(100), 2*time.Second)
	for i := range 100 { // late by an eighth
		l.note(at(200).Add(time.Duration(i)*200*time.Millisecond), 25*time.Millisecond)
	}
	m := newMarks(l)
	dead := func(names ...string) map[string]bool {
		out := map[string]bool{}
		for _, n := range names {
			out[n] = true
		}
		return out
	}
	m.look(at(50), dead())
	m.look(at(101), dead("a"))
	m.look(at(130), dead("a")) // still
	m.look(at(219), dead("b"))
	if err := m.verdict(false); err != nil || m.excused != 2 {
		t.Errorf("%v, %d excused", err, m.excused)
	}
	if m.verdict(true) == nil {
		t.Error("a machine that was late at half of the looks has shown nothing")
	}
	m.look(at(300), dead("c"))
	if m.verdict(false) == nil || !m.wrong["c"] || len(m.wrong) != 1 {
		t.Errorf("a healthy member was taken for dead, and nobody minds: %v", m.wrong)
	}
}

// nodeHealth is the state of a host as a server's catalog has it.
func nodeHealth(asker *proc.Node, name string) (string, error) {
	checks, _, err := asker.Client.Health().Node(name, nil)
	if err != nil {
		return "", err
	}
	for _, c := range checks {
		if c.CheckID == "serfHealth" {
			return c.Status, nil
		}
	}
	return "", errors.New("there is no such node")
}

// TestP20GossipOfACrowd: 60 members, at full count 100, of whom one hears only 60 % of what is said to
// it, one stands still for 3 s in 6 and three have a quarter of a processor: nobody
// healthy is taken for dead, a crash and a silent host are known soon, newcomers too.
func TestP20GossipOfACrowd(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 7, Namespaces: true})
	asker := c.Servers[0]
	w := newCrowd(t, c)
	members := proc.Count(50, 90)
	began, late := time.Now(), startLateness()
	used := processorTime(t, os.Getpid())
	var joins sync.WaitGroup
	for i := range members {
		joins.Go(func() {
			if err := w.join("m" + strconv.Itoa(i)); err != nil {
				t.Errorf("member %d: %v", i, err)
			}
		})
	}
	joins.Wait()
	for _, s := range c.Servers {
		alive(t, s, members+10, proc.Count(time.Minute, 5*time.Minute))
	}
	t.Logf("P20: %d members are known to all servers after %s", members+10, time.Since(began).Round(10*time.Millisecond))

	sick := c.Agents[:5]
	c.Network.Lose(proc.HostOf(sick[0])[0], 40)
	ends := []func(){duty(sick[1], 6*time.Second, 3*time.Second)}
	for _, n := range sick[2:] {
		ends = append(ends, duty(n, 100*time.Millisecond, 75*time.Millisecond))
	}
	isSick := func(name string) bool {
		return slices.ContainsFunc(sick, func(n *proc.Node) bool { return n.Name == name })
	}
	judge := newMarks(late)
	look := func(expected ...string) {
		got, err := asker.Client.Agent().Members(false)
		if err != nil {
			t.Error(err)
			return
		}
		dead := map[string]bool{}
		for _, m := range got {
			if m.Status != 1 && !isSick(m.Name) && !slices.Contains(expected, m.Name) {
				dead[m.Name] = true
			}
		}
		judge.look(time.Now(), dead)
	}
	var known []time.Duration
	length := proc.Count(20*time.Second, time.Hour)
	next := time.NewTicker(length / time.Duration(proc.Count(20, 100))) // spread, so that the crowd grows all the time
	defer next.Stop()
	for end := time.Now().Add(length); time.Now().Before(end); {
		look()
		select {
		default:
		case <-next.C:
			name, at := "late"+strconv.Itoa(len(known)), time.Now()
			if err := w.join(name); err != nil {
				t.Fatal(err)
			}
			proc.Eventually(t, 90*time.Second, "the newcomer is in the catalog", func() error { _, err := nodeHealth(asker, name); return err })
			known = append(known, time.Since(at))
		}
		pause(100)
	}
	slices.Sort(known)

	until := func(n *proc.Node) time.Duration {
		at := time.Now()
		proc.Eventually(t, 60*time.Second, n.Name+" is critical", func() error {
			if s, err := nodeHealth(asker, n.Name); s != "critical" {
				return fmt.Errorf("%s, %w", s, err)
			}
			return nil
		})
		return time.Since(at)
	}
	crashed, silent := c.Agents[5], c.Agents[6]
	crashed.Kill()
	crash := until(crashed)
	c.Network.Part(proc.HostOf(silent), proc.HostOf(c.Servers...))
	silence := until(silent)
	look(crashed.Name, silent.Name)
	for _, end := range ends {
		end()
	}
	t.Logf("P20: %d healthy members were taken for dead, %d while this process was late; of %d newcomers the last was known after %s; a crash after %s, a silent host after %s",
		len(judge.wrong), judge.excused, len(known), known[len(known)-1].Round(time.Millisecond), crash.Round(time.Millisecond), silence.Round(time.Millisecond))
	late.end()
	whole := time.Since(began)
	worst, sum := late.since(began, time.Now())
	t.Logf("P20: the process of the crowd had %s of processor in %s, and stood still for %s at most, %s in all; its members were healthy at %d of %d looks",
		processorTime(t, os.Getpid())-used, whole.Round(time.Second), worst.Round(time.Millisecond), sum.Round(time.Millisecond), judge.judged, judge.looks)
	if err := judge.verdict(proc.Full()); err != nil {
		t.Error(err)
	}
	if crash > 5*time.Second || silence > 15*time.Second {
		t.Errorf("a crash is known after %s, a silent host after %s", crash, silence)
	}
}
