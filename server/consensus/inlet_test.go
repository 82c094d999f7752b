package consensus

import (
	"bytes"
	"testing"

	"github.com/hashicorp/raft"
)

// TestBackupOverTheLastEntry: a follower gets a backup that ends where its log does, with
// an entry of another leader there, and goes on after it.
func TestBackupOverTheLastEntry(t *testing.T) {
	const last = 5
	_, own := raft.NewInmemTransport("10.0.0.1:8300")
	_, leader := raft.NewInmemTransport("10.0.0.2:8300")
	own.Connect(leader.LocalAddr(), leader)
	leader.Connect(own.LocalAddr(), own)
	cfg := config(t, t.TempDir())
	cfg.Bootstrap, cfg.Transport, cfg.Addr = false, own, string(own.LocalAddr())
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	servers := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
		{ID: nodeID, Address: own.LocalAddr()}, {ID: "leader", Address: leader.LocalAddr()},
	}})
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("leader"), Addr: []byte(leader.LocalAddr())}
	appends := func(term, prev, prevTerm uint64, entries ...*raft.Log) bool {
		t.Helper()
		var resp raft.AppendEntriesResponse
		if err := leader.AppendEntries(nodeID, own.LocalAddr(), &raft.AppendEntriesRequest{
			RPCHeader: header, Term: term, PrevLogEntry: prev, PrevLogTerm: prevTerm, Entries: entries,
		}, &resp); err != nil {
			t.Fatal(err)
		}
		return resp.Success
	}
	old := []*raft.Log{{Index: 1, Term: 2, Type: raft.LogConfiguration, Data: servers}}
	for i := uint64(2); i <= last; i++ {
		old = append(old, &raft.Log{Index: i, Term: 2, Type: raft.LogNoop})
	}
	if !appends(2, 0, 0, old...) {
		t.Fatal("the first entries were refused")
	}
	from := open(t, config(t, ""))
	var backup bytes.Buffer
	if err := from.cfg.Store.Rebase(backupOf(t, from), &backup, last); err != nil {
		t.Fatal(err)
	}
	var resp raft.InstallSnapshotResponse
	if err := leader.InstallSnapshot(nodeID, own.LocalAddr(), &raft.InstallSnapshotRequest{
		RPCHeader: header, SnapshotVersion: raft.SnapshotVersionMax, Term: 3, LastLogIndex: last, LastLogTerm: 3,
		Configuration: servers, ConfigurationIndex: 1, Size: int64(backup.Len()),
	}, &resp, &backup); err != nil || !resp.Success {
		t.Fatal("the backup was refused:", err)
	}
	if !appends(3, last, 3, &raft.Log{Index: last + 1, Term: 3, Type: raft.LogNoop}) {
		t.Fatal("the entry after the backup was refused")
	}
	if !appends(3, last+1, 3) || n.raft.LastIndex() != last+1 {
		t.Error("it is not where the leader is:", n.raft.LastIndex())
	}
}
