package httpapi

import (
	"net/http"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// enforcedAPI tells which proxies enforce the policy of now, and waits for them.
type enforcedAPI struct{ cfg Config }

const (
	pathEnforced        = pathIntentions + "/enforced"
	pathEnforcedRevoked = pathCertRevocations + "/enforced"
)

var paramWaitEnforced = Param{"wait-enforced", "wait this long, such as 5s, until every proxy that is concerned enforces the change; " +
	"the answer then lists them, with status 202 when some do not"}

func (a enforcedAPI) routes() []Route {
	wait := Param{"wait", "wait this long, such as 5s, for those that do not yet; default 0, at most 10m"}
	return []Route{
		{
			Method: http.MethodGet, Path: pathEnforced, Summary: "the proxies that the intentions of a destination concern, and whether each enforces them as they are now",
			Params:     []Param{{"destination", "the called service, or * for all; required"}, wait},
			Permission: Permission{acl.Read, acl.Intention, "destination"}, MaxBody: bodyNone, params: paramsWrite, handle: a.intentions,
		},
		{
			Method: http.MethodGet, Path: pathEnforcedRevoked, Summary: "all proxies, and whether each refuses the certificates that are revoked now",
			Params: []Param{wait}, Permission: Permission{acl.Read, acl.Operator, ""}, MaxBody: bodyNone, params: paramsWrite, handle: a.revocations,
		},
	}
}

// enforcedView says who enforces a policy.
type enforcedView struct {
	Index    uint64
	Enforced bool // by all
	Proxies  []wire.ProxyState
}

func (a enforcedAPI) intentions(c *call) (any, error) {
	destination, err := c.serviceParam("destination")
	if err != nil {
		return nil, badRequest(err.Error())
	}
	return a.now(c, wire.EnforcedRequest{Destination: destination})
}

func (a enforcedAPI) revocations(c *call) (any, error) {
	return a.now(c, wire.EnforcedRequest{Revocations: true})
}

func (a enforcedAPI) now(c *call, req wire.EnforcedRequest) (any, error) {
	wait, err := c.waitParam("wait", a.cfg.MaxQueryTime)
	if err != nil {
		return nil, err
	}
	req.MaxWait = wait
	return c.enforced(a.cfg, req)
}

// waitParam reads a duration, 0 when it is not there.
func (c *call) waitParam(name string, most time.Duration) (time.Duration, error) {
	v := c.query.Get(name)
	if v == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, badRequest("Invalid value for ?" + name + ": \"" + v + "\" is no duration such as 5s")
	}
	return min(d, most), nil
}

func (c *call) enforced(cfg Config, req wire.EnforcedRequest) (*enforcedView, error) {
	if cfg.Policies == nil {
		return nil, errNotOffered("policies")
	}
	req.Token = c.token
	rep, err := cfg.Policies.Enforced(c.ctx(), &req)
	if err != nil {
		return nil, err
	}
	return &enforcedView{Index: rep.Index, Enforced: len(rep.Missing()) == 0, Proxies: notNil(rep.Proxies)}, nil
}

// policyChange applies a change of policy and answers true, or, where the
// request says to wait, with who enforces it.
func (c *call) policyChange(cfg Config, cmd catalog.Command, concerns wire.EnforcedRequest) (any, error) {
	wait, err := c.waitParam("wait-enforced", cfg.MaxQueryTime)
	if err != nil {
		return nil, err
	}
	rep, err := c.apply(cfg.Servers, cmd)
	if err != nil {
		return nil, err
	}
	if !c.query.Has("wait-enforced") {
		return true, nil
	}
	concerns.Index, concerns.MaxWait = rep.Index, wait
	v, err := c.enforced(cfg, concerns)
	if err != nil {
		return nil, err
	}
	if !v.Enforced {
		return withStatus{http.StatusAccepted, v}, nil
	}
	return v, nil
}
