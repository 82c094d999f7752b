package clients_test

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest"
	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

func TestOperator(t *testing.T) {
	_, c := mesh(t)
	op := c.Operator()
	raft, err := op.RaftGetConfiguration(nil)
	if err != nil || len(raft.Servers) != 1 || !raft.Servers[0].Leader || !raft.Servers[0].Voter {
		t.Fatalf("%+v %v", raft, err)
	}
	must1(t, op.RaftRemovePeerByID("nobody", nil), "refused")
	must1(t, op.RaftRemovePeerByAddress("127.0.0.1:9", nil), "refused")
	if res, err := op.RaftLeaderTransfer("", nil); err == nil && res.Success {
		t.Fatal("leadership went to another server: there is none")
	}
	conf, err := op.AutopilotGetConfiguration(nil)
	must1(t, err)
	conf.CleanupDeadServers = false
	must1(t, op.AutopilotSetConfiguration(conf, nil))
	if ok, err := op.AutopilotCASConfiguration(conf, nil); err != nil || ok {
		t.Fatalf("an old index was taken: %v", err)
	}
	conf, err = op.AutopilotGetConfiguration(nil)
	if err != nil || conf.CleanupDeadServers {
		t.Fatalf("%+v %v", conf, err)
	}
	if ok, err := op.AutopilotCASConfiguration(conf, nil); err != nil || !ok {
		t.Fatalf("the current index was refused: %v", err)
	}
	if h, err := op.AutopilotServerHealth(nil); err != nil || len(h.Servers) != 1 || !h.Healthy {
		t.Fatalf("%+v %v", h, err)
	}
	if s, err := op.AutopilotState(nil); err != nil || len(s.Servers) != 1 || s.Leader == "" {
		t.Fatalf("%+v %v", s, err)
	}
	must1(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web"}))
	if u, _, err := op.Usage(nil); err != nil || u.Usage["dc1"].Nodes != 1 {
		t.Fatalf("%+v %v", u, err)
	}
	if maps, err := c.Coordinate().Datacenters(); err != nil || len(maps) != 1 {
		t.Fatalf("%+v %v", maps, err)
	}
	if _, _, err := c.Coordinate().Nodes(nil); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshot(t *testing.T) {
	_, c := mesh(t)
	put := func(value string) {
		_, err := c.KV().Put(&api.KVPair{Key: "k", Value: []byte(value)}, nil)
		must1(t, err)
	}
	put("before")
	r, meta, err := c.Snapshot().Save(nil)
	must1(t, err)
	archive, err := io.ReadAll(r)
	must1(t, err)
	must1(t, r.Close())
	if len(archive) == 0 || meta.LastIndex == 0 {
		t.Fatalf("%d bytes, %+v", len(archive), meta)
	}
	put("after")
	must1(t, c.Snapshot().Restore(nil, bytes.NewReader(archive[:len(archive)/2])), "refused")
	if p, _, err := c.KV().Get("k", nil); err != nil || string(p.Value) != "after" {
		t.Fatalf("half an archive changed something: %+v %v", p, err)
	}
	must1(t, c.Snapshot().Restore(nil, bytes.NewReader(archive)))
	if p, _, err := c.KV().Get("k", nil); err != nil || string(p.Value) != "before" {
		t.Fatalf("%+v %v", p, err)
	}
}

func TestKeyring(t *testing.T) {
	const first, second = "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s=", "HS5lJ+XuTlYKWaeGYyG+/A0FgGOJzLTwDGVlPKqDTj4="
	a := proc.StartAgent(t, "-encrypt", first)
	op := a.Client.Operator()
	must1(t, op.KeyringInstall(second, nil))
	must1(t, op.KeyringUse(second, nil))
	must1(t, op.KeyringRemove(first, nil))
	rings, err := op.KeyringList(nil)
	must1(t, err)
	for _, r := range rings {
		if len(r.Keys) != 1 || r.Keys[second] != 1 || r.PrimaryKeys[second] != 1 {
			t.Fatalf("%+v", r)
		}
	}
	must1(t, op.KeyringRemove(second, nil), "refused")
	must1(t, op.KeyringInstall("short", nil), "refused")
}

func TestMonitor(t *testing.T) {
	a := proc.StartAgent(t).Client.Agent()
	stop := make(chan struct{})
	lines, err := a.Monitor("debug", stop, nil)
	must1(t, err)
	must1(t, a.ServiceRegister(&api.AgentServiceRegistration{Name: "noise"}))
	select {
	case <-lines:
	case <-time.After(meshtest.Patience):
		t.Error("no line of the log came")
	}
	close(stop)
}
