package server

import (
	"fmt"
	"testing"

	"github.com/weftmesh/weft/catalog"
)

// TestManyServers: however many servers are said to be in gossip, that is asked once for
// the copies of all.
func TestManyServers(t *testing.T) {
	const n = 100
	var all, hidden []catalog.Member
	for i := range n {
		m := host(fmt.Sprint("s", i), fmt.Sprint("id", i), catalog.MemberAlive, true)
		m.Tags[tagDC], m.Tags[tagPort] = "dc1", fmt.Sprint(8000+i)
		all, hidden = append(all, m), append(hidden, m)
	}
	asked := 0
	c := &cluster{
		datacenter: "dc1", members: func() []catalog.Member { return all },
		doubles: func() []catalog.Member { asked++; return hidden },
	}
	if got := c.servers(); len(got) != n || asked != 1 {
		t.Errorf("%d servers after %d questions", len(got), asked)
	}
	asked = 0
	if got := c.addressOf("id7"); got != "10.0.0.1:8007" || asked != 1 {
		t.Errorf("one is at %q after %d questions", got, asked)
	}
	all = append(all, host("s8x", "id8", catalog.MemberAlive, true))
	all[n].Tags[tagDC] = "dc1"
	if got := c.addressOf("id8"); got != "" {
		t.Errorf("one of two with an ID is at %q", got)
	}
}
