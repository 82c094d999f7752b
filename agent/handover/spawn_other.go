//go:build !linux

package handover

import "os/exec"

// child is a process that this one started.
type child struct {
	pid   int
	cmd   *exec.Cmd
	ended chan struct{}
}

// spawn starts cmd.
func spawn(cmd *exec.Cmd) (*child, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{pid: cmd.Process.Pid, cmd: cmd, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // it says itself why it ended
		close(c.ended)
	}()
	return c, nil
}

func (c *child) kill() { _ = c.cmd.Process.Kill() } // it may have ended already
