package gossip

import (
	"time"

	"github.com/hashicorp/memberlist"
)

// Pace is how fast gossip goes. Fields that are 0 keep their defaults, which suit a
// LAN; hosts of one cluster should agree.
type Pace struct {
	Interval       time.Duration // between rounds
	Nodes          int           // to how many members a round goes
	ProbeInterval  time.Duration // between probes of a random member
	ProbeTimeout   time.Duration
	RetransmitMult int // how often a message is repeated, times the logarithm of the members
	SuspicionMult  int // how many probes a silent member is only suspected, times that
}

func (p Pace) apply(c *memberlist.Config) {
	set := func(to *time.Duration, d time.Duration) {
		if d > 0 {
			*to = d
		}
	}
	count := func(to *int, n int) {
		if n > 0 {
			*to = n
		}
	}
	set(&c.GossipInterval, p.Interval)
	set(&c.ProbeInterval, p.ProbeInterval)
	set(&c.ProbeTimeout, p.ProbeTimeout)
	count(&c.GossipNodes, p.Nodes)
	count(&c.RetransmitMult, p.RetransmitMult)
	count(&c.SuspicionMult, p.SuspicionMult)
}
