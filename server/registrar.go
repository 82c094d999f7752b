package server

import (
	"context"
	"log/slog"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/enroll"
)

// registrar decides which nodes join the cluster, by what all servers know.
type registrar struct {
	servers func() []string
	keys    func() [][]byte // nil: gossip has none
	members func() []catalog.Member
	log     *slog.Logger
}

var _ enroll.Registrar = (*registrar)(nil)

// Admit implements enroll.Registrar.
func (r *registrar) Admit(_ context.Context, a enroll.Admission) (enroll.Grant, error) {
	for _, m := range r.members() {
		if m.Status != catalog.MemberAlive {
			continue
		}
		switch {
		case m.Name == a.Node && m.ID != a.NodeID:
			return enroll.Grant{}, enroll.Refuse(enroll.ReasonNameTaken,
				"the name %q is that of a living node with the ID %s at %s, this one has the ID %s; give it another node_name, or stop the other",
				a.Node, m.ID, m.Addr, a.NodeID)
		case m.Name != a.Node && m.ID == a.NodeID && m.ID != "":
			return enroll.Grant{}, enroll.Refuse(enroll.ReasonNodeIDInUse,
				"the node ID %s is that of the living node %q at %s; was this host cloned from it? remove the data directory here, and node_id from the configuration, to get another ID",
				a.NodeID, m.Name, m.Addr)
		}
	}
	g := enroll.Grant{Servers: r.servers()}
	if r.keys != nil {
		g.GossipKeys = r.keys()
	}
	return g, nil
}

// admitPeer judges a node that shows a certificate.
func (r *registrar) admitPeer(enroll.Peer, string) error { return nil }
