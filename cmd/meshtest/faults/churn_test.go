//go:build faults

package faults_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
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

// seed is that of the environment, or of the clock, and is logged.
func seed(t *testing.T) *rand.Rand {
	n, err := strconv.ParseUint(os.Getenv("WEFT_SEED"), 10, 64)
	if err != nil {
		n = uint64(time.Now().UnixNano())
	}
	t.Logf("WEFT_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 1))
}

// TestP20ChurnOfAgents kills, restarts, registers and deregisters at random, and asks for
// changes of tokens, which have no effect while there are no ACLs: soon after the last of
// it the catalog is the union of what the living agents say, which is what they were told:
// no ghosts, none missing.
func TestP20ChurnOfAgents(t *testing.T) {
	t.Parallel()
	rng := seed(t)
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 6})
	told := make([]map[string]bool, len(c.Agents)) // IDs that were acknowledged
	for i := range told {
		told[i] = map[string]bool{}
	}
	kinds := map[string]int{}
	for n := range proc.Count(200, 1000) {
		i := rng.IntN(len(c.Agents))
		a := c.Agents[i]
		what := rng.IntN(10)
		switch {
		case !a.Running():
			a.Launch()
			kinds["restart"]++
		case what < 4:
			id := fmt.Sprintf("s%d-%d", i, rng.IntN(8))
			proc.Eventually(t, 30*time.Second, a.Name+" takes a registration", func() error {
				return a.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: "churn", Port: n + 1})
			})
			told[i][id] = true
			kinds["register"]++
		case what < 6 && len(told[i]) > 0:
			id := slices.Sorted(maps.Keys(told[i]))[0]
			proc.Eventually(t, 30*time.Second, a.Name+" takes a deregistration", func() error {
				return a.Client.Agent().ServiceDeregister(id)
			})
			delete(told[i], id)
			kinds["deregister"]++
		case what < 7:
			_, _ = a.Client.Agent().UpdateDefaultACLToken(fmt.Sprintf("00000000-0000-0000-0000-%012d", n), nil) // starting, perhaps
			kinds["token"]++
		default:
			a.Kill()
			kinds["kill"]++
		}
	}
	began := time.Now()
	asker := c.Servers[0]
	proc.Eventually(t, 60*time.Second, "the catalog is what the living agents say", func() error {
		for i, a := range c.Agents {
			if !a.Running() {
				passing, _, err := asker.Client.Health().Service("churn", "", true, nil)
				if err != nil {
					return err
				}
				for _, s := range passing {
					if s.Node.Node == a.Name {
						return fmt.Errorf("a ghost: %s of %s, which is dead, passes", s.Service.ID, a.Name)
					}
				}
				continue
			}
			own, err := a.Client.Agent().Services()
			if err != nil {
				return err
			}
			node, _, err := asker.Client.Catalog().Node(a.Name, nil)
			if err != nil || node == nil {
				return fmt.Errorf("%s: %v, %w", a.Name, node, err)
			}
			delete(node.Services, "consul")
			want := slices.Sorted(maps.Keys(told[i]))
			if got := slices.Sorted(maps.Keys(own)); !slices.Equal(got, want) {
				return fmt.Errorf("%s was told %v and has %v", a.Name, want, got)
			}
			if got := slices.Sorted(maps.Keys(node.Services)); !slices.Equal(got, want) {
				return fmt.Errorf("of %s the catalog has %v, not %v", a.Name, got, want)
			}
			for id, s := range own {
				if node.Services[id].Port != s.Port {
					return fmt.Errorf("%s: an old port of %s", a.Name, id)
				}
			}
		}
		return nil
	})
	took := time.Since(began)
	t.Logf("P20: %v: the catalog is right %s after the last", kinds, took.Round(10*time.Millisecond))
	if took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestLeaveForceLeaveAndRTT goes through what an operator does with members.
func TestLeaveForceLeaveAndRTT(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 3})
	leaver, victim, other := c.Agents[0], c.Agents[1], c.Agents[2]
	alive(t, other, 6, 20*time.Second)
	register(t, leaver.Agent, &api.AgentServiceRegistration{Name: "leaving", Port: 1})
	status := func(name string) string {
		out, _, _ := other.CLI("members", "-status", ".*")
		for _, line := range strings.Split(out, "\n") {
			if f := strings.Fields(line); len(f) > 2 && f[0] == name {
				return f[2]
			}
		}
		return ""
	}
	proc.Eventually(t, 40*time.Second, "the time between two hosts is known", func() error {
		out, errOut, code := other.CLI("rtt", leaver.Name, victim.Name)
		if code != 0 || !strings.Contains(out, " ms") {
			return fmt.Errorf("exit %d: %s%s", code, out, errOut)
		}
		return nil
	})
	leaver.MustCLI("leave")
	if code := leaver.Wait(20 * time.Second); code != 0 {
		t.Errorf("an agent that left ends with %d", code)
	}
	proc.Eventually(t, 20*time.Second, "it left, and its services are gone", func() error {
		services, _, err := other.Client.Catalog().Service("leaving", "", nil)
		if s := status(leaver.Name); s != "left" || err != nil || len(services) > 0 {
			return fmt.Errorf("%q, %d services, %v", s, len(services), err)
		}
		return nil
	})
	if _, errOut, code := other.CLI("force-leave", victim.Name); code == 0 {
		t.Errorf("a living member is forced out: %s", errOut)
	}
	victim.Kill()
	proc.Eventually(t, 60*time.Second, "the victim failed", func() error {
		if s := status(victim.Name); s != "failed" {
			return errors.New(s)
		}
		return nil
	})
	other.MustCLI("force-leave", victim.Name)
	proc.Eventually(t, 20*time.Second, "it counts as one that left, everywhere", func() error {
		node, _, err := c.Servers[0].Client.Catalog().Node(victim.Name, nil)
		if s := status(victim.Name); s != "left" || err != nil || node != nil {
			return fmt.Errorf("%q, %v, %v", s, node, err)
		}
		return nil
	})
	other.MustCLI("force-leave", "-prune", victim.Name)
	proc.Eventually(t, 20*time.Second, "it is forgotten", func() error {
		if s := status(victim.Name); s != "" {
			return errors.New(s)
		}
		return nil
	})
	for _, n := range []*proc.Node{leaver, victim} {
		n.Launch()
	}
	c.WaitServing(40 * time.Second)
	alive(t, other, 6, 30*time.Second)
	proc.Eventually(t, 20*time.Second, "the services of the one that left are back", func() error {
		if services, _, err := other.Client.Catalog().Service("leaving", "", nil); err != nil || len(services) != 1 {
			return fmt.Errorf("%d, %v", len(services), err)
		}
		return nil
	})
}

// gossipKey is the key that a host encrypts gossip with.
func gossipKey(t *testing.T, n *proc.Node) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.Dir, "serf", "local.keyring"))
	var keys []string
	if err == nil {
		err = json.Unmarshal(b, &keys)
	}
	if err != nil || len(keys) == 0 {
		t.Fatalf("%s: %v", b, err)
	}
	return keys[0]
}

// TestRevokeByOperator revokes a token and a node: the one lets nobody in any more, the
// other is shut out at once and stays so over its restart, until it is allowed again.
func TestRevokeByOperator(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2})
	shut, other := c.Agents[0], c.Agents[1]
	alive(t, other, 5, 20*time.Second)
	token, err := os.ReadFile(c.Token)
	if err != nil {
		t.Fatal(err)
	}
	c.Servers[0].MustCLI("join-token", "revoke", strings.TrimSpace(string(token)))
	equal(t, c.Servers...) // whoever is asked knows it
	late := c.AddAgent("late")
	late.Launch()
	proc.Eventually(t, 20*time.Second, "who comes with the token learns that it was revoked", func() error {
		if !strings.Contains(late.Log(), "revoked") {
			return errors.New("it does not say so")
		}
		return nil
	})
	if _, _, err := late.Client.Catalog().Nodes(nil); err == nil {
		t.Error("it reads the catalog")
	}
	late.Kill()

	register(t, shut.Agent, &api.AgentServiceRegistration{Name: "shut", Port: 1})
	health := func(want int) {
		t.Helper()
		proc.Eventually(t, 30*time.Second, fmt.Sprintf("%d services of the node are healthy", want), func() error {
			if got, _, err := other.Client.Health().Service("shut", "", true, nil); err != nil || len(got) != want {
				return fmt.Errorf("%d, %v", len(got), err)
			}
			return nil
		})
	}
	health(1)
	began := time.Now()
	c.Servers[0].MustCLI("node", "revoke", shut.Name)
	proc.Eventually(t, 60*time.Second, "the node learns that it was revoked", func() error {
		if !strings.Contains(shut.Log(), "revoked") {
			return errors.New("it does not say so")
		}
		if _, _, err := shut.Client.Catalog().Nodes(&api.QueryOptions{RequireConsistent: true}); err == nil {
			return errors.New("it still reads the catalog")
		}
		return nil
	})
	t.Logf("shut out after %s", time.Since(began).Round(10*time.Millisecond))
	health(0) // though it lives
	equal(t, c.Servers...)
	old, key := gossipKey(t, c.Servers[0]), strings.TrimSpace(other.MustCLI("keygen"))
	for _, step := range [][]string{{"-install", key}, {"-use", key}, {"-remove", old}} {
		c.Servers[0].MustCLI("keyring", step[0], step[1])
	}
	if k := gossipKey(t, shut); k != old {
		t.Errorf("the node was given the key %s", k)
	}
	alive(t, other, 4, 60*time.Second)
	c.Servers[0].MustCLI("force-leave", "-prune", shut.Name)
	proc.Eventually(t, 30*time.Second, "the node is not in the catalog", func() error {
		if n, _, err := other.Client.Catalog().Node(shut.Name, nil); err != nil || n != nil {
			return fmt.Errorf("%v, %v", n, err)
		}
		return nil
	})
	shut.Restart()
	pause(3000)
	if _, _, err := shut.Client.Catalog().Nodes(&api.QueryOptions{RequireConsistent: true}); err == nil {
		t.Error("after its restart it reads the catalog")
	}
	c.Servers[0].MustCLI("node", "allow", shut.Name)
	shut.WaitServing(60 * time.Second)
	health(1)
	for _, n := range c.Nodes() {
		if strings.Contains(n.Log(), "unacceptable label") {
			t.Errorf("%s takes a server that knocks for a stranger:\n%s", n.Name, tail(n.Log()))
		}
	}
}

// TestP22SwappedAddresses gives two hosts each other's address, again and again, and
// others another name: the catalog follows, and nobody else is disturbed.
func TestP22SwappedAddresses(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 3})
	a, b, other := c.Agents[0], c.Agents[1], c.Agents[2]
	register(t, other.Agent, &api.AgentServiceRegistration{Name: "bystander", Port: 1})
	register(t, a.Agent, &api.AgentServiceRegistration{Name: "of-a", Port: 1})
	register(t, b.Agent, &api.AgentServiceRegistration{Name: "of-b", Port: 1})
	at := func(service, addr, node string) error {
		got, _, err := other.Client.Health().Service(service, "", true, nil)
		if err != nil || len(got) != 1 || got[0].Node.Address != addr || got[0].Node.Node != node {
			b, _ := json.Marshal(got)
			return fmt.Errorf("%s: %s, %w", service, b, err)
		}
		return nil
	}
	proc.Eventually(t, 20*time.Second, "all is known", func() error {
		return errors.Join(at("of-a", a.Addr, a.Name), at("of-b", b.Addr, b.Name), at("bystander", other.Addr, other.Name))
	})
	done, flaps := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-done:
				flaps <- n
				return
			case <-time.After(50 * time.Millisecond):
				if at("bystander", other.Addr, other.Name) != nil {
					n++
				}
			}
		}
	}()
	var took []time.Duration
	for i := range proc.Count(2, 100) {
		a.Kill()
		b.Kill()
		c.SwapAddrs(a, b)
		began := time.Now()
		a.Launch()
		b.Launch()
		if i%2 == 1 { // and a host gets another name
			b.Kill()
			b.Rename("renamed-" + strconv.Itoa(i))
			b.Launch()
		}
		proc.Eventually(t, 90*time.Second, "the catalog has the new addresses and names", func() error {
			return errors.Join(at("of-a", a.Addr, a.Name), at("of-b", b.Addr, b.Name))
		})
		took = append(took, time.Since(began))
		if d := took[i]; d > 5*time.Second {
			t.Logf("P22: swap %d took %s from %s", i, d.Round(time.Millisecond), began.UTC().Format("15:04:05.000"))
		}
	}
	close(done)
	n := <-flaps
	slices.Sort(took)
	t.Logf("P22: %d swaps, known after: %s; the bystander flapped %d times", len(took), spread(took), n)
	if n > 0 {
		t.Errorf("the bystander flapped %d times", n)
	}
	if _, err := os.Stat(filepath.Join(a.Dir, "node-id")); err != nil {
		t.Error(err)
	}
}
