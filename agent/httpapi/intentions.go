package httpapi

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// intentionsAPI reads and writes intentions by their pair of names, and asks the
// judge.
type intentionsAPI struct {
	cfg Config
	q   *queries
}

const pathIntentions = "/v1/connect/intentions"

func (a intentionsAPI) routes() []Route {
	read, write := Permission{acl.Read, acl.Intention, "destination"}, Permission{acl.Write, acl.Intention, "destination"}
	exact := pathIntentions + "/exact"
	const failed = http.StatusInternalServerError
	return []Route{
		{
			Method: http.MethodGet, Path: pathIntentions, Summary: "every intention, most specific first",
			Params: []Param{paramFilter}, Permission: Permission{acl.Read, acl.Intention, ""}, MaxBody: bodyNone, params: paramsRead, handle: a.list,
		},
		{
			Method: http.MethodGet, Path: exact, Summary: "the intention of exactly this pair",
			Params: paramEntry, Permission: read, MaxBody: bodyNone, params: paramsRead, invalid: failed, handle: a.exact,
		},
		{
			Method: http.MethodPut, Path: exact, Summary: "create or replace the intention of a pair", Body: "JSON: Action or Permissions, Description",
			Params: append(slices.Clone(paramEntry), paramWaitEnforced), Permission: write, MaxBody: bodyNoun, params: paramsWrite, invalid: failed, handle: a.putExact,
		},
		{
			Method: http.MethodDelete, Path: exact, Summary: "delete the intention of a pair; none is no error",
			Params: append(slices.Clone(paramEntry), paramWaitEnforced), Permission: write, MaxBody: bodyNone, params: paramsWrite, invalid: failed, handle: a.deleteExact,
		},
		{
			Method: http.MethodGet, Path: pathIntentions + "/match", Summary: "the intentions that can decide for each name, in the order of their precedence",
			Params:     []Param{{"by", "source or destination; required"}, {"name", "a service; may be repeated; required"}},
			Permission: Permission{acl.Read, acl.Intention, "name"}, MaxBody: bodyNone, params: paramsRead, effective: true, invalid: failed, handle: a.match,
		},
		{
			Method: http.MethodGet, Path: pathIntentions + "/check", Summary: "whether the source may connect to the destination, and why",
			Params:     append(slices.Clone(paramEntry), Param{"source-type", "consul, the only one"}),
			Permission: read, MaxBody: bodyNone, params: paramsRead, invalid: failed, handle: a.check,
		},
	}
}

func (a intentionsAPI) list(c *call) (any, error) {
	f, err := newFilter[intentionView](c.opts.filter)
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryIntentions})
	if err != nil {
		return nil, err
	}
	return f.slice(viewIntentions(v.Intentions))
}

// pair reads the parameters source and destination.
func (c *call) pair() (source, destination catalog.Name, err error) {
	if source, err = c.serviceParam("source"); err != nil {
		return "", "", err
	}
	destination, err = c.serviceParam("destination")
	return source, destination, err
}

func (c *call) serviceParam(name string) (catalog.Name, error) {
	v := c.query.Get(name)
	if v == "" {
		return "", internal("required query parameter '" + name + "' not set")
	}
	return plainName(name, v)
}

// plainName takes a name in Consul's form, [[partition/]namespace/]name, of which
// only the default tenancy exists here.
func plainName(what, v string) (catalog.Name, error) {
	parts := strings.Split(v, "/")
	if len(parts) > 3 {
		return "", internal(fmt.Sprintf("%s %q is invalid: input can contain at most two '/'", what, v))
	}
	for _, tenant := range parts[:len(parts)-1] {
		if tenant != "default" {
			return "", internal(fmt.Sprintf("Invalid %s %q: namespaces and partitions are a Consul Enterprise feature", what, v))
		}
	}
	return parts[len(parts)-1], nil
}

// internal is 500, by which clients know what is wrong with an intention.
func internal(text string) error { return &httpError{http.StatusInternalServerError, text} }

var errNoIntention = notFound("Intention not found")

func (a intentionsAPI) exact(c *call) (any, error) {
	source, destination, err := c.pair()
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryIntentionsDest, Name: destination})
	if err != nil {
		return nil, err
	}
	for _, i := range v.Intentions {
		if i.SourceName == source && i.DestinationName == destination && i.SourcePeer == "" {
			return viewIntention(i), nil
		}
	}
	return nil, errNoIntention
}

// intentionBody is an intention as clients write it, with the keys that answers have.
type intentionBody struct {
	ID                   string
	Description          string
	SourceNS             string
	SourceName           string
	SourcePartition      string
	SourcePeer           string
	SourceSamenessGroup  string
	SourceType           string
	DestinationNS        string
	DestinationName      string
	DestinationPartition string
	Action               catalog.Action
	Permissions          []*catalog.IntentionPermission
	JWT                  *catalog.IntentionJWT
	DefaultAddr          string // of old clients; has no meaning
	DefaultPort          int
	Meta                 map[string]string
	Precedence           int
	CreatedAt            time.Time
	UpdatedAt            time.Time
	Hash                 any
	CreateIndex          uint64
	ModifyIndex          uint64
}

func (b *intentionBody) check() error {
	for _, t := range []struct{ key, v string }{
		{"SourceNS", b.SourceNS},
		{"DestinationNS", b.DestinationNS},
		{"SourcePartition", b.SourcePartition},
		{"DestinationPartition", b.DestinationPartition},
	} {
		if t.v != "" && t.v != "default" {
			return internal(fmt.Sprintf("Invalid %s %q: namespaces and partitions are a Consul Enterprise feature", t.key, t.v))
		}
	}
	switch {
	case b.SourceSamenessGroup != "":
		return internal("Invalid SourceSamenessGroup: sameness groups are a Consul Enterprise feature")
	case b.SourceType != "" && b.SourceType != "consul":
		return internal("SourceType must be set to 'consul'")
	case b.JWT != nil:
		return internal("JWT must not be specified: set it in the config entry service-intentions")
	}
	return nil
}

func (b *intentionBody) source() catalog.SourceIntention {
	return catalog.SourceIntention{
		Name: b.SourceName, Peer: b.SourcePeer, Action: b.Action, Permissions: b.Permissions,
		Type: "consul", Description: b.Description,
	}
}

func (a intentionsAPI) putExact(c *call) (any, error) {
	source, destination, err := c.pair()
	if err != nil {
		return nil, err
	}
	var body intentionBody
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if err := body.check(); err != nil {
		return nil, err
	}
	switch {
	case body.SourceName != "" && body.SourceName != source:
		return nil, internal(fmt.Sprintf("SourceName %q is not the source %q of the request", body.SourceName, source))
	case body.DestinationName != "" && body.DestinationName != destination:
		return nil, internal(fmt.Sprintf("DestinationName %q is not the destination %q of the request", body.DestinationName, destination))
	case len(body.Meta) > 0:
		return nil, internal("Meta must not be specified: set it in the config entry service-intentions")
	case body.ID != "":
		return nil, internal("ID must not be specified: the pair of names is the key")
	}
	body.SourceName = source
	cmd := &catalog.SetIntention{Destination: destination, Source: body.source()}
	return c.policyChange(a.cfg, cmd, wire.EnforcedRequest{Destination: destination})
}

func (a intentionsAPI) deleteExact(c *call) (any, error) {
	source, destination, err := c.pair()
	if err != nil {
		return nil, err
	}
	cmd := &catalog.DeleteIntention{Source: source, Destination: destination}
	return c.policyChange(a.cfg, cmd, wire.EnforcedRequest{Destination: destination})
}

func (a intentionsAPI) match(c *call) (any, error) {
	var kind catalog.QueryKind
	switch by := c.query.Get("by"); by {
	case "":
		return nil, internal("required query parameter 'by' not set")
	case "source":
		kind = catalog.QueryIntentionsSrc
	case "destination":
		kind = catalog.QueryIntentionsDest
	default:
		return nil, internal("'by' parameter must be one of 'source' or 'destination'")
	}
	names := c.query["name"]
	if len(names) == 0 || names[0] == "" {
		return nil, internal("required query parameter 'name' not set")
	}
	if len(names) > maxMatchNames {
		return nil, badRequest(fmt.Sprintf("%d names were asked for, at most %d are allowed", len(names), maxMatchNames))
	}
	out := make(map[string][]intentionView, len(names))
	read := a.q.read
	if len(names) > 1 {
		// Whatever changes for one of them changes the list of all.
		if _, err := a.q.read(c, catalog.Query{Kind: catalog.QueryIntentions}); err != nil {
			return nil, err
		}
		read = a.q.peek
	}
	for _, n := range names {
		name, err := plainName("match entry", n)
		if err != nil {
			return nil, err
		}
		v, err := read(c, catalog.Query{Kind: kind, Name: name})
		if err != nil {
			return nil, err
		}
		out[n] = viewIntentions(v.Intentions)
	}
	return out, nil
}

const maxMatchNames = 64

// verdict is the answer of the judge. Allowed is Consul's; the rest says why.
type verdict struct {
	Allowed bool
	Action  catalog.Action
	Reason  string
	Rule    string
}

func (a intentionsAPI) check(c *call) (any, error) {
	source, destination, err := c.pair()
	if err != nil {
		return nil, err
	}
	if t := c.query.Get("source-type"); t != "" && t != "consul" {
		return nil, internal(fmt.Sprintf("source-type %q is not supported, only consul is", t))
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryIntentionsDest, Name: destination})
	if err != nil {
		return nil, err
	}
	d := v.Intentions.Decide(catalog.Request{Source: source, Destination: destination}, v.Default)
	return verdict{d.Action.Allowed(), d.Action, d.Reason(), d.Rule.String()}, nil
}
