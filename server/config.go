package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/enroll"
	"github.com/weftmesh/weft/server/consensus"
)

// Membership is what gossip believes of the hosts.
type Membership interface {
	Members() []catalog.Member
	// Doubles are living hosts that have name and ID of one of the members.
	Doubles() []catalog.Member
	// Changed gives a channel that is closed, or receives, after a change.
	Changed() <-chan struct{}
	// Knock tells whether anybody listens where a host's gossip should be.
	Knock(ctx context.Context, addr string) error
	// Shun has hosts with some IDs count as failed from now on.
	Shun(who func(id string) bool)
}

// Cluster configures what a server has to do with other hosts.
type Cluster struct {
	// Listener is the TCP listener of the server port. The Server owns it: it closes
	// it, also when New fails.
	Listener net.Listener
	// Expect is how many servers begin a new cluster together (bootstrap_expect). Each
	// of them shows the number in its gossip tag "expect". A server that has a past, or
	// finds one at another server, ignores it. 0: it waits until a cluster takes it in.
	Expect int
	// Secret is the cluster's, and Credentials are what this server proves itself with,
	// made from it. The Server renews them while it runs.
	Secret      enroll.Secret
	Credentials *enroll.Credentials
	// GossipKeys are the keys of gossip now, the one that encrypts first; newcomers are
	// given them. Nil: none.
	GossipKeys func() [][]byte
}

// maxExpect is the largest bootstrap_expect: more voters make every write slower.
const maxExpect = 15

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
	// ReapAfter is how long a host that failed stays in the catalog. Default 72 hours.
	ReapAfter time.Duration
	// Cluster lets other hosts reach this server. Nil: it serves its own process only.
	Cluster *Cluster
	// Version is shown in the server's row of the catalog and in Status.
	Version string
	// MinSessionTTL is the shortest TTL of a session. Default 10 s.
	MinSessionTTL time.Duration
	// Requests bound what is asked of this server, and Port what connects to it; see
	// SetLimits.
	Requests RequestLimits
	Port     PortLimits
	// Raft shortens or lengthens the timers of Raft; zero fields take their defaults.
	Raft consensus.Timers
	// RaftLog says how long the log of Raft gets; zero fields take their defaults.
	RaftLog consensus.LogSettings

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics

	tempo tempo // tests are quicker
}

// PortLimits bound what connections to the server port may cost. Zero fields take the
// defaults beside them.
type PortLimits struct {
	HandshakeTimeout time.Duration // 5 s
	ConnsPerSource   int           // from one address: 1024
}

func (l PortLimits) validate() error {
	if l.HandshakeTimeout < 0 || l.ConnsPerSource < 0 {
		return fmt.Errorf("server: %w: a limit of the server port is negative", catalog.ErrInvalid)
	}
	return nil
}

// tempo is how often a server looks after the others, and how long it bears with them.
type tempo struct {
	autopilot time.Duration // between looks of the leader at all servers
	dead      time.Duration // how long a server is not alive before it is removed: a restart is no death
	lonely    time.Duration // how long a server hears no leader before it asks why
}

// told is how long a server that was removed has to find out.
func (t tempo) told() time.Duration { return 3 * t.lonely }

func (t tempo) withDefaults() tempo {
	if t.autopilot == 0 {
		t.autopilot = autopilotEvery
	}
	if t.dead == 0 {
		t.dead = deadGrace
	}
	if t.lonely == 0 {
		t.lonely = lonely
	}
	return t
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
	for _, err := range []error{c.Requests.validate(), c.Port.validate()} {
		if err != nil {
			return err
		}
	}
	if c.Autopilot == (catalog.Autopilot{}) {
		c.Autopilot = catalog.DefaultAutopilot()
	}
	if err := c.Autopilot.Validate(); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if k := c.Cluster; k != nil {
		switch {
		case k.Listener == nil || k.Credentials == nil || k.Secret.Empty():
			return fmt.Errorf("server: %w: a server that others reach needs a listener, the cluster secret and credentials", catalog.ErrInvalid)
		case k.Expect < 0 || k.Expect > maxExpect:
			return fmt.Errorf("server: %w: bootstrap_expect is %d, want 1 to %d", catalog.ErrInvalid, k.Expect, maxExpect)
		case k.Expect > 1 && c.Bootstrap:
			return fmt.Errorf("server: %w: bootstrap begins a cluster of one, bootstrap_expect = %d one of %d: set one of them", catalog.ErrInvalid, k.Expect, k.Expect)
		}
	}
	c.tempo = c.tempo.withDefaults()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}
