package httpapi

import (
	"strings"
	"testing"
)

// TestCatalogWrite: what clients of Consul know of writes for other nodes.
func TestCatalogWrite(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		body   string
		status int
		text   string
	}{
		{`{"Node":"n1","Address":"10.0.0.1","ID":"zz"}`, 500, "Bad node ID"},
		{`{"Node":"n1","Address":"10.0.0.1","ID":"40e4a748x2192-161a-0510-9bf59fe950b5"}`, 500, "Bad node ID"},
		{`{"Node":"n1","Address":"10.0.0.1","ID":"40e4a748-2192-161a-0510-9bf59fe950b5"}`, 200, "true"},
		{`{"Node":"n1","Address":"10.0.0.1","Check":{"Name":"c","ServiceID":"nope"}}`, 500, "Missing service registration"},
		{`{"Node":"n1","Address":"10.0.0.1","Service":{"Service":"web"},"Checks":[{"Name":"c","ServiceID":"web"},{"Name":"d"}]}`, 200, "true"},
	} {
		if a := r.do("PUT", "/v1/catalog/register", c.body); a.status != c.status || !strings.HasPrefix(a.body, c.text) {
			t.Errorf("%s: %d %s", c.body, a.status, a.body)
		}
	}
	r.want(r.do("PUT", "/v1/catalog/deregister", `{"Node":"n1","ServiceID":"web","CheckID":"d"}`), 200, "true")
	var checks []struct{ CheckID string }
	r.getJSON("/v1/health/node/n1", &checks)
	if len(checks) != 1 || checks[0].CheckID != "d" {
		t.Errorf("with a service and a check named, the service goes: %v", checks)
	}
	r.want(r.do("PUT", "/v1/txn", `[{"Node":{"Verb":"set","Node":{"Node":"n2","Address":"10.0.0.2","ID":"zz"}}}]`), 409, "")
}
