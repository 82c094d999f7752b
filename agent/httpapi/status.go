package httpapi

import (
	"net/http"

	"github.com/weftmesh/weft/catalog/wire"
)

// statusAPI says who leads the servers.
type statusAPI struct{ cfg Config }

func (a statusAPI) routes() []Route {
	return []Route{
		{
			Method: http.MethodGet, Path: "/v1/status/leader", Summary: "the address of the leader, empty when none is known",
			MaxBody: bodyNone, params: paramsConsistency, handle: a.leader,
		},
		{
			Method: http.MethodGet, Path: "/v1/status/peers", Summary: "the addresses of all servers that vote or replicate",
			MaxBody: bodyNone, params: paramsConsistency, handle: a.peers,
		},
	}
}

func (a statusAPI) leader(c *call) (any, error) {
	st, err := a.cfg.Servers.Status(c.ctx(), &wire.StatusRequest{Token: c.token})
	if err != nil {
		return nil, err
	}
	return st.Leader, nil
}

func (a statusAPI) peers(c *call) (any, error) {
	st, err := a.cfg.Servers.Status(c.ctx(), &wire.StatusRequest{Token: c.token})
	if err != nil {
		return nil, err
	}
	return notNil(st.Peers), nil
}

// aclAPI answers for the ACL system while it is off.
type aclAPI struct{}

func (a aclAPI) routes() []Route {
	const get, put, post, del = http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete
	table := []struct {
		path    string
		methods []string
	}{
		{"/v1/acl/bootstrap", []string{put}},
		{"/v1/acl/login", []string{post}},
		{"/v1/acl/logout", []string{post}},
		{"/v1/acl/replication", []string{get}},
		{"/v1/acl/tokens", []string{get}},
		{"/v1/acl/token", []string{put}},
		{"/v1/acl/token/self", []string{get}},
		{"/v1/acl/token/:accessor", []string{get, put, del}},
		{"/v1/acl/policies", []string{get}},
		{"/v1/acl/policy", []string{put}},
		{"/v1/acl/policy/name/:name", []string{get}},
		{"/v1/acl/policy/:id", []string{get, put, del}},
		{"/v1/acl/roles", []string{get}},
		{"/v1/acl/role", []string{put}},
		{"/v1/acl/role/name/:name", []string{get}},
		{"/v1/acl/role/:id", []string{get, put, del}},
		{"/v1/acl/binding-rules", []string{get}},
		{"/v1/acl/binding-rule", []string{put}},
		{"/v1/acl/binding-rule/:id", []string{get, put, del}},
		{"/v1/acl/auth-methods", []string{get}},
		{"/v1/acl/auth-method", []string{put}},
		{"/v1/acl/auth-method/:name", []string{get, put, del}},
		{"/v1/acl/templated-policies", []string{get}},
		{"/v1/acl/templated-policy/name/:name", []string{get}},
		{"/v1/acl/templated-policy/preview/:name", []string{post}},
		{"/v1/agent/token/:kind", []string{put}},
	}
	var rs []Route
	for _, e := range table {
		for _, m := range e.methods {
			rs = append(rs, Route{
				Method: m, Path: e.path, Summary: "says that ACLs are off", MaxBody: bodyNone, params: paramsToken, handle: a.off,
			})
		}
	}
	return rs
}

func (aclAPI) off(*call) (any, error) {
	return nil, &httpError{http.StatusUnauthorized, "ACL support disabled"}
}
