package main

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestKeygen(t *testing.T) {
	code, out, errs := call(nil, "keygen")
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(out))
	if code != exitOK || errs != "" || err != nil || len(key) != 32 {
		t.Errorf("%d %q %q %v", code, out, errs, err)
	}
	if _, again, _ := call(nil, "keygen"); again == out {
		t.Error("the same key twice")
	}
}

func TestOperatorCommands(t *testing.T) {
	const peers = `{"Servers":[{"ID":"i1","Node":"a","Address":"1.1.1.1:8300","Leader":true,"ProtocolVersion":"3","Voter":true,"LastIndex":9},
		{"ID":"i2","Node":"b","Address":"1.1.1.2:8300","Leader":false,"ProtocolVersion":"3","Voter":true,"LastIndex":7}]}`
	runCases(t, []commandCase{
		{
			name: "list-peers", args: []string{"operator", "raft", "list-peers"}, answers: map[string]string{"GET /v1/operator/raft/configuration": peers},
			out: "Node  ID  Address       State     Voter  RaftProtocol  Commit Index  Trails Leader By\n" +
				"a     i1  1.1.1.1:8300  leader    true   3             9             -\n" +
				"b     i2  1.1.1.2:8300  follower  true   3             7             2 commits\n",
		},
		{
			name: "no leader", args: []string{"operator", "raft", "list-peers"}, code: exitFailure, err: "list-peers -stale",
			answers: map[string]string{"GET /v1/operator/raft/configuration": "500 No cluster leader"},
		},
		{name: "remove neither", args: []string{"operator", "raft", "remove-peer"}, code: exitUsage, err: "address or id"},
		{
			name: "remove", args: []string{"operator", "raft", "remove-peer", "-id", "i2"}, answers: map[string]string{"DELETE /v1/operator/raft/peer": ""},
			out: "Removed peer with id \"i2\"\n", asked: "id=i2",
		},
		{
			name: "transfer", args: []string{"operator", "raft", "transfer-leader"},
			answers: map[string]string{"POST /v1/operator/raft/transfer-leader": "500 there is no other server that votes"},
			code:    exitFailure, err: "there is no other server that votes",
		},
		{
			name: "autopilot set", args: []string{"operator", "autopilot", "set-config", "-min-quorum=3", "-last-contact-threshold=1s"},
			answers: map[string]string{
				"GET /v1/operator/autopilot/configuration": `{"CleanupDeadServers":true,"LastContactThreshold":"200ms","ServerStabilizationTime":"10s","ModifyIndex":5}`,
				"PUT /v1/operator/autopilot/configuration": "true",
			},
			out: "Configuration updated!\n", asked: `"LastContactThreshold":"1s"`,
		},
		{
			name: "autopilot set lost", args: []string{"operator", "autopilot", "set-config", "-min-quorum=3"},
			answers: map[string]string{
				"GET /v1/operator/autopilot/configuration": `{"LastContactThreshold":"200ms","ServerStabilizationTime":"10s","ModifyIndex":5}`,
				"PUT /v1/operator/autopilot/configuration": "false",
			},
			code: exitFailure, err: "try again", asked: "cas=5",
		},
		{
			name: "keyring", args: []string{"keyring", "-list"},
			answers: map[string]string{"GET /v1/operator/keyring": `[{"WAN":true,"Datacenter":"dc1","Keys":{"k":1},"NumNodes":1},{"Datacenter":"dc1","Keys":{"k":2},"NumNodes":2}]`},
			out:     "==> Gathering installed encryption keys...\n\nWAN:\n  k [1/1]\n\ndc1 (LAN):\n  k [2/2]\n",
		},
		{
			name: "keyring of a member that is silent", args: []string{"keyring", "-rotate"}, code: exitFailure,
			answers: map[string]string{"GET /v1/operator/keyring": `[{"Datacenter":"dc1","Keys":{"k":1},"NumNodes":2,"Messages":{"b":"no answer"}}]`},
			out:     "==> Gathering installed encryption keys...\n", err: "b did not tell its keys (no answer), and nothing was changed",
		},
		{
			name: "keyring that is half rotated", args: []string{"keyring", "-rotate"}, code: exitFailure,
			answers: map[string]string{
				"GET /v1/operator/keyring": `[{"Datacenter":"dc1","Keys":{"k":2},"NumNodes":2}]`, "POST /v1/operator/keyring": "",
				"PUT /v1/operator/keyring": "500 keyring use failed on 1 members: b: no answer",
			},
			out: "==> Gathering installed encryption keys...\n==> Installing new gossip encryption key...\n==> Changing primary gossip encryption key...\n",
			err: "b: no answer\nall members have the new key and the former one",
		},
		{name: "keyring nothing", args: []string{"keyring"}, code: exitUsage, err: "exactly one"},
		{name: "keyring not rotated", args: []string{"keyring", "-rotate=false"}, code: exitUsage, err: "exactly one"},
		{name: "keyring listed and not rotated", args: []string{"keyring", "-list", "-rotate=false"}, out: "==> Gathering installed encryption keys...\n", answers: map[string]string{"GET /v1/operator/keyring": `[]`}},
		{name: "keyring both", args: []string{"keyring", "-list", "-use=x"}, code: exitUsage, err: "exactly one"},
		{name: "keyring relay", args: []string{"keyring", "-list", "-relay-factor=6"}, code: exitUsage, err: "0 to 5"},
		{
			name: "rtt", args: []string{"rtt", "a", "b"},
			answers: map[string]string{"GET /v1/coordinate/nodes": `[{"Node":"a","Coord":{"Vec":[0,0],"Height":0.001}},{"Node":"b","Coord":{"Vec":[0.003,0.004],"Height":0.001}}]`},
			out:     "Estimated a <-> b rtt: 7.000 ms (using LAN coordinates)\n",
		},
		{
			name: "rtt unknown", args: []string{"rtt", "a", "b"}, answers: map[string]string{"GET /v1/coordinate/nodes": `[]`},
			code: exitFailure, err: "could not find a coordinate for node \"a\"",
		},
	})
}

// TestOperateAgent drives a real agent: keys, snapshots, peers.
func TestOperateAgent(t *testing.T) {
	_, key, _ := call(nil, "keygen")
	a := startAgent(t, "-encrypt", strings.TrimSpace(key), "-hcl", "performance { raft_multiplier = 4 }")
	env := map[string]string{"WEFT_HTTP_ADDR": a.addr}
	if beat := metricOf(t, a.addr, "weft_raft_heartbeat_timeout_seconds"); beat < 1.2 {
		t.Errorf("the heartbeat timeout is %g s", beat)
	}
	run := func(want string, args ...string) string {
		t.Helper()
		code, out, errs := call(env, args...)
		if code != exitOK || !strings.Contains(out, want) {
			t.Fatalf("%v: exit code %d, %q %q; want %q", args, code, out, errs, want)
		}
		return out
	}
	run("leader", "operator", "raft", "list-peers")
	run("MaxTrailingLogs = 250", "operator", "autopilot", "get-config")
	run("Healthy:                      true", "operator", "autopilot", "state")
	run("Billable Service Instances Total: 0", "operator", "usage", "instances")
	run(strings.TrimSpace(key)+" [1/1]", "keyring", "-list")
	_, fresh, _ := call(nil, "keygen")
	for _, step := range []string{"install", "use"} {
		run("==> ", "keyring", "-"+step+"="+strings.TrimSpace(fresh))
	}
	run("==> ", "keyring", "-remove="+strings.TrimSpace(key))
	if out := run(strings.TrimSpace(fresh)+" [1/1]", "keyring", "-list-primary"); strings.Contains(out, strings.TrimSpace(key)) {
		t.Error("the old key is still there")
	}
	run("encrypted with a new key (members: 1)", "keyring", "-rotate")
	if out := run("[1/1]", "keyring", "-list"); strings.Contains(out, strings.TrimSpace(fresh)) || strings.Count(out, "[1/1]") != 2 {
		t.Errorf("former keys are still there: %s", out)
	}

	run("Created", "intention", "create", "web", "db")
	file := filepath.Join(t.TempDir(), "backup.snap")
	run("Saved and verified snapshot to index ", "snapshot", "save", file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	run("entries", "snapshot", "inspect", file)
	var facts snapshotFacts
	if err := json.Unmarshal([]byte(run("", "snapshot", "inspect", "-format=json", "-kvdetails", file)), &facts); err != nil {
		t.Fatal(err)
	}
	if facts.Meta.Index == 0 || facts.TotalSize == 0 || facts.TotalSize >= facts.Meta.Size || len(facts.Stats) < 5 {
		t.Errorf("%+v", facts)
	}
	run(`{"Type":"nodes"`, "snapshot", "decode", file)
	run("Created", "intention", "create", "late", "db")
	run("Restored snapshot", "snapshot", "restore", file)
	if out := run("web", "intention", "list"); strings.Contains(out, "late") {
		t.Errorf("what came after the snapshot is still there: %s", out)
	}
	writeFile(t, file, "garbage")
	for _, args := range [][]string{{"snapshot", "restore", file}, {"snapshot", "inspect", file}} {
		if code, _, errs := call(env, args...); code != exitFailure || !strings.Contains(errs, "failed to read snapshot file") {
			t.Errorf("%v: %d %q", args, code, errs)
		}
	}
	named := filepath.Join(t.TempDir(), "b.snap")
	run("Saved", "snapshot", "save", "-append-filename=dc,node,status", named)
	if _, err := os.Stat(strings.TrimSuffix(named, ".snap") + "-dc1-host1-leader.snap"); err != nil {
		t.Error(err)
	}
	deadline := time.Now().Add(patience)
	for {
		if code, out, _ := call(env, "members"); code == exitOK && strings.Contains(out, "alive") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the agent is not alive after all that")
		}
	}
}

// metricOf reads a metric without labels.
func metricOf(t *testing.T, addr, name string) float64 {
	t.Helper()
	_, rest, _ := strings.Cut(metrics(t, addr), "\n"+name+" ")
	line, _, _ := strings.Cut(rest, "\n")
	v, err := strconv.ParseFloat(line, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}
