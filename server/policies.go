package server

import (
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/rpc"
)

// policies is the way to what the other servers were told of policies being enforced.
func (c *cluster) policies() rpc.PoliciesConfig {
	return rpc.PoliciesConfig{
		Forward: func(string) (wire.Policies, error) {
			cc, err := c.leader()
			if err != nil {
				return nil, err
			}
			return wire.NewPoliciesClient(cc), nil
		},
		Others: func() []rpc.PolicyServer {
			var out []rpc.PolicyServer
			for id, m := range c.servers() {
				addr := serverAddr(m)
				if id == c.self.ID || addr == "" {
					continue
				}
				if cc, err := c.peers.at(id, addr); err == nil { // else this server is stopping
					out = append(out, rpc.PolicyServer{Name: m.Name, Policies: wire.NewPoliciesClient(cc)})
				}
			}
			return out
		},
	}
}
