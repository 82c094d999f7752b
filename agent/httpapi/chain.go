package httpapi

import (
	"net/http"
	"slices"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// chainAPI shows what service names stand for.
type chainAPI struct {
	cfg Config
	q   *queries
}

func (a chainAPI) routes() []Route {
	const path = "/v1/discovery-chain/:service"
	params := []Param{{"compile-dc", "the datacenter in which the chain is evaluated; that of the agent"}}
	read := Permission{acl.Read, acl.Service, "service"}
	return []Route{
		{
			Method: http.MethodGet, Path: path, Summary: "routers, splitters and resolvers of a service, compiled: where its requests go",
			Params: params, Permission: read, MaxBody: bodyNone, params: paramsRead, effective: true, invalid: http.StatusInternalServerError, handle: a.get,
		},
		{
			Method: http.MethodPost, Path: path, Summary: "the same, with overrides",
			Body:   "JSON: OverrideConnectTimeout, OverrideProtocol, OverrideMeshGateway",
			Params: params, Permission: read, MaxBody: bodySmall, params: paramsRead, effective: true, invalid: http.StatusInternalServerError, handle: a.post,
		},
	}
}

// chainOverrides is the body of a request.
type chainOverrides struct {
	OverrideConnectTimeout time.Duration
	OverrideProtocol       string
	OverrideMeshGateway    catalog.MeshGatewayConfig
}

func (a chainAPI) get(c *call) (any, error) { return a.compiled(c, chainOverrides{}) }

func (a chainAPI) post(c *call) (any, error) {
	var o chainOverrides
	if err := c.decode(&o); err != nil {
		return nil, configWords(err)
	}
	if !slices.Contains([]string{"", "none", "local", "remote"}, o.OverrideMeshGateway.Mode) {
		return nil, badRequest("Invalid OverrideMeshGateway.Mode: " + o.OverrideMeshGateway.Mode)
	}
	if o.OverrideConnectTimeout < 0 {
		return nil, badRequest("Invalid OverrideConnectTimeout: " + o.OverrideConnectTimeout.String())
	}
	return a.compiled(c, o)
}

func (a chainAPI) compiled(c *call, o chainOverrides) (any, error) {
	name, err := c.need("chain name")
	if err != nil {
		return nil, err
	}
	opt := catalog.ChainOptions{
		Datacenter: c.query.Get("compile-dc"), Protocol: o.OverrideProtocol,
		ConnectTimeout: o.OverrideConnectTimeout, MeshGateway: o.OverrideMeshGateway.Mode,
	}
	if opt.Datacenter == "" {
		opt.Datacenter = a.cfg.Self.Datacenter
	}
	v, err := a.q.read(c, opt.Query(name))
	if err != nil {
		return nil, err
	}
	if v.Chain == nil {
		return nil, internal("the config entries of " + name + " do not fit together: " + v.Problem)
	}
	return struct{ Chain *catalog.Chain }{v.Chain}, nil
}
