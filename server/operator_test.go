package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// operators is what the rig's server offers operators.
func (r *rig) operators() wire.Operators {
	r.t.Helper()
	cc, err := grpc.NewClient("passthrough:///server", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.server.Dial(ctx) }))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = cc.Close() })
	return wire.NewOperatorsClient(cc)
}

func allowPair(source, destination string) *wire.ApplyRequest {
	return &wire.ApplyRequest{Command: wire.Command{Command: &catalog.SetIntention{
		Destination: destination, Source: catalog.SourceIntention{Name: source, Action: catalog.ActionAllow},
	}}}
}

func save(t *testing.T, ops wire.Operators) []byte {
	t.Helper()
	var b bytes.Buffer
	index := uint64(0)
	err := ops.SaveSnapshot(t.Context(), &wire.SaveSnapshotRequest{}, func(p *wire.SnapshotPiece) error {
		index = max(index, p.Index)
		b.Write(p.Data)
		return nil
	})
	if err != nil || index == 0 {
		t.Fatalf("index %d, %v", index, err)
	}
	return b.Bytes()
}

func restore(t *testing.T, ops wire.Operators, archive []byte) error {
	t.Helper()
	_, err := ops.RestoreSnapshot(t.Context(), &wire.RestoreSnapshotRequest{}, func() ([]byte, error) {
		if len(archive) == 0 {
			return nil, io.EOF
		}
		n := min(len(archive), 100)
		piece := archive[:n]
		archive = archive[n:]
		return piece, nil
	})
	return err
}

func (r *rig) pairs() string {
	r.t.Helper()
	rep, err := r.Read(r.t.Context(), &wire.ReadRequest{Query: catalog.Query{Kind: catalog.QueryIntentions}})
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, i := range rep.View.Intentions {
		out = append(out, i.SourceName+">"+i.DestinationName)
	}
	return strings.Join(out, " ")
}

// leads waits until the server leads and has said so in the catalog.
func (r *rig) leads() {
	r.t.Helper()
	r.watch(catalog.Query{Kind: catalog.QueryService, Name: catalog.ServerService}, func(v *catalog.View) bool { return len(v.Instances) == 1 })
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if _, err := r.Read(r.t.Context(), &wire.ReadRequest{Query: catalog.Query{Kind: catalog.QueryNodes}}); err == nil {
			return
		} else if time.Now().After(deadline) {
			r.t.Fatal(err)
		}
	}
}

// TestSnapshotComesBack: into a living server, also after a restart, also from a
// cluster with a longer log; watchers are told, writes go on, the leader's own rows
// return.
func TestSnapshotComesBack(t *testing.T) {
	dir := t.TempDir()
	r := start(t, config(dir))
	r.leads()
	ops := r.operators()
	apply := func(req *wire.ApplyRequest) {
		t.Helper()
		if _, err := r.Apply(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	old := save(t, ops) // may lack rows that the leader has yet to write
	apply(allowPair("a", "b"))
	for range 20 {
		apply(allowPair("x", "y"))
		apply(&wire.ApplyRequest{Command: wire.Command{Command: &catalog.DeleteIntention{Source: "x", Destination: "y"}}})
	}
	late := save(t, ops)
	apply(allowPair("c", "d"))

	first := make(chan struct{})
	reset := make(chan struct{})
	watching, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		epoch := ""
		_ = r.Watch(watching, &wire.WatchRequest{Query: catalog.Query{Kind: catalog.QueryIntentions}}, func(e *wire.WatchEvent) error {
			switch {
			case e.View == nil:
			case epoch == "":
				epoch = e.Epoch
				close(first)
			case e.Epoch != epoch && len(e.View.Intentions) == 1:
				close(reset)
				return io.EOF
			}
			return nil
		})
	}()
	<-first
	for at := range late[:40] {
		bad := bytes.Clone(late)
		bad[len(bad)-1-at] ^= 1
		if err := restore(t, ops, bad); !errors.Is(err, catalog.ErrInvalid) {
			t.Fatalf("damaged: %v", err)
		}
	}
	if got := r.pairs(); got != "a>b c>d" {
		t.Fatal("a damaged snapshot changed something:", got)
	}
	if err := restore(t, ops, late); err != nil {
		t.Fatal(err)
	}
	if got := r.pairs(); got != "a>b" {
		t.Fatal(got)
	}
	select {
	case <-reset:
	case <-time.After(patience):
		t.Fatal("the watch was not told")
	}
	apply(allowPair("e", "f"))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	r = start(t, config(dir))
	r.leads()
	if got := r.pairs(); got != "a>b e>f" {
		t.Fatal("after a restart:", got)
	}
	if err := restore(t, r.operators(), old); err != nil {
		t.Fatal(err)
	}
	if got := r.pairs(); got != "" {
		t.Fatal(got)
	}
	r.leads() // the leader's own rows come back
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	// A fresh cluster, whose log is shorter than the snapshot's index.
	r = start(t, config(""))
	r.leads()
	if err := restore(t, r.operators(), late); err != nil {
		t.Fatal(err)
	}
	apply(allowPair("g", "h"))
	if got := r.pairs(); got != "a>b g>h" {
		t.Fatal(got)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}

func TestOperators(t *testing.T) {
	r := start(t, config(""))
	ops, ctx := r.operators(), t.Context()
	r.leads()
	peers, err := ops.RaftPeers(ctx, &wire.RaftPeersRequest{})
	if err != nil || len(peers.Peers) != 1 {
		t.Fatal(peers, err)
	}
	if p := peers.Peers[0]; p.ID != nodeID || p.Node != "s1" || !p.Leader || !p.Voter || p.LastIndex == 0 || p.ProtocolVersion != "3" {
		t.Errorf("%+v", p)
	}
	st, err := ops.Autopilot(ctx, &wire.AutopilotRequest{})
	if err != nil || !st.Healthy || st.Leader != nodeID || len(st.Servers) != 1 {
		t.Fatalf("%+v %v", st, err)
	}
	if s := st.Servers[0]; !s.Healthy || s.NodeStatus != "alive" || s.LastTerm == 0 || s.StableSince.IsZero() || s.Status != "leader" {
		t.Errorf("%+v", s)
	}
	again, err := ops.Autopilot(ctx, &wire.AutopilotRequest{})
	if err != nil || !again.Servers[0].StableSince.Equal(st.Servers[0].StableSince) {
		t.Error("the server was not stable between two questions:", err)
	}
	for _, c := range []struct {
		req  wire.ChangeRaftRequest
		want error
	}{
		{wire.ChangeRaftRequest{}, catalog.ErrInvalid},
		{wire.ChangeRaftRequest{ID: "x", Address: "y"}, catalog.ErrInvalid},
		{wire.ChangeRaftRequest{ID: "x"}, catalog.ErrNotFound},
		{wire.ChangeRaftRequest{Address: "1.2.3.4:1"}, catalog.ErrNotFound},
		{wire.ChangeRaftRequest{ID: nodeID}, catalog.ErrConflict},
		{wire.ChangeRaftRequest{TransferLeader: true}, catalog.ErrConflict},
		{wire.ChangeRaftRequest{TransferLeader: true, ID: nodeID}, catalog.ErrConflict},
		{wire.ChangeRaftRequest{TransferLeader: true, ID: "x"}, catalog.ErrNotFound},
	} {
		if _, err := ops.ChangeRaft(ctx, &c.req); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c.req, err)
		}
	}
	// A restore whose sender gives up changes nothing.
	gone := errors.New("gone")
	if _, err := ops.RestoreSnapshot(ctx, &wire.RestoreSnapshotRequest{}, func() ([]byte, error) { return nil, gone }); !errors.Is(err, gone) {
		t.Error(err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}
