package store

import (
	"hash/fnv"
	"strconv"

	"github.com/weftmesh/weft/catalog"
)

// Keys of index rows. Those of a class have rows for names that exist; a name
// that does not is answered for by one of the class's extinct rows.
const (
	keyNodes     = "nodes"
	keySummaries = "service-names"
	keyInstances = "service-instances"
	keyChecks    = "checks"
	keyRoots     = "roots"
	keyClusterID = "ca-cluster-id"
	keyCAConfig  = "ca-config"

	keyQueries         = "prepared-queries"
	keyCoordinates     = "coordinates"
	keyAutopilot       = "autopilot"
	keyRevocations     = "revocations"
	keySessions        = "sessions"
	keyDelays          = "kv-delays"
	keyCertRevocations = "cert-revocations"
	keyRevokedCerts    = "revoked-certs" // which, not why
	keyPatterns        = "intention-patterns"
	keyVirtualIPs      = "virtual-ips"
)

// Classes of keys by name.
const (
	classService       = "service"
	classConnect       = "connect"
	classNode          = "node"
	classNodeChecks    = "node-checks"
	classServiceChecks = "service-checks"
	classSource        = "intention-source"
	classVirtualIP     = "virtual-ip"
	classCoordinate    = "coordinate"
	classSession       = "session"
	classNodeSessions  = "node-sessions"
	classTerminating   = "terminating" // which terminating gateways name a service, or the wildcard
)

const (
	classEntry  = "entry"   // + "/" + kind: one entry
	classKind   = "entries" // all of a kind; never extinct, kinds are few
	classStatus = "status"  // checks in a state; never extinct
)

// extinctBuckets is how many rows a class keeps for the names it has lost.
const extinctBuckets = 256

func entryClass(kind string) string { return classEntry + "/" + kind }

func classKey(class, name string) string { return class + "/" + name }

func extinctKey(class, name string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return extinctBucket(class, int(h.Sum32()%extinctBuckets))
}

func extinctBucket(class string, n int) string { return "extinct/" + class + "/" + strconv.Itoa(n) }

// indexKey is one row, or one name of a class, that a query rests on.
type indexKey struct {
	class string // "" when the row is never extinct
	name  string
}

func fixed(key string) indexKey { return indexKey{name: key} }

// indexKeys lists what the answer to q depends on.
func indexKeys(q catalog.Query) []indexKey {
	intentions := entryClass(catalog.KindServiceIntentions)
	switch q.Kind {
	case catalog.QueryNodes:
		return []indexKey{fixed(keyNodes)}
	case catalog.QueryServices:
		return []indexKey{fixed(keySummaries)}
	case catalog.QueryInstances:
		return []indexKey{fixed(keyInstances)}
	case catalog.QueryGateway:
		var keys []indexKey
		for _, kind := range kindsOfGateways {
			keys = append(keys, indexKey{entryClass(kind), q.Name})
		}
		return keys
	case catalog.QueryIngress:
		return []indexKey{fixed(classKey(classKind, catalog.KindIngressGatewayEntry))}
	case catalog.QueryService:
		return []indexKey{{classService, q.Name}}
	case catalog.QueryConnect:
		return []indexKey{{classConnect, q.Name}}
	case catalog.QueryNode:
		return []indexKey{{classNode, q.Name}}
	case catalog.QueryNodeChecks:
		return []indexKey{{classNodeChecks, q.Name}}
	case catalog.QueryServiceChecks:
		return []indexKey{{classServiceChecks, q.Name}}
	case catalog.QueryChecks:
		if q.Name == catalog.StatusAny {
			return []indexKey{fixed(keyChecks)}
		}
		return []indexKey{fixed(classKey(classStatus, q.Name))}
	case catalog.QueryIntentions:
		return []indexKey{fixed(classKey(classKind, catalog.KindServiceIntentions))}
	case catalog.QueryIntentionsDest:
		return []indexKey{{intentions, q.Name}, {intentions, catalog.Wildcard}}
	case catalog.QueryIntentionsSrc:
		return []indexKey{{classSource, q.Name}, {classSource, catalog.Wildcard}}
	case catalog.QueryConfigEntries:
		return []indexKey{fixed(classKey(classKind, q.Name))}
	case catalog.QueryConfigEntry:
		return []indexKey{{entryClass(q.Name), q.Sub}}
	case catalog.QueryRoots:
		return []indexKey{fixed(keyRoots), fixed(keyClusterID), fixed(keyRevokedCerts)}
	case catalog.QueryCertRevocations:
		return []indexKey{fixed(keyCertRevocations)}
	case catalog.QueryCAConfig:
		return []indexKey{fixed(keyCAConfig)}
	case catalog.QueryDump:
		return []indexKey{fixed(keyNodes), fixed(keyInstances), fixed(keyChecks)}
	case catalog.QueryPreparedQueries, catalog.QueryPreparedQuery:
		return []indexKey{fixed(keyQueries)}
	case catalog.QueryCoordinates:
		return []indexKey{fixed(keyCoordinates)}
	case catalog.QueryCoordinate:
		return []indexKey{{classCoordinate, q.Name}}
	case catalog.QueryAutopilot:
		return []indexKey{fixed(keyAutopilot)}
	case catalog.QueryRevocations:
		return []indexKey{fixed(keyRevocations)}
	case catalog.QuerySession:
		return []indexKey{{classSession, q.Name}}
	case catalog.QueryNodeSessions:
		return []indexKey{{classNodeSessions, q.Name}}
	case catalog.QuerySessions:
		return []indexKey{fixed(keySessions)}
	case catalog.QueryKeyDelays:
		return []indexKey{fixed(keyDelays)}
	case catalog.QueryVirtualIPs:
		return []indexKey{fixed(keyVirtualIPs)}
	default:
		return nil
	}
}

// queryIndex is the index of q's view, at least 1. What it rests on is added to on,
// which may be nil.
func (r reader) queryIndex(on *basis, q catalog.Query) uint64 {
	index := uint64(1)
	switch q.Kind {
	case catalog.QueryKey:
		index = max(index, r.pairIndex(on, q.Name))
	case catalog.QueryKeyTree, catalog.QueryKeyNames:
		index = max(index, r.treeIndex(on, q.Name))
	case catalog.QueryIntentionsDest:
		index = max(index, r.patternIndex(on, entryClass(catalog.KindServiceIntentions), q.Name))
	case catalog.QueryIntentionsSrc:
		index = max(index, r.patternIndex(on, classSource, q.Name))
	}
	for _, k := range indexKeys(q) {
		index = max(index, r.keyIndex(on, k))
	}
	for _, k := range r.derivedKeys(q) {
		index = max(index, r.keyIndex(on, k))
	}
	return index
}

// noPattern is the index under keyPatterns as long as no intention ever named one.
const noPattern = 1

// hasPatterns tells whether intentions may name patterns such as "job-*".
func (r reader) hasPatterns(on *basis) bool {
	at, _ := r.indexRow(on, keyPatterns)
	return at > noPattern
}

// patternIndex is the index of the patterns of a class that cover name. One row is
// watched for all of them: they change rarely, and names have many.
func (r reader) patternIndex(on *basis, class, name string) uint64 {
	if !r.hasPatterns(on) {
		return 0
	}
	index := uint64(0)
	for _, n := range catalog.WiderNames(name) {
		index = max(index, r.keyIndex(nil, indexKey{class, n}))
	}
	return index
}

func (r reader) keyIndex(on *basis, k indexKey) uint64 {
	if k.class == "" {
		i, _ := r.indexRow(on, k.name)
		return i
	}
	if i, ok := r.indexRow(on, classKey(k.class, k.name)); ok {
		return i
	}
	i, _ := r.indexRow(on, extinctKey(k.class, k.name))
	return i
}

func (r reader) indexRow(on *basis, key string) (uint64, bool) {
	on.row(key)
	if i, ok := r.touched[key]; ok {
		return i, i != 0
	}
	row, ok := r.find(tableIndex, key)
	if !ok {
		return 0, false
	}
	return row.(*indexRow).Index, true
}
