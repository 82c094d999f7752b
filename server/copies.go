package server

import (
	"fmt"
	"net"
	"slices"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/enroll"
	"github.com/weftmesh/weft/server/consensus"
)

// A server and a copy of it have one node ID, by which Raft knows them: were both heard,
// one of them could acknowledge what the other lacks, and each could vote in one term.

// copies are the living servers of this datacenter with the ID of one that gossip shows,
// by that ID.
func (c *cluster) copies() map[string][]catalog.Member {
	out := map[string][]catalog.Member{}
	for _, m := range c.doubles() {
		if m.Tags[tagRole] == roleServer && m.Tags[tagDC] == c.datacenter {
			out[m.ID] = append(out[m.ID], m)
		}
	}
	return out
}

// incumbent is which of a server that gossip shows and its living copies counts: the one
// that Raft has, for as long as it lives, as that one has voted and acknowledged.
func (c *cluster) incumbent(shown catalog.Member, copies []catalog.Member) catalog.Member {
	if len(copies) == 0 || !c.entered.Load() {
		return shown
	}
	addr := raftAddr(c.raft, shown.ID)
	for _, m := range copies {
		if serverAddr(m) == addr && addr != "" {
			return m
		}
	}
	return shown
}

// copied refuses a server that comes from where a copy lives of the one that counts.
func (c *cluster) copied(p enroll.Peer, from net.Addr) error {
	tcp, ok := from.(*net.TCPAddr)
	copies := c.copies()[p.NodeID]
	if !ok || len(copies) == 0 {
		return nil
	}
	first, ok := c.lookUp(p.NodeID, copies)
	if !ok || tcp.IP.Equal(net.ParseIP(first.Addr)) {
		return nil
	}
	for _, m := range slices.Concat(c.members(), copies) { // one that gossip shows may not count
		if m.ID == p.NodeID && tcp.IP.Equal(net.ParseIP(m.Addr)) {
			return fmt.Errorf("%s at %s is a copy of the server that lives at %s: stop one of them, and remove its data directory", p, m.Addr, first.Addr)
		}
	}
	return nil
}

// raftAddr is where Raft has the server with an ID, "" for nowhere.
func raftAddr(raft *consensus.Node, id string) string {
	peers, err := raft.Servers()
	if err != nil {
		return ""
	}
	for _, p := range peers {
		if p.ID == id {
			return p.Address
		}
	}
	return ""
}

// Settled tells whether its cluster has this server at its address. One that is not may
// be a copy of the one that it has.
func Settled(s *Server) bool { return raftAddr(s.raft, s.cfg.NodeID) == s.cfg.Addr }
