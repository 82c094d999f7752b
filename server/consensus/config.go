package consensus

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
)

// Timers are the clocks of Raft. Zero fields take their defaults.
type Timers struct {
	Heartbeat time.Duration // 300 ms: silence after which a follower doubts its leader
	Election  time.Duration // 300 ms: how long a candidate waits for votes
	Lease     time.Duration // 300 ms: how long a leader leads without hearing from a majority
	Snapshot  time.Duration // 30 s: how often the length of the log is looked at
}

// Times makes heartbeat, election and lease so many times as long, for servers that are
// far from each other: each 300 ms of the lease carry a round trip of 50 ms, also while a
// host that runs late has the heartbeat stretched to maxStretch.
func (t Timers) Times(n int) Timers {
	t = t.withDefaults()
	for _, d := range []*time.Duration{&t.Heartbeat, &t.Election, &t.Lease} {
		*d *= time.Duration(n)
	}
	return t
}

func (t Timers) withDefaults() Timers {
	or := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	or(&t.Heartbeat, 300*time.Millisecond)
	or(&t.Election, t.Heartbeat)
	or(&t.Lease, t.Heartbeat)
	or(&t.Snapshot, 30*time.Second)
	return t
}

// LogSettings say how long the log gets. Zero fields take their defaults.
type LogSettings struct {
	Threshold uint64 // 16384: so many entries after the last backup there is another
	Trailing  uint64 // 10240: so many stay after it, for servers that lag; more where that is too few
}

func (l LogSettings) withDefaults() LogSettings {
	if l.Threshold == 0 {
		l.Threshold = 16384
	}
	if l.Trailing == 0 {
		l.Trailing = 10240
	}
	return l
}

// Config configures a Node.
type Config struct {
	// NodeID is the identity of the server in the cluster: a UUID that it keeps.
	NodeID string
	// Addr is the server's address as peers know it, "ip:port".
	Addr string
	// DataDir holds the log and the backups. Empty: in memory.
	DataDir string
	// MarkFile is a file outside of DataDir that says, once there is a log, which
	// one it is. With it a log that was lost or exchanged is refused, where an
	// empty one would otherwise begin a new cluster. Empty: no mark is kept.
	MarkFile string
	// Bootstrap makes a node without a past the only voter of a new cluster. A
	// node that has a past ignores it.
	Bootstrap bool
	// Store is fed with the committed commands.
	Store *store.Store
	// Network connects the servers. Nil: Transport is used.
	Network *Network
	// Transport carries Raft between servers. Nil: to this one only, in memory.
	Transport Transport
	Timers    Timers
	Log       LogSettings
	// Ahead is called by New for each command of these types that is in the log and in
	// no backup: it may be committed, and is not in the store before this node has heard
	// so from the others.
	Ahead map[catalog.CommandType]func(catalog.Command)
	// OnFatal is called, once, when the log cannot be written any more. The
	// process should end. Run returns the same error.
	OnFatal func(error)

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics

	hooks hooks
}

// hooks are where tests put disks of their own, and see what happens.
type hooks struct {
	wrapStore func(boltStore) boltStore          // a log file that fails
	memory    *memory                            // in place of a data directory
	observe   func(index uint64, command []byte) // told of every entry as it is applied
}

// memory is a log, a term and vote, and backups that are no files.
type memory struct {
	log       boltStore
	snapshots raft.SnapshotStore
	probe     func() error                           // nil: it never hangs
	space     func() (free, total uint64, err error) // nil: there is always enough
}

func (c *Config) validate() error {
	switch {
	case c.NodeID == "":
		return fmt.Errorf("consensus: %w: NodeID is empty", catalog.ErrInvalid)
	case c.Addr == "":
		return fmt.Errorf("consensus: %w: Addr is empty", catalog.ErrInvalid)
	case c.Store == nil:
		return fmt.Errorf("consensus: %w: no store", catalog.ErrInvalid)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnFatal == nil {
		c.OnFatal = func(error) {}
	}
	c.Timers, c.Log = c.Timers.withDefaults(), c.Log.withDefaults()
	return nil
}
