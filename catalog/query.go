package catalog

import "sync"

// QueryKind says what a query asks. The kind decides which field of the View is filled.
type QueryKind string

// Kinds of queries, and the field of View that answers each.
const (
	QueryNodes          QueryKind = "nodes"           // Nodes
	QueryServices       QueryKind = "services"        // Services
	QueryInstances      QueryKind = "instances"       // Instances of all services, without checks
	QueryService        QueryKind = "service"         // Instances of Name, of any kind
	QueryConnect        QueryKind = "connect"         // Instances that speak the mesh's mTLS for Name: sidecars, native ones and terminating gateways
	QueryGateway        QueryKind = "gateway"         // Entries of the gateways called Name, with the routes of an API gateway, and Instances of all services, without checks: see GatewayLinks
	QueryIngress        QueryKind = "ingress"         // Instances of the ingress gateways that lead to service Name
	QueryNode           QueryKind = "node"            // Nodes (0 or 1) and Instances of node Name (services, their checks and the node's)
	QueryNodeChecks     QueryKind = "node-checks"     // Checks of node Name
	QueryServiceChecks  QueryKind = "service-checks"  // Checks of service Name
	QueryChecks         QueryKind = "checks"          // Checks in state Name, or "any"
	QueryIntentions     QueryKind = "intentions"      // Intentions: all
	QueryIntentionsDest QueryKind = "intentions-dest" // Intentions that can decide for destination Name: its rows and those for "*"
	QueryIntentionsSrc  QueryKind = "intentions-src"  // Intentions that can decide for source Name: its rows and those of "*"
	QueryConfigEntries  QueryKind = "config-entries"  // Entries of kind Name
	QueryConfigEntry    QueryKind = "config-entry"    // Entries (0 or 1) of kind Name and name Sub
	QueryChain          QueryKind = "chain"           // Chain of service Name, or Problem; ChainOptions.Query makes it
	QueryRoots          QueryKind = "roots"           // Roots, CAConfig.ClusterID, and RevokedCerts without their descriptions
	QueryCAConfig       QueryKind = "ca-config"       // CAConfig

	QueryDump            QueryKind = "dump"             // Nodes, Instances and Checks: all
	QueryPreparedQueries QueryKind = "prepared-queries" // Queries: all
	QueryPreparedQuery   QueryKind = "prepared-query"   // Queries (0 or 1): the one with ID or name Name, or the template for it
	QueryCoordinates     QueryKind = "coordinates"      // Coordinates: all
	QueryCoordinate      QueryKind = "coordinate"       // Coordinates (0 or 1) of node Name
	QueryAutopilot       QueryKind = "autopilot"        // Autopilot
	QueryCertRevocations QueryKind = "cert-revocations" // RevokedCerts: all
	QueryRevocations     QueryKind = "revocations"      // Revocations: all
	QueryVirtualIPs      QueryKind = "virtual-ips"      // VirtualIPs: all

	QueryKey          QueryKind = "kv"            // Pairs (0 or 1) with key Name
	QueryKeyTree      QueryKind = "kv-tree"       // Pairs with the prefix Name
	QueryKeyNames     QueryKind = "kv-keys"       // Keys with the prefix Name, each cut after the next separator Sub, if any
	QueryKeyDelays    QueryKind = "kv-delays"     // Delays: all
	QuerySession      QueryKind = "session"       // Sessions (0 or 1) with ID Name
	QueryNodeSessions QueryKind = "node-sessions" // Sessions of node Name
	QuerySessions     QueryKind = "sessions"      // Sessions: all
)

// SubMerged is, as Sub of a query for instances, to merge central configuration into
// those that are proxies or gateways: see MergeCentral.
const SubMerged = "merged"

// Query is a watchable question. It is comparable, and is the key of a hub: what
// only narrows an answer (filters, tags, distance) is applied after the view and
// is never part of it.
type Query struct {
	Kind QueryKind
	Name string
	Sub  string
}

func (q Query) String() string {
	s := string(q.Kind)
	if q.Name != "" {
		s += " " + q.Name
	}
	if q.Sub != "" {
		s += "/" + q.Sub
	}
	return s
}

// Validate refuses queries that no store can answer.
func (q Query) Validate() error {
	switch q.Kind {
	case QueryNodes, QueryServices, QueryInstances, QueryIntentions, QueryRoots, QueryCAConfig, QueryKeyDelays, QuerySessions:
		return nil
	case QueryKey:
		return validKey(q.Name)
	case QueryKeyTree:
		return validPrefix(q.Name)
	case QueryKeyNames:
		if err := validPrefix(q.Sub); err != nil {
			return err
		}
		return validPrefix(q.Name)
	case QueryDump, QueryPreparedQueries, QueryCoordinates, QueryAutopilot, QueryRevocations, QueryCertRevocations, QueryVirtualIPs:
		return nil
	case QueryPreparedQuery, QueryCoordinate:
		return validName("query "+string(q.Kind), q.Name)
	case QueryService, QueryConnect, QueryIngress, QueryNode:
		if q.Sub != "" && q.Sub != SubMerged {
			return Invalidf("query %q: %q is not known beside a name", q.Kind, q.Sub)
		}
		return validName("query "+string(q.Kind), q.Name)
	case QueryNodeChecks, QueryServiceChecks, QueryGateway,
		QueryChecks, QueryIntentionsDest, QueryIntentionsSrc, QueryConfigEntries,
		QuerySession, QueryNodeSessions:
		return validName("query "+string(q.Kind), q.Name)
	case QueryConfigEntry:
		if err := validName("query "+string(q.Kind)+" kind", q.Name); err != nil {
			return err
		}
		return validName("query "+string(q.Kind), q.Sub)
	case QueryChain:
		if _, err := q.ChainOptions(); err != nil {
			return err
		}
		return validName("query "+string(q.Kind), q.Name)
	default:
		return Invalidf("query %q: unknown kind", q.Kind)
	}
}

// View is the answer to a query as of one moment. It is immutable and shared:
// nothing in it may be changed by a reader.
//
// Index is the Raft index at which the answer last changed; it depends on the
// replicated state alone, so every server gives the same one. It is never 0.
type View struct {
	Query Query
	Index uint64
	// Epoch changes when a backup is restored: an index of another epoch means nothing.
	Epoch string

	Nodes      []*Node
	Services   []*ServiceSummary
	Instances  []*Instance
	Checks     []*Check
	Intentions Intentions
	// Default is the action where no intention matches (intention queries only).
	Default Action
	Entries []Entry
	// Chain is nil where entries do not fit together; Problem says why.
	Chain   *Chain
	Problem string
	Roots   []*Root
	// CAConfig is set by ca-config; by roots with only its ClusterID.
	CAConfig *CAConfig
	Pairs    []*KVPair
	Keys     []string
	Delays   []*KeyDelay
	Sessions []*Session

	Queries      []*PreparedQuery
	Coordinates  []*NodeCoordinate
	Autopilot    *Autopilot
	Revocations  []*Revocation
	RevokedCerts []*CertRevocation
	VirtualIPs   []*VirtualIP

	encode  sync.Once
	encoded []byte
	encErr  error

	diffMu   sync.Mutex
	diffFrom uint64
	diff     *Delta
}

// Encoded returns the encoding of the view, made by the first caller's encode
// and shared by all others, so that N streams cost one encoding.
func (v *View) Encoded(encode func(*View) ([]byte, error)) ([]byte, error) {
	v.encode.Do(func() { v.encoded, v.encErr = encode(v) })
	return v.encoded, v.encErr
}
