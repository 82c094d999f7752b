package proc

import (
	"os/exec"
	"strconv"
)

// Namespace is the network namespace of the host.
func (n *Node) Namespace() string { return n.host.ns }

// Command is a program that a user, by ID, runs on the host.
func (n *Node) Command(uid int, program string, args ...string) *exec.Cmd {
	n.t.Helper()
	program, args = n.host.command(Need(n.t, "setpriv"), append([]string{
		"--reuid", strconv.Itoa(uid), "--regid", strconv.Itoa(uid), "--clear-groups", Need(n.t, program, "/usr/sbin"),
	}, args...)...)
	return exec.Command(program, args...)
}
