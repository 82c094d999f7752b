//go:build faults && linux

package faults_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// season is a cluster of which some hosts are off while 90 days pass for the others.
type season struct {
	t     *testing.T
	c     *proc.Cluster
	here  *proc.Node            // an agent that stays; hub runs there
	up    map[*proc.Node]string // an upstream to hub on each other host
	began time.Time
}

func startSeason(t *testing.T) *season {
	s := &season{
		t: t, c: proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 4, Clocks: true}),
		up: map[*proc.Node]string{}, began: time.Now(),
	}
	stranger := s.c.AddStranger("stranger")
	stranger.Launch()
	proc.Eventually(t, 20*time.Second, "a host that knows nobody joins", func() error {
		if _, out, code := stranger.CLI("join", s.c.Servers[0].Addr); code != 0 {
			return errors.New(out)
		}
		return nil
	})
	proc.Eventually(t, 20*time.Second, "it keeps where the servers are", func() error {
		b, err := os.ReadFile(filepath.Join(stranger.Dir, "serf", "members.json"))
		if err == nil && strings.Count(string(b), `"Server": true`) < 3 {
			err = fmt.Errorf("%s", b)
		}
		return err
	})
	s.here = s.c.Agents[0]
	register(t, s.here.Agent, sidecar("hub", startEcho(t).port()))
	clients := slices.Concat(s.c.Agents[1:], s.c.Servers[:1])
	for i, port := range proc.FreePorts(t, len(clients)) {
		n := clients[i]
		register(t, n.Agent, sidecar("on-"+n.Name, 1, api.Upstream{DestinationName: "hub", LocalBindPort: port}))
		intend(t, s.here.Agent, "on-"+n.Name, "hub", api.IntentionActionAllow)
		s.up[n] = fmt.Sprintf("127.0.0.1:%d", port)
		s.reaches(n)
	}
	return s
}

// reaches waits until connections from a host to the hub get through.
func (s *season) reaches(n *proc.Node) {
	s.t.Helper()
	proc.Eventually(s.t, 40*time.Second, n.Name+" reaches the hub", func() error { return roundTripTo(s.up[n]) })
}

// newRoot has the authority make a root that is good for 27 days, with a key of so many bits.
func (s *season) newRoot(bits int) {
	s.t.Helper()
	must(s.t, s.setRoot(bits, false))
}

func (s *season) setRoot(bits int, force bool) error {
	_, err := s.c.Leader().Client.Connect().CASetConfig(&api.CAConfig{Provider: "consul", ForceWithoutCrossSigning: force, Config: map[string]any{
		"LeafCertTTL": "72h", "IntermediateCertTTL": "216h", "RootCertTTL": "720h", "PrivateKeyType": "ec", "PrivateKeyBits": bits,
	}}, nil)
	return err
}

// newKey rotates the key of gossip by the one command.
func (s *season) newKey() {
	s.t.Helper()
	proc.Eventually(s.t, 40*time.Second, "the key of gossip is rotated", func() error {
		if _, out, code := s.c.Leader().CLI("keyring", "-rotate"); code != 0 {
			return errors.New(out)
		}
		return nil
	})
}

// live lets time pass for some hosts, from one day to another. Each few days a server
// begins to lead, and with it the duties of leaders.
func (s *season) live(from, to int, servers []*proc.Node, others ...*proc.Node) {
	s.t.Helper()
	for d := from; d <= to; d += 5 {
		set(time.Duration(d)*day, slices.Concat(servers, others)...)
		next := servers[d/5%len(servers)]
		if s.c.Leader() == next {
			next = servers[(d/5+1)%len(servers)]
		}
		hand(s.t, s.c, next)
		proc.Eventually(s.t, 30*time.Second, "the root is one with days before it", func() error {
			roots, _, err := next.Client.Connect().CARoots(nil)
			if err != nil {
				return err
			}
			for _, r := range roots.Roots {
				if left := r.NotAfter.Sub(next.Clock()); r.Active && left < 6*day {
					return fmt.Errorf("on day %d it has %s", d, left)
				}
			}
			return nil
		})
	}
	s.note("day %d", to)
}

func (s *season) note(format string, args ...any) {
	s.t.Logf("%6.1fs: %s", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// back waits until a host that was away is what it was.
func (s *season) back(n *proc.Node, within time.Duration) {
	s.t.Helper()
	n.WaitServing(40 * time.Second)
	proc.Eventually(s.t, within, n.Name+" is back", func() error {
		if got, _, err := s.here.Client.Health().Service("on-"+n.Name, "", true, nil); err != nil || len(got) != 1 {
			return fmt.Errorf("%d healthy instances of its service: %w", len(got), cmpErr(err))
		}
		if key, now := gossipKey(s.t, n), gossipKey(s.t, s.c.Leader()); key != now {
			return errors.New("it has another key of gossip")
		}
		svc, _, err := n.Client.Agent().Service("on-"+n.Name+"-sidecar-proxy", nil)
		if err != nil {
			return err
		}
		root, _, err := signer(s.here)
		if err != nil {
			return err
		}
		if by, err := shownBy(fmt.Sprintf("%s:%d", n.Addr, svc.Port)); err != nil || by != root {
			return fmt.Errorf("its proxy shows a certificate of %s, the root is %s: %w", by, root, cmpErr(err))
		}
		return roundTripTo(s.up[n])
	})
	s.note("%s is back", n.Name)
}

// TestP14NinetyDaysAway has hosts be off for 90 days of all clocks, a server among them, one
// that is suspended, and one that knows the servers from gossip alone, while roots and keys
// of gossip are rotated again and again and the join token goes: those that nobody revoked
// come back by themselves, with no file edited, the other does not. Then all are off for 90
// days more, in which every certificate and root ends.
func TestP14NinetyDaysAway(t *testing.T) {
	t.Parallel()
	s := startSeason(t)
	c, away, shut, asleep, stranger := s.c, s.c.Agents[1], s.c.Agents[2], s.c.Agents[3], s.c.Agents[4]
	s.newRoot(384)
	must(t, os.Remove(c.Token))
	server := c.Followers()[0]
	if server == c.Servers[0] {
		server = c.Followers()[1]
	}
	stay := slices.DeleteFunc(slices.Clone(c.Servers), func(n *proc.Node) bool { return n == server })
	if code := away.Stop(); code != 0 { // as when it is shut down
		t.Errorf("%s ended with %d", away.Name, code)
	}
	for _, n := range []*proc.Node{shut, stranger, server} { // as when the power goes
		n.Kill()
	}
	asleep.Freeze() // as when a machine is suspended
	c.Leader().MustCLI("node", "revoke", shut.Name)
	var roots []string // by the IDs of their keys, in order
	remember := func() {
		root, _, err := signer(c.Leader())
		must(t, err)
		if !slices.Contains(roots, root) {
			roots = append(roots, root)
		}
	}
	remember()
	for i, bits := range []int{256, 384} {
		s.live(45*i+5, 45*i+45, stay, s.here)
		remember()
		s.newRoot(bits)
		remember()
		s.newKey()
		for _, n := range append(stay, s.here) { // what they know is on their disks
			n.Restart()
			n.WaitServing(40 * time.Second)
		}
		s.reaches(c.Servers[0])
		s.note("%d roots so far", len(roots))
	}
	set(90*day, c.Nodes()...)
	for _, n := range []*proc.Node{server, away, shut, stranger} {
		n.Launch()
	}
	asleep.Thaw()
	all := []*proc.Node{server, away, stranger, asleep, s.here}
	for _, n := range all[1:4] {
		s.back(n, 30*time.Second)
	}
	server.WaitServing(40 * time.Second)
	for _, n := range all {
		alive(t, n, 7, 40*time.Second)
	}
	known, _, err := away.Client.Connect().CARoots(nil)
	must(t, err)
	if len(roots) < 5 || len(known.Roots) > 3 {
		t.Errorf("%d roots signed meanwhile, and %d are known still", len(roots), len(known.Roots))
	}
	proc.Eventually(t, 30*time.Second, "the server takes part in Raft", func() error {
		now, err := applied(server)
		if err != nil {
			return err
		}
		if lead, err := applied(c.Leader()); err != nil || now < lead {
			return fmt.Errorf("it has %d of %d, %w", now, lead, cmpErr(err))
		}
		return nil
	})
	proc.Eventually(t, 30*time.Second, "the revoked host says why it is refused, and what to do", func() error {
		for _, text := range []string{"node_revoked", "an operator can allow it again"} {
			if !strings.Contains(shut.Log(), text) {
				return fmt.Errorf("its log does not say %q", text)
			}
		}
		return nil
	})
	if got, _, err := s.here.Client.Health().Service("on-"+shut.Name, "", true, nil); err != nil || len(got) != 0 {
		t.Errorf("%d healthy services of the revoked host, %v", len(got), err)
	}
	if err := roundTripTo(s.up[shut]); err == nil {
		t.Error("a service of the revoked host reaches the hub")
	}
	if gossipKey(t, shut) == gossipKey(t, s.here) {
		t.Error("the revoked host has the key of gossip")
	}
	s.note("%s stays out", shut.Name)

	// Now all are off, and nothing that they have is good any more but the secret.
	for _, n := range c.Nodes() {
		n.Kill()
	}
	set(180*day, c.Nodes()...)
	for _, n := range c.Nodes() {
		n.Launch()
	}
	if !proc.Full() { // else the leader doubts its clock for five minutes
		proc.Eventually(t, 40*time.Second, "an operator says that the clock is right", func() error { return s.setRoot(256, true) })
	}
	for _, n := range all[1:4] {
		s.back(n, proc.Count(time.Minute, 7*time.Minute))
	}
	for _, n := range all {
		alive(t, n, 7, 40*time.Second)
	}
	if err := roundTripTo(s.up[shut]); err == nil {
		t.Error("a service of the revoked host reaches the hub after 180 days")
	}
	s.note("all are back")
}
