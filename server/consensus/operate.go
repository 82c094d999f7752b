package consensus

import (
	"context"
	"strconv"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
)

// protocolVersion of Raft, as clients are shown it.
const protocolVersion = "3"

// Servers lists those who take part in Raft. Names, and how far the logs of others
// reach, are not known here.
func (n *Node) Servers() ([]wire.RaftPeer, error) {
	servers, err := n.servers()
	if err != nil {
		return nil, unavailable("consensus: %w", err)
	}
	_, leader := n.raft.LeaderWithID()
	out := make([]wire.RaftPeer, 0, len(servers))
	for _, s := range servers {
		p := wire.RaftPeer{
			ID: string(s.ID), Address: string(s.Address), Leader: s.ID == leader,
			Voter: s.Suffrage == raft.Voter, ProtocolVersion: protocolVersion,
		}
		if s.ID == raft.ServerID(n.cfg.NodeID) {
			p.LastIndex = n.raft.LastIndex()
		}
		out = append(out, p)
	}
	return out, nil
}

// Log tells in which term the last entry of this node's log is, and its index.
func (n *Node) Log() (term, index uint64) {
	term, _ = strconv.ParseUint(n.raft.Stats()["last_log_term"], 10, 64) // Raft formats it so
	return term, n.raft.LastIndex()
}

// find gives the server with an ID or, where that is empty, an address.
func (n *Node) find(id, address string) (raft.Server, []raft.Server, error) {
	servers, err := n.servers()
	if err != nil {
		return raft.Server{}, nil, unavailable("consensus: %w", err)
	}
	for _, s := range servers {
		if id != "" && string(s.ID) == id || id == "" && string(s.Address) == address {
			return s, servers, nil
		}
	}
	if id != "" {
		return raft.Server{}, nil, catalog.NotFoundf("id %q was not found in the Raft configuration", id)
	}
	return raft.Server{}, nil, catalog.NotFoundf("address %q was not found in the Raft configuration", address)
}

// Remove takes a server, named by ID or address, out of Raft.
func (n *Node) Remove(ctx context.Context, id, address string) error {
	s, servers, err := n.find(id, address)
	if err != nil {
		return err
	}
	if s.Suffrage == raft.Voter && voters(servers) == 1 {
		return catalog.Conflictf("server %s is the only one that votes: without it there is no cluster", s.ID)
	}
	n.log.Warn("an operator removes a server from Raft", "id", string(s.ID), "addr", string(s.Address))
	return n.change(ctx, "remove peer", func() raft.Future { return n.raft.RemoveServer(s.ID, 0, 0) })
}

// TransferLeadership hands leadership to the server with an ID, or to the one that
// is best up to date.
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	if id == "" {
		servers, err := n.servers()
		if err != nil {
			return unavailable("consensus: %w", err)
		}
		if voters(servers) < 2 {
			return catalog.Conflictf("leadership cannot be transferred: there is no other server that votes")
		}
		return n.transfer(ctx, n.raft.LeadershipTransfer)
	}
	s, _, err := n.find(id, "")
	switch {
	case err != nil:
		return err
	case s.Suffrage != raft.Voter:
		return catalog.Conflictf("leadership cannot be transferred: server %s does not vote", id)
	case s.ID == raft.ServerID(n.cfg.NodeID):
		return catalog.Conflictf("leadership cannot be transferred: server %s leads already", id)
	}
	return n.transfer(ctx, func() raft.Future { return n.raft.LeadershipTransferToServer(s.ID, s.Address) })
}

func (n *Node) transfer(ctx context.Context, ask func() raft.Future) error {
	if err := n.cede(ctx, ask); err != nil {
		return outcome("transfer leadership", err)
	}
	return nil
}

func (n *Node) change(ctx context.Context, what string, ask func() raft.Future) error {
	if err := n.await(ctx, ask); err != nil {
		return outcome(what, err)
	}
	return nil
}

func voters(servers []raft.Server) int {
	count := 0
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			count++
		}
	}
	return count
}

// Describe says of a backup that is taken now what Raft knows.
func (n *Node) Describe() (store.ArchiveMeta, error) {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return store.ArchiveMeta{}, unavailable("consensus: %w", err)
	}
	meta := store.ArchiveMeta{Term: n.raft.CurrentTerm(), ConfigurationIndex: n.disk.listed.Load()}
	for _, s := range f.Configuration().Servers {
		meta.Configuration.Servers = append(meta.Configuration.Servers, store.ArchivePeer{
			Suffrage: int(s.Suffrage), ID: string(s.ID), Address: string(s.Address),
		})
	}
	return meta, nil
}
