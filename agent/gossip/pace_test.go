package gossip

import (
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

func TestPace(t *testing.T) {
	c := memberlist.DefaultLANConfig()
	before := *c
	Pace{}.apply(c)
	if c.GossipInterval != before.GossipInterval || c.SuspicionMult != before.SuspicionMult {
		t.Error("no pace changed the default")
	}
	Pace{Interval: time.Second, Nodes: 5, ProbeInterval: 2 * time.Second, ProbeTimeout: 3 * time.Second, RetransmitMult: 6, SuspicionMult: 7}.apply(c)
	if c.GossipInterval != time.Second || c.GossipNodes != 5 || c.ProbeInterval != 2*time.Second || c.ProbeTimeout != 3*time.Second ||
		c.RetransmitMult != 6 || c.SuspicionMult != 7 {
		t.Errorf("the pace is not taken over: %+v", c)
	}
}
