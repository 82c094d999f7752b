package server

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/enroll"
)

// TestClash: nobody is let in who would be taken for a living host, be it only by the
// catalog, to which the case of a node ID means nothing: it would drop that host's rows.
func TestClash(t *testing.T) {
	const id = "abcdef01-1111-4111-8111-111111111111"
	living := catalog.Member{Name: "db1", ID: id, Addr: "10.0.0.1", Status: catalog.MemberAlive}
	there, elsewhere := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2)}
	gone := living
	gone.Status = catalog.MemberFailed
	other := strings.Replace(id, "a", "0", 1)
	renewal := &enroll.Peer{}
	for _, c := range []struct {
		what   string
		asks   enroll.Admission
		member catalog.Member
		want   enroll.Reason
	}{
		{"another host", enroll.Admission{Node: "web1", NodeID: other, Remote: elsewhere}, living, ""},
		{"itself", enroll.Admission{Node: "db1", NodeID: id, Remote: there}, living, ""},
		{"itself, from a new address", enroll.Admission{Node: "db1", NodeID: id, Remote: elsewhere, Renewal: renewal}, living, ""},
		{"its name", enroll.Admission{Node: "DB1", NodeID: other, Remote: elsewhere}, living, enroll.ReasonNameTaken},
		{"its ID", enroll.Admission{Node: "evil", NodeID: id, Remote: elsewhere}, living, enroll.ReasonNodeIDInUse},
		{"its ID in capitals", enroll.Admission{Node: "evil", NodeID: strings.ToUpper(id), Remote: elsewhere}, living, enroll.ReasonNodeIDInUse},
		{"a copy of it", enroll.Admission{Node: "db1", NodeID: id, Remote: elsewhere}, living, enroll.ReasonNodeIDInUse},
		{"a copy of it in capitals", enroll.Admission{Node: "db1", NodeID: strings.ToUpper(id), Remote: elsewhere}, living, enroll.ReasonNodeIDInUse},
		{"the place of one that is gone", enroll.Admission{Node: "db1", NodeID: other, Remote: elsewhere}, gone, ""},
	} {
		if got := enroll.ReasonOf(clash(c.asks, c.member)); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

// TestInventedServersAreNotTold: a host that speaks gossip can invent servers. Who joins
// is told of those in the cluster's list alone, and of no more than the answer holds.
func TestInventedServersAreNotTold(t *testing.T) {
	f := newFleet(t, 1)
	f.up(1)
	f.leader()
	f.town.mu.Lock()
	for i := range 3600 {
		name := fmt.Sprintf("x%d", i)
		f.town.members[name] = catalog.Member{
			Name: name, ID: fmt.Sprintf("%08d-2222-4111-8111-111111111111", i), Addr: fmt.Sprintf("10.200.%d.%d", 100+i/250, 1+i%250), Port: 8301,
			Status: catalog.MemberAlive, Tags: map[string]string{"role": "consul", "dc": "dc1", "port": "8300"},
		}
	}
	f.town.mu.Unlock()
	token, err := f.secret.Mint(enroll.MintOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.join(1, token, idOf(7)); err != nil {
		t.Fatal(err)
	}
	if got := f.nodes[1].server.cluster.serverAddrs(); len(got) != 1 {
		t.Errorf("%d servers are told of, of one", len(got))
	}
}

// TestForetoldInAnyCase: a certificate whose ID is in capitals is no way round what the
// log foretells.
func TestForetoldInAnyCase(t *testing.T) {
	const id = "abcdef01-1111-4111-8111-111111111111"
	r := &registrar{datacenter: "dc1", shun: func(func(string) bool) {}}
	r.foretell(&catalog.Revoke{Revocation: catalog.Revocation{Kind: catalog.RevokedNode, ID: id}})
	r.know(&catalog.View{})
	for _, is := range []string{id, strings.ToUpper(id)} {
		if err := r.admit(enroll.Peer{Role: enroll.RoleAgent, Node: "web1", NodeID: is, Datacenter: "dc1"}); err == nil {
			t.Errorf("%s is let in, which the log revokes", is)
		}
	}
}

// join asks one server, once, to let a host in.
func (f *fleet) join(i int, token enroll.Token, id string) error {
	f.t.Helper()
	c, err := enroll.NewAgent(enroll.AgentConfig{
		Dir: f.t.TempDir(), Token: func() (string, error) { return token.Text(), nil },
		Servers: func() []string { return []string{f.nodes[i].server.cfg.Addr} },
		Node:    "a1", NodeID: id, Datacenter: "dc1", Version: "1.2.3",
	})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	return second(c.Enroll(ctx))
}

// TestNewServerLetsNobodyIn: a server with an empty disk that nobody has taken in does not
// know what was revoked, and lets no agent in; other servers it tells the keys of gossip,
// without which they may not find each other to begin a cluster.
func TestNewServerLetsNobodyIn(t *testing.T) {
	f := newFleet(t, 1)
	f.up(1)
	f.leader()
	token, err := f.secret.Mint(enroll.MintOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.nodes[1].apply(&catalog.Revoke{Revocation: catalog.Revocation{Kind: catalog.RevokedToken, ID: token.ID, At: time.Now(), Expires: token.Expires}})
	if err := f.join(1, token, idOf(7)); enroll.ReasonOf(err) != enroll.ReasonTokenRevoked {
		t.Error("a revoked token:", err)
	}
	town := f.town
	f.town, f.expect = newTown(), 3 // the leader does not see it
	f.up(2)
	if err := f.join(2, token, idOf(7)); enroll.ReasonOf(err) != enroll.ReasonUnavailable {
		t.Error("a revoked token at a new server:", err)
	}
	if !f.nodes[2].server.raft.Fresh() {
		t.Fatal("it was taken in")
	}
	if _, err := f.nodes[1].server.cfg.Cluster.Credentials.Inquire(t.Context(), []string{f.nodes[2].server.cfg.Addr}); err != nil {
		t.Error("another server asks:", err)
	}
	for _, m := range f.town.Members() {
		town.set(m)
	}
	f.until("it is taken in, and knows", func() bool { return enroll.ReasonOf(f.join(2, token, idOf(7))) == enroll.ReasonTokenRevoked })
	if good, err := f.secret.Mint(enroll.MintOptions{}); err != nil {
		t.Error(err)
	} else if err := f.join(2, good, idOf(8)); err != nil {
		t.Error("a good token:", err)
	}
}
