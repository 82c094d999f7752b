package gossip

import (
	"encoding/json"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/coordinate"

	"github.com/weftmesh/weft/catalog"
)

// Coordinate places this host among the members, by the times that memberlist's
// probes take. Alone, it is at the origin and not sure of anything.
func (g *Gossip) Coordinate() catalog.Coordinate {
	c := g.vivaldi.GetCoordinate()
	return catalog.Coordinate{Vec: c.Vec, Error: c.Error, Adjustment: c.Adjustment, Height: c.Height}
}

// AckPayload tells who probes this host where it is.
func (d *delegate) AckPayload() []byte {
	b, err := json.Marshal(d.g.vivaldi.GetCoordinate())
	if err != nil {
		return nil // numbers that are finite always marshal
	}
	return b
}

// Bounds of what a probe may say: no probe takes this long, no coordinate is this big.
const (
	maxRoundTrip = 10 * time.Second
	maxPayload   = 1024
)

// NotifyPingComplete learns from a probe.
func (d *delegate) NotifyPingComplete(other *memberlist.Node, rtt time.Duration, payload []byte) {
	if len(payload) == 0 || len(payload) > maxPayload || rtt <= 0 || rtt > maxRoundTrip {
		return
	}
	at := coordinate.Coordinate{}
	if err := json.Unmarshal(payload, &at); err != nil {
		return // of another version
	}
	if _, err := d.g.vivaldi.Update(nameOf(other.Name), &at, rtt); err != nil {
		d.g.log.Debug("a member's coordinate was not used", "node", nameOf(other.Name), "err", err)
	}
}
