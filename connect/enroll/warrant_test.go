package enroll

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestWarrants: what a server signed is believed by every node of its cluster; what an
// agent signs, or a server of another cluster or datacenter, by nobody.
func TestWarrants(t *testing.T) {
	secret := fixed()
	now := time.Now()
	clock := func() time.Time { return now }
	server := func(s Secret, datacenter string) *Credentials {
		return must(NewServer(ServerConfig{Secret: s, Node: "s1", NodeID: serverID, Datacenter: datacenter, Now: clock}))
	}
	one, other := server(secret, dc), server(secret, dc)
	f := &fabric{t: t, creds: one, gate: must(NewGate(GateConfig{Secret: secret, Datacenter: dc, Registrar: &registrar{nodes: map[string]bool{}}}))}
	agent := must(NewAgent(AgentConfig{
		Token: text(must(secret.Mint(MintOptions{})).Text()), Servers: func() []string { return []string{"x"} }, Dial: f.dial,
		Node: "web1", NodeID: agentID, Datacenter: dc, Now: clock,
	}))
	said := []byte("install key")
	proof := must(one.Sign(said))
	if err := agent.Verify(said, proof); err == nil {
		t.Error("a node that has not joined believes")
	}
	if _, err := agent.Enroll(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.wg.Wait()
	for name, c := range map[string]*Credentials{"an agent": agent, "another server": other, "itself": one} {
		if err := c.Verify(said, proof); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := agent.Sign(said); !errors.Is(err, ErrNoWarrant) {
		t.Errorf("an agent signs: %v", err)
	}
	// The agent's own key and certificate, used as a server's are.
	forged := &Credentials{self: Peer{Role: RoleServer}, now: clock}
	forged.held.Store(agent.held.Load())
	strange := NewSecret()
	for name, bad := range map[string][]byte{
		"none":               nil,
		"an agent's":         must(forged.Sign(said)),
		"of another message": must(one.Sign([]byte("remove key"))),
		"another cluster's":  must(server(strange, dc).Sign(said)),
		"another place's":    must(server(secret, "dc2").Sign(said)),
		"too long":           make([]byte, maxWarrant+1),
		"one byte":           {1},
	} {
		if err := other.Verify(said, bad); err == nil {
			t.Errorf("a proof is believed: %s", name)
		}
	}
	for n := range proof {
		if other.Verify(said, proof[:n]) == nil {
			t.Fatalf("%d bytes of %d are believed", n, len(proof))
		}
		changed := append([]byte(nil), proof...)
		changed[n] ^= 1
		if other.Verify(said, changed) == nil {
			t.Fatalf("a proof with byte %d changed is believed", n)
		}
	}
	now = now.Add(1000 * 24 * time.Hour)
	if err := other.Verify(said, proof); err == nil {
		t.Error("a proof by a certificate that ended is believed")
	}
}
