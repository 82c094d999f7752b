package httpapi

import (
	"net/http"
	"slices"
	"strings"

	"github.com/weftmesh/weft/catalog/acl"
)

// Route is one method of one path: what it serves, and the words from which the
// reference page is made.
type Route struct {
	Method string
	// Path is the pattern. A last ":name" takes the rest of the path, slashes
	// included, and may be empty; the handler says what an empty one means.
	Path    string
	Summary string
	Params  []Param
	// Body names what the request carries, in words or as a type; empty: nothing.
	Body string
	// Permission is what the caller's token must allow.
	Permission Permission
	// MaxBody is the most bytes of a request body that are read.
	MaxBody int64

	// local routes are answered by this agent alone, so it asks for Permission
	// itself; the servers do that for all others.
	local bool
	// params says which of the common parameters are read.
	params paramSet
	// invalid is the status of input that decodes and that validation refuses:
	// 400, or 500 where clients know it as 500.
	invalid int
	// effective adds the header X-Consul-Effective-Consistency, where Consul has it.
	effective bool
	// streaming marks reads that Consul answers from another backend when they
	// block, with other headers.
	streaming bool
	// stream routes write their own answer, piece by piece.
	stream bool
	handle func(c *call) (any, error)
}

// Param documents a query parameter.
type Param struct {
	Name    string
	Summary string
}

// Permission is a right that a route needs. Of names the path parameter or body
// field that it is asked for; empty: for the whole family.
type Permission struct {
	Verb     acl.Verb
	Resource acl.Resource
	Of       string
}

func (p Permission) String() string {
	switch {
	case p.Resource == "":
		return "none"
	case p.Of == "":
		return string(p.Resource) + ":" + string(p.Verb)
	default:
		return string(p.Resource) + ":" + string(p.Verb) + " for " + p.Of
	}
}

// paramSet says which common parameters a route reads.
type paramSet int

const (
	paramsToken       paramSet = iota // token only
	paramsWrite                       // and dc
	paramsRead                        // and consistency, blocking, filter
	paramsDiscovery                   // as paramsRead; stale by default when so configured
	paramsBlockLocal                  // blocking on the state of this agent
	paramsConsistency                 // dc and consistency, not blocking
)

// Sizes of bodies, by what they carry.
const (
	bodyNone  = 16 << 10 // none is expected; some clients send a little
	bodySmall = 64 << 10
	bodyNoun  = 512 << 10
	bodyLarge = 2 << 20
	// bodySnapshot bounds an archive, which is read piece by piece.
	bodySnapshot = 4 << 30
)

var (
	paramFilter = Param{"filter", "an expression that selects elements of the answer"}
	paramReason = Param{"reason", "why, in words"}
	paramEnable = Param{"enable", "true to enter maintenance, false to leave it; required"}
	paramTag    = Param{"tag", "only instances with this tag, in any case; may be repeated, all must match"}
	paramMeta   = Param{"node-meta", "key:value that the node must have; may be repeated"}
	paramNear   = Param{"near", "nearest first, by network distance from this node; _agent is this agent's own"}
	paramMerge  = Param{"merge-central-config", "show proxies and gateways with what proxy-defaults and service-defaults say merged in"}
	paramPeer   = Param{"peer", "the instances that the peered cluster of this name exports; none, as long as no cluster is peered"}
	paramCAS    = Param{"cas", "act only when the entry's ModifyIndex is this; 0: when there is none"}
	paramEntry  = []Param{{"source", "the calling service, or *; required"}, {"destination", "the called service, or *; required"}}
)

// CommonParams documents the parameters that many routes share.
func CommonParams() []Param {
	return []Param{
		{"token", "the ACL token; also taken from the headers X-Consul-Token and Authorization: Bearer"},
		{"dc", "the datacenter; only that of the agent is known"},
		{"index", "wait until the answer is newer than this index (reads)"},
		{"wait", "how long to wait with index: default 5m, at most 10m, plus up to 1/16"},
		{"stale", "any server, or what the agent knows, may answer (reads)"},
		{"consistent", "the leader confirms itself before it answers (reads; the default is as strict)"},
		{"leader", "accepted: the default (reads)"},
		{"max_stale", "with stale: ask the leader when the answer is older than this"},
		{"cached", "what the agent knows may answer; see the header X-Cache"},
		{"pretty", "indent the answer"},
	}
}

// Routes lists every route, sorted by path and method, for the reference page.
func Routes() []Route {
	rs := allRoutes(Config{}, nil)
	slices.SortStableFunc(rs, func(a, b Route) int {
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		return strings.Compare(a.Method, b.Method)
	})
	return rs
}

func allRoutes(cfg Config, q *queries) []Route {
	var rs []Route
	for _, part := range [][]Route{
		agentAPI{cfg}.routes(), servicesAPI{cfg}.routes(), checksAPI{cfg}.routes(),
		localHealthAPI{cfg}.routes(), metricsAPI{cfg.Gatherer, cfg.MetricNames}.routes(), certificatesAPI{cfg, q}.routes(),
		agentConnectAPI{cfg, q}.routes(), proxiesAPI{cfg}.routes(),
		catalogAPI{cfg, q}.routes(), catalogWriteAPI{cfg}.routes(), healthAPI{q}.routes(),
		caAPI{cfg, q}.routes(), certRevocationsAPI{cfg, q}.routes(), intentionsAPI{cfg, q}.routes(), intentionIDsAPI{cfg, q}.routes(), enforcedAPI{cfg}.routes(),
		configAPI{cfg, q}.routes(), chainAPI{cfg, q}.routes(), exportsAPI{q}.routes(), statusAPI{cfg}.routes(), aclAPI{}.routes(),
		gatewaysAPI{q}.routes(), virtualIPAPI{cfg}.routes(), peeringAPI{}.routes(),
		operatorAPI{cfg, q}.routes(), keyringAPI{cfg}.routes(), trustAPI{cfg, q}.routes(), snapshotAPI{cfg}.routes(),
		preparedQueriesAPI{cfg, q}.routes(), coordinatesAPI{cfg, q}.routes(), uiAPI{cfg, q}.routes(),
		kvAPI{cfg, q}.routes(), sessionsAPI{cfg, q}.routes(), txnAPI{cfg}.routes(), eventsAPI{cfg}.routes(),
	} {
		rs = append(rs, part...)
	}
	return rs
}

// endpoint is a path with its methods, in the order in which Allow names them.
type endpoint struct {
	path    string // without the parameter
	prefix  bool
	methods []string
	routes  map[string]*Route
}

// router finds the endpoint of a path. It never rewrites one and never redirects.
type router struct {
	exact    map[string]*endpoint
	prefixes []*endpoint // longest first
}

func newRouter(routes []Route) *router {
	r := &router{exact: map[string]*endpoint{}}
	byPath := map[string]*endpoint{}
	for i := range routes {
		rt := &routes[i]
		ep := byPath[rt.Path]
		if ep == nil {
			ep = &endpoint{path: rt.Path, routes: map[string]*Route{}}
			byPath[rt.Path] = ep
			if i := strings.Index(rt.Path, ":"); i >= 0 {
				ep.path, ep.prefix = rt.Path[:i], true
				r.prefixes = append(r.prefixes, ep)
			} else {
				r.exact[rt.Path] = ep
			}
		}
		ep.methods = append(ep.methods, rt.Method)
		ep.routes[rt.Method] = rt
	}
	slices.SortFunc(r.prefixes, func(a, b *endpoint) int { return len(b.path) - len(a.path) })
	return r
}

// find gives the endpoint of a path and what the path's parameter holds.
func (r *router) find(path string) (ep *endpoint, tail string) {
	if ep := r.exact[path]; ep != nil {
		return ep, ""
	}
	for _, ep := range r.prefixes {
		if tail, ok := strings.CutPrefix(path, ep.path); ok {
			return ep, tail
		}
	}
	return nil, ""
}

// allow is the value of the header Allow, as Consul orders and spells it.
func (e *endpoint) allow() string {
	methods := slices.Clone(e.methods)
	order := []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete}
	slices.SortFunc(methods, func(a, b string) int { return slices.Index(order, a) - slices.Index(order, b) })
	return strings.Join(append([]string{http.MethodOptions}, methods...), ",")
}
