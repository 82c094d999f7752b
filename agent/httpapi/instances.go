package httpapi

import (
	"github.com/weftmesh/weft/catalog"
)

// instances reads the instances that a request asks for. Those of a peered cluster
// are in no view of ours: whoever asks for them must not be given our own.
func (q *queries) instances(c *call, kind catalog.QueryKind, name string) (*catalog.View, error) {
	for _, param := range []string{"sg", "sameness-group"} {
		if c.query.Has(param) {
			return nil, badRequest("Invalid query parameter: \"" + param + "\" - Sameness groups are a Consul Enterprise feature")
		}
	}
	v, err := q.read(c, c.instances(kind, name))
	if err != nil || c.query.Get("peer") == "" {
		return v, err
	}
	return &catalog.View{Index: v.Index}, nil
}
