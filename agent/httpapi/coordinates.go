package httpapi

import (
	"net/http"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// coordinatesAPI says where nodes are in network space.
type coordinatesAPI struct {
	cfg Config
	q   *queries
}

// coordinateView is the coordinate of a node.
type coordinateView struct {
	Node    string
	Segment string
	Coord   catalog.Coordinate
}

type coordinateMapView struct {
	Datacenter  string
	AreaID      string
	Coordinates []coordinateView
}

func (a coordinatesAPI) routes() []Route {
	segment := []Param{{"segment", "accepted; there are no segments"}}
	return []Route{
		{
			Method: http.MethodGet, Path: "/v1/coordinate/datacenters", Summary: "the coordinates of servers, by datacenter",
			MaxBody: bodyNone, params: paramsToken, handle: a.datacenters,
		},
		{
			Method: http.MethodGet, Path: "/v1/coordinate/nodes", Summary: "the coordinates of all nodes that have one",
			Params: segment, Permission: Permission{acl.Read, acl.Node, ""}, MaxBody: bodyNone, params: paramsRead, handle: a.nodes,
		},
		{
			Method: http.MethodGet, Path: "/v1/coordinate/node/:node", Summary: "the coordinate of a node",
			Params: segment, Permission: Permission{acl.Read, acl.Node, "node"}, MaxBody: bodyNone, params: paramsRead, handle: a.node,
		},
		{
			Method: http.MethodPut, Path: "/v1/coordinate/update", Summary: "set the coordinate of a node that no agent speaks for",
			Body: "JSON: Node, Segment and Coord", Permission: Permission{acl.Write, acl.Node, "Node"},
			MaxBody: bodySmall, params: paramsWrite, handle: a.update,
		},
	}
}

// datacenters lists the servers. There is one datacenter and so nothing to measure:
// all are at the origin.
func (a coordinatesAPI) datacenters(c *call) (any, error) {
	v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryService, Name: catalog.ServerService})
	if err != nil {
		return nil, err
	}
	dc := a.cfg.Self.Datacenter
	m := coordinateMapView{Datacenter: dc, AreaID: "wan", Coordinates: []coordinateView{}}
	for _, i := range v.Instances {
		m.Coordinates = append(m.Coordinates, coordinateView{Node: i.Node.Node + "." + dc, Coord: catalog.OriginCoordinate()})
	}
	return []coordinateMapView{m}, nil
}

func viewCoordinates(in []*catalog.NodeCoordinate, segment string) []coordinateView {
	out := make([]coordinateView, 0, len(in))
	for _, c := range in {
		if segment == "" || c.Segment == segment {
			out = append(out, coordinateView{c.Node, c.Segment, c.Coord})
		}
	}
	return out
}

func (a coordinatesAPI) nodes(c *call) (any, error) {
	f, err := newFilter[coordinateView](c.opts.filter)
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryCoordinates})
	if err != nil {
		return nil, err
	}
	return f.slice(viewCoordinates(v.Coordinates, c.query.Get("segment")))
}

func (a coordinatesAPI) node(c *call) (any, error) {
	name, err := c.need("node name")
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryCoordinate, Name: name})
	if err != nil {
		return nil, err
	}
	out := viewCoordinates(v.Coordinates, c.query.Get("segment"))
	if len(out) == 0 {
		return withStatus{http.StatusNotFound, nil}, nil
	}
	return out, nil
}

func (a coordinatesAPI) update(c *call) (any, error) {
	var in struct {
		Node      string
		Segment   string
		Partition string
		Coord     catalog.Coordinate
	}
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	_, err := c.apply(a.cfg.Servers, &catalog.SetCoordinates{Updates: []*catalog.NodeCoordinate{
		{Node: in.Node, Segment: in.Segment, Coord: in.Coord},
	}})
	return nil, err
}
