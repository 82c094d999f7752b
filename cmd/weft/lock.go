package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"
)

// lockRetryTime is the pause between looks at a lock whose state could not be had.
const lockRetryTime = time.Second

// exitChild is the exit code for a child that failed, with -child-exit-code.
const exitChild = 2

func lockCommand(s streams) *cli.Command {
	return spec{
		name: "lock", usage: "Run a program while holding a lock", args: "PREFIX CHILD...", min: 2, max: -1, anyArgs: true,
		about: "Waits for the lock at PREFIX/.lock, or with -n for one of n places below PREFIX, runs the\n" +
			"child, and lets go. A child whose lock is lost is ended: SIGTERM, and SIGKILL after 5 s.\n" +
			"Work that the child began elsewhere goes on: a lock cannot stop it.",
		flags: clientFlags(
			&cli.BoolFlag{Name: "child-exit-code", Usage: "Exit with 2 when the child failed."},
			&cli.IntFlag{Name: "monitor-retry", Value: 3, Usage: "How often to look again, a second apart, before a lock whose state cannot be had counts as lost."},
			&cli.IntFlag{Name: "n", Value: 1, Usage: "How many may hold the lock at a time."},
			&cli.StringFlag{Name: "name", Usage: "The name of the session."},
			&cli.BoolFlag{Name: "pass-stdin", Usage: "Give standard input to the child."},
			shellFlag(),
			&cli.DurationFlag{Name: "timeout", Usage: "How long to wait for the lock; 0 is for ever."},
			&cli.DurationFlag{Name: "try", Usage: "Former name of -timeout."},
			&cli.BoolFlag{Name: "verbose", Usage: "Say what is done."},
		),
		examples: []string{"weft lock service/backup ./backup.sh", "weft lock -n=3 -timeout=1m crawl ./crawl --deep"},
		action:   withClient(s, runLock),
	}.build()
}

// holder is a lock or a semaphore.
type holder struct {
	path    string
	acquire func(stop <-chan struct{}) (lost <-chan struct{}, err error)
	release func() error
	destroy func() error
	// gone are the errors that say that there is nothing to do.
	notHeld, inUse error
}

func runLock(c *cli.Context, cl *client) error {
	wait, err := lockWait(c)
	if err != nil {
		return err
	}
	h, err := newHolder(c, cl, wait)
	if err != nil {
		return err
	}
	say := io.Discard
	if c.Bool("verbose") {
		say = c.App.ErrWriter
	}
	ctx, stop := untilSignal(c.Context)
	defer stop()
	fmt.Fprintf(say, "Waiting for the lock at %s\n", h.path)
	lost, err := h.acquire(ctx.Done())
	switch {
	case err != nil:
		return fmt.Errorf("lock %s: %w", h.path, cl.explain(err))
	case lost == nil && ctx.Err() != nil:
		return withCode(exitForced, errors.New("interrupted while waiting for the lock"))
	case lost == nil:
		return fmt.Errorf("lock %s: it could not be had in %s", h.path, wait)
	}
	fmt.Fprintln(say, "The lock is held, the child starts")
	childErr := runHolding(ctx, c, lost, say)
	fmt.Fprintln(say, "Letting go of the lock")
	if err := h.release(); err != nil && !errors.Is(err, h.notHeld) {
		return errors.Join(childErr, fmt.Errorf("lock %s: letting go: %w", h.path, cl.explain(err)))
	}
	// The last one cleans up; that others wait is no failure.
	if err := h.destroy(); err != nil && !errors.Is(err, h.inUse) {
		return errors.Join(childErr, fmt.Errorf("lock %s: cleaning up: %w", h.path, cl.explain(err)))
	}
	return childErr
}

func lockWait(c *cli.Context) (time.Duration, error) {
	wait := c.Duration("timeout")
	if c.IsSet("try") {
		wait = c.Duration("try")
	}
	switch {
	case wait < 0 || (c.IsSet("try") && wait == 0):
		return 0, usagef(c, "-timeout and -try must be above 0")
	case c.Int("n") < 1:
		return 0, usagef(c, "-n must be above 0")
	case c.Int("monitor-retry") < 0:
		return 0, usagef(c, "-monitor-retry must not be below 0")
	}
	return wait, nil
}

func newHolder(c *cli.Context, cl *client, wait time.Duration) (*holder, error) {
	prefix := strings.TrimPrefix(c.Args().First(), "/")
	if prefix == "" {
		return nil, usagef(c, "the prefix is empty")
	}
	name := c.String("name")
	if name == "" {
		name = fmt.Sprintf("Consul lock for '%s' at '%s'", strings.Join(c.Args().Slice()[1:], " "), prefix)
	}
	if n := c.Int("n"); n > 1 {
		sem, err := cl.SemaphoreOpts(&api.SemaphoreOptions{
			Prefix: prefix, Limit: n, SessionName: name, MonitorRetries: c.Int("monitor-retry"), MonitorRetryTime: lockRetryTime,
			SemaphoreTryOnce: wait > 0, SemaphoreWaitTime: wait,
		})
		if err != nil {
			return nil, err
		}
		return &holder{prefix, sem.Acquire, sem.Release, sem.Destroy, api.ErrSemaphoreNotHeld, api.ErrSemaphoreInUse}, nil
	}
	key := path.Join(prefix, api.DefaultSemaphoreKey)
	lock, err := cl.LockOpts(&api.LockOptions{
		Key: key, SessionName: name, MonitorRetries: c.Int("monitor-retry"), MonitorRetryTime: lockRetryTime,
		LockTryOnce: wait > 0, LockWaitTime: wait,
	})
	if err != nil {
		return nil, err
	}
	return &holder{key, lock.Lock, lock.Unlock, lock.Destroy, api.ErrLockNotHeld, api.ErrLockInUse}, nil
}

// runHolding runs the child until it ends by itself, or the lock is lost or a
// signal comes, which end it.
func runHolding(ctx context.Context, c *cli.Context, lost <-chan struct{}, say io.Writer) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	cmd := child(ctx, c, 1, "CONSUL_LOCK_HELD=true", "WEFT_LOCK_HELD=true")
	if c.Bool("pass-stdin") {
		cmd.Stdin = c.App.Reader
	}
	defer killGroup(cmd)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("the child could not be started: %w", err)
	}
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-lost:
			end(errLockLost)
		case <-ended:
		}
	}()
	err := cmd.Wait()
	close(ended)
	<-watched
	switch {
	case errors.Is(context.Cause(ctx), errLockLost):
		return errLockLost
	case ctx.Err() != nil:
		return withCode(exitForced, errors.New("interrupted; the child was ended"))
	case err == nil:
		return nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	fmt.Fprintf(say, "The child failed: %v\n", err)
	if c.Bool("child-exit-code") {
		return &exitError{code: exitChild, err: fmt.Errorf("the child failed: %w", err)}
	}
	return nil
}

var errLockLost = errors.New("the lock was lost; the child was ended")
