package httpapi

import (
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// intentionIDsAPI reads and writes intentions by the IDs of Consul's old endpoints,
// which its CLI still uses.
type intentionIDsAPI struct {
	cfg Config
	q   *queries
}

func (a intentionIDsAPI) routes() []Route {
	const byID, failed = pathIntentions + "/:id", http.StatusInternalServerError
	write := Permission{acl.Write, acl.Intention, "DestinationName"}
	return []Route{
		{
			Method: http.MethodPost, Path: pathIntentions, Summary: "create an intention with an ID (deprecated: use exact)",
			Body: "JSON: SourceName, DestinationName, Action, Description, Meta", MaxBody: bodyNoun,
			Permission: write, params: paramsWrite, invalid: failed, handle: a.create,
		},
		{
			Method: http.MethodGet, Path: byID, Summary: "an intention by its ID (deprecated: use exact)", MaxBody: bodyNone,
			Permission: Permission{acl.Read, acl.Intention, ""}, params: paramsRead, handle: a.get,
		},
		{
			Method: http.MethodPut, Path: byID, Summary: "replace an intention by its ID (deprecated: use exact)",
			Body: "JSON: SourceName, DestinationName, Action, Description, Meta", MaxBody: bodyNoun,
			Permission: write, params: paramsWrite, invalid: failed, handle: a.update,
		},
		{
			Method: http.MethodDelete, Path: byID, Summary: "delete an intention by its ID (deprecated: use exact)", MaxBody: bodyNone,
			Permission: write, params: paramsWrite, invalid: failed, handle: a.remove,
		},
	}
}

type createdView struct{ ID string }

func (a intentionIDsAPI) create(c *call) (any, error) {
	body, err := a.decode(c)
	if err != nil {
		return nil, err
	}
	if body.ID != "" {
		return nil, badRequest("ID must be empty when creating a new intention")
	}
	id, now := uuid.NewString(), time.Now().UTC()
	src := body.source()
	src.LegacyID, src.LegacyMeta, src.LegacyCreateTime, src.LegacyUpdateTime = id, body.Meta, &now, &now
	if _, err := c.apply(a.cfg.Servers, &catalog.SetIntention{Destination: body.DestinationName, Source: src, CreateOnly: true}); err != nil {
		return nil, err
	}
	return createdView{id}, nil
}

func (a intentionIDsAPI) decode(c *call) (*intentionBody, error) {
	var body intentionBody
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	switch {
	case body.SourceName == "":
		return nil, internal("SourceName must be set")
	case body.DestinationName == "":
		return nil, internal("DestinationName must be set")
	case len(body.Permissions) > 0:
		return nil, internal("Permissions must not be specified: set them with exact or in the config entry service-intentions")
	}
	return &body, body.check()
}

// find gives the intention with the ID of the path.
func (a intentionIDsAPI) find(c *call, read func(*call, catalog.Query) (*catalog.View, error)) (*catalog.Intention, error) {
	if _, err := uuid.Parse(c.tail); err != nil {
		return nil, badRequest("Invalid intention ID " + c.tail + ": it is no UUID")
	}
	v, err := read(c, catalog.Query{Kind: catalog.QueryIntentions})
	if err != nil {
		return nil, err
	}
	for _, i := range v.Intentions {
		if i.ID == c.tail {
			return i, nil
		}
	}
	return nil, errNoIntention
}

func (a intentionIDsAPI) get(c *call) (any, error) {
	i, err := a.find(c, a.q.read)
	if err != nil {
		return nil, err
	}
	return viewIntention(i), nil
}

func (a intentionIDsAPI) update(c *call) (any, error) {
	body, err := a.decode(c)
	if err != nil {
		return nil, err
	}
	old, err := a.find(c, a.q.peek)
	if err != nil {
		return nil, err
	}
	if body.SourceName != old.SourceName || body.DestinationName != old.DestinationName {
		return nil, internal("The source and destination of an intention cannot change: delete it and create another")
	}
	now := time.Now().UTC()
	src := body.source()
	src.LegacyID, src.LegacyMeta, src.LegacyCreateTime, src.LegacyUpdateTime = old.ID, body.Meta, old.CreatedAt, &now
	if _, err := c.apply(a.cfg.Servers, &catalog.SetIntention{Destination: old.DestinationName, Source: src}); err != nil {
		return nil, err
	}
	return createdView{old.ID}, nil
}

func (a intentionIDsAPI) remove(c *call) (any, error) {
	if _, err := uuid.Parse(c.tail); err != nil {
		return nil, badRequest("Invalid intention ID " + c.tail + ": it is no UUID")
	}
	if _, err := c.apply(a.cfg.Servers, &catalog.DeleteIntention{ID: c.tail}); err != nil {
		return nil, err
	}
	return true, nil
}
