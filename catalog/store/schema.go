package store

import (
	"fmt"
	"strings"

	"github.com/hashicorp/go-memdb"

	"github.com/weftmesh/weft/catalog"
)

// Tables.
const (
	tableNodes    = "nodes"
	tableServices = "services"
	tableChecks   = "checks"
	tableEntries  = "entries"
	tableRoots    = "roots"
	tableCA       = "ca-config"
	tableStated   = "stated"
	tableIndex    = "index"
	tableMeta     = "meta"

	tableVirtualIPs      = "virtual-ips"
	tableQueries         = "prepared-queries"
	tableCoordinates     = "coordinates"
	tableAutopilot       = "autopilot"
	tableRevocations     = "revocations"
	tableKV              = "kv"
	tableDelays          = "kv-delays"
	tableSessions        = "sessions"
	tableCertRevocations = "cert-revocations"
)

// Indexes of tables; "id" is the key.
const (
	byID          = "id"
	byUUID        = "uuid"
	byNode        = "node"
	ofNode        = byID + "_prefix" // of tables whose key begins with the node
	byName        = "name"
	byConnect     = "connect"
	byNodeService = "node-service"
	byStatus      = "status"
	byKind        = "kind"
	bySource      = "source"
	byReference   = "reference"
	byOffset      = "offset"
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

// metaRow is the one row of the meta table.
type metaRow struct{ Applied uint64 }

const singleton = "-"

// keyed is a memdb index made of one function from rows to the parts of a key.
// Parts cannot hold the separator: names with control characters are refused
// before they get here.
type keyed struct {
	parts func(row any) ([]string, bool)
}

func key(parts ...string) []byte {
	n := 0
	for _, p := range parts {
		n += len(p) + 1
	}
	b := make([]byte, 0, n)
	for _, p := range parts {
		b = append(b, p...)
		b = append(b, 0)
	}
	return b
}

// FromObject implements memdb.SingleIndexer.
func (k keyed) FromObject(row any) (bool, []byte, error) {
	parts, ok := k.parts(row)
	if !ok {
		return false, nil, nil
	}
	return true, key(parts...), nil
}

// FromArgs implements memdb.Indexer.
func (k keyed) FromArgs(args ...any) ([]byte, error) {
	parts := make([]string, len(args))
	for i, a := range args {
		s, ok := a.(string)
		if !ok {
			return nil, fmt.Errorf("store: index argument %d is a %T", i, a)
		}
		parts[i] = s
	}
	return key(parts...), nil
}

// PrefixFromArgs implements memdb.PrefixIndexer: the first parts of a key.
func (k keyed) PrefixFromArgs(args ...any) ([]byte, error) { return k.FromArgs(args...) }

// rawKey is the index of keys as they are. Nothing follows them, so that a prefix of
// a key is a prefix of its index.
type rawKey struct{}

// FromObject implements memdb.SingleIndexer.
func (rawKey) FromObject(row any) (bool, []byte, error) { return true, []byte(pairOf(row).Key), nil }

// FromArgs implements memdb.Indexer.
func (rawKey) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 1 {
		if s, ok := args[0].(string); ok {
			return []byte(s), nil
		}
	}
	return nil, fmt.Errorf("store: a key is one string, not %v", args)
}

// PrefixFromArgs implements memdb.PrefixIndexer.
func (k rawKey) PrefixFromArgs(args ...any) ([]byte, error) { return k.FromArgs(args...) }

// sources indexes service-intentions by the sources that they name.
type sources struct{ keyed }

// FromObject implements memdb.MultiIndexer.
func (sources) FromObject(row any) (bool, [][]byte, error) {
	var keys [][]byte
	for _, n := range sourceNames(row.(*entryRow).Entry) {
		keys = append(keys, key(n))
	}
	return len(keys) > 0, keys, nil
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

func on[T any](f func(row T) []string) keyed {
	return keyed{parts: func(row any) ([]string, bool) {
		p := f(row.(T))
		return p, p != nil
	}}
}

func table(name string, id memdb.Indexer, more ...*memdb.IndexSchema) *memdb.TableSchema {
	t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{
		byID: {Name: byID, Unique: true, Indexer: id},
	}}
	for _, i := range more {
		t.Indexes[i.Name] = i
	}
	return t
}

func also(name string, i memdb.Indexer) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: name, AllowMissing: true, Indexer: i}
}

func schema() *memdb.DBSchema {
	tables := []*memdb.TableSchema{
		table(tableNodes, on(func(n *catalog.Node) []string { return []string{n.Node} }),
			also(byUUID, on(func(n *catalog.Node) []string {
				if n.ID == "" {
					return nil
				}
				return []string{strings.ToLower(n.ID)}
			}))),
		table(tableServices, on(func(r *serviceRow) []string { return []string{r.Node, r.Service.ID} }),
			also(byName, on(func(r *serviceRow) []string { return []string{r.Service.Service} })),
			also(byConnect, on(func(r *serviceRow) []string {
				if n := r.connectName(); n != "" {
					return []string{n}
				}
				return nil
			}))),
		table(tableChecks, on(func(c *catalog.Check) []string { return []string{c.Node, c.CheckID} }),
			also(byNodeService, on(func(c *catalog.Check) []string { return []string{c.Node, c.ServiceID} })),
			also(byName, on(func(c *catalog.Check) []string {
				if c.ServiceName == "" {
					return nil
				}
				return []string{c.ServiceName}
			})),
			also(byStatus, on(func(c *catalog.Check) []string { return []string{c.Status} }))),
		table(tableEntries, on(func(r *entryRow) []string { return []string{r.Entry.EntryKind(), r.Entry.EntryName()} }),
			also(byKind, on(func(r *entryRow) []string { return []string{r.Entry.EntryKind()} })),
			also(bySource, sources{}),
			also(byReference, references{})),
		table(tableVirtualIPs, on(func(r *virtualIPRow) []string { return []string{r.Service} }),
			also(byOffset, on(func(r *virtualIPRow) []string { return []string{offsetKey(r.Offset)} }))),
		table(tableRoots, on(func(r *catalog.Root) []string { return []string{r.ID} })),
		table(tableCA, on(func(*catalog.CAConfig) []string { return []string{singleton} })),
		table(tableStated, on(func(r *statedRow) []string { return []string{r.Node, r.ServiceID} }),
			also(byNode, on(func(r *statedRow) []string { return []string{r.Node} }))),
		table(tableQueries, on(func(q *catalog.PreparedQuery) []string { return []string{q.ID} }),
			also(byName, on(queryName)),
			also(byTemplate, on(queryTemplate)),
			also(bySession, on(func(q *catalog.PreparedQuery) []string {
				if q.Session == "" {
					return nil
				}
				return []string{q.Session}
			}))),
		table(tableCoordinates, on(func(c *catalog.NodeCoordinate) []string { return []string{c.Node} })),
		table(tableAutopilot, on(func(*catalog.Autopilot) []string { return []string{singleton} })),
		table(tableCertRevocations, on(certRevocationKey)),
		table(tableRevocations, on(func(r *catalog.Revocation) []string { return []string{r.Kind, r.ID} })),
		table(tableKV, rawKey{},
			also(bySession, on(func(p *catalog.KVPair) []string {
				if p.Session == "" {
					return nil
				}
				return []string{p.Session}
			}))),
		table(tableDelays, on(func(d *catalog.KeyDelay) []string { return []string{d.Key} })),
		table(tableSessions, on(func(s *catalog.Session) []string { return []string{s.ID} }),
			also(byNode, on(func(s *catalog.Session) []string { return []string{s.Node} })),
			also(byCheck, sessionChecks{})),
		table(tableIndex, on(func(r *indexRow) []string { return []string{r.Key} })),
		table(tableMeta, on(func(*metaRow) []string { return []string{singleton} })),
	}
	s := &memdb.DBSchema{Tables: make(map[string]*memdb.TableSchema, len(tables))}
	for _, t := range tables {
		s.Tables[t.Name] = t
	}
	return s
}
