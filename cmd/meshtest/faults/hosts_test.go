//go:build faults

package faults_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// alive waits until a host sees exactly so many members alive.
func alive(t *testing.T, n *proc.Node, want int, within time.Duration) {
	t.Helper()
	proc.Eventually(t, within, fmt.Sprintf("%s sees %d members alive", n.Name, want), func() error {
		members, err := n.Client.Agent().Members(false)
		if err != nil {
			return err
		}
		got := 0
		for _, m := range members {
			if m.Status == 1 {
				got++
			}
		}
		if got != want {
			return fmt.Errorf("%d of %d", got, len(members))
		}
		return nil
	})
}

// TestKeyRotationWithHostsDown replaces the key of gossip while a server and an agent
// are down: they come back with no file edited.
func TestKeyRotationWithHostsDown(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2})
	a, down := c.Agents[0], []*proc.Node{c.Followers()[0], c.Agents[1]}
	alive(t, a, 5, 20*time.Second)
	for _, n := range down {
		n.Kill()
	}
	alive(t, a, 3, 60*time.Second)
	op := c.Leader()
	old, err := op.Client.Operator().KeyringList(nil)
	if err != nil || len(old) == 0 || len(old[0].Keys) != 1 {
		t.Fatalf("%+v, %v", old, err)
	}
	key := strings.TrimSpace(a.MustCLI("keygen"))
	if err := a.Client.Operator().KeyringInstall(key, nil); err == nil || !strings.Contains(err.Error(), "a server's host") {
		t.Errorf("an agent installs a key: %v", err)
	}
	alive(t, op, 3, 60*time.Second) // it may hear of the second failure after a
	op.MustCLI("keyring", "-install", key)
	op.MustCLI("keyring", "-use", key)
	for k := range old[0].Keys {
		op.MustCLI("keyring", "-remove", k)
	}
	for _, n := range down {
		n.Launch()
	}
	for _, n := range c.Nodes() {
		alive(t, n, 5, 30*time.Second)
	}
	proc.Eventually(t, 20*time.Second, "all hosts have the new key alone", func() error {
		now, err := op.Client.Operator().KeyringList(nil)
		if err != nil {
			return err
		}
		for _, r := range now {
			if !r.WAN && (len(r.Keys) != 1 || r.Keys[key] != 5) {
				return fmt.Errorf("%v", r.Keys)
			}
		}
		return nil
	})
}

// TestP22Rebuilt builds a host anew, under its old name and at another address: its
// services are in the catalog at once, with nobody's help.
func TestP22Rebuilt(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2})
	old, other := c.Agents[0], c.Agents[1]
	register(t, old.Agent, &api.AgentServiceRegistration{Name: "before", Port: 1})
	alive(t, other, 5, 20*time.Second)
	old.Kill()
	anew := c.AddAgent(old.Name)
	began := time.Now()
	anew.Launch()
	anew.WaitServing(60 * time.Second)
	register(t, anew.Agent, &api.AgentServiceRegistration{Name: "after", Port: 2})
	proc.Eventually(t, 30*time.Second, "the new host's service is known, the old one's is not", func() error {
		got, _, err := other.Client.Catalog().Service("after", "", nil)
		if err != nil || len(got) != 1 || got[0].Address != anew.Addr {
			return fmt.Errorf("%v, %v", got, err)
		}
		gone, _, err := other.Client.Catalog().Service("before", "", nil)
		if err != nil || len(gone) != 0 {
			return fmt.Errorf("%v, %v", gone, err)
		}
		return nil
	})
	took := time.Since(began)
	t.Logf("in the catalog %s after its start", took.Round(100*time.Millisecond))
	alive(t, other, 5, 60*time.Second)
	proc.Eventually(t, 30*time.Second, "the host is healthy at its new address", func() error {
		got, _, err := other.Client.Health().Service("after", "", true, nil)
		if err != nil || len(got) != 1 {
			return fmt.Errorf("%d, %v", len(got), err)
		}
		return nil
	})
}

// TestP22Cloned starts a copy of a living host: the copy is refused, with the reason,
// and nobody else notices.
func TestP22Cloned(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2})
	first, other := c.Agents[0], c.Agents[1]
	register(t, first.Agent, &api.AgentServiceRegistration{Name: "original", Port: 1})
	alive(t, other, 5, 20*time.Second)
	proc.Eventually(t, 20*time.Second, "the original is known", func() error {
		got, _, err := other.Client.Health().Service("original", "", true, nil)
		if err != nil || len(got) != 1 {
			return fmt.Errorf("%d, %v", len(got), err)
		}
		return nil
	})
	clone := c.AddAgent(first.Name)
	clones(t, first, clone)
	clone.Launch()
	proc.Eventually(t, 40*time.Second, "the clone says why it is not let in", func() error {
		if !strings.Contains(clone.Log(), "clone") {
			return errors.New("it says nothing")
		}
		return nil
	})
	at := func(addr string) error {
		got, _, err := other.Client.Health().Service("original", "", true, nil)
		if err != nil || len(got) != 1 || got[0].Node.Address != addr {
			return fmt.Errorf("not at %s: %v, %w", addr, got, err)
		}
		return nil
	}
	stays := func() {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			if err := at(first.Addr); err != nil {
				t.Fatalf("the original flaps: %v", err)
			}
		}
	}
	stays()
	// Nobody can tell a copy from a host that moved while the original is down. It is
	// the original again once it is back.
	first.Kill()
	proc.Eventually(t, 60*time.Second, "the clone is taken for the original", func() error { return at(clone.Addr) })
	first.Launch()
	proc.Eventually(t, 40*time.Second, "the original is itself again", func() error { return at(first.Addr) })
	stays()
}

// clones copies the data directory of a host to another one.
func clones(t *testing.T, from, to *proc.Node) {
	t.Helper()
	from.Freeze() // a file that is being replaced has another name for a moment
	out, err := exec.Command(proc.Need(t, "cp"), "-a", from.Dir+"/.", to.Dir).CombinedOutput()
	from.Thaw()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestClonedServer starts a copy of a living server: it ends and says why, also when it
// is started again while the original is down, and takes no part in Raft.
func TestClonedServer(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 1})
	first, other := c.Followers()[0], c.Agents[0]
	alive(t, other, 4, 20*time.Second)
	clone := c.AddServer(first.Name)
	clones(t, first, clone)
	refused := func(times int) {
		t.Helper()
		proc.Eventually(t, 40*time.Second, "the clone ends and says why", func() error {
			if n := strings.Count(clone.Log(), "this host is a copy"); n < times {
				return fmt.Errorf("said %d times", n)
			}
			return nil
		})
		clone.Kill()
	}
	inRaft := func() {
		t.Helper()
		cfg, err := c.Leader().Client.Operator().RaftGetConfiguration(nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(cfg.Servers) != 3 {
			t.Errorf("%d servers are in Raft", len(cfg.Servers))
		}
		for _, s := range cfg.Servers {
			if strings.HasPrefix(s.Address, clone.Addr+":") {
				t.Errorf("Raft has the clone: %+v", s)
			}
		}
	}
	clone.Launch()
	refused(1)
	first.Kill()
	clone.Launch()
	refused(2)
	inRaft()
	first.Launch()
	first.WaitServing(60 * time.Second)
	inRaft()
	// One that keeps nothing of gossip finds out once it has met the others.
	late := c.AddServer(first.Name)
	clones(t, first, late)
	if err := os.RemoveAll(filepath.Join(late.Dir, "serf")); err != nil {
		t.Fatal(err)
	}
	clone = late
	clone.Launch()
	refused(1)
	inRaft()
	alive(t, other, 4, 30*time.Second)
}
