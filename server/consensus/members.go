package consensus

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog/wire"
)

// attendEvery is how often a node looks whether it was taken into a cluster, and
// who is not in it any more.
const attendEvery = 250 * time.Millisecond

// attend marks that this node has a log once it was taken into a cluster, and ends
// the connections of servers that were removed from it.
func (n *Node) attend() {
	marked := n.past > 0 || n.disk.mark == ""
	tick := time.NewTicker(attendEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.closing:
			return
		case <-tick.C:
		}
		if !marked && n.raft.LastIndex() > 0 {
			if err := n.disk.remember(); err != nil {
				n.log.Error("the log of this server could not be marked; were it lost, nobody would know", "file", n.disk.mark, "err", err)
			} else {
				marked = true
			}
		}
		n.severStrangers()
	}
}

func (n *Node) severStrangers() {
	servers, err := n.servers()
	if err != nil || len(servers) == 0 {
		return
	}
	member := map[string]bool{}
	for _, s := range servers {
		member[string(s.ID)] = true
	}
	if !member[n.cfg.NodeID] {
		return // it was removed itself, and its list may be old
	}
	n.network.layer.dropStrangers(member)
}

// Fresh tells whether this node has no log: it is in no cluster yet.
func (n *Node) Fresh() bool { return n.raft.LastIndex() == 0 }

// Begin makes this node, which must be fresh, and the others given by ID and
// address the voters of a new cluster. The others need do nothing: they take part
// as soon as this one speaks to them.
func (n *Node) Begin(ctx context.Context, voters map[string]string) error {
	var first raft.Configuration
	for id, addr := range voters {
		first.Servers = append(first.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(id), Address: raft.ServerAddress(addr),
		})
	}
	if err := n.await(ctx, func() raft.Future { return n.raft.BootstrapCluster(first) }); err != nil {
		return fmt.Errorf("consensus: begin a cluster of %d: %w", len(voters), err)
	}
	if err := n.disk.remember(); err != nil {
		return n.disk.explain("mark", err)
	}
	return nil
}

// Add takes a server into Raft, or corrects its address. One that does not vote is
// sent the log, and counts for nothing.
func (n *Node) Add(ctx context.Context, id, addr string, votes bool) error {
	return n.change(ctx, "add server", func() raft.Future {
		if votes {
			return n.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(addr), 0, 0)
		}
		return n.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, 0)
	})
}

// Demote takes the vote of a server.
func (n *Node) Demote(ctx context.Context, id string) error {
	return n.change(ctx, "demote server", func() raft.Future { return n.raft.DemoteVoter(raft.ServerID(id), 0, 0) })
}

// StepDown hands leadership to another voter, where this node leads and there is one.
func (n *Node) StepDown(ctx context.Context) error {
	servers, err := n.servers()
	if err != nil || voters(servers) < 2 || n.raft.State() != raft.Leader {
		return err
	}
	return n.cede(ctx, n.raft.LeadershipTransfer)
}

// Position is how far the log of this node reaches, and what of it is applied.
type Position struct {
	LastTerm, LastIndex, Applied uint64
	// ConfigIndex is the index of the latest list of servers.
	ConfigIndex uint64
}

// Position tells how far this node is.
func (n *Node) Position() Position {
	p := Position{Applied: n.raft.AppliedIndex(), ConfigIndex: n.disk.listed.Load()}
	p.LastTerm, p.LastIndex = n.Log()
	return p
}

// maxMarks bounds the entries that stand for a log.
const maxMarks = 16

// Marks give some entries that stand for the log: the one that began the cluster, if it
// is there still, and some with commands, spread over the whole of it.
func (n *Node) Marks() []wire.LogMark {
	first, err := n.disk.logs.FirstIndex()
	last := n.raft.LastIndex()
	if err != nil || first == 0 || last < first {
		return nil
	}
	var out []wire.LogMark
	var begun raft.Log
	if err := n.disk.logs.GetLog(1, &begun); err == nil {
		out = append(out, markOf(&begun))
	}
	step := (last-first)/maxMarks + 1
	for at := first; at <= last; at += step {
		for i := at; i <= last && i < at+step; i++ {
			var l raft.Log
			err := n.disk.logs.GetLog(i, &l)
			if b := n.disk.base.Load(); errors.Is(err, raft.ErrLogNotFound) && b != nil {
				i = max(i, b.index) // there may be a long way of nothing before a restored backup
			}
			if err == nil && l.Type == raft.LogCommand {
				out = append(out, markOf(&l))
				break
			}
		}
	}
	return out
}

func markOf(l *raft.Log) wire.LogMark {
	return wire.LogMark{Index: l.Index, Term: l.Term, Sum: crc32.Checksum(l.Data, castagnoli)}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Foreign tells whether a log with these marks, applied up to an index, is of another
// history than this one's. Its server must not follow this leader: what it has applied
// would stay in its state. In one history the first entry names the servers that began
// it, what one of them has applied is in the log of every leader, and no two entries
// have the same index and term; what was never applied may differ. A log that ends
// before this one begins cannot be compared; such a server is sent the whole state,
// which replaces its own.
func (n *Node) Foreign(marks []wire.LogMark, applied uint64) bool {
	last := n.raft.LastIndex()
	for _, m := range marks {
		settled := m.Index == 1 || m.Index <= applied
		if m.Index > last {
			if settled {
				return true
			}
			continue
		}
		var l raft.Log
		if err := n.disk.logs.GetLog(m.Index, &l); err != nil {
			continue // no longer kept here
		}
		if mine := markOf(&l); mine != m && (settled || mine.Term == m.Term) {
			return true
		}
	}
	return false
}

// Member tells whether a server is in the list of those that take part, and
// whether it votes.
func (n *Node) Member(id string) (member, votes bool) {
	servers, err := n.servers()
	if err != nil {
		return false, false
	}
	for _, s := range servers {
		if string(s.ID) == id {
			return true, s.Suffrage == raft.Voter
		}
	}
	return false, false
}

// LeaderID is the node ID of the leader and its address, empty when none is known. A
// candidate knows of none, although raft may name the one that handed over to it.
func (n *Node) LeaderID() (id, addr string) {
	if n.raft.State() == raft.Candidate {
		return "", ""
	}
	a, i := n.raft.LeaderWithID()
	return string(i), string(a)
}

// AddressOf is the address of a server in the configuration.
func (n *Node) AddressOf(id string) (string, error) {
	s, _, err := n.find(id, "")
	if err != nil {
		return "", err
	}
	return string(s.Address), nil
}

// IDOf is the node ID of the server with an address in the configuration.
func (n *Node) IDOf(addr string) (string, error) {
	s, _, err := n.find("", addr)
	if err != nil {
		return "", err
	}
	return string(s.ID), nil
}
