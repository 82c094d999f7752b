//go:build faults

package faults_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestP12Cuts drops what goes from each server to each other one, one way, and cuts
// the leader off: a minority acknowledges nothing and answers old reads when asked,
// and no heal costs more than one election.
func TestP12Cuts(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: proc.Count(3, 5), Namespaces: true})
	s := newStore(t, time.Second)
	proc.Eventually(t, 20*time.Second, "a key", func() error {
		_, err := s.put(c.Servers[0], "known", "yes", "")
		return err
	})
	cut, most, healed := 0, 0, []time.Duration{}
	for _, from := range c.Servers {
		for _, to := range c.Servers {
			if from == to {
				continue
			}
			h := proc.HostOf(from, to)
			c.Network.Cut(h[0], h[1])
			pause(proc.Count[time.Duration](1500, 6000))
			writesSomewhere(t, s, c)
			before := maxTerm(t, c)
			began := time.Now()
			c.Network.Heal()
			writesEverywhere(t, s, c)
			healed = append(healed, time.Since(began))
			pause(500)
			most = max(most, maxTerm(t, c)-before)
			cut++
		}
	}
	t.Logf("%d cuts of one way: at most %d elections after one was healed; every server writes again after: %s", cut, most, spread(healed))
	if most > 2 {
		t.Errorf("%d elections after a heal", most)
	}
	for range proc.Count(1, 10) {
		minority(t, c, s)
	}
}

// minority cuts the leader off.
func minority(t *testing.T, c *proc.Cluster, s store) {
	t.Helper()
	lead, others := c.Roles()
	before := maxTerm(t, c)
	at := time.Now()
	c.Isolate(lead)
	proc.Eventually(t, 20*time.Second, "the others write", func() error {
		_, err := s.put(others[0], "majority", "", "")
		return err
	})
	gap := time.Since(at)
	acked := 0
	for i, end := 0, time.Now().Add(2*time.Second); time.Now().Before(end); i++ {
		if done, _ := s.put(lead, fmt.Sprintf("minority/%d", i), "", ""); done {
			acked++
		}
	}
	p, err := s.get(lead, "known", "?stale")
	if err != nil || p.Value != "yes" {
		t.Errorf("the minority does not answer a stale read: %+v, %v", p, err)
	}
	if p, err := s.get(lead, "known", ""); err == nil {
		t.Errorf("the minority answers a consistent read: %+v", p)
	}
	began := time.Now()
	c.Network.Heal()
	writesEverywhere(t, s, c)
	back := time.Since(began)
	if acked > 0 {
		t.Errorf("the minority acknowledged %d writes", acked)
	}
	equal(t, c.Servers...)
	t.Logf("the leader was cut off: the others write after %s, it acknowledged nothing; %d elections in all; after the heal every server writes after %s",
		gap.Round(time.Millisecond), maxTerm(t, c)-before, back.Round(time.Millisecond))
}

func maxTerm(t *testing.T, c *proc.Cluster) int {
	t.Helper()
	most := 0
	for _, n := range c.Servers {
		most = max(most, raftTerm(t, n))
	}
	return most
}

// writesSomewhere wants a majority that can write.
func writesSomewhere(t *testing.T, s store, c *proc.Cluster) {
	t.Helper()
	proc.Eventually(t, 20*time.Second, "somebody writes", func() (err error) {
		for _, n := range c.Servers {
			if _, err = s.put(n, "somewhere", "", ""); err == nil {
				return nil
			}
		}
		return err
	})
}

func writesEverywhere(t *testing.T, s store, c *proc.Cluster) {
	t.Helper()
	for _, n := range c.Servers {
		proc.Eventually(t, 30*time.Second, n.Name+" writes", func() error {
			_, err := s.put(n, "everywhere", "", "")
			return err
		})
	}
}

// TestP12RemovedServer takes a server out of Raft that runs on, and restarts it: it
// disturbs nobody.
func TestP12RemovedServer(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, ServerDirs: inMemory(t, 3)})
	lead, others := c.Roles()
	gone := others[0]
	list := lead.MustCLI("operator", "raft", "list-peers")
	lead.MustCLI("operator", "raft", "remove-peer", "-id", peerID(t, list, gone.Name))
	before := raftTerm(t, lead)
	l := startLoad(t, "p12", 8, 10*time.Millisecond, lead)
	pause(proc.Count[time.Duration](5000, 60_000))
	gap, after := l.gap(l.begun), raftTerm(t, lead)
	if after != before || c.Leader() != lead {
		t.Errorf("a server that was removed caused %d elections", after-before)
	}
	gone.Restart()
	gone.WaitServing(60 * time.Second)
	l.judge(t, c.Servers...)
	t.Logf("a removed server ran on beside the others: %d elections, longest gap %s; restarted, it is one of them again", after-before, gap.Round(time.Millisecond))
}

// peerID finds the ID of a server in what `weft operator raft list-peers` prints.
func peerID(t *testing.T, list, name string) string {
	t.Helper()
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == name {
			return f[1]
		}
	}
	t.Fatalf("%s is not in\n%s", name, list)
	return ""
}

// TestP32BackupUnderLoad saves a backup while all is written to, restores it into a
// cluster that is new, and finds all that had been acknowledged before.
func TestP32BackupUnderLoad(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3})
	register(t, c.Servers[0].Agent, &api.AgentServiceRegistration{Name: "db", Port: 1})
	l := startLoad(t, "p32", 16, 8*time.Millisecond, c.Servers...)
	pause(2500)
	l.mu.Lock()
	before := make(map[string]bool, len(l.acked))
	for k := range l.acked {
		before[k] = true
	}
	l.mu.Unlock()
	file := filepath.Join(t.TempDir(), "backup.snap")
	c.Followers()[0].MustCLI("snapshot", "save", file)
	pause(500)
	l.end()
	c.Leader().MustCLI("snapshot", "inspect", file)
	for _, n := range c.Servers {
		n.Kill()
		must(t, os.RemoveAll(n.Dir))
	}
	began := time.Now()
	c.Start()
	c.Followers()[0].MustCLI("snapshot", "restore", file)
	equal(t, c.Servers...)
	took := time.Since(began)
	for _, n := range c.Servers {
		have := map[string]bool{}
		keys, _, err := n.Client.KV().Keys("p32/", "", nil)
		must(t, err)
		for _, k := range keys {
			have[k] = true
		}
		lost := 0
		for k := range before {
			if !have[k] {
				lost++
			}
		}
		if lost > 0 {
			t.Errorf("%s lacks %d of %d writes that were acknowledged before the backup began", n.Name, lost, len(before))
		}
	}
	t.Logf("%d writes acknowledged before the backup, none lost; from three empty hosts to three that have stored the same: %s", len(before), took.Round(10*time.Millisecond))
}

// TestP32LostMajority loses two servers of three, with their disks, for ever, at load:
// one command makes the third write again.
func TestP32LostMajority(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3})
	left := c.Followers()[0]
	l := startLoad(t, "p32", 16, 8*time.Millisecond, c.Servers...)
	pause(1500)
	l.end()
	proc.Eventually(t, 10*time.Second, "the survivor has all", func() error {
		if n := l.lost(t, left); n > 0 {
			return fmt.Errorf("%d are on their way", n)
		}
		return nil
	})
	list := left.MustCLI("operator", "raft", "list-peers")
	args := []string{"operator", "recover"}
	for _, n := range c.Servers {
		if n != left {
			args = append(args, "-i-have-lost="+peerID(t, list, n.Name))
			n.Kill()
			must(t, os.RemoveAll(n.Dir))
		}
	}
	began := time.Now()
	said := ""
	proc.Eventually(t, 60*time.Second, "the survivor goes on", func() error {
		out, errOut, code := left.CLI(args...)
		if code != 0 {
			return fmt.Errorf("exit %d: %s%s", code, out, errOut)
		}
		said = out
		return nil
	})
	s := newStore(t, 5*time.Second)
	proc.Eventually(t, 30*time.Second, "it writes", func() error {
		_, err := s.put(left, "after", "yes", "")
		return err
	})
	took := time.Since(began)
	if !strings.Contains(said, "Lost:") {
		t.Errorf("it does not say what may be lost:\n%s", said)
	}
	if n := l.lost(t, left); n > 0 {
		t.Errorf("the survivor lacks %d writes", n)
	}
	if status, _, err := left.Get("/v1/kv/after"); err != nil || status != http.StatusOK {
		t.Errorf("%d, %v", status, err)
	}
	for _, n := range c.Servers {
		if n != left {
			n.Launch() // with an empty disk: it joins anew
		}
	}
	c.WaitServing(60 * time.Second)
	equal(t, c.Servers...)
	t.Logf("two of three servers lost: the third writes again %s after the first try of the command; two new ones have stored the same %s after that began",
		took.Round(10*time.Millisecond), time.Since(began).Round(10*time.Millisecond))
}

// TestP04LeaderChangesUnderChurn hands leadership over again and again while services
// come and go and intentions change: every proxy enforces each change soon after.
func TestP04LeaderChangesUnderChurn(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2})
	a, b := c.Agents[0], c.Agents[1]
	e := startEcho(t)
	register(t, b.Agent, sidecar("db", e.port()))
	up := proc.FreePorts(t, 1)[0]
	register(t, a.Agent, sidecar("web", 1, api.Upstream{DestinationName: "db", LocalBindPort: up}))
	allow := func(yes bool) error {
		action := api.IntentionActionDeny
		if yes {
			action = api.IntentionActionAllow
		}
		_, err := a.Client.Connect().IntentionUpsert(&api.Intention{SourceName: "web", DestinationName: "db", Action: action}, nil)
		return err
	}
	proc.Eventually(t, 20*time.Second, "an intention", func() error { return allow(true) })
	proc.Eventually(t, 20*time.Second, "web reaches db", func() error { return roundTrip(up) })
	proxies := []*appliedBy{{of: a, id: "web-sidecar-proxy"}, {of: b, id: "db-sidecar-proxy"}}
	var took []time.Duration
	lead, term := leading(t, c)
	want, changes, refused := proc.Count(12, 500), 0, 0
	for i := 0; changes < want; i++ {
		if i >= 3*want {
			t.Fatalf("%d changes of leader in %d rounds, %d transfers were refused", changes, i, refused)
		}
		code := make(chan int, 1)
		go func() { // leadership moves while all else changes
			_, _, n := c.Servers[i%3].CLI("operator", "raft", "transfer-leader")
			code <- n
		}()
		register(t, b.Agent, &api.AgentServiceRegistration{Name: fmt.Sprintf("churn-%d", i%7), Port: 1000 + i})
		if i%3 == 0 {
			_ = b.Client.Agent().ServiceDeregister(fmt.Sprintf("churn-%d", (i+3)%7))
		}
		yes := i%2 == 1
		before := proxies[1].now(t)
		proc.Eventually(t, 20*time.Second, "the intention changes", func() error { return allow(yes) })
		began := time.Now()
		proc.Eventually(t, 20*time.Second, "the proxy enforces it", func() error {
			if err := roundTrip(up); (err == nil) != yes {
				return fmt.Errorf("wanted %t: %w", yes, err)
			}
			return nil
		})
		took = append(took, time.Since(began))
		if after := proxies[1].now(t); after <= before {
			t.Errorf("round %d: the proxy of db enforces the change at index %d, and was at %d before", i, after, before)
		}
		proxies[0].now(t)
		proc.Eventually(t, 20*time.Second, "the servers hear that the proxies have caught up", func() error { return enforced(a.Agent, "db") })
		handed := <-code == 0
		if !handed {
			refused++
		}
		proc.Eventually(t, 20*time.Second, "another server leads", func() error {
			now, at := leading(t, c)
			if at > term && now != lead {
				changes++
				lead, term = now, at
			} else if handed {
				return fmt.Errorf("%q leads in term %d; it was %q in term %d", now, at, lead, term)
			}
			return nil
		})
	}
	t.Logf("%d changes of leader by term, %d transfers refused, each beside a change of policy: the proxies enforce it after: %s", changes, refused, spread(took))
	if worst := slices.Max(took); worst > 10*time.Second {
		t.Errorf("a proxy took %s", worst)
	}
}

// leading gives the server that says that it leads in the newest term, "" for none.
func leading(t *testing.T, c *proc.Cluster) (name string, term uint64) {
	t.Helper()
	for _, n := range c.Servers {
		self, err := n.Client.Agent().Self()
		if err != nil {
			continue
		}
		raft, _ := self["Stats"]["raft"].(map[string]any)
		at, err := strconv.ParseUint(fmt.Sprint(raft["term"]), 10, 64)
		if err == nil && raft["state"] == "Leader" && at > term {
			name, term = n.Name, at
		}
	}
	return name, term
}

// appliedBy follows the index at which a proxy enforces, which must never fall.
type appliedBy struct {
	of   *proc.Node
	id   string
	last uint64
}

func (p *appliedBy) now(t *testing.T) uint64 {
	t.Helper()
	_, body, err := p.of.Get("/v1/agent/connect/proxies")
	var list []struct {
		Proxy   string
		Applied uint64
	}
	if err == nil {
		err = json.Unmarshal([]byte(body), &list)
	}
	if err != nil {
		t.Fatalf("the proxies of %s: %v", p.of.Name, err)
	}
	for _, s := range list {
		if s.Proxy != p.id {
			continue
		}
		if s.Applied < p.last {
			t.Errorf("%s went back from index %d to %d", p.id, p.last, s.Applied)
		}
		p.last = max(p.last, s.Applied)
		return s.Applied
	}
	t.Fatalf("%s has no proxy %s: %s", p.of.Name, p.id, body)
	return 0
}

// enforced tells whether all proxies that the intentions of a destination concern have
// reported an index from which on they enforce them.
func enforced(a *proc.Agent, destination string) error {
	_, body, err := a.Get("/v1/connect/intentions/enforced?destination=" + destination)
	var now struct {
		Index    uint64
		Enforced bool
		Proxies  []json.RawMessage
	}
	if err == nil {
		err = json.Unmarshal([]byte(body), &now)
	}
	if err == nil && (!now.Enforced || len(now.Proxies) == 0) {
		err = errors.New(body)
	}
	return err
}
