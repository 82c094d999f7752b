package store

import (
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// Indexes of tables.
const (
	byID          = "id"
	ofNode        = byID // of tables whose key begins with the node
	byUUID        = "uuid"
	byNode        = "node"
	byName        = "name"
	byConnect     = "connect"
	byNodeService = "node-service"
	byStatus      = "status"
	byKind        = "kind"
	bySource      = "source"
	byReference   = "reference"
	bySession     = "session"
	byTemplate    = "template"
	byCheck       = "check"
)

// serviceRow is a service and the node it is on.
type serviceRow struct {
	Node    string
	Service *catalog.Service
}

// connectName is the service for which the row speaks mesh mTLS, "" for none.
func (r *serviceRow) connectName() catalog.Name {
	switch {
	case r.Service.Kind == catalog.KindConnectProxy:
		return r.Service.Proxy.DestinationServiceName
	case r.Service.Connect.Native:
		return r.Service.Service
	default:
		return ""
	}
}

// statedRow remembers the tags that an agent last stated of a service with
// EnableTagOverride, so that its repeating them does not undo what others set.
type statedRow struct {
	Node      string
	ServiceID string
	Tags      []string
}

// entryRow is a config entry.
type entryRow struct {
	Entry catalog.ConfigEntry
}

// indexRow says when the answers to some queries last changed.
type indexRow struct {
	Key   string
	Index uint64
}

const singleton = "-"

var (
	tableNodes = newTable("nodes",
		on(byID, func(n *catalog.Node) string { return n.Node }),
		on(byUUID, func(n *catalog.Node) string { return strings.ToLower(n.ID) }).where(func(n *catalog.Node) bool { return n.ID != "" }))
	tableServices = newTable("services",
		on(byID, func(r *serviceRow) string { return r.Node }, func(r *serviceRow) string { return r.Service.ID }),
		on(byName, func(r *serviceRow) string { return r.Service.Service }),
		on(byConnect, (*serviceRow).connectName).where(func(r *serviceRow) bool { return r.connectName() != "" }))
	tableChecks = newTable("checks",
		on(byID, checkNode, func(c *catalog.Check) string { return c.CheckID }),
		on(byNodeService, checkNode, func(c *catalog.Check) string { return c.ServiceID }),
		on(byName, func(c *catalog.Check) string { return c.ServiceName }).where(func(c *catalog.Check) bool { return c.ServiceName != "" }),
		on(byStatus, func(c *catalog.Check) string { return c.Status }))
	tableEntries = newTable("entries",
		on(byID, entryKind, func(r *entryRow) string { return r.Entry.EntryName() }),
		on(byKind, entryKind),
		onMany(bySource, 1, func(r *entryRow) [][]string { return apart(sourceNames(r.Entry)) }),
		onMany(byReference, 1, func(r *entryRow) [][]string { return apart(referencesOf(r.Entry)) }))
	tableVirtualIPs = newTable("virtual-ips", on(byID, func(r *virtualIPRow) string { return r.Service }))
	tableRoots      = newTable("roots", on(byID, func(r *catalog.Root) string { return r.ID }))
	tableCA         = newTable("ca-config", on(byID, func(*catalog.CAConfig) string { return singleton }))
	tableStated     = newTable("stated",
		on(byID, func(r *statedRow) string { return r.Node }, func(r *statedRow) string { return r.ServiceID }))
	tableQueries = newTable("prepared-queries",
		on(byID, func(q *catalog.PreparedQuery) string { return q.ID }),
		on(byName, queryName).where(func(q *catalog.PreparedQuery) bool { return q.Name != "" && q.Template.Type == "" }),
		on(byTemplate, queryName).where(func(q *catalog.PreparedQuery) bool { return q.Template.Type != "" }),
		on(bySession, func(q *catalog.PreparedQuery) string { return q.Session }).where(func(q *catalog.PreparedQuery) bool { return q.Session != "" }))
	tableCoordinates     = newTable("coordinates", on(byID, func(c *catalog.NodeCoordinate) string { return c.Node }))
	tableAutopilot       = newTable("autopilot", on(byID, func(*catalog.Autopilot) string { return singleton }))
	tableCertRevocations = newTable("cert-revocations", on(byID, (*catalog.CertRevocation).Key))
	tableRevocations     = newTable("revocations",
		on(byID, func(r *catalog.Revocation) string { return r.Kind }, func(r *catalog.Revocation) string { return r.ID }))
	tableKV = newTable("kv",
		on(byID, func(p *catalog.KVPair) string { return p.Key }),
		on(bySession, func(p *catalog.KVPair) string { return p.Session }).where(func(p *catalog.KVPair) bool { return p.Session != "" }))
	tableDelays   = newTable("kv-delays", on(byID, func(d *catalog.KeyDelay) string { return d.Key }))
	tableSessions = newTable("sessions",
		on(byID, func(s *catalog.Session) string { return s.ID }),
		on(byNode, func(s *catalog.Session) string { return s.Node }),
		onMany(byCheck, 2, sessionChecks))
	tableIndex = newTable("index", on(byID, func(r *indexRow) string { return r.Key }))
)

func checkNode(c *catalog.Check) string { return c.Node }

func entryKind(r *entryRow) string { return r.Entry.EntryKind() }

func queryName(q *catalog.PreparedQuery) string { return strings.ToLower(q.Name) }

// indexCount is how many indexes there are, of all tables.
var indexCount int

func newTable[T any](name string, indexes ...*indexOf[T]) *table {
	t := &table{name: name}
	for _, ix := range indexes {
		if len(t.indexes) > 0 {
			ix.key = t.indexes[0]
		}
		ix.at = indexCount
		indexCount++
		t.indexes = append(t.indexes, ix.index)
	}
	return t
}

// indexOf is an index on its way into its table.
type indexOf[T any] struct{ *index }

// on is an index by the parts of a key.
func on[T any](name string, parts ...func(row T) string) *indexOf[T] {
	ix := &index{name: name}
	for _, part := range parts {
		ix.parts = append(ix.parts, func(row any) string { return part(row.(T)) })
	}
	return &indexOf[T]{ix}
}

// where leaves the other rows out.
func (ix *indexOf[T]) where(has func(row T) bool) *indexOf[T] {
	ix.has = func(row any) bool { return has(row.(T)) }
	return ix
}

// onMany is an index of rows that have any number of keys, each of so many parts.
func onMany[T any](name string, parts int, keys func(row T) [][]string) *indexOf[T] {
	ix := &index{name: name, many: func(row any) [][]string { return keys(row.(T)) }}
	for i := range parts {
		ix.parts = append(ix.parts, func(e any) string { return e.(*alias).key[i] })
	}
	return &indexOf[T]{ix}
}

// apart makes a key of each name, once.
func apart(names []string) [][]string {
	var out [][]string
	seen := map[string]bool{}
	for _, n := range names {
		if !seen[n] {
			seen[n] = true
			out = append(out, []string{n})
		}
	}
	return out
}

// sourceNames lists the sources that an entry has intentions of, each once.
func sourceNames(e catalog.ConfigEntry) []catalog.Name {
	si, ok := e.(*catalog.ServiceIntentions)
	if !ok {
		return nil
	}
	seen := make(map[catalog.Name]bool, len(si.Sources))
	var names []catalog.Name
	for _, s := range si.Sources {
		if s != nil && !seen[s.Name] {
			seen[s.Name] = true
			names = append(names, s.Name)
		}
	}
	return names
}
