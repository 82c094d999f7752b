package httpapi

import (
	"net/http"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// gatewaysAPI says what gateways lead to.
type gatewaysAPI struct{ q *queries }

func (a gatewaysAPI) routes() []Route {
	return []Route{{
		Method: http.MethodGet, Path: "/v1/catalog/gateway-services/:gateway", Summary: "the services that a terminating, ingress or API gateway leads to",
		Permission: Permission{acl.Read, acl.Service, "gateway"}, MaxBody: bodyNone, params: paramsDiscovery, effective: true, handle: a.services,
	}}
}

// compound is a name with its tenancy, of which there is one.
type compound struct{ Name catalog.Name }

type gatewayServiceView struct {
	Gateway         compound
	Service         compound
	GatewayKind     catalog.ServiceKind
	Port            int      `json:",omitempty"`
	Protocol        string   `json:",omitempty"`
	Hosts           []string `json:",omitempty"`
	CAFile          string   `json:",omitempty"`
	CertFile        string   `json:",omitempty"`
	KeyFile         string   `json:",omitempty"`
	SNI             string   `json:",omitempty"`
	FromWildcard    bool     `json:",omitempty"`
	ServiceKind     string   `json:",omitempty"`
	CreateIndex     uint64
	ModifyIndex     uint64
	AutoHostRewrite bool `json:",omitempty"`
}

func (a gatewaysAPI) services(c *call) (any, error) {
	name, err := c.need("gateway name")
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryGateway, Name: name})
	if err != nil {
		return nil, err
	}
	return a.q.share(c, v, func() (any, error) {
		out := []gatewayServiceView{}
		for _, l := range catalog.GatewayLinks(v.Entries, v.Instances) {
			kind := ""
			if l.Registered {
				kind = "service"
			}
			out = append(out, gatewayServiceView{
				Gateway: compound{l.Gateway}, Service: compound{l.Service}, GatewayKind: l.Kind, Port: l.Port, Protocol: l.Protocol,
				Hosts: l.Hosts, CAFile: l.CAFile, CertFile: l.CertFile, KeyFile: l.KeyFile, SNI: l.SNI, FromWildcard: l.FromWildcard,
				ServiceKind: kind, CreateIndex: l.CreateIndex, ModifyIndex: l.ModifyIndex, AutoHostRewrite: l.AutoHostRewrite,
			})
		}
		return out, nil
	})
}
