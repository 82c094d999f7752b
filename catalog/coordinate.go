package catalog

import (
	"math"
	"time"
)

// CoordinateDimensions is how many numbers place a host in network space.
const CoordinateDimensions = 8

// Coordinate places a host so that the distance between two hosts estimates the
// round-trip time between them. The unit is the second.
type Coordinate struct {
	Vec        []float64
	Error      float64
	Adjustment float64
	Height     float64
}

// NodeCoordinate is the coordinate of a node.
type NodeCoordinate struct {
	Node    string
	Segment string
	Coord   Coordinate
	RaftIndex
}

// SetCoordinates writes the coordinates of nodes. Those of nodes that the catalog
// does not know are left out.
// Result: nil.
type SetCoordinates struct{ Updates []*NodeCoordinate }

// CommandType implements Command.
func (*SetCoordinates) CommandType() CommandType { return CmdSetCoordinates }

// maxCoordinates bounds the updates of one command.
const maxCoordinates = 1024

// Validate implements Command.
func (c *SetCoordinates) Validate() error {
	if len(c.Updates) == 0 || len(c.Updates) > maxCoordinates {
		return Invalidf("coordinates: %d updates, want 1 to %d", len(c.Updates), maxCoordinates)
	}
	for _, u := range c.Updates {
		if u == nil {
			return Invalidf("coordinates: an update is empty")
		}
		if err := validName("coordinate", u.Node); err != nil {
			return err
		}
		if u.Segment != "" {
			return Invalidf("coordinate of %s: segment %q: network segments are a Consul Enterprise feature", u.Node, u.Segment)
		}
		if err := u.Coord.Validate(); err != nil {
			return Invalidf("coordinate of %s: %w", u.Node, err)
		}
	}
	return nil
}

// Validate refuses coordinates with which no distance could be computed.
func (c Coordinate) Validate() error {
	if len(c.Vec) != CoordinateDimensions {
		return Invalidf("invalid coordinate: %d dimensions, want %d", len(c.Vec), CoordinateDimensions)
	}
	for _, f := range append([]float64{c.Error, c.Adjustment, c.Height}, c.Vec...) {
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return Invalidf("invalid coordinate: a component is not a finite number")
		}
	}
	return nil
}

// DistanceTo estimates the round-trip time to another host. Coordinates that do not
// fit together are infinitely far apart.
func (c Coordinate) DistanceTo(o Coordinate) time.Duration {
	const far = time.Duration(math.MaxInt64)
	if len(c.Vec) != len(o.Vec) || len(c.Vec) == 0 {
		return far
	}
	sum := 0.0
	for i := range c.Vec {
		d := c.Vec[i] - o.Vec[i]
		sum += d * d
	}
	dist := math.Sqrt(sum) + c.Height + o.Height
	if adjusted := dist + c.Adjustment + o.Adjustment; adjusted > 0 {
		dist = adjusted
	}
	if ns := dist * float64(time.Second); ns < float64(far) {
		return time.Duration(ns)
	}
	return far
}

// OriginCoordinate is where a host begins that has measured nothing yet.
func OriginCoordinate() Coordinate {
	return Coordinate{Vec: make([]float64, CoordinateDimensions), Error: 1.5, Height: 1e-5}
}
