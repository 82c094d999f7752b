package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/weftmesh/weft/agent/discover"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// preparedQueriesAPI stores queries and executes them.
type preparedQueriesAPI struct {
	cfg Config
	q   *queries
}

func (a preparedQueriesAPI) routes() []Route {
	const all, one, failed = "/v1/query", "/v1/query/:query", http.StatusInternalServerError
	const body = "JSON: Name, Session, Token, Template, Service, DNS"
	read, write := Permission{acl.Read, acl.Query, ""}, Permission{acl.Write, acl.Query, "Name"}
	return []Route{
		{
			Method: http.MethodGet, Path: all, Summary: "all prepared queries", Permission: read,
			MaxBody: bodyNone, params: paramsRead, effective: true, handle: a.list,
		},
		{
			Method: http.MethodPost, Path: all, Summary: "create a prepared query; the answer is its ID", Body: body,
			Permission: write, MaxBody: bodyNoun, params: paramsWrite, invalid: failed, handle: a.create,
		},
		{
			Method: http.MethodGet, Path: one, Permission: read, MaxBody: bodyNone, params: paramsRead, effective: true, invalid: failed, handle: a.get,
			Summary: "a prepared query by its ID; with /execute behind an ID or a name, the instances that it finds, and with /explain, the query that would be executed",
			Params: []Param{
				{"near", "execute: nearest first, by network distance from this node; _agent is this agent's own, _ip that of the caller"},
				{"limit", "execute: at most so many instances"},
				{"connect", "execute: instances that speak the mesh's mTLS for the service"},
			},
		},
		{
			Method: http.MethodPut, Path: one, Summary: "replace a prepared query", Body: body,
			Permission: write, MaxBody: bodyNoun, params: paramsWrite, invalid: failed, handle: a.update,
		},
		{
			Method: http.MethodDelete, Path: one, Summary: "delete a prepared query",
			Permission: Permission{acl.Write, acl.Query, "query"}, MaxBody: bodyNone, params: paramsWrite, invalid: failed, handle: a.remove,
		},
	}
}

var errNoQuery = notFound("Query not found")

func (a preparedQueriesAPI) list(c *call) (any, error) {
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryPreparedQueries})
	if err != nil {
		return nil, err
	}
	return notNil(v.Queries), nil
}

func (a preparedQueriesAPI) get(c *call) (any, error) {
	if name, ok := strings.CutSuffix(c.tail, "/execute"); ok {
		return a.execute(c, name)
	}
	if name, ok := strings.CutSuffix(c.tail, "/explain"); ok {
		return a.explain(c, name)
	}
	c.opts.cached = false // executions alone may be answered from what the agent knows
	id, err := c.need("query ID")
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryPreparedQuery, Name: id})
	if err != nil {
		return nil, err
	}
	if len(v.Queries) == 0 || v.Queries[0].ID != id {
		return nil, errNoQuery
	}
	return v.Queries, nil
}

// decode reads the definition of a query.
func (a preparedQueriesAPI) decode(c *call) (*catalog.PreparedQuery, error) {
	raw, err := c.object()
	if err != nil {
		return nil, err
	}
	tenancy := false
	drop := func(m map[string]any) {
		for k, v := range m {
			if strings.EqualFold(k, "Namespace") || strings.EqualFold(k, "Partition") {
				tenancy = tenancy || v != "" && v != "default"
				delete(m, k)
			}
		}
	}
	eachObject(raw, "service", func(service map[string]any) {
		drop(service)
		eachObject(service, "failover", func(failover map[string]any) { eachObject(failover, "targets", drop) })
	})
	if tenancy {
		return nil, badRequest("Invalid prepared query: namespaces and partitions are a Consul Enterprise feature")
	}
	q := &catalog.PreparedQuery{}
	if err := decodeInto(raw, q); err != nil {
		return nil, err
	}
	q.RaftIndex = catalog.RaftIndex{}
	return q, nil
}

func (a preparedQueriesAPI) create(c *call) (any, error) {
	q, err := a.decode(c)
	if err != nil {
		return nil, err
	}
	if q.ID != "" {
		return nil, internal("ID must be empty when creating a new prepared query")
	}
	q.ID = uuid.NewString()
	if _, err := c.apply(a.cfg.Servers, &catalog.SetPreparedQuery{Query: *q}); err != nil {
		return nil, err
	}
	return struct{ ID string }{q.ID}, nil
}

func (a preparedQueriesAPI) update(c *call) (any, error) {
	id, err := c.need("query ID")
	if err != nil {
		return nil, err
	}
	q, err := a.decode(c)
	if err != nil {
		return nil, err
	}
	q.ID = id
	// Which query is meant comes before what is wrong with the new one.
	v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryPreparedQuery, Name: id})
	if err != nil {
		return nil, err
	}
	if len(v.Queries) == 0 || v.Queries[0].ID != id {
		return nil, internal("Cannot modify non-existent prepared query: '" + id + "'")
	}
	_, err = c.apply(a.cfg.Servers, &catalog.SetPreparedQuery{Query: *q, Update: true})
	return nil, notThere(err)
}

func (a preparedQueriesAPI) remove(c *call) (any, error) {
	id, err := c.need("query ID")
	if err != nil {
		return nil, err
	}
	_, err = c.apply(a.cfg.Servers, &catalog.DeletePreparedQuery{ID: id})
	return nil, notThere(err)
}

// notThere gives the status that clients know for a query that is not there.
func notThere(err error) error {
	if errors.Is(err, catalog.ErrNotFound) {
		return internal(err.Error())
	}
	return err
}

// resolve finds a query by ID, name or template, and renders it. The view is that of
// the query as it is stored.
func (a preparedQueriesAPI) resolve(c *call, name string) (*catalog.PreparedQuery, *catalog.View, error) {
	if name == "" {
		return nil, nil, badRequest("Missing query ID or name")
	}
	var stored *catalog.View
	q, err := discover.Resolve(c.ctx(), func(_ context.Context, query catalog.Query) (*catalog.View, error) {
		rep, err := a.q.get(c, query, 0)
		if err != nil {
			return nil, err
		}
		c.setMeta(rep)
		stored = rep.View
		return stored, nil
	}, name)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, nil, errNoQuery
	}
	return q, stored, err
}

func (a preparedQueriesAPI) explain(c *call, name string) (any, error) {
	q, v, err := a.resolve(c, name)
	if err != nil {
		return nil, err
	}
	return struct {
		Query *catalog.PreparedQuery
		queryMetaView
	}{q, c.queryMeta(v)}, nil
}

type executedView struct {
	Service    catalog.Name
	Nodes      []instanceView
	DNS        catalog.QueryDNS
	Datacenter string
	PeerName   string
	Failovers  int
	queryMetaView
}

// executed is an execution, told apart from others.
type executed struct {
	name, near string
	limit      int
	connect    bool
}

func (a preparedQueriesAPI) execute(c *call, name string) (any, error) {
	limit := 0
	if v := c.query.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, internal("Bad limit: " + err.Error())
		}
		limit = n
	}
	connect, err := c.boolParam("connect")
	if err != nil {
		return nil, err
	}
	q, v, err := a.resolve(c, name)
	if err != nil {
		return nil, err
	}
	found, err := discover.Execute(c.ctx(), a.q.reader(c), q, discover.Search{
		By: a.q.asker(c), Near: c.query.Get("near"), Connect: connect, Datacenter: a.cfg.Self.Datacenter,
	})
	if err != nil {
		return nil, err
	}
	if limit > 0 && len(found.Instances) > limit {
		found.Instances = found.Instances[:limit]
	}
	if c.opts.cached {
		c.setCached(a.q.seen.hit(executed{name, c.query.Get("near"), limit, connect}), 0)
	}
	return executedView{
		Service: q.Service.Service, Nodes: viewInstances(found.Instances, a.cfg.Self.Datacenter), DNS: q.DNS,
		Datacenter: found.Datacenter, PeerName: found.Peer, Failovers: found.Failovers, queryMetaView: c.queryMeta(v),
	}, nil
}
