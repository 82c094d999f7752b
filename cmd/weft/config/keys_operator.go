package config

import (
	"cmp"
	"encoding/base64"
	"path/filepath"
	"slices"
	"time"
)

// Keys of those who look after the servers.

func operatorKeys() []Key {
	return with(Effective, "",
		Key{Name: "encrypt", Type: String, Flag: "encrypt", Doc: "The key that encrypts gossip, of 16, 24 or 32 bytes in base64; weft keygen makes one. Once keys are in the keyring file those are used."},
		Key{Name: "disable_keyring_file", Type: Bool, Default: "false", Flag: "disable-keyring-file", Doc: "Keep the gossip keyring in memory only, instead of in serf/local.keyring in the data directory."},
		Key{Name: "autopilot.cleanup_dead_servers", Type: Bool, Default: "true", Doc: "Remove dead servers when others replace them."},
		Key{Name: "autopilot.last_contact_threshold", Type: Duration, Default: "200ms", Doc: "After how long without the leader a server counts as unhealthy."},
		Key{Name: "autopilot.max_trailing_logs", Type: Int, Default: "250", Doc: "How far a server may lag and be healthy."},
		Key{Name: "autopilot.min_quorum", Type: Int, Default: "0", Doc: "How many servers are always kept."},
		Key{Name: "autopilot.server_stabilization_time", Type: Duration, Default: "10s", Doc: "How long a new server is healthy before it votes."},
		Key{Name: "autopilot.disable_upgrade_migration", Type: Bool, Default: "false", Doc: "Do not hold back newer servers during an upgrade."},
		Key{Name: "autopilot.redundancy_zone_tag", Type: String, Doc: "The node metadata that names a zone."},
		Key{Name: "autopilot.upgrade_version_tag", Type: String, Doc: "The node metadata that names a version."},
		Key{Name: "raft_snapshot_threshold", Type: Int, Default: "16384", Doc: "After how many log entries a server writes a snapshot of its state."},
		Key{Name: "raft_snapshot_interval", Type: Duration, Default: "30s", Doc: "How often it looks whether one is due, at the least."},
		Key{Name: "raft_trailing_logs", Type: Int, Default: "10240", Doc: "How many log entries stay after a snapshot, for servers that lag; it keeps more by itself where sending a snapshot takes long."},
		Key{Name: "performance.raft_multiplier", Type: Int, Default: "1", Doc: "How many times 300 ms the heartbeat, election and lease timeouts of Raft are, 1 to 10 (0 is the default), the same on all servers. Each time is good for a round trip of 50 ms between them; a leader that falls silent is replaced as many times later. Apart from that they follow by themselves how late a host runs."},
		Key{Name: "disable_coordinates", Type: Bool, Default: "false", Doc: "Keep no network coordinates."},
		Key{Name: "sync_coordinate_interval_min", Type: Duration, Default: "15s", Doc: "How often coordinates are sent at most."},
		Key{Name: "sync_coordinate_rate_target", Type: Float, Default: "64", Doc: "How many updates of coordinates a second the cluster makes."},
	)
}

// gossipKey is the key that encrypts gossip; nil for none.
func (c *Config) gossipKey() ([]byte, error) {
	if c.Encrypt == "" {
		return nil, nil
	}
	key, err := base64.StdEncoding.DecodeString(c.Encrypt)
	if err != nil || !slices.Contains([]int{16, 24, 32}, len(key)) {
		return nil, c.problem("encrypt", "is not a key of 16, 24 or 32 bytes in base64: weft keygen makes one")
	}
	return key, nil
}

// GossipKeys are the keys that encrypt gossip, empty for none. The configuration
// has passed validation.
func (c *Config) GossipKeys() [][]byte {
	key, err := c.gossipKey()
	if key == nil || err != nil {
		return nil
	}
	return [][]byte{key}
}

// KeyringFile keeps the keys of gossip; "" for memory only.
func (c *Config) KeyringFile() string {
	if c.DataDir == "" || c.DisableKeyringFile {
		return ""
	}
	return filepath.Join(c.DataDir, "serf", "local.keyring")
}

// minSnapshotInterval keeps a server from doing nothing but looking.
const minSnapshotInterval = 100 * time.Millisecond

// maxRaftMultiplier is the greatest performance.raft_multiplier, as in Consul.
const maxRaftMultiplier = 10

func (c *Config) validateOperator() error {
	if _, err := c.gossipKey(); err != nil {
		return err
	}
	a := c.Autopilot
	for key, n := range map[string]int{"autopilot.max_trailing_logs": a.MaxTrailingLogs, "autopilot.min_quorum": a.MinQuorum} {
		if n < 0 {
			return c.problem(key, "must not be below 0")
		}
	}
	for key, n := range map[string]int{"raft_snapshot_threshold": c.RaftSnapshotThreshold, "raft_trailing_logs": c.RaftTrailingLogs} {
		if n < 1 {
			return c.problem(key, "must be above 0")
		}
	}
	if c.RaftMultiplier < 1 || c.RaftMultiplier > maxRaftMultiplier {
		return c.problem("performance.raft_multiplier", "%d is not in 1 to %d", c.RaftMultiplier, maxRaftMultiplier)
	}
	if c.RaftSnapshotInterval < minSnapshotInterval {
		return c.problem("raft_snapshot_interval", "must be at least %s", minSnapshotInterval)
	}
	if c.SyncCoordinateRateTarget <= 0 || c.SyncCoordinateIntervalMin <= 0 {
		return c.problem(cmp.Or(c.setOf("sync_coordinate_rate_target", "sync_coordinate_interval_min"), "sync_coordinate_rate_target"), "must be above 0")
	}
	return nil
}
