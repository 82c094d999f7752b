package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// servicesAPI reads and registers the services of this host.
type servicesAPI struct{ cfg Config }

func (a servicesAPI) routes() []Route {
	write := Permission{acl.Write, acl.Service, "service"}
	return []Route{
		{
			Method: http.MethodGet, Path: "/v1/agent/services", Summary: "the services of this host, by ID", Params: []Param{paramFilter},
			Permission: Permission{acl.Read, acl.Service, ""}, MaxBody: bodyNone, params: paramsToken, local: true, handle: a.list,
		},
		{
			Method: http.MethodGet, Path: "/v1/agent/service/:id", Summary: "a service of this host",
			Params:     []Param{{"hash", "wait until the service's ContentHash is another"}},
			Permission: Permission{acl.Read, acl.Service, "id"}, MaxBody: bodyNone, params: paramsBlockLocal, local: true, handle: a.get,
		},
		{
			Method: http.MethodPut, Path: "/v1/agent/service/register", Summary: "register a service of this host, or replace the one with its ID",
			Params:     []Param{{"replace-existing-checks", "drop the checks that the service has and that the body does not name"}},
			Body:       "JSON: a service definition; keys in CamelCase or snake_case",
			Permission: write, MaxBody: bodyNoun, params: paramsToken, handle: a.register,
		},
		{
			Method: http.MethodPut, Path: "/v1/agent/service/deregister/:id", Summary: "remove a service of this host, with its checks and its sidecar",
			Permission: write, MaxBody: bodyNone, params: paramsToken, local: true, handle: a.deregister,
		},
		{
			Method: http.MethodPut, Path: "/v1/agent/service/maintenance/:id", Summary: "take a service out of discovery for a while, or back in",
			Params: []Param{paramEnable, paramReason}, Permission: write, MaxBody: bodyNone, params: paramsToken, local: true, handle: a.maintenance,
		},
	}
}

func (a servicesAPI) list(c *call) (any, error) {
	f, err := newFilter[*agentServiceView](c.query.Get("filter"))
	if err != nil {
		return nil, err
	}
	return filterMap(f, viewAgentServices(a.cfg.Local.Host().Services, a.cfg.Self.Datacenter))
}

func (a servicesAPI) get(c *call) (any, error) {
	v, err := a.service(a.cfg.Local.Host(), c.tail)
	if err != nil {
		return nil, err
	}
	if want := c.query.Get("hash"); want != "" && want == v.ContentHash {
		if v, err = a.waitForOther(c, want); err != nil {
			return nil, err
		}
	}
	c.w.Header().Set("X-Consul-ContentHash", v.ContentHash)
	return v, nil
}

// waitForOther waits until the service differs from what hash stands for, and gives
// it as it is when the wait is over.
func (a servicesAPI) waitForOther(c *call, hash string) (*agentServiceView, error) {
	ctx, cancel := context.WithTimeout(c.ctx(), c.opts.wait)
	defer cancel()
	// The watch comes after Host, by the time that central configuration takes: it says
	// only when to look again.
	watch := a.cfg.Local.Watch()
	for after := uint64(0); ; {
		v, err := a.service(a.cfg.Local.Host(), c.tail)
		if err != nil || v.ContentHash != hash {
			return v, err
		}
		_, at, err := watch.Next(ctx, after)
		switch {
		case err == nil:
			after = at
		case c.ctx().Err() != nil:
			return nil, context.Cause(c.ctx())
		case errors.Is(err, context.DeadlineExceeded):
			return v, nil
		default:
			return nil, err
		}
	}
}

func (a servicesAPI) service(host *local.Host, id string) (*agentServiceView, error) {
	s, ok := host.Services[id]
	if !ok {
		return nil, notFound("unknown service ID: " + id)
	}
	v := viewAgentService(s, a.cfg.Self.Datacenter)
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("service %s: %w", id, err)
	}
	h := fnv.New64a()
	_, _ = h.Write(b) // a hash takes everything
	v.ContentHash = fmt.Sprintf("%016x", h.Sum64())
	return v, nil
}

func (a servicesAPI) register(c *call) (any, error) {
	replace, err := c.boolParam("replace-existing-checks")
	if err != nil {
		return nil, err
	}
	raw, err := c.object()
	if err != nil {
		return nil, err
	}
	if err := translateService(raw); err != nil {
		return nil, err
	}
	var reg catalog.ServiceRegistration
	if err := decodeInto(raw, &reg); err != nil {
		return nil, err
	}
	if err := (tenancy{Namespace: reg.Namespace, Partition: reg.Partition}).check(); err != nil {
		return nil, err
	}
	if err := c.require(a.cfg, reg.Name); err != nil {
		return nil, err
	}
	if reg.Token == "" {
		reg.Token = c.token
	}
	warnings, err := a.cfg.Local.Register(c.ctx(), &reg, local.RegisterOptions{ReplaceExistingChecks: replace})
	if err != nil {
		return nil, err
	}
	c.warn(warnings)
	return nil, nil
}

// warn tells the caller, in headers, what was accepted and is better changed: the
// bodies of these answers are empty.
func (c *call) warn(warnings []string) {
	for _, w := range warnings {
		c.w.Header().Add("X-Weft-Warning", strconv.QuoteToASCII(w))
	}
}

// translateService gives keys their other names, sidecars included.
func translateService(raw map[string]any) error {
	var errs []error
	checksOf := func(service map[string]any) {
		for _, key := range []string{"check", "checks"} {
			eachObject(service, key, func(check map[string]any) { errs = append(errs, translateCheck(check)) })
		}
	}
	checksOf(raw)
	eachObject(raw, "connect", func(connect map[string]any) {
		eachObject(connect, "sidecarservice", checksOf)
	})
	return errors.Join(errs...)
}

// snakeInChecks are the keys of a check that Consul's API takes in snake_case; all
// others it takes in one word alone, as configuration files do not.
var snakeInChecks = []string{
	"script_args", "deregister_critical_service_after", "docker_container_id", "service_id",
	"tls_server_name", "tls_skip_verify", "grpc_use_tls", "h2ping_use_tls", "tcp_use_tls",
}

// translateCheck refuses keys in snake_case that Consul refuses: a check that
// registers here registers there.
func translateCheck(raw map[string]any) error {
	for _, k := range slices.Sorted(maps.Keys(raw)) {
		if strings.Contains(k, "_") && !slices.Contains(snakeInChecks, strings.ToLower(k)) {
			return badRequest("Request decode failed: " + (&catalog.UnknownKeyError{Path: k}).Error())
		}
	}
	return nil
}

func unknownService(id string) error {
	return notFound(fmt.Sprintf("Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id))
}

func (a servicesAPI) deregister(c *call) (any, error) {
	if c.tail == "" {
		return nil, unknownService(c.tail)
	}
	err := a.cfg.Local.Deregister(c.ctx(), c.tail)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, unknownService(c.tail)
	}
	return nil, err
}

// maintenanceParams reads enable and reason.
func (c *call) maintenanceParams() (on bool, reason string, err error) {
	v := c.query.Get("enable")
	if v == "" {
		return false, "", badRequest("Missing value for enable")
	}
	on, err = strconv.ParseBool(v)
	if err != nil {
		return false, "", badRequest(fmt.Sprintf("Invalid value for enable: %q", v))
	}
	return on, strings.TrimSpace(c.query.Get("reason")), nil
}

func (a servicesAPI) maintenance(c *call) (any, error) {
	if c.tail == "" {
		return nil, badRequest("Missing service ID")
	}
	on, reason, err := c.maintenanceParams()
	if err != nil {
		return nil, err
	}
	err = a.cfg.Local.ServiceMaintenance(c.tail, on, reason)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, unknownService(c.tail)
	}
	return nil, err
}
