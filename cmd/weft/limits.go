package main

import (
	"cmp"
	"math"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/cmd/weft/config"
	"github.com/weftmesh/weft/server"
)

// httpConns is the bound of connections of one client to the HTTP API; -1 for none.
func httpConns(c *config.Config) int { return cmp.Or(c.Limits.HTTPConnsPerClient, -1) }

// agentLimits are what this host asks of servers. Its own server is asked at will.
func agentLimits(c *config.Config) agent.Limits {
	out := agent.Limits{CallTimeout: c.Limits.RPCClientTimeout}
	if !c.Server {
		out.Rate, out.Burst = max(0, c.Limits.RPCRate), c.Limits.RPCBurst
	}
	return out
}

func requestLimits(c *config.Config) server.RequestLimits {
	return server.RequestLimits{Mode: c.Limits.Mode, ReadRate: c.Limits.ReadRate, WriteRate: c.Limits.WriteRate}
}

func portLimits(c *config.Config) server.PortLimits {
	return server.PortLimits{
		HandshakeTimeout: c.Limits.RPCHandshakeTimeout, ConnsPerSource: cmp.Or(c.Limits.RPCConnsPerClient, math.MaxInt32),
	}
}

// limitServer gives the server of this host the limits of a configuration that was
// read again.
func (h *host) limitServer(c *config.Config) {
	if h.server == nil {
		return
	}
	if err := h.server.SetLimits(requestLimits(c), portLimits(c)); err != nil {
		h.log.Error("the limits of the server stay as they were", "err", err)
	}
}
