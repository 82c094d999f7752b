package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config configures a Remote. Zero fields take the defaults beside them.
type Config struct {
	// Dial opens a connection, secured where it must be, that speaks gRPC to a server. It is called again
	// after a connection is lost, and may then reach another server.
	// Either this or Pool is required.
	Dial func(ctx context.Context) (net.Conn, error)
	// Pool is the servers of the cluster, one of which is spoken to at a time.
	Pool *Pool
	// KeepDir is a folder of this Remote alone for the last answers, from which stale
	// reads are answered after a restart while no server answers. "": nothing is kept.
	KeepDir string
	// HoldTimeout is for how long a call is tried again while there is no leader
	// or no server: 7 s, about two elections.
	HoldTimeout time.Duration
	// CallTimeout bounds one try of a call: 10 s.
	CallTimeout time.Duration
	// Rate is how many requests a second others may have made through this Remote;
	// 0 is no limit. Burst may come at once: 1000.
	Rate  float64
	Burst int
	// Linger is for how long a view that nobody waits for is kept current: 30 s.
	Linger time.Duration
	// MaxViews bounds the queries that are materialised at the same time: 8192.
	MaxViews int
	// MaxBackoff bounds the pause between tries of a broken stream: 10 s.
	MaxBackoff time.Duration

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

const defaultCallTimeout = 10 * time.Second

func (c Config) withDefaults() (Config, error) {
	if (c.Dial == nil) == (c.Pool == nil) {
		return c, errors.New("remote: either Dial or Pool must be set: the way to a server")
	}
	if c.MaxViews < 0 || c.HoldTimeout < 0 || c.CallTimeout < 0 || c.Linger < 0 || c.MaxBackoff < 0 || c.Rate < 0 || c.Burst < 0 {
		return c, fmt.Errorf("remote: limits must not be negative")
	}
	c.HoldTimeout = orDefault(c.HoldTimeout, 7*time.Second)
	c.CallTimeout = orDefault(c.CallTimeout, defaultCallTimeout)
	c.Linger = orDefault(c.Linger, 30*time.Second)
	c.MaxBackoff = orDefault(c.MaxBackoff, 10*time.Second)
	if c.MaxViews == 0 {
		c.MaxViews = 8192
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}
