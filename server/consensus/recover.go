package consensus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
)

// lostServers answers for servers that an operator said are lost for ever, so that
// a survivor can lead without them for as long as it takes to remove them from the
// configuration. It agrees to everything but an election that a living server has
// not agreed to: so what a majority had is found, if any survivor has it.
type lostServers struct {
	mu      sync.Mutex
	lost    map[raft.ServerID]bool // nil: no recovery
	others  map[raft.ServerID]bool // the voters that live, without this one
	granted map[vote]bool
	refused raft.ServerID // who did not agree
}

// vote is a vote, or what a server says that it would vote.
type vote struct {
	by   raft.ServerID
	term uint64
	pre  bool
}

func (l *lostServers) begin(lost, others []raft.ServerID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return false
	}
	l.lost, l.others, l.granted, l.refused = setOf(lost), setOf(others), map[vote]bool{}, ""
	return true
}

func setOf(ids []raft.ServerID) map[raft.ServerID]bool {
	out := make(map[raft.ServerID]bool, len(ids))
	for _, id := range ids {
		out[id] = true
	}
	return out
}

func (l *lostServers) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = nil
}

// running tells whether a recovery is under way.
func (l *lostServers) running() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost != nil
}

func (l *lostServers) appended(id raft.ServerID, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.lost[id] {
		return false
	}
	*resp = raft.AppendEntriesResponse{
		RPCHeader: args.RPCHeader, Term: args.Term, Success: true, LastLog: args.PrevLogEntry + uint64(len(args.Entries)),
	}
	return true
}

var errNotAgreed = errors.New("the servers that live have not agreed yet")

// voted answers a question for a vote; done is false where v.by is not lost.
func (l *lostServers) voted(v vote, respTerm *uint64, granted *bool) (done bool, err error) {
	l.mu.Lock()
	lost := l.lost[v.by]
	l.mu.Unlock()
	if !lost {
		return false, nil
	}
	// The others are asked at the same time.
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if l.agreed(v) {
			*respTerm, *granted = v.term, true
			return true, nil
		}
	}
	return true, errNotAgreed
}

// agreed tells whether every living server has answered the same question with yes.
func (l *lostServers) agreed(v vote) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.others {
		if !l.granted[vote{id, v.term, v.pre}] {
			return false
		}
	}
	return true
}

// saw notes how a living server voted.
func (l *lostServers) saw(v vote, granted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.lost == nil:
	case granted:
		l.granted[v] = true
	default:
		l.refused = v.by
	}
}

// Recovery is what a recovery found.
type Recovery struct {
	Removed []string // IDs of the servers that are no longer in the configuration
	Servers []string // and of those that are
	// LastIndex is the last entry that this server has, Known how far it knew that
	// entries were agreed on. Those between are kept, though nobody may have been
	// told that they were written; any that only the lost servers had is gone.
	LastIndex, Known uint64
	LastContact      time.Duration // since this server last heard from a leader; negative: never
}

// Recover makes a cluster of the servers that are left, where a majority is lost
// for ever. This server must be alive, vote, and have the longest log of those that
// are left. lost are the IDs of the servers that will never come back with their
// data: one that does would not know that it was removed.
func (n *Node) Recover(ctx context.Context, lost []string) (Recovery, error) {
	others, gone, err := n.survivors(lost)
	if err != nil {
		return Recovery{}, err
	}
	out := Recovery{LastIndex: n.raft.LastIndex(), Known: n.raft.CommitIndex(), LastContact: n.LastContact()}
	if !n.gate.lost.begin(gone, others) {
		return Recovery{}, catalog.Conflictf("a recovery of this server is under way already")
	}
	defer n.gate.lost.end()
	n.log.Warn("an operator says that servers are lost for ever; this one goes on without them",
		"lost", lost, "last_index", out.LastIndex, "known_index", out.Known)
	if err := n.awaitLeading(ctx); err != nil {
		return out, err
	}
	for _, id := range gone {
		if err := n.change(ctx, "remove a lost server", func() raft.Future { return n.raft.RemoveServer(id, 0, 0) }); err != nil {
			return out, err
		}
		out.Removed = append(out.Removed, string(id))
	}
	servers, err := n.servers()
	if err != nil {
		return out, unavailable("consensus: %w", err)
	}
	for _, s := range servers {
		out.Servers = append(out.Servers, string(s.ID))
	}
	n.log.Warn("the lost servers were removed; the cluster serves again", "removed", out.Removed, "servers", out.Servers)
	return out, nil
}

// survivors sorts the voters by what the operator says of them.
func (n *Node) survivors(lost []string) (others, gone []raft.ServerID, err error) {
	servers, err := n.servers()
	if err != nil {
		return nil, nil, unavailable("consensus: %w", err)
	}
	votes, votesLost := false, 0
	for _, s := range servers {
		switch {
		case slices.Contains(lost, string(s.ID)):
			gone = append(gone, s.ID)
			if s.Suffrage == raft.Voter {
				votesLost++
			}
		case s.ID == raft.ServerID(n.cfg.NodeID):
			votes = s.Suffrage == raft.Voter
		case s.Suffrage == raft.Voter:
			others = append(others, s.ID)
		}
	}
	all := voters(servers)
	switch {
	case len(lost) == 0:
		return nil, nil, catalog.Invalidf("name the servers that are lost")
	case slices.Contains(lost, n.cfg.NodeID):
		return nil, nil, catalog.Invalidf("server %s is this one, and it lives", n.cfg.NodeID)
	case len(gone) != len(lost):
		return nil, nil, catalog.NotFoundf("not all of %v are in the Raft configuration; `weft operator raft list-peers -stale` lists it", lost)
	case !votes:
		return nil, nil, catalog.Conflictf("this server does not vote; run the recovery on one that does")
	case all-votesLost > all/2:
		return nil, nil, catalog.Conflictf("%d of %d servers that vote are left, which is a majority: remove the lost one with "+
			"`weft operator raft remove-peer` instead", all-votesLost, all)
	}
	return others, gone, nil
}

// awaitLeading waits until this server leads. It need not be ready to serve: that
// may take a log as long as the one that it has.
func (n *Node) awaitLeading(ctx context.Context) error {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for n.readyTerm.Load() == 0 {
		select {
		case <-t.C:
		case <-ctx.Done():
			n.gate.lost.mu.Lock()
			defer n.gate.lost.mu.Unlock()
			if id := n.gate.lost.refused; id != "" {
				return catalog.Conflictf("server %s does not agree that this one leads: its log is longer, or it hears a leader; "+
					"run the recovery there", id)
			}
			return unavailable("this server was not elected: %w; are the other servers that live reachable from it?", context.Cause(ctx))
		case <-n.closing:
			return unavailable("this server stops")
		}
	}
	return nil
}

// peersFile is the classic way to say which servers are left: it is read at the
// start, and removed.
const peersFile = "peers.json"

// recoverFromFile does what peers.json says.
func (n *Node) recoverFromFile(conf *raft.Config) error {
	if n.disk.dir == "" {
		return nil
	}
	file := filepath.Join(n.disk.dir, peersFile)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	servers, err := raft.ReadConfigJSON(file)
	if err != nil {
		if servers, err = raft.ReadPeersJSON(file); err != nil {
			return catalog.Invalidf("%s: %v; it is a list of {\"id\": \"<node ID>\", \"address\": \"<ip:port>\", \"non_voter\": false}", file, err)
		}
	}
	scratch, err := store.New(store.Config{Logger: n.log})
	if err != nil {
		return err
	}
	defer scratch.Close()
	last, _ := n.disk.logs.LastIndex()
	n.log.Warn("the servers of the cluster are set from a file; what only others had is lost", "file", file, "last_index", last)
	err = recoverCluster(conf, &fsm{store: scratch, log: n.log}, n.disk.logs, n.disk.stable, n.disk.snapshots, n.witness, servers)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	conf.NoSnapshotRestoreOnStart = false // the store was filled from a backup before the one just made
	return os.Remove(file)
}

// recoverCluster is raft.RecoverCluster, which applies the log in this goroutine: an
// entry that cannot be read is an error here and not the end of a goroutine of Raft.
func recoverCluster(conf *raft.Config, f *fsm, logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore,
	trans raft.Transport, servers raft.Configuration,
) (err error) {
	type refused struct{ error }
	f.stop, f.applied = func(err error) { panic(refused{err}) }, func(uint64) {}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case refused:
			err = r.error
		default:
			panic(r)
		}
	}()
	return raft.RecoverCluster(conf, f, logs, stable, snaps, trans, servers)
}
