package enroll

import (
	"strings"
	"testing"
)

func TestJoin(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	dir := t.TempDir()
	c, err := s.agent(s.token(t, MintOptions{}), inDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	if c.Ready() || c.Self().ClusterID != "" {
		t.Error("credentials out of nowhere")
	}
	got, err := c.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.ClusterID != s.secret.ClusterID() || len(got.GossipKeys) != 1 || string(got.GossipKeys[0]) != string(s.secret.GossipKey()) || len(got.Servers) != 1 {
		t.Errorf("%+v", got)
	}
	want := Peer{Role: RoleAgent, Node: "web1", NodeID: agentID, Datacenter: dc, ClusterID: s.secret.ClusterID()}
	if c.Self() != want || !c.Ready() {
		t.Errorf("%v", c.Self())
	}
	cs, err := call(s.addr, c.Client(ProtoRPC, Peer{NodeID: serverID}))
	if err != nil {
		t.Fatal(err)
	}
	if p := must(PeerOf(cs)); p != s.creds.Self() || p.Role != RoleServer {
		t.Errorf("%v", p)
	}
	// From disk, without anybody.
	again := must(NewAgent(AgentConfig{Dir: dir, Servers: func() []string { return nil }, Node: "web1", NodeID: agentID, Datacenter: dc, Now: s.clock.now}))
	if got, err := again.Enroll(t.Context()); err != nil || got.ClusterID != want.ClusterID {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := call(s.addr, again.Client(ProtoRPC, Peer{})); err != nil {
		t.Error(err)
	}
	if a := s.reg.last(t); a.TokenID == "" || a.Renewal != nil || a.Node != "web1" || a.NodeID != agentID || a.Version != "1.0" || a.Remote == nil {
		t.Errorf("%+v", a)
	}
	if said := s.log.String(); !strings.Contains(said, "node=web1 id="+agentID) {
		t.Errorf("the log does not say by which ID the node can be revoked: %s", said)
	}
}

func TestServersTalkToEachOther(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	other := must(NewServer(ServerConfig{Secret: s.secret, Node: "s2", NodeID: "s2-id", Datacenter: dc, Now: s.clock.now}))
	for _, proto := range []string{ProtoRPC, ProtoRaft} {
		if _, err := call(s.addr, other.Client(proto, Peer{NodeID: serverID, Datacenter: dc})); err != nil {
			t.Error(err)
		}
		if _, err := call(s.addr, other.Client(proto, Peer{NodeID: agentID})); err == nil {
			t.Error("another node was expected")
		}
	}
	if got, err := other.Enroll(t.Context()); err != nil || got.ClusterID != s.secret.ClusterID() {
		t.Errorf("%v, %v", got, err)
	}
}
