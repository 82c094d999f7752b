package agent

import (
	"context"
	"log/slog"
	"math"
	"math/rand/v2"
	"time"

	"github.com/weftmesh/weft/agent/remote"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// Coordinates configures how a host tells the catalog where it is.
type Coordinates struct {
	// Current is where the host is now. Nil: it does not tell.
	Current func() catalog.Coordinate
	// Every is the least time between two updates. Default 15 s.
	Every time.Duration
	// Rate is how many updates a second all hosts together make. Default 64.
	Rate float64
}

// coordinates tells the catalog where this host is.
type coordinates struct {
	cfg     Coordinates
	node    string
	members func() []catalog.Member // may be nil
	servers *remote.Remote
	log     *slog.Logger
}

// run tells until ctx ends. A host that has not moved says nothing.
func (c *coordinates) run(ctx context.Context) error {
	if c.cfg.Current == nil {
		<-ctx.Done()
		return nil
	}
	for {
		wait := c.interval()
		t := time.NewTimer(wait + rand.N(wait))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		if err := c.tell(ctx); err != nil && ctx.Err() == nil {
			c.log.Debug("this host's coordinate was not updated", "node", c.node, "err", err)
		}
	}
}

// interval keeps the updates of all hosts together under their rate.
func (c *coordinates) interval() time.Duration {
	every, rate, hosts := c.cfg.Every, c.cfg.Rate, 1
	if every <= 0 {
		every = 15 * time.Second
	}
	if rate <= 0 {
		rate = 64
	}
	if c.members != nil {
		hosts = len(c.members())
	}
	return max(every, time.Duration(float64(hosts)/rate*float64(time.Second)))
}

func (c *coordinates) tell(ctx context.Context) error {
	now := c.cfg.Current()
	rep, err := c.servers.Read(ctx, &wire.ReadRequest{
		Query: catalog.Query{Kind: catalog.QueryCoordinate, Name: c.node}, Consistency: wire.Stale,
	})
	if err != nil {
		return err
	}
	if known := rep.View.Coordinates; len(known) == 1 && near(known[0].Coord, now) {
		return nil
	}
	_, err = c.servers.Apply(ctx, &wire.ApplyRequest{Command: wire.Command{Command: &catalog.SetCoordinates{
		Updates: []*catalog.NodeCoordinate{{Node: c.node, Coord: now}},
	}}})
	return err
}

// near tells whether two coordinates are the same to anybody who sorts by them.
func near(a, b catalog.Coordinate) bool {
	const enough = 50e-6 // seconds
	if len(a.Vec) != len(b.Vec) || math.Abs(a.Error-b.Error) > 0.05 {
		return false
	}
	moved := math.Abs(a.Height-b.Height) + math.Abs(a.Adjustment-b.Adjustment)
	for i := range a.Vec {
		moved += math.Abs(a.Vec[i] - b.Vec[i])
	}
	return moved < enough
}
