package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
)

// untilSignal gives a context that ends with the first SIGINT or SIGTERM; the
// second ends the process at once. The function stops listening.
func untilSignal(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		select {
		case <-ch:
			cancel()
		case <-done:
			return
		}
		select {
		case <-ch:
			os.Exit(exitForced)
		case <-done:
		}
	}()
	stopped := false
	return ctx, func() {
		if !stopped {
			stopped = true
			signal.Stop(ch)
			close(done)
		}
		cancel()
	}
}

// notify tells systemd what the process is doing, where it runs under it.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd was not told", "status", state, "err", err)
	}
}

// reloading is the state around a reload, which needs the time of its begin.
func reloading() string {
	return fmt.Sprintf("%s\n%s", daemon.SdNotifyReloading, daemon.SdNotifyMonotonicUsec())
}
