package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/connect"
)

// proxiesAPI shows the proxies of this agent, and feeds those that run outside it.
type proxiesAPI struct{ cfg Config }

func (a proxiesAPI) routes() []Route {
	return []Route{
		{
			Method: http.MethodGet, Path: "/v1/agent/connect/proxies",
			Summary:    "the state of every proxy of this host: listeners, certificates, connections, what it enforces",
			Permission: Permission{acl.Read, acl.Agent, ""}, MaxBody: bodyNone, params: paramsToken, local: true, handle: a.status,
		},
		{
			Method: http.MethodGet, Path: "/v1/agent/connect/proxy/:id",
			Summary:    "what a proxy that runs outside the agent enforces: certificates trusted, intentions, upstreams; waits for the next with index",
			Permission: Permission{acl.Write, acl.Service, "id"}, MaxBody: bodyNone, params: paramsBlockLocal, local: true, handle: a.snapshot,
		},
		{
			Method: http.MethodPut, Path: "/v1/agent/connect/proxy/:id",
			Summary:    "what a proxy that runs outside the agent says of itself and has counted, for /v1/agent/connect/proxies and /v1/agent/metrics; weft connect proxy says it every two seconds",
			Permission: Permission{acl.Write, acl.Service, "id"}, MaxBody: bodyLarge, params: paramsToken, local: true, handle: a.tell,
		},
	}
}

func (a proxiesAPI) status(*call) (any, error) {
	if a.cfg.Proxies == nil {
		return []connect.Status{}, nil
	}
	return notNil(a.cfg.Proxies.Status()), nil
}

// tell takes fields that it does not know, too: the proxy may be of a newer version.
func (a proxiesAPI) tell(c *call) (any, error) {
	if a.cfg.Proxies == nil {
		return nil, errNotOffered("proxies")
	}
	b, err := c.body()
	if err != nil {
		return nil, err
	}
	var said struct {
		connect.Status
		Metrics json.RawMessage
	}
	if err := json.Unmarshal(b, &said); err != nil {
		return nil, decodeError(b, err)
	}
	counts, unread := connect.ReadCounts(said.Metrics)
	err = a.cfg.Proxies.Tell(c.tail, said.Status, counts)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return nil, notFound("unknown proxy ID: " + c.tail)
	case err == nil && unread != nil:
		return nil, badRequest(unread.Error())
	}
	return true, err
}

func (a proxiesAPI) snapshot(c *call) (any, error) {
	if c.tail == "" {
		return nil, badRequest("Missing proxy ID")
	}
	if a.cfg.Proxies == nil {
		return nil, errNotOffered("proxies")
	}
	watch := a.cfg.Proxies.Snapshot(c.tail)
	wait := c.opts.wait
	if c.opts.index == 0 {
		wait = readTimeout
	}
	ctx, cancel := context.WithTimeout(c.ctx(), wait)
	defer cancel()
	snap, index, err := watch.Next(ctx, c.opts.index)
	if c.opts.index > 0 && errors.Is(err, context.DeadlineExceeded) && c.ctx().Err() == nil {
		now, stop := context.WithTimeout(c.ctx(), readTimeout)
		defer stop()
		snap, index, err = watch.Next(now, 0)
	}
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, notFound("unknown proxy ID: " + c.tail)
	}
	if err != nil {
		return nil, err
	}
	setIndex(c.w.Header(), index)
	return snap, nil
}
