package server

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/server/consensus"
)

// Membership is what gossip believes of the hosts.
type Membership interface {
	Members() []catalog.Member
	// Changed gives a channel that is closed, or receives, after a change.
	Changed() <-chan struct{}
}

// Config configures a Server.
type Config struct {
	// NodeName, NodeID (a UUID) and Datacenter name this host.
	NodeName   string
	NodeID     string
	Datacenter string
	// Addr is the server address that peers and clients are shown, "ip:8300".
	Addr string
	// DataDir keeps the Raft log, the backups of the store and the seal of the
	// certificate authority. Empty, which only Dev allows: all in memory.
	DataDir string
	// Dev keeps everything in memory, whatever DataDir is.
	Dev bool
	// Bootstrap makes a server without a past the first one of a new cluster.
	Bootstrap bool
	// DefaultIntention is the action where no intention matches; empty is deny.
	DefaultIntention catalog.Action
	// CA configures the certificate authority of a new cluster; an existing one
	// keeps what it has. An empty Provider is "consul", keys that are missing take
	// their defaults.
	CA catalog.CAConfig
	// Autopilot is how a new cluster looks after its servers; an existing one keeps
	// what it has. The zero value takes the defaults.
	Autopilot catalog.Autopilot
	// Membership tells which hosts there are. Nil: this one alone.
	Membership Membership
	// Version is shown in the server's row of the catalog and in Status.
	Version string
	// MinSessionTTL is the shortest TTL of a session. Default 10 s.
	MinSessionTTL time.Duration
	// Raft shortens or lengthens the timers of Raft; zero fields take their defaults.
	Raft consensus.Timers
	// RaftLog says how long the log of Raft gets; zero fields take their defaults.
	RaftLog consensus.LogSettings

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

func (c *Config) validate() error {
	for _, f := range []struct{ name, value string }{
		{"NodeName", c.NodeName}, {"NodeID", c.NodeID}, {"Datacenter", c.Datacenter}, {"Addr", c.Addr},
	} {
		if f.value == "" {
			return fmt.Errorf("server: %w: %s is empty", catalog.ErrInvalid, f.name)
		}
	}
	if c.DataDir == "" && !c.Dev {
		return fmt.Errorf("server: %w: a server needs a data directory; set data_dir, or run with -dev", catalog.ErrInvalid)
	}
	switch c.DefaultIntention {
	case "":
		c.DefaultIntention = catalog.ActionDeny
	case catalog.ActionAllow, catalog.ActionDeny:
	default:
		return fmt.Errorf("server: %w: default intention %q, want allow or deny", catalog.ErrInvalid, c.DefaultIntention)
	}
	if c.Autopilot == (catalog.Autopilot{}) {
		c.Autopilot = catalog.DefaultAutopilot()
	}
	if err := c.Autopilot.Validate(); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}
