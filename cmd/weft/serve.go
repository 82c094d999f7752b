package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/weft/config"
)

// runAgent is `weft agent` from its options to its end.
func runAgent(ctx context.Context, opt config.Options, s streams) error {
	begin := time.Now()
	load := func() (*config.Config, error) { return config.Load(opt) }
	cfg, err := load()
	if err != nil {
		return withCode(exitConfig, err)
	}
	if _, err := checkParts(cfg); err != nil {
		return err
	}
	l, err := newLogs(cfg, s.out)
	if err != nil {
		return withCode(exitConfig, err)
	}
	defer l.close()
	// Signals are taken before anything is bound, so that none ends the process
	// half-way.
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, append(handoverSignals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)...)
	defer signal.Stop(sigs)
	greet(cfg, l)
	r, err := newRelay(l.logger())
	if err == nil {
		err = r.before.AwaitStart(ctx)
	}
	if err != nil {
		return withCode(exitFailure, err)
	}
	h, err := newHost(cfg, l, load, begin, r)
	if err != nil {
		return err
	}
	h.paths = opt.Paths
	removePID, err := writePIDFile(cfg.PIDFile)
	if err != nil {
		h.close()
		return withCode(exitFailure, err)
	}
	defer func() {
		if !r.passedOn() {
			removePID()
		}
	}()
	h.banner()
	return h.run(ctx, sigs)
}

// run serves until a signal, a leave or a failure. The server ends after the
// agent, which still has things to tell it.
func (h *host) run(ctx context.Context, sigs <-chan os.Signal) error {
	serverCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServer()
	agentCtx, stopAgent := context.WithCancel(ctx)
	defer stopAgent()

	served := make(chan error, 1)
	if h.server == nil {
		served <- nil
	} else {
		go func() {
			served <- h.server.Run(serverCtx)
			stopAgent() // there is nothing to be an agent of
		}()
	}
	ended := make(chan struct{})
	go h.signals(agentCtx, sigs, ended, stopAgent)
	go h.announce(agentCtx)
	go h.autoReload(agentCtx)
	go h.tend(ended)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_ = h.sender.Run(serverCtx) // it never fails
	}()

	err := h.agent.Run(agentCtx)
	gaveUp := errors.Is(err, agent.ErrGaveUp)
	if !gaveUp {
		notify(h.log, daemon.SdNotifyStopping)
	}
	stopServer()
	serverErr := <-served
	<-sent
	if gaveUp {
		if serverErr != nil {
			h.log.Error("the server did not end well; the hand-over goes on", "err", serverErr)
			serverErr = nil
		}
		err = h.handOver(ctx)
	}
	close(ended)
	h.log.Info("weft agent ended")
	if serverErr != nil && !errors.Is(serverErr, context.Canceled) {
		return withCode(serverCode(serverErr), fmt.Errorf("the server cannot go on: %w", serverErr))
	}
	return err
}

// signals acts on signals until the process has ended: the first that stops it
// begins a graceful end, the second forces it.
func (h *host) signals(ctx context.Context, sigs <-chan os.Signal, ended <-chan struct{}, stop func()) {
	stopping := false
	for {
		select {
		case <-ended:
			return
		case sig := <-sigs:
			switch {
			case sig == syscall.SIGHUP:
				if !stopping {
					h.hangup(ctx)
				}
			case slices.Contains(handoverSignals, sig):
				if !stopping {
					go h.replace(ctx)
				}
			case stopping:
				h.log.Warn("a second signal: the agent ends at once", "reason", sig.String())
				os.Exit(exitForced)
			default:
				stopping = true
				h.relay.stop()
				h.log.Info("the agent ends gracefully; another signal ends it at once", "reason", sig.String())
				notify(h.log, daemon.SdNotifyStopping)
				if h.leaves(sig) {
					h.agent.Leave()
				} else {
					stop()
				}
			}
		}
	}
}

// leaves tells whether a signal takes the host out of the cluster.
func (h *host) leaves(sig os.Signal) bool {
	if sig == os.Interrupt {
		return !*h.cfg.SkipLeaveOnInterrupt
	}
	return *h.cfg.LeaveOnTerminate
}

func (h *host) hangup(ctx context.Context) {
	notify(h.log, reloading())
	_ = h.agent.Reload(ctx) // it has logged what is wrong
	notify(h.log, daemon.SdNotifyReady)
}

// announce gives a new cluster its config entries, and says when the host serves:
// it knows a leader and a certificate authority.
func (h *host) announce(ctx context.Context) {
	if err := h.writeEntries(ctx); err != nil && ctx.Err() == nil {
		h.log.Error("the cluster lacks what the configuration gives it", "err", err)
	}
	// systemd is not kept waiting for servers that may be gone for long: this host
	// serves what it knows, and another start would change nothing.
	early := time.AfterFunc(readyGrace, func() {
		h.log.Warn("no leader is known yet; what is on this host's disk is served meanwhile", "node", h.cfg.NodeName)
		h.ready(ctx)
	})
	err := agent.AwaitService(ctx, h.agent)
	early.Stop()
	if err != nil {
		return // the agent ends
	}
	h.log.Info("ready", "node", h.cfg.NodeName, "dur", time.Since(h.begin))
	h.ready(ctx)
}

// readyGrace is how long systemd waits at most for a leader to be known.
const readyGrace = 10 * time.Second

// startError gives an error of the start the exit code that tells a supervisor
// whether starting again can help.
func startError(cfg *config.Config, err error) error {
	var exit *exitError
	switch {
	case err == nil || errors.As(err, &exit):
		return err
	case errors.Is(err, syscall.EADDRINUSE):
		return withCode(exitPortInUse, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return withCode(exitConfig, err)
	case errors.Is(err, catalog.ErrInvalid):
		return withCode(exitConfig, err)
	case cfg.DataDir != "" && !isNetwork(err):
		return withCode(exitDataDir, err)
	default:
		return withCode(exitFailure, err)
	}
}

func isNetwork(err error) bool {
	var op *net.OpError
	return errors.As(err, &op)
}

func loopbackAddr(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	return err == nil && (host == "localhost" || config.Loopback(host))
}
