package main

import (
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/weftmesh/weft/agent"
)

// statusEvery is how often systemd is told how the host fares.
const statusEvery = 5 * time.Second

// tend tells systemd, until the process has ended, that it is alive and how it fares.
// What it says of the agent it learns from the agent's own parts, so that one that
// hangs is restarted.
func (h *host) tend(ended <-chan struct{}) {
	every := statusEvery
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		h.log.Warn("the watchdog of systemd cannot be served", "err", err)
	}
	if watchdog > 0 {
		every = min(every, watchdog/3)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := ""
	select { // another process may be the main one still
	case <-ended:
		return
	case <-h.relay.main:
	}
	for !h.relay.passedOn() {
		status := "STATUS=" + agent.ReportOf(h.agent).String()
		if watchdog > 0 {
			notify(h.log, daemon.SdNotifyWatchdog)
		}
		if status != last {
			notify(h.log, status)
			last = status
		}
		select {
		case <-ended:
			return
		case <-tick.C:
		}
	}
}
