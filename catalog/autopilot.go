package catalog

import "time"

// Autopilot says how the servers look after themselves: when one counts as healthy
// and when a dead one is removed.
type Autopilot struct {
	CleanupDeadServers      bool
	LastContactThreshold    time.Duration
	MaxTrailingLogs         uint64
	MinQuorum               uint
	ServerStabilizationTime time.Duration
	// Those below are kept for clients of Consul Enterprise and do nothing.
	RedundancyZoneTag       string
	DisableUpgradeMigration bool
	UpgradeVersionTag       string
	RaftIndex
}

// DefaultAutopilot is the configuration of a new cluster.
func DefaultAutopilot() Autopilot {
	return Autopilot{
		CleanupDeadServers: true, LastContactThreshold: 200 * time.Millisecond, MaxTrailingLogs: 250,
		ServerStabilizationTime: 10 * time.Second,
	}
}

// SetAutopilot replaces the configuration of autopilot. With CAS as SetConfigEntry.
// Result: bool, false when the check-and-set lost.
type SetAutopilot struct {
	Config Autopilot
	CAS    bool
	Index  uint64
}

// CommandType implements Command.
func (*SetAutopilot) CommandType() CommandType { return CmdSetAutopilot }

// Validate implements Command.
func (c *SetAutopilot) Validate() error { return c.Config.Validate() }

// Validate refuses times that cannot be waited for.
func (a *Autopilot) Validate() error {
	if a.LastContactThreshold < 0 || a.ServerStabilizationTime < 0 {
		return Invalidf("autopilot: LastContactThreshold and ServerStabilizationTime must not be negative")
	}
	if len(a.RedundancyZoneTag) > maxName || len(a.UpgradeVersionTag) > maxName {
		return Invalidf("autopilot: a tag has more than %d bytes", maxName)
	}
	return nil
}
