package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/agent/handover"
)

// How long the steps of a hand-over may take.
const (
	configuredTime = 15 * time.Second // until a new process has read its configuration
	servingTime    = 30 * time.Second // until it serves
	unwantedTime   = time.Minute      // until what it did not ask for is closed
	successorPause = 15 * time.Second // at most, between processes that fail
)

// relay is what this process has from the one before and leaves to the next.
type relay struct {
	sockets *handover.Sockets
	before  *handover.Predecessor // nil: this process was started in the ordinary way
	program string                // the file that was started; another one may be there by now
	once    sync.Once             // what is to be done when this process serves
	main    chan struct{}         // closed when systemd listens to this process

	mu       sync.Mutex
	busy     bool                // a hand-over is under way
	stopping bool                // the process ends, for good
	next     *handover.Successor // who takes over, once it is known to be able to
	passed   bool                // it did
	stopNow  context.CancelFunc  // ends the draining
}

func newRelay(log *slog.Logger) (*relay, error) {
	r := &relay{sockets: handover.Inherit(log), main: make(chan struct{})}
	var err error
	if r.before, err = handover.Before(); err != nil {
		return nil, err
	}
	if r.before == nil {
		close(r.main)
	}
	if r.program, err = exec.LookPath(os.Args[0]); err == nil {
		r.program, err = filepath.Abs(r.program)
	}
	if err != nil { // as it may be under a changed root; what runs can always be found
		r.program, err = os.Executable()
	}
	return r, err
}

// stop is for the end of the process: no hand-over begins any more, and what is left
// of one ends.
func (r *relay) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopping = true
	if r.stopNow != nil {
		r.stopNow()
	}
}

func (r *relay) passedOn() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.passed
}

// begin tells whether a hand-over may begin now.
func (r *relay) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.main:
	default:
		return false // this process has not quite taken over itself
	}
	if r.busy || r.stopping {
		return false
	}
	r.busy = true
	return true
}

func (r *relay) failed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = false
}

// ready says to whom it matters that this process serves.
func (h *host) ready(ctx context.Context) {
	h.relay.once.Do(func() {
		if err := h.relay.before.Serving(ctx); err != nil {
			h.log.Warn("the process before this one did not hear that it serves", "err", err)
		}
		if h.relay.before != nil {
			close(h.relay.main)
			h.relay.sockets.Store() // it is heard now
		}
		time.AfterFunc(unwantedTime, h.relay.sockets.Discard)
	})
	notify(h.log, "READY=1")
}

// replace begins a hand-over to a new process: it has the program that lies now where
// that of this process was started from. As long as it has not said that it can read its
// configuration, nothing changes here.
func (h *host) replace(ctx context.Context) {
	if h.cfg.DataDir == "" {
		h.log.Error("no other process can take over: this agent keeps everything in memory", "hint", "set data_dir")
		return
	}
	if !h.relay.begin() {
		h.log.Warn("a hand-over is under way already")
		return
	}
	h.log.Info("a new process is started, to take over", "file", h.relay.program)
	next, err := h.launch(ctx, h.relay.program)
	if err != nil {
		h.relay.failed() // first: who reads the line may try again at once
		h.log.Error("nothing was handed over; this process goes on", "err", err)
		return
	}
	h.relay.mu.Lock()
	h.relay.next = next
	h.relay.mu.Unlock()
	agent.GiveUp(h.agent)
}

// launch starts program and waits until it has read its configuration.
func (h *host) launch(ctx context.Context, program string) (*handover.Successor, error) {
	next, err := handover.Launch(program, os.Args, h.relay.sockets)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, configuredTime)
	defer cancel()
	if err := next.Configured(ctx); err != nil {
		next.Kill()
		return nil, err
	}
	return next, nil
}

// handOver ends this process once everything but the proxies was given up: the new one
// serves, and what it could not take over is carried to its end.
func (h *host) handOver(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := h.relay
	r.mu.Lock()
	next := r.next
	r.stopNow = cancel
	if r.stopping {
		cancel()
	}
	r.mu.Unlock()
	begin := time.Now()
	next, err := h.succeed(ctx, next)
	if err != nil {
		h.log.Warn("this process was told to end before another one had taken over", "err", err)
		return nil //nolint:nilerr // as it was told
	}
	r.mu.Lock()
	r.passed = true
	r.mu.Unlock()
	r.sockets.PassedOn()
	h.log.Info("another process has taken over; what this one carries may finish", "pid", next.PID(),
		"dur", time.Since(begin).Round(time.Millisecond), "grace", h.cfg.HandoverDrainTime)
	agent.Drain(ctx, h.agent, h.cfg.HandoverDrainTime)
	return nil
}

// succeed has next serve in place of this process. When it fails another process is
// started, by turns with the program of this one and with the one that lies where it was
// started from, until one serves: what was given up cannot be taken back, and the proxies
// go on meanwhile. The error is that of ctx.
func (h *host) succeed(ctx context.Context, next *handover.Successor) (*handover.Successor, error) {
	pause := time.Duration(0)
	for tries := 0; ; tries++ {
		var err error
		if next == nil {
			next, err = h.launch(ctx, [...]string{h.relay.program, "/proc/self/exe"}[tries%2])
		}
		if err == nil {
			if err = h.started(ctx, next); err == nil {
				return next, nil
			}
		}
		next = nil
		if ctx.Err() != nil {
			return nil, err
		}
		h.log.Error("the new process did not come to serve; another is started, and the proxies go on under the policy known now", "err", err, "dur", pause)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
		pause = min(max(2*pause, time.Second), successorPause)
	}
}

// started has the successor bind what was given up, and makes it the main process once
// it serves. One that fails is ended.
func (h *host) started(ctx context.Context, next *handover.Successor) error {
	ctx, cancel := context.WithTimeout(ctx, servingTime)
	defer cancel()
	err := next.Start()
	if err == nil {
		err = next.Serving(ctx)
	}
	if err != nil {
		next.Kill()
		return err
	}
	notify(h.log, "MAINPID="+strconv.Itoa(next.PID()))
	if err := next.Main(); err != nil && !errors.Is(err, os.ErrClosed) {
		h.log.Warn("the new process was not told that it is the main one", "err", err)
	}
	return nil
}
