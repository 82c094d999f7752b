package store

import (
	"slices"
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// reader reads one moment of the store.
type reader struct {
	*moment
	// touched are the rows of tableIndex that a writer has not written yet, 0 for one
	// that is to be removed. Commands that follow each other touch the same ones, and the
	// few that many touch would be written again by each. nil where nobody writes.
	touched map[string]uint64
}

// first gives the first row whose key in an index begins with parts.
func first[T any](r reader, t *table, index string, parts ...string) (row T, ok bool) {
	for v := range r.rows(t, index, parts...) {
		return v.(T), true
	}
	return row, false
}

// all gives every row whose key in an index begins with parts.
func all[T any](r reader, t *table, index string, parts ...string) []T {
	var rows []T
	for v := range r.rows(t, index, parts...) {
		rows = append(rows, v.(T))
	}
	return rows
}

func (r reader) lastIndex() uint64 { return r.applied }

func (r reader) node(name string) (*catalog.Node, bool) {
	return first[*catalog.Node](r, tableNodes, byID, name)
}

func (r reader) service(node, id string) (*serviceRow, bool) {
	return first[*serviceRow](r, tableServices, byID, node, id)
}

func (r reader) check(node, id string) (*catalog.Check, bool) {
	return first[*catalog.Check](r, tableChecks, byID, node, id)
}

func (r reader) entry(kind, name string) (catalog.ConfigEntry, bool) {
	row, ok := first[*entryRow](r, tableEntries, byID, kind, name)
	if !ok {
		return nil, false
	}
	return row.Entry, true
}

func (r reader) caConfig() (*catalog.CAConfig, bool) {
	return first[*catalog.CAConfig](r, tableCA, byID, singleton)
}

func (r reader) roots() []*catalog.Root { return all[*catalog.Root](r, tableRoots, byID) }

// view answers q. Rows come in the order of their keys, which is that of View.
func (s *Store) view(r reader, e epoch, q catalog.Query) *catalog.View {
	v := &catalog.View{Query: q, Index: r.queryIndex(nil, q), Epoch: e.String()}
	switch q.Kind {
	case catalog.QueryNodes:
		v.Nodes = all[*catalog.Node](r, tableNodes, byID)
	case catalog.QueryServices:
		v.Services = r.summaries()
	case catalog.QueryInstances:
		v.Instances = r.everyInstance()
	case catalog.QueryGateway:
		if v.Entries = r.gateway(q.Name); len(v.Entries) > 0 {
			v.Instances = r.everyInstance()
		}
	case catalog.QueryIngress:
		v.Instances, _ = r.ingress(q.Name)
		if q.Sub == catalog.SubMerged {
			v.Instances, _ = r.merged(v.Instances)
		}
	case catalog.QueryService, catalog.QueryConnect:
		v.Instances = r.asked(q)
	case catalog.QueryNode:
		if n, ok := r.node(q.Name); ok {
			v.Nodes = []*catalog.Node{n}
			v.Instances = r.asked(q)
		}
	case catalog.QueryNodeChecks:
		v.Checks = all[*catalog.Check](r, tableChecks, ofNode, q.Name)
	case catalog.QueryServiceChecks:
		v.Checks = all[*catalog.Check](r, tableChecks, byName, q.Name)
	case catalog.QueryChecks:
		if q.Name == catalog.StatusAny {
			v.Checks = all[*catalog.Check](r, tableChecks, byID)
		} else {
			v.Checks = all[*catalog.Check](r, tableChecks, byStatus, q.Name)
		}
	case catalog.QueryIntentions, catalog.QueryIntentionsDest, catalog.QueryIntentionsSrc:
		v.Intentions = r.intentions(q)
		v.Default = s.cfg.DefaultIntention
	case catalog.QueryConfigEntries:
		for _, row := range all[*entryRow](r, tableEntries, byKind, q.Name) {
			v.Entries = append(v.Entries, catalog.Entry{ConfigEntry: row.Entry})
		}
	case catalog.QueryConfigEntry:
		if e, ok := r.entry(q.Name, q.Sub); ok {
			v.Entries = []catalog.Entry{{ConfigEntry: e}}
		}
	case catalog.QueryChain:
		v.Chain, v.Problem, _ = r.chain(q)
	case catalog.QueryRoots:
		for _, root := range r.roots() {
			public := *root
			public.SealedKey = nil
			v.Roots = append(v.Roots, &public)
		}
		if c, ok := r.caConfig(); ok && c.ClusterID != "" {
			v.CAConfig = &catalog.CAConfig{ClusterID: c.ClusterID}
		}
		v.RevokedCerts = r.revokedCerts()
	case catalog.QueryCertRevocations:
		v.RevokedCerts = r.certRevocations()
	case catalog.QueryCAConfig:
		v.CAConfig, _ = r.caConfig()
	default:
		r.viewOperator(v, q)
		r.viewKV(v, q)
	}
	return v
}

// asked gives the instances that q asks for, as it asks for them.
func (r reader) asked(q catalog.Query) []*catalog.Instance {
	out := r.baseInstances(q)
	if q.Sub == catalog.SubMerged {
		out, _ = r.merged(out)
	}
	return out
}

// baseInstances gives them as they were registered.
func (r reader) baseInstances(q catalog.Query) []*catalog.Instance {
	index := byName
	switch q.Kind {
	case catalog.QueryConnect:
		rows, _ := r.connectRows(q.Name)
		return r.instances(rows)
	case catalog.QueryNode:
		index = ofNode
	}
	return r.instances(all[*serviceRow](r, tableServices, index, q.Name))
}

func (r reader) viewKV(v *catalog.View, q catalog.Query) {
	switch q.Kind {
	case catalog.QueryKey:
		if p, ok := r.pair(q.Name); ok {
			v.Pairs = []*catalog.KVPair{p}
		}
	case catalog.QueryKeyTree:
		v.Pairs = r.pairs(q.Name)
	case catalog.QueryKeyNames:
		v.Keys = r.keyNames(q.Name, q.Sub)
	case catalog.QueryKeyDelays:
		v.Delays = all[*catalog.KeyDelay](r, tableDelays, byID)
	case catalog.QuerySession:
		if s, ok := r.session(q.Name); ok {
			v.Sessions = []*catalog.Session{s}
		}
	case catalog.QueryNodeSessions:
		v.Sessions = all[*catalog.Session](r, tableSessions, byNode, q.Name)
	case catalog.QuerySessions:
		v.Sessions = all[*catalog.Session](r, tableSessions, byID)
	}
}

// instances joins services with their nodes and the checks of both, the node's first.
func (r reader) instances(rows []*serviceRow) []*catalog.Instance {
	out := make([]*catalog.Instance, 0, len(rows))
	for _, row := range rows {
		n, ok := r.node(row.Node)
		if !ok {
			continue
		}
		checks := all[*catalog.Check](r, tableChecks, byNodeService, row.Node, "")
		checks = append(checks, all[*catalog.Check](r, tableChecks, byNodeService, row.Node, row.Service.ID)...)
		out = append(out, &catalog.Instance{Node: n, Service: row.Service, Checks: checks})
	}
	return out
}

// everyInstance joins all services with their nodes, without checks.
func (r reader) everyInstance() []*catalog.Instance {
	var out []*catalog.Instance
	var n *catalog.Node
	for v := range r.rows(tableServices, byID) { // by node
		row := v.(*serviceRow)
		if n == nil || n.Node != row.Node {
			node, ok := r.node(row.Node)
			if !ok {
				continue
			}
			n = node
		}
		out = append(out, &catalog.Instance{Node: n, Service: row.Service})
	}
	return out
}

// summaries lists all service names with the tags of their instances.
func (r reader) summaries() []*catalog.ServiceSummary {
	var out []*catalog.ServiceSummary
	var cur *catalog.ServiceSummary
	close := func() {
		if cur != nil {
			cur.Tags = sortedSet(cur.Tags)
			cur.Nodes = sortedSet(cur.Nodes)
			cur.Addresses = sortedSet(cur.Addresses)
			out = append(out, cur)
		}
	}
	for v := range r.rows(tableServices, byName) {
		row := v.(*serviceRow)
		if cur == nil || cur.Name != row.Service.Service {
			close()
			cur = &catalog.ServiceSummary{Name: row.Service.Service}
		}
		cur.Instances++
		cur.Tags = append(cur.Tags, row.Service.Tags...)
		cur.Nodes = append(cur.Nodes, row.Node)
		if row.Service.Address != "" {
			cur.Addresses = append(cur.Addresses, row.Service.Address)
		}
	}
	close()
	return out
}

func sortedSet(in []string) []string {
	slices.SortFunc(in, strings.Compare)
	return slices.Compact(in)
}

func (r reader) intentions(q catalog.Query) catalog.Intentions {
	var out catalog.Intentions
	add := func(rows []*entryRow, want func(*catalog.Intention) bool) {
		for _, row := range rows {
			for _, i := range row.Entry.(*catalog.ServiceIntentions).Intentions() {
				if want(i) {
					out = append(out, i)
				}
			}
		}
	}
	switch q.Kind {
	case catalog.QueryIntentionsDest:
		for _, name := range r.covering(q.Name) {
			add(all[*entryRow](r, tableEntries, byID, catalog.KindServiceIntentions, name),
				func(*catalog.Intention) bool { return true })
		}
	case catalog.QueryIntentionsSrc:
		for _, name := range r.covering(q.Name) {
			add(all[*entryRow](r, tableEntries, bySource, name),
				func(i *catalog.Intention) bool { return i.SourceName == name })
		}
	default:
		add(all[*entryRow](r, tableEntries, byKind, catalog.KindServiceIntentions),
			func(*catalog.Intention) bool { return true })
	}
	out.Sort()
	return out
}

// covering lists the names that intentions for or from name may be kept under.
func (r reader) covering(name catalog.Name) []catalog.Name {
	if name == catalog.Wildcard {
		return []catalog.Name{name}
	}
	names := []catalog.Name{name}
	if r.hasPatterns(nil) {
		names = append(names, catalog.WiderNames(name)...)
	}
	return append(names, catalog.Wildcard)
}

func (r reader) nodeByID(id string) (*catalog.Node, bool) {
	return first[*catalog.Node](r, tableNodes, byUUID, strings.ToLower(id))
}

func sameID(a, b string) bool { return strings.EqualFold(a, b) }
