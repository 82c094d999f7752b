package proc

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// Network is hosts that are network namespaces on one bridge, with the test in the
// root namespace on it too. It is removed with the test; what an earlier process left
// behind when it was killed is removed by the next.
type Network struct {
	t      testing.TB
	bridge string
	base   netip.Addr // of the test; hosts count from it
	hosts  []*Host
}

// Host is one network namespace.
type Host struct {
	net  *Network
	ns   string
	Addr netip.Addr
}

var networks atomic.Int64

// NewNetwork makes a bridge. It needs root, ip and nft.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	NeedRoot(t, "to make network namespaces")
	Need(t, "ip")
	Need(t, "nft", "/usr/sbin")
	sweepNetworks()
	n := &Network{t: t, base: netip.AddrFrom4([4]byte{10, 213, byte(os.Getpid()*7 + int(networks.Add(1))), 1})}
	n.bridge = fmt.Sprintf("wb%d-%d", os.Getpid(), networks.Load())
	t.Cleanup(n.remove)
	n.ip("link", "add", n.bridge, "type", "bridge")
	n.ip("addr", "add", n.base.String()+"/24", "dev", n.bridge)
	n.ip("link", "set", n.bridge, "up")
	return n
}

// Base is the address of the test on the bridge, which all hosts reach.
func (n *Network) Base() string { return n.base.String() }

// AddHost makes another host.
func (n *Network) AddHost() *Host {
	n.t.Helper()
	i := len(n.hosts) + 1
	a := n.base.As4()
	a[3] += byte(i)
	h := &Host{net: n, ns: fmt.Sprintf("%s-%d", n.bridge, i), Addr: netip.AddrFrom4(a)}
	n.hosts = append(n.hosts, h)
	outside := fmt.Sprintf("wv%d-%d-%d", os.Getpid()%100000, networks.Load(), i)
	n.ip("netns", "add", h.ns)
	n.ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", h.ns)
	n.ip("link", "set", outside, "master", n.bridge, "up")
	n.ip("-n", h.ns, "link", "set", "lo", "up")
	n.ip("-n", h.ns, "addr", "add", h.Addr.String()+"/24", "dev", "eth0")
	n.ip("-n", h.ns, "link", "set", "eth0", "up")
	n.ip("-n", h.ns, "route", "add", "default", "via", n.base.String())
	return h
}

// Cut drops, silently, all that goes from one host to the other; the way back stays.
func (n *Network) Cut(from, to *Host) {
	n.t.Helper()
	to.nft("add table inet cut; add chain inet cut in { type filter hook input priority 0; }; " +
		"add rule inet cut in ip saddr " + from.Addr.String() + " drop")
}

// Part drops what goes between the hosts of a and those of b, both ways.
func (n *Network) Part(a, b []*Host) {
	n.t.Helper()
	for _, x := range a {
		for _, y := range b {
			n.Cut(x, y)
			n.Cut(y, x)
		}
	}
}

// Lose drops so many percent of what reaches the host, at random.
func (n *Network) Lose(h *Host, percent int) {
	n.t.Helper()
	h.nft("add table inet cut; add chain inet cut in { type filter hook input priority 0; }; " +
		"add rule inet cut in iif eth0 numgen random mod 100 < " + strconv.Itoa(percent) + " drop")
}

// Heal undoes every cut and loss.
func (n *Network) Heal() {
	n.t.Helper()
	for _, h := range n.hosts {
		h.nft("add table inet cut; delete table inet cut")
	}
}

func (h *Host) nft(script string) {
	h.net.t.Helper()
	h.net.run("ip", "netns", "exec", h.ns, "nft", script)
}

// command is how a program runs on the host.
func (h *Host) command(program string, args ...string) (string, []string) {
	return "ip", append([]string{"netns", "exec", h.ns, program}, args...)
}

func (n *Network) ip(args ...string) {
	n.t.Helper()
	n.run("ip", args...)
}

func (n *Network) run(program string, args ...string) {
	n.t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		n.t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

func (n *Network) remove() { removeNetwork(n.bridge) }

// removeNetwork takes the bridge and the namespaces away that bear its name.
func removeNetwork(bridge string) {
	for _, ns := range namespaces() {
		if strings.HasPrefix(ns, bridge+"-") {
			_ = exec.Command("ip", "netns", "del", ns).Run() // with its end of the cable
		}
	}
	_ = exec.Command("ip", "link", "del", bridge).Run()
}

func namespaces() []string {
	entries, err := os.ReadDir("/var/run/netns")
	if err != nil {
		return nil // none was ever made
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// sweepNetworks removes networks of processes that ended without doing so.
func sweepNetworks() {
	gone := map[string]bool{}
	for _, ns := range namespaces() {
		rest, ok := strings.CutPrefix(ns, "wb")
		if !ok {
			continue
		}
		pid, _, _ := strings.Cut(rest, "-")
		if p, err := strconv.Atoi(pid); err == nil && syscall.Kill(p, 0) != nil {
			gone[ns[:strings.LastIndexByte(ns, '-')]] = true
		}
	}
	for bridge := range gone {
		removeNetwork(bridge)
	}
}
