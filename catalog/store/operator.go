package store

import (
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// Prepared queries, coordinates and autopilot.

func (r reader) preparedQuery(index, name string) (*catalog.PreparedQuery, bool) {
	if index != byID { // DNS knows no case
		name = strings.ToLower(name)
	}
	return first[*catalog.PreparedQuery](r, tableQueries, index, name)
}

// resolveQuery finds the query with an ID or a name, or else the template with the
// longest prefix of it.
func (r reader) resolveQuery(name string) (*catalog.PreparedQuery, bool) {
	for _, index := range []string{byID, byName} {
		if q, ok := r.preparedQuery(index, name); ok {
			return q, true
		}
	}
	for n := len(name); n >= 0; n-- {
		if q, ok := r.preparedQuery(byTemplate, name[:n]); ok {
			return q, true
		}
	}
	return nil, false
}

func (w *writer) applyOperator(cmd catalog.Command) (any, error) {
	switch c := cmd.(type) {
	case *catalog.SetPreparedQuery:
		return nil, w.setQuery(c)
	case *catalog.DeletePreparedQuery:
		return nil, w.deleteQuery(c.ID)
	case *catalog.SetCoordinates:
		w.setCoordinates(c)
		return nil, nil
	case *catalog.SetAutopilot:
		return w.setAutopilot(c), nil
	case *catalog.SetVirtualIPs:
		return w.setVirtualIPs(c), nil
	case *catalog.Revoke:
		return w.revoke(c), nil
	case *catalog.Allow:
		return w.allow(c), nil
	default:
		return w.applyCertRevocation(cmd)
	}
}

func noQuery(id string) error {
	return catalog.NotFoundf("Cannot modify non-existent prepared query: '%s'", id)
}

func (w *writer) setQuery(c *catalog.SetPreparedQuery) error {
	q := c.Query
	old, exists := w.preparedQuery(byID, q.ID)
	switch {
	case c.Update && !exists:
		return noQuery(q.ID)
	case !c.Update && exists:
		return catalog.Conflictf("prepared query %s: it exists already", q.ID)
	}
	if err := w.queryNameFree(&q); err != nil {
		return err
	}
	if err := w.querySession(&q); err != nil {
		return err
	}
	q.RaftIndex = catalog.RaftIndex{}
	if exists {
		if same(&q, old) {
			return nil
		}
		q.RaftIndex = old.RaftIndex
	}
	q.RaftIndex = w.stamp(q.RaftIndex)
	w.insert(tableQueries, &q)
	w.touch(keyQueries)
	return nil
}

// queryNameFree refuses a name by which another query would be found.
func (w *writer) queryNameFree(q *catalog.PreparedQuery) error {
	if other, ok := w.preparedQuery(byID, q.Name); ok && q.Name != "" && other.ID != q.ID {
		return catalog.Conflictf("name '%s' aliases an existing query ID", q.Name)
	}
	index, what := byName, "name"
	if q.Template.Type != "" {
		index, what = byTemplate, "template"
	} else if q.Name == "" {
		return nil
	}
	if other, ok := w.preparedQuery(index, q.Name); ok && other.ID != q.ID {
		return catalog.Conflictf("name '%s' aliases an existing query %s", q.Name, what)
	}
	return nil
}

// querySession refuses a session that there is not: its end would never come.
func (w *writer) querySession(q *catalog.PreparedQuery) error {
	if q.Session == "" {
		return nil
	}
	if _, ok := w.session(q.Session); ok {
		return nil
	}
	return catalog.Invalidf("invalid session %q: there is no such session", q.Session)
}

func (w *writer) deleteQuery(id string) error {
	q, ok := w.preparedQuery(byID, id)
	if !ok {
		return noQuery(id)
	}
	w.remove(tableQueries, q)
	w.touch(keyQueries)
	return nil
}

func (w *writer) setCoordinates(c *catalog.SetCoordinates) {
	for _, u := range c.Updates {
		if _, ok := w.node(u.Node); !ok {
			continue
		}
		row := *u
		row.RaftIndex = catalog.RaftIndex{}
		if old, ok := first[*catalog.NodeCoordinate](w.reader, tableCoordinates, byID, u.Node); ok {
			if same(&row, old) {
				continue
			}
			row.RaftIndex = old.RaftIndex
		}
		row.RaftIndex = w.stamp(row.RaftIndex)
		w.insert(tableCoordinates, &row)
		w.touchCoordinate(u.Node)
	}
}

func (w *writer) touchCoordinate(node string) {
	w.touch(keyCoordinates)
	w.settle(classCoordinate, node, tableCoordinates, byID, node)
}

// dropCoordinate forgets where a node was that is no more.
func (w *writer) dropCoordinate(node string) {
	if c, ok := first[*catalog.NodeCoordinate](w.reader, tableCoordinates, byID, node); ok {
		w.remove(tableCoordinates, c)
		w.touchCoordinate(node)
	}
}

func (r reader) autopilot() (*catalog.Autopilot, bool) {
	return first[*catalog.Autopilot](r, tableAutopilot, byID, singleton)
}

func (w *writer) setAutopilot(c *catalog.SetAutopilot) bool {
	row := c.Config
	row.RaftIndex = catalog.RaftIndex{}
	old, exists := w.autopilot()
	if exists {
		row.RaftIndex = old.RaftIndex
	}
	if casLost(c.CAS, c.Index, row.ModifyIndex) {
		return false
	}
	if exists && same(&row, old) {
		return true
	}
	row.RaftIndex = w.stamp(row.RaftIndex)
	w.insert(tableAutopilot, &row)
	w.touch(keyAutopilot)
	return true
}

// viewOperator fills the view of a query for these nouns.
func (r reader) viewOperator(v *catalog.View, q catalog.Query) {
	switch q.Kind {
	case catalog.QueryDump:
		v.Nodes = all[*catalog.Node](r, tableNodes, byID)
		v.Instances = r.instances(all[*serviceRow](r, tableServices, byID))
		v.Checks = all[*catalog.Check](r, tableChecks, byID)
	case catalog.QueryPreparedQueries:
		v.Queries = all[*catalog.PreparedQuery](r, tableQueries, byID)
	case catalog.QueryPreparedQuery:
		if pq, ok := r.resolveQuery(q.Name); ok {
			v.Queries = []*catalog.PreparedQuery{pq}
		}
	case catalog.QueryCoordinates:
		v.Coordinates = all[*catalog.NodeCoordinate](r, tableCoordinates, byID)
	case catalog.QueryCoordinate:
		v.Coordinates = all[*catalog.NodeCoordinate](r, tableCoordinates, byID, q.Name)
	case catalog.QueryAutopilot:
		v.Autopilot, _ = r.autopilot()
	case catalog.QueryRevocations:
		v.Revocations = all[*catalog.Revocation](r, tableRevocations, byID)
	case catalog.QueryVirtualIPs:
		v.VirtualIPs = r.virtualIPs()
	}
}
