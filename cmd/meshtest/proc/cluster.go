package proc

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// ClusterOptions say which cluster to start.
type ClusterOptions struct {
	Servers, Agents int
	// Namespaces puts each host into a network namespace of its own, where it can be
	// cut off. It needs root. Otherwise each has its own address of 127.0.0.0/8.
	Namespaces bool
	// ServerArgs and AgentArgs are further arguments of `weft agent`.
	ServerArgs, AgentArgs []string
	// ServerDirs are where the data directories of the servers are, by number; for
	// those that have none, and for agents, it is a directory of the test's own.
	ServerDirs []string
	// Clocks gives each host a wall clock of its own, for SetClock. It needs root.
	Clocks bool
	// Unstarted leaves the starting of the hosts to the test.
	Unstarted bool
}

// Cluster is real processes on several hosts.
type Cluster struct {
	t       testing.TB
	Network *Network // nil without Namespaces
	Dir     string
	Secret  string // file
	Token   string // file
	Servers []*Node
	Agents  []*Node

	block [2]byte // of 127.0.0.0/8
	hosts int     // that were ever made

	clocks bool // of the hosts' own
}

// Node is a host of a cluster.
type Node struct {
	*Agent
	Name string
	Addr string // IP
	Dir  string // its data directory
}

var loopbacks atomic.Int64

// StartCluster mints a secret and a token, starts servers and agents, and waits until
// all of them serve. Everything ends with the test.
func StartCluster(t testing.TB, o ClusterOptions) *Cluster {
	t.Helper()
	c := &Cluster{t: t, Dir: t.TempDir(), clocks: o.Clocks}
	if o.Clocks {
		needClocks(t)
	}
	if o.Namespaces {
		c.Network = NewNetwork(t)
	}
	c.Secret, c.Token = filepath.Join(c.Dir, "secret"), filepath.Join(c.Dir, "token")
	c.weft("secret", "new", "-out", c.Secret)
	c.weft("join-token", "-secret-file", c.Secret, "-out", c.Token)
	c.block = [2]byte{byte(20 + os.Getpid()%200), byte(loopbacks.Add(1))}
	for i := range o.Servers {
		dir := ""
		if i < len(o.ServerDirs) {
			dir = o.ServerDirs[i]
		}
		c.Servers = append(c.Servers, c.node(fmt.Sprintf("server-%d", i+1), dir, slices.Concat(
			[]string{"-server", fmt.Sprintf("-bootstrap-expect=%d", o.Servers), "-cluster-secret-file", c.Secret}, o.ServerArgs)))
	}
	for _, n := range c.Servers {
		n.args = append(n.args, c.joins()...)
	}
	for i := range o.Agents {
		c.AddAgent(fmt.Sprintf("agent-%d", i+1), o.AgentArgs...)
	}
	if !o.Unstarted {
		c.Start()
	}
	return c
}

// AddAgent prepares one more host, at an address of its own. It is not started.
func (c *Cluster) AddAgent(name string, args ...string) *Node {
	c.t.Helper()
	n := c.node(name, "", slices.Concat([]string{"-join-token-file", c.Token}, c.joins(), args))
	c.Agents = append(c.Agents, n)
	return n
}

// AddStranger prepares one more host that is told of no other: `weft join` tells it. It
// is not started.
func (c *Cluster) AddStranger(name string) *Node {
	c.t.Helper()
	n := c.node(name, "", []string{"-join-token-file", c.Token})
	c.Agents = append(c.Agents, n)
	return n
}

// AddServer prepares one more server, at an address of its own, for a cluster that there
// is already. It is not started.
func (c *Cluster) AddServer(name string) *Node {
	c.t.Helper()
	n := c.node(name, "", slices.Concat([]string{"-server", "-cluster-secret-file", c.Secret}, c.joins()))
	c.Servers = append(c.Servers, n)
	return n
}

func (c *Cluster) joins() []string {
	var out []string
	for _, s := range c.Servers {
		out = append(out, "-retry-join", s.Addr)
	}
	return out
}

// node prepares a host at the next address.
func (c *Cluster) node(name, dir string, args []string) *Node {
	c.t.Helper()
	c.hosts++
	var h *Host
	addr := fmt.Sprintf("127.%d.%d.%d", c.block[0], c.block[1], c.hosts)
	if c.Network != nil {
		h = c.Network.AddHost()
		addr = h.Addr.String()
	}
	if dir == "" {
		dir = filepath.Join(c.Dir, fmt.Sprintf("%d-%s", c.hosts, name))
	}
	n := &Node{Name: name, Addr: addr, Dir: dir}
	hcl := `ports { dns = -1 } performance { leave_drain_time = "200ms" }`
	n.Agent = &Agent{
		t: c.t, bin: Binary(c.t), host: h,
		args: append([]string{"agent", "-node", name, "-bind", addr, "-client", addr, "-data-dir", n.Dir, "-hcl", hcl}, args...),
	}
	if c.clocks {
		n.wall = &wall{}
	}
	n.connect()
	c.t.Cleanup(func() {
		n.Kill()
		if dir := os.Getenv("WEFT_LOGS"); dir != "" { // keep them all, for who wants to know more
			_ = os.WriteFile(filepath.Join(dir, strings.ReplaceAll(c.t.Name(), "/", "-")+"-"+name+".log"), []byte(n.log.String()), 0o600)
		}
		if c.t.Failed() {
			c.t.Logf("log of %s:\n%s", name, tail(n.log.String(), 12000))
		}
	})
	return n
}

// SwapAddrs gives two hosts that are not running each other's address.
func (c *Cluster) SwapAddrs(a, b *Node) {
	c.t.Helper()
	if c.Network != nil {
		c.t.Fatal("hosts in namespaces keep their addresses")
	}
	was, is := a.Addr, b.Addr
	for n, addr := range map[*Node]string{a: is, b: was} {
		for i, arg := range n.args {
			if (arg == "-bind" || arg == "-client") && i+1 < len(n.args) {
				n.args[i+1] = addr
			}
		}
		n.Addr = addr
		n.connect()
	}
}

// Rename gives a host that is not running another name.
func (n *Node) Rename(name string) {
	n.args[slices.Index(n.args, "-node")+1] = name
	n.Name = name
}

// connect makes the client of the host's API.
func (n *Node) connect() {
	n.t.Helper()
	n.HTTP = net.JoinHostPort(n.Addr, "8500")
	client, err := api.NewClient(&api.Config{Address: n.HTTP, Scheme: "http", Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		n.t.Fatal(err)
	}
	n.Client = client
}

// tail is the end of a log.
func tail(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return "…" + s[len(s)-most:]
}

// weft runs a command that needs no agent.
func (c *Cluster) weft(args ...string) {
	c.t.Helper()
	out, err := exec.Command(Binary(c.t), args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("weft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Nodes are all hosts, the servers first.
func (c *Cluster) Nodes() []*Node { return slices.Concat(c.Servers, c.Agents) }

// Start starts all hosts and waits until they serve.
func (c *Cluster) Start() {
	c.t.Helper()
	for _, n := range c.Nodes() {
		n.Launch()
	}
	c.WaitServing(60 * time.Second)
}

// WaitServing waits until all hosts that run serve.
func (c *Cluster) WaitServing(within time.Duration) {
	c.t.Helper()
	end := time.Now().Add(within)
	for _, n := range c.Nodes() {
		if n.Started() {
			n.WaitServing(time.Until(end))
		}
	}
}

// Leader waits for the server that leads.
func (c *Cluster) Leader() *Node {
	c.t.Helper()
	var found *Node
	Eventually(c.t, 30*time.Second, "there is a leader", func() error {
		for _, n := range c.Servers {
			if !n.Running() {
				continue
			}
			addr, err := n.Client.Status().Leader()
			if err != nil || addr == "" {
				continue
			}
			for _, s := range c.Servers {
				if s.Running() && strings.HasPrefix(addr, s.Addr+":") {
					found = s
					return nil
				}
			}
		}
		return errors.New("nobody names one that runs")
	})
	return found
}

// Followers are the servers that run and do not lead.
func (c *Cluster) Followers() []*Node {
	_, others := c.Roles()
	return others
}

// Roles are the leader, and those that run beside it, as of one look.
func (c *Cluster) Roles() (lead *Node, others []*Node) {
	lead = c.Leader()
	return lead, slices.DeleteFunc(slices.Clone(c.Servers), func(n *Node) bool { return n == lead || !n.Running() })
}

// HostOf is where a node runs, for cuts.
func HostOf(nodes ...*Node) []*Host {
	out := make([]*Host, 0, len(nodes))
	for _, n := range nodes {
		out = append(out, n.host)
	}
	return out
}

// Isolate cuts nodes off from all others; the test still reaches them.
func (c *Cluster) Isolate(nodes ...*Node) {
	c.t.Helper()
	others := slices.DeleteFunc(c.Nodes(), func(n *Node) bool { return slices.Contains(nodes, n) })
	c.Network.Part(HostOf(nodes...), HostOf(others...))
}

// Freeze stops the process as it is, SIGSTOP; Thaw lets it go on.
func (n *Node) Freeze() { n.Signal(syscall.SIGSTOP) }

// Thaw undoes Freeze.
func (n *Node) Thaw() { n.Signal(syscall.SIGCONT) }

// Restart ends the process with SIGKILL and starts it again.
func (n *Node) Restart() {
	n.t.Helper()
	n.Kill()
	n.Launch()
}
