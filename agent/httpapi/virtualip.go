package httpapi

import (
	"net/http"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// virtualIPAPI gives services addresses by hand.
type virtualIPAPI struct{ cfg Config }

func (a virtualIPAPI) routes() []Route {
	return []Route{{
		Method: http.MethodPut, Path: "/v1/internal/service-virtual-ip",
		Summary: "give a service of the mesh manual virtual addresses, instead of those that it has and of the services that had them",
		Body:    "JSON: {Service, ManualVIPs}, at most 8 IPv4 addresses", Permission: Permission{acl.Write, acl.Mesh, ""},
		MaxBody: bodySmall, params: paramsWrite, invalid: http.StatusBadRequest, handle: a.assign,
	}}
}

type peeredNameView struct {
	ServiceName compound
	Peer        string `json:",omitempty"`
}

func (a virtualIPAPI) assign(c *call) (any, error) {
	var in struct {
		Service    string
		ManualVIPs []string
	}
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	rep, err := c.apply(a.cfg.Servers, &catalog.SetVirtualIPs{Service: in.Service, IPs: in.ManualVIPs})
	if err != nil {
		return nil, err
	}
	out := struct {
		Found          bool             `json:"Found"`
		UnassignedFrom []peeredNameView `json:"UnassignedFrom"`
	}{Found: rep.OK, UnassignedFrom: []peeredNameView{}}
	for _, name := range rep.Names {
		out.UnassignedFrom = append(out.UnassignedFrom, peeredNameView{ServiceName: compound{name}})
	}
	return out, nil
}
