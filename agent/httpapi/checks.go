package httpapi

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// checksAPI reads, registers and updates the checks of this host.
type checksAPI struct{ cfg Config }

func (a checksAPI) routes() []Route {
	write := Permission{acl.Write, acl.Node, ""}
	note := []Param{{"note", "text for the check's output"}}
	ttl := func(verb, summary string, f func(*call) (any, error)) Route {
		return Route{
			Method: http.MethodPut, Path: "/v1/agent/check/" + verb + "/:id", Summary: summary, Params: note,
			Permission: write, MaxBody: bodyNone, params: paramsToken, local: true, invalid: http.StatusInternalServerError, handle: f,
		}
	}
	update := ttl("update", "set state and output of a TTL check", a.update)
	update.Params, update.Body, update.MaxBody = nil, "JSON: Status, Output", bodyNoun
	return []Route{
		{
			Method: http.MethodGet, Path: "/v1/agent/checks", Summary: "the checks of this host, by ID", Params: []Param{paramFilter},
			Permission: Permission{acl.Read, acl.Node, ""}, MaxBody: bodyNone, params: paramsToken, local: true, handle: a.list,
		},
		{
			Method: http.MethodPut, Path: "/v1/agent/check/register", Summary: "register a check of this host, or replace the one with its ID",
			Body:       "JSON: a check definition; keys in CamelCase or snake_case",
			Permission: write, MaxBody: bodyNoun, params: paramsToken, local: true, handle: a.register,
		},
		{
			Method: http.MethodPut, Path: "/v1/agent/check/deregister/:id", Summary: "remove a check of this host",
			Permission: write, MaxBody: bodyNone, params: paramsToken, local: true, handle: a.deregister,
		},
		ttl("pass", "set a TTL check to passing", a.set(catalog.StatusPassing)),
		ttl("warn", "set a TTL check to warning", a.set(catalog.StatusWarning)),
		ttl("fail", "set a TTL check to critical", a.set(catalog.StatusCritical)),
		update,
	}
}

func (a checksAPI) list(c *call) (any, error) {
	// Selectors are checked against the checks that there are, as in Consul.
	f, err := compileTyped[checkView](c.query.Get("filter"), nil)
	if err != nil {
		return nil, err
	}
	return filterMap(f, viewLocalChecks(a.cfg.Local.Host().Checks))
}

func (a checksAPI) register(c *call) (any, error) {
	raw, err := c.object()
	if err != nil {
		return nil, err
	}
	if err := translateCheck(raw); err != nil {
		return nil, err
	}
	var def catalog.CheckDefinition
	if err := decodeInto(raw, &def); err != nil {
		return nil, err
	}
	if err := (tenancy{Namespace: def.Namespace, Partition: def.Partition}).check(); err != nil {
		return nil, err
	}
	switch {
	case def.Name == "":
		return nil, badRequest("Missing check name")
	case def.Status != "" && !catalog.ValidStatus(def.Status):
		return nil, badRequest("Bad check status: " + def.Status + " is not passing, warning or critical")
	}
	if def.Token == "" {
		def.Token = c.token
	}
	warnings, err := a.cfg.Local.RegisterCheck(c.ctx(), &def)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, notFound(fmt.Sprintf("ServiceID %q does not exist", def.ServiceID))
	}
	if err != nil {
		return nil, err
	}
	c.warn(warnings)
	return nil, nil
}

func unknownCheck(id string) error {
	return notFound(fmt.Sprintf("Unknown check ID %q. Ensure that the check ID is passed, not the check name.", id))
}

func (a checksAPI) deregister(c *call) (any, error) {
	if c.tail == "" {
		return nil, unknownCheck(c.tail)
	}
	err := a.cfg.Local.DeregisterCheck(c.ctx(), c.tail)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, unknownCheck(c.tail)
	}
	return nil, err
}

func (a checksAPI) set(status catalog.Status) func(*call) (any, error) {
	return func(c *call) (any, error) {
		return nil, a.updateTTL(c.tail, status, c.query.Get("note"))
	}
}

func (a checksAPI) update(c *call) (any, error) {
	var body struct {
		Status string
		Output string
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if !catalog.ValidStatus(body.Status) {
		return nil, badRequest(fmt.Sprintf("Invalid check status: '%s'", body.Status))
	}
	return nil, a.updateTTL(c.tail, body.Status, body.Output)
}

func (a checksAPI) updateTTL(id string, status catalog.Status, output string) error {
	if id == "" {
		return unknownCheck(id)
	}
	err := a.cfg.Local.UpdateTTL(id, status, output)
	if errors.Is(err, catalog.ErrNotFound) {
		return unknownCheck(id)
	}
	return err
}
