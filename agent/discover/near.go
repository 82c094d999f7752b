package discover

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Reader gives the answer to a catalog query as it is now.
type Reader func(ctx context.Context, q catalog.Query) (*catalog.View, error)

// Names that stand for the node of who asks.
const (
	NearAgent = "_agent" // this agent's
	NearIP    = "_ip"    // the one with the address that the request came from
)

// Asker is who searches.
type Asker struct {
	// Node is the name of this agent's node.
	Node string
	// Addr is where the request came from: an address, or the network that a resolver
	// says its client is in. The zero Prefix is unknown.
	Addr netip.Prefix
}

// Distances are how far nodes are from one of them. Nil: nothing is known.
type Distances map[string]time.Duration

// Measure gives the distances from a node. Without a name, or where that node has no
// coordinate, it gives nil, which sorts nothing.
func Measure(ctx context.Context, read Reader, from string, by Asker) (Distances, error) {
	if from == "" {
		return nil, nil
	}
	if from == NearAgent {
		from = by.Node
	}
	v, err := read(ctx, catalog.Query{Kind: catalog.QueryCoordinates})
	if err != nil {
		return nil, err
	}
	if from == NearIP {
		if from, err = nodeAt(ctx, read, by.Addr); err != nil || from == "" {
			return nil, err
		}
	}
	at := slices.IndexFunc(v.Coordinates, func(n *catalog.NodeCoordinate) bool { return n.Node == from })
	if at < 0 {
		return nil, nil
	}
	d := make(Distances, len(v.Coordinates))
	for _, other := range v.Coordinates {
		d[other.Node] = v.Coordinates[at].Coord.DistanceTo(other.Coord)
	}
	d[from] = 0
	return d, nil
}

// nodeAt finds a node with an address in the network; "" when there is none.
func nodeAt(ctx context.Context, read Reader, in netip.Prefix) (string, error) {
	if !in.IsValid() {
		return "", nil
	}
	v, err := read(ctx, catalog.Query{Kind: catalog.QueryNodes})
	if err != nil {
		return "", err
	}
	for _, n := range v.Nodes {
		if a, err := netip.ParseAddr(n.Address); err == nil && in.Contains(a.Unmap()) {
			return n.Node, nil
		}
	}
	return "", nil
}

// Sort gives in nearest first; what is at an unknown distance comes last, in the
// order that it had. in itself stays as it is.
func Sort[T any](d Distances, in []T, node func(T) string) []T {
	if d == nil {
		return in
	}
	far := func(v T) time.Duration {
		if d, ok := d[node(v)]; ok {
			return d
		}
		return 1<<63 - 1
	}
	out := slices.Clone(in)
	slices.SortStableFunc(out, func(a, b T) int { return cmp.Compare(far(a), far(b)) })
	return out
}

// NodeOf is the name of an instance's node, "" when it has none.
func NodeOf(i *catalog.Instance) string {
	if i.Node == nil {
		return ""
	}
	return i.Node.Node
}
