package httpapi

import (
	"net/http"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// caAPI reads and configures the certificate authority of the cluster.
type caAPI struct {
	cfg Config
	q   *queries
}

const pathCAConfig = "/v1/connect/ca/configuration"

func (a caAPI) routes() []Route {
	return []Route{
		{
			Method: http.MethodGet, Path: "/v1/connect/ca/roots", Summary: "the certificate authorities that the mesh trusts",
			Params: []Param{{"pem", "true: only the certificates, as a PEM chain"}}, MaxBody: bodyNone, params: paramsRead, handle: a.roots,
		},
		{
			Method: http.MethodGet, Path: pathCAConfig, Summary: "the configuration of the certificate authority, without its keys",
			Permission: Permission{acl.Read, acl.Operator, ""}, MaxBody: bodyNone, params: paramsRead, handle: a.config,
		},
		{
			Method: http.MethodPut, Path: pathCAConfig, Summary: "replace the configuration; a change of key or provider rotates the root",
			Body: "JSON: Provider, Config, ForceWithoutCrossSigning", MaxBody: bodyNoun,
			Permission: Permission{acl.Write, acl.Operator, ""}, params: paramsWrite, invalid: http.StatusInternalServerError, handle: a.setConfig,
		},
	}
}

func (a caAPI) roots(c *call) (any, error) {
	pem, err := c.boolParam("pem")
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryRoots})
	if err != nil {
		return nil, err
	}
	if pem {
		return raw{"application/pem-certificate-chain", rootsPEM(v)}, nil
	}
	return viewRoots(v), nil
}

func (a caAPI) config(c *call) (any, error) {
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryCAConfig})
	if err != nil {
		return nil, err
	}
	if v.CAConfig == nil {
		return nil, notFound("The certificate authority is not configured yet")
	}
	return viewCAConfig(v.CAConfig), nil
}

type caConfigBody struct {
	Provider                 string
	Config                   map[string]any
	State                    map[string]string
	ForceWithoutCrossSigning bool
	ClusterID                string // of answers; it never changes
	CreateIndex              uint64
	ModifyIndex              uint64
}

func (a caAPI) setConfig(c *call) (any, error) {
	var body caConfigBody
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if len(body.State) > 0 {
		return nil, internal("State is read-only and must not be set")
	}
	_, err := a.cfg.Servers.SetCAConfig(c.ctx(), &wire.SetCAConfigRequest{Token: c.token, Config: catalog.CAConfig{
		Provider: body.Provider, Config: body.Config, ForceWithoutCrossSigning: body.ForceWithoutCrossSigning,
	}})
	return nil, err
}
