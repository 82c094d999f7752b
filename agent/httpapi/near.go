package httpapi

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Names that stand for the node of who asks.
const (
	nearAgent = "_agent" // this agent's
	nearIP    = "_ip"    // the one with the address that the request came from
)

// nearness knows how far nodes are from one. Nil: nothing is known.
type nearness struct {
	from     string
	distance map[string]time.Duration
}

// near measures from a node. Without a name, or where that node has no coordinate,
// it gives nil, which sorts nothing.
func (q *queries) near(c *call, name string) (*nearness, error) {
	if name == "" {
		return nil, nil
	}
	if name == nearAgent {
		name = q.self
	}
	v, err := q.peek(c, catalog.Query{Kind: catalog.QueryCoordinates})
	if err != nil {
		return nil, err
	}
	if name == nearIP {
		if name, err = q.nodeOfCaller(c); err != nil || name == "" {
			return nil, err
		}
	}
	at := slices.IndexFunc(v.Coordinates, func(n *catalog.NodeCoordinate) bool { return n.Node == name })
	if at < 0 {
		return nil, nil
	}
	n := &nearness{from: name, distance: make(map[string]time.Duration, len(v.Coordinates))}
	for _, other := range v.Coordinates {
		n.distance[other.Node] = v.Coordinates[at].Coord.DistanceTo(other.Coord)
	}
	n.distance[name] = 0
	return n, nil
}

// nodeOfCaller finds the node with the address of who asks; "" when there is none.
// What a proxy in front says of the address is believed: it only orders an answer.
func (q *queries) nodeOfCaller(c *call) (string, error) {
	text, _, err := net.SplitHostPort(c.r.RemoteAddr)
	if err != nil {
		text = c.r.RemoteAddr
	}
	if first, _, _ := strings.Cut(c.r.Header.Get("X-Forwarded-For"), ","); first != "" {
		text = strings.TrimSpace(first)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return "", nil //nolint:nilerr // who asks has no address, which is an answer
	}
	v, err := q.peek(c, catalog.Query{Kind: catalog.QueryNodes})
	if err != nil {
		return "", err
	}
	for _, n := range v.Nodes {
		if a, err := netip.ParseAddr(n.Address); err == nil && a.Unmap() == addr.Unmap() {
			return n.Node, nil
		}
	}
	return "", nil
}

// sortNear gives in nearest first; what is at an unknown distance comes last, in
// the order that it had. in itself stays as it is.
func sortNear[T any](n *nearness, in []T, node func(T) string) []T {
	if n == nil {
		return in
	}
	far := func(v T) time.Duration {
		if d, ok := n.distance[node(v)]; ok {
			return d
		}
		return 1<<63 - 1
	}
	out := slices.Clone(in)
	slices.SortStableFunc(out, func(a, b T) int { return cmp.Compare(far(a), far(b)) })
	return out
}

func nodeOf(i *catalog.Instance) string {
	if i.Node == nil {
		return ""
	}
	return i.Node.Node
}
