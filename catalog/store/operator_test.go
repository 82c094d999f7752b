package store

import (
	"cmp"
	"maps"
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// operatorModel is the part of the model in operator.go.
type operatorModel struct {
	queries     map[string]catalog.PreparedQuery
	coordinates map[string]catalog.NodeCoordinate
	autopilot   *catalog.Autopilot
	revocations map[string]catalog.Revocation // by kind and ID
}

func newOperatorModel() operatorModel {
	return operatorModel{queries: map[string]catalog.PreparedQuery{}, coordinates: map[string]catalog.NodeCoordinate{}, revocations: map[string]catalog.Revocation{}}
}

func (o operatorModel) clone() operatorModel {
	o.queries, o.coordinates = maps.Clone(o.queries), maps.Clone(o.coordinates)
	o.revocations = maps.Clone(o.revocations)
	return o
}

func (m *model) doOperator(cmd catalog.Command) (any, error) {
	o := &m.operator
	switch c := cmd.(type) {
	case *catalog.SetPreparedQuery:
		if _, ok := o.queries[c.Query.ID]; ok != c.Update {
			if c.Update {
				return nil, catalog.ErrNotFound
			}
			return nil, catalog.ErrConflict
		}
		for id, other := range o.queries {
			sameName := other.Name == c.Query.Name && (other.Template.Type == "") == (c.Query.Template.Type == "")
			if id != c.Query.ID && (id == c.Query.Name || sameName) {
				return nil, catalog.ErrConflict
			}
		}
		put(m, o.queries, c.Query.ID, c.Query, func(q *catalog.PreparedQuery) *catalog.RaftIndex { return &q.RaftIndex })
	case *catalog.DeletePreparedQuery:
		if _, ok := o.queries[c.ID]; !ok {
			return nil, catalog.ErrNotFound
		}
		delete(o.queries, c.ID)
	case *catalog.SetCoordinates:
		for _, u := range c.Updates {
			if _, ok := m.nodes[u.Node]; ok {
				put(m, o.coordinates, u.Node, *u, func(c *catalog.NodeCoordinate) *catalog.RaftIndex { return &c.RaftIndex })
			}
		}
	case *catalog.SetAutopilot:
		var old catalog.Autopilot
		if o.autopilot != nil {
			old = *o.autopilot
		}
		if c.CAS && old.ModifyIndex != c.Index {
			return false, nil
		}
		now := c.Config
		now.RaftIndex = old.RaftIndex
		if o.autopilot == nil || now != old {
			now.RaftIndex = catalog.RaftIndex{CreateIndex: cmp.Or(old.CreateIndex, m.index), ModifyIndex: m.index}
			o.autopilot = &now
		}
		return true, nil
	case *catalog.Revoke:
		return m.doRevoke(c), nil
	case *catalog.Allow:
		_, had := o.revocations[c.Kind+" "+c.ID]
		delete(o.revocations, c.Kind+" "+c.ID)
		return had, nil
	}
	return nil, nil
}

func (m *model) viewOperator(v *catalog.View, q catalog.Query) {
	o := m.operator
	byQueryID := func(a, b *catalog.PreparedQuery) int { return cmp.Compare(a.ID, b.ID) }
	byNode := func(a, b *catalog.NodeCoordinate) int { return cmp.Compare(a.Node, b.Node) }
	switch q.Kind {
	case catalog.QueryDump:
		v.Nodes = rowsOf(m.nodes, func(a, b *catalog.Node) int { return cmp.Compare(a.Node, b.Node) }, func(*catalog.Node) bool { return true })
		v.Instances = m.instances(func(string, *catalog.Service) bool { return true })
		v.Checks = m.checkRows(func(*catalog.Check) bool { return true })
	case catalog.QueryPreparedQueries:
		v.Queries = rowsOf(o.queries, byQueryID, func(*catalog.PreparedQuery) bool { return true })
	case catalog.QueryPreparedQuery:
		best := -1
		for _, pq := range o.queries {
			rank := -1
			switch {
			case pq.ID == q.Name:
				rank = 2000
			case pq.Template.Type == "" && pq.Name == q.Name:
				rank = 1000
			case pq.Template.Type != "" && strings.HasPrefix(q.Name, pq.Name):
				rank = len(pq.Name)
			}
			if rank > best {
				best, v.Queries = rank, []*catalog.PreparedQuery{&pq}
			}
		}
	case catalog.QueryCoordinates:
		v.Coordinates = rowsOf(o.coordinates, byNode, func(*catalog.NodeCoordinate) bool { return true })
	case catalog.QueryCoordinate:
		v.Coordinates = rowsOf(o.coordinates, byNode, func(c *catalog.NodeCoordinate) bool { return c.Node == q.Name })
	case catalog.QueryAutopilot:
		v.Autopilot = o.autopilot
	case catalog.QueryRevocations:
		v.Revocations = rowsOf(o.revocations, func(a, b *catalog.Revocation) int {
			return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID))
		}, func(*catalog.Revocation) bool { return true })
	}
}
