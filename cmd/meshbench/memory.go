package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

const (
	manyTunnels = 256       // to as many instances, each with a certificate of its own
	perTunnel   = 4         // connections over each, so that every instance gets one
	afterBulk   = 256 << 10 // bytes over each of those
	settled     = 200 * time.Millisecond
	untilClosed = 60 * time.Second // tunnels that are quiet after bulk
)

// resting is a process of ours that lets go of the memory that it does not use.
type resting struct {
	tell io.Writer
	hear *bufio.Reader
}

// newResting connects to a process that is not yet started.
func newResting(c *exec.Cmd) (*resting, error) {
	in, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &resting{in, bufio.NewReader(out)}, nil
}

func (r *resting) rest() error {
	if _, err := io.WriteString(r.tell, "rest\n"); err != nil {
		return err
	}
	_, err := r.hear.ReadString('\n')
	return err
}

// tunnelSample is what an idle tunnel costs each side, in KiB.
type tunnelSample struct {
	client, server         float64
	bulkClient, bulkServer float64 // after bulk
	left                   float64 // those open still from the round before, though quiet after bulk
}

// tunnelRig is a pair of ours with many instances. What it keeps of each for good, such
// as its counters, is there before the first round.
type tunnelRig struct {
	*instance
	descriptors int // of the client's side without a tunnel
}

func newTunnelRig(ctx context.Context, backend string) (*tunnelRig, error) {
	in, err := (&weftPair{label: "tunnels", peers: manyTunnels}).start(ctx, backend)
	if err != nil {
		return nil, err
	}
	t := &tunnelRig{instance: in}
	if t.descriptors, err = t.open(); err == nil {
		err = t.throughAll(ctx, afterBulk)
	}
	if err != nil {
		in.stop()
		return nil, err
	}
	return t, nil
}

// open counts the descriptors of the client's side.
func (t *tunnelRig) open() (int, error) {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", t.pids[1]))
	return len(list), err
}

// untilQuiet waits until the tunnels of the last bulk are closed, and counts those that
// never are.
func (t *tunnelRig) untilQuiet(ctx context.Context) (left int, err error) {
	for end := time.Now().Add(untilClosed); ; time.Sleep(500 * time.Millisecond) {
		n, err := t.open()
		if left = max(0, n-t.descriptors); err != nil || left == 0 || time.Now().After(end) || ctx.Err() != nil {
			return left, errors.Join(err, ctx.Err())
		}
	}
}

func (t *tunnelRig) sample(ctx context.Context) (s tunnelSample, err error) {
	left, err := t.untilQuiet(ctx)
	if err != nil {
		return s, err
	}
	s.left = float64(left)
	base, err := t.atRest()
	if err != nil {
		return s, err
	}
	for _, step := range []struct {
		bytes          int
		client, server *float64
	}{{1, &s.client, &s.server}, {afterBulk, &s.bulkClient, &s.bulkServer}} {
		if err := t.throughAll(ctx, step.bytes); err != nil {
			return s, err
		}
		now, err := t.atRest()
		if err != nil {
			return s, err
		}
		*step.server, *step.client = float64(now[0]-base[0])/1024/manyTunnels, float64(now[1]-base[1])/1024/manyTunnels
	}
	return s, nil
}

// memory adds a sample of what an idle process and an idle tunnel cost.
func (r *results) memory(ctx context.Context, binary, backend string, rig *tunnelRig) error {
	most, err := freshMemory(ctx, binary, backend)
	if err != nil {
		return err
	}
	r.fresh = append(r.fresh, most/1e6)
	s, err := rig.sample(ctx)
	if err != nil {
		return err
	}
	r.tunnels = append(r.tunnels, s)
	return nil
}

// freshMemory is the resident memory, in bytes, of the larger of two proxies of one
// service each that have carried one connection.
func freshMemory(ctx context.Context, binary, backend string) (float64, error) {
	in, err := (&weftPair{binary: binary, label: "weft", peers: 1}).start(ctx, backend)
	if err != nil {
		return 0, err
	}
	defer in.stop()
	time.Sleep(500 * time.Millisecond)
	var most int64
	for _, pid := range in.pids {
		most = max(most, rss(pid))
	}
	return float64(most), nil
}

// atRest is the resident memory of the server's and the client's side. One of ours is
// first asked to collect what it does not use, as it does by itself within two minutes
// of rest: without that it is mostly what setting up left.
func (in *instance) atRest() (out [2]int64, err error) {
	time.Sleep(settled) // the last lines of the log are written
	for _, r := range in.resting {
		if err := r.rest(); err != nil {
			return out, fmt.Errorf("a proxy ended: %w", err)
		}
	}
	copy(out[:], in.rss())
	return out, nil
}

// throughAll has every tunnel carry answers of n bytes, over connections that are all
// open at a time.
func (in *instance) throughAll(ctx context.Context, n int) error {
	return idle(ctx, in.front, perTunnel*manyTunnels, n, func() error { return nil })
}
