package httpapi

import (
	"net/http"

	"github.com/weftmesh/weft/catalog/acl"
)

// peeringAPI answers for cluster peering while it is off.
type peeringAPI struct{}

func (a peeringAPI) routes() []Route {
	const get, post, del = http.MethodGet, http.MethodPost, http.MethodDelete
	var rs []Route
	for _, e := range []struct{ method, path string }{
		{get, "/v1/peerings"},
		{post, "/v1/peering/token"},
		{post, "/v1/peering/establish"},
		{get, "/v1/peering/:name"},
		{del, "/v1/peering/:name"},
	} {
		verb := acl.Write
		if e.method == get {
			verb = acl.Read
		}
		rs = append(rs, Route{
			Method: e.method, Path: e.path, Summary: "says that peering is off", Permission: Permission{verb, acl.Peering, ""},
			MaxBody: bodySmall, params: paramsToken, handle: a.off,
		})
	}
	return rs
}

func (peeringAPI) off(*call) (any, error) {
	return nil, internal("peering must be enabled to use this endpoint")
}
