package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/cmd/meshtest"
	"github.com/weftmesh/weft/server"
)

const onePair = `[{"LockIndex":1,"Key":"app/a","Flags":7,"Value":"aGVsbG8=","Session":"s-1","CreateIndex":3,"ModifyIndex":4}]`

func TestKVCommands(t *testing.T) {
	two := `[` + strings.Trim(onePair, "[]") + `,{"LockIndex":0,"Key":"app/b","Flags":0,"Value":null,"CreateIndex":5,"ModifyIndex":5}]`
	detailA := "CreateIndex      3\nFlags            7\nKey              app/a\nLockIndex        1\nModifyIndex      4\nSession          s-1\nValue            hello\n"
	detailB := "CreateIndex      5\nFlags            0\nKey              app/b\nLockIndex        0\nModifyIndex      5\nSession          -\nValue            \n"
	export := "[\n\t{\n\t\t\"key\": \"app/a\",\n\t\t\"flags\": 7,\n\t\t\"value\": \"aGVsbG8=\"\n\t}\n]\n"
	file := inFile(t, "value", "from a file\n")
	put := map[string]string{"PUT /v1/kv/app/a": "true"}
	lost := map[string]string{"PUT /v1/kv/app/a": "false", "DELETE /v1/kv/app/a": "false"}
	get := map[string]string{"GET /v1/kv/app/a": onePair}
	runCases(t, []commandCase{
		{name: "get", args: []string{"kv", "get", "/app/a"}, answers: get, out: "hello\n"},
		{name: "get base64", args: []string{"kv", "get", "-base64", "app/a"}, answers: get, out: "aGVsbG8=\n"},
		{name: "get detailed", args: []string{"kv", "get", "-detailed", "app/a"}, answers: get, out: detailA},
		{name: "get nothing", args: []string{"kv", "get", "app/none"}, code: 1, err: "Error: no key exists at: app/none\n"},
		{name: "get without a key", args: []string{"kv", "get"}, code: 2, err: "a key is needed"},
		{name: "get refused", args: []string{"kv", "get", "app/a"}, answers: map[string]string{"GET /v1/kv/app/a": "403 Permission denied: no"}, code: 1, err: "Error: Permission denied: no\n"},
		{
			name: "recurse", args: []string{"kv", "get", "-recurse", "app/"}, answers: map[string]string{"GET /v1/kv/app/": two},
			out: "app/a:hello\napp/b:\n", asked: "recurse=",
		},
		{
			name: "recurse detailed", args: []string{"kv", "get", "-recurse", "-detailed"}, answers: map[string]string{"GET /v1/kv/": two},
			out: detailA + "\n" + detailB,
		},
		{
			name: "keys", args: []string{"kv", "get", "-keys", "app/"}, answers: map[string]string{"GET /v1/kv/app/": `["app/a","app/b/"]`},
			out: "app/a\napp/b/\n", asked: "separator=%2F",
		},
		{name: "keys and recurse", args: []string{"kv", "get", "-keys", "-recurse"}, code: 2, err: "exclude each other"},
		{name: "put", args: []string{"kv", "put", "-flags=9", "app/a", "-5"}, answers: put, out: "Success! Data written to: app/a\n", asked: "PUT /v1/kv/app/a?flags=9 -5"},
		{name: "put nothing", args: []string{"kv", "put", "app/a"}, answers: put, out: "Success! Data written to: app/a\n"},
		{name: "put a file", args: []string{"kv", "put", "app/a", "@" + file}, answers: put, out: "Success! Data written to: app/a\n", asked: "from a file"},
		{name: "put base64", args: []string{"kv", "put", "-base64", "app/a", "aGVsbG8="}, answers: put, out: "Success! Data written to: app/a\n", asked: "PUT /v1/kv/app/a hello"},
		{name: "put bad base64", args: []string{"kv", "put", "-base64", "app/a", "?"}, code: 1, err: "-base64"},
		{name: "put without a key", args: []string{"kv", "put", "/"}, code: 2, err: "the key is empty"},
		{name: "cas", args: []string{"kv", "put", "-cas", "-modify-index=4", "app/a", "x"}, answers: put, out: "Success! Data written to: app/a\n", asked: "cas=4"},
		{name: "cas lost", args: []string{"kv", "put", "-cas", "-modify-index=4", "app/a", "x"}, answers: lost, code: 1, err: "did not write to app/a: CAS failed"},
		{name: "cas without index", args: []string{"kv", "put", "-cas", "app/a", "x"}, code: 2, err: "-modify-index"},
		{name: "acquire", args: []string{"kv", "put", "-acquire", "-session=s", "app/a"}, answers: put, out: "Success! Lock acquired on: app/a\n", asked: "acquire=s"},
		{name: "acquire lost", args: []string{"kv", "put", "-acquire", "-session=s", "app/a"}, answers: lost, code: 1, err: "did not acquire lock on app/a"},
		{name: "acquire without session", args: []string{"kv", "put", "-acquire", "app/a"}, code: 2, err: "need -session"},
		{name: "release", args: []string{"kv", "put", "-release", "-session=s", "app/a"}, answers: put, out: "Success! Lock released on: app/a\n", asked: "release=s"},
		{name: "acquire and release", args: []string{"kv", "put", "-release", "-acquire", "-session=s", "app/a"}, code: 2, err: "exclude"},
		{name: "delete", args: []string{"kv", "delete", "app/a"}, answers: map[string]string{"DELETE /v1/kv/app/a": "true"}, out: "Success! Deleted key: app/a\n"},
		{name: "delete cas lost", args: []string{"kv", "delete", "-cas", "-modify-index=4", "app/a"}, answers: lost, code: 1, err: "CAS failed", asked: "cas=4"},
		{
			name: "delete tree", args: []string{"kv", "delete", "-recurse", "app/"}, answers: map[string]string{"DELETE /v1/kv/app/": "true"},
			out: "Success! Deleted keys with prefix: app/\n", asked: "recurse=",
		},
		{name: "delete nothing", args: []string{"kv", "delete"}, code: 2, err: "a key is needed"},
		{name: "delete cas tree", args: []string{"kv", "delete", "-cas", "-modify-index=1", "-recurse", "a"}, code: 2, err: "exclude"},
		{name: "export", args: []string{"kv", "export", "app/"}, answers: map[string]string{"GET /v1/kv/app/": onePair}, out: export},
		{
			name: "import", args: []string{"kv", "import", "-prefix=x/", export}, answers: map[string]string{"PUT /v1/kv/x/app/a": "true"},
			out: "Imported: x/app/a\n", asked: "PUT /v1/kv/x/app/a?flags=7 hello",
		},
		{name: "import rubbish", args: []string{"kv", "import", "{"}, code: 1, err: "DATA is no export"},
		{name: "import bad value", args: []string{"kv", "import", `[{"key":"k","value":"?"}]`}, code: 1, err: "the value of key k"},
		{
			name: "event", args: []string{"event", "-name=deploy", "-service=web", "-tag=a", "-node=n", "a", "-b"},
			answers: map[string]string{"PUT /v1/event/fire/deploy": `{"ID":"e-1"}`}, out: "Event ID: e-1\n", asked: "node=n&service=web&tag=a a -b",
		},
		{name: "event without a name", args: []string{"event", "x"}, code: 2, err: "-name is needed"},
		{name: "watch without a type", args: []string{"watch"}, code: 2, err: "-type is needed"},
		{name: "watch without a key", args: []string{"watch", "-type=key"}, code: 2, err: "Must specify a single key"},
		{name: "watch with too much", args: []string{"watch", "-type=services", "-key=a"}, code: 2, err: "Invalid parameters"},
		{name: "watch passing", args: []string{"watch", "-type=service", "-passingonly=perhaps"}, code: 2, err: "neither true nor false"},
		{name: "lock nothing", args: []string{"lock", "p"}, code: 2, err: "PREFIX CHILD"},
		{name: "lock for none", args: []string{"lock", "-n=0", "p", "true"}, code: 2, err: "-n must be above 0"},
		{name: "lock in no time", args: []string{"lock", "-try=0s", "p", "true"}, code: 2, err: "must be above 0"},
	})
}

func TestKVFromStandardInput(t *testing.T) {
	f := newFakeAgent(t, map[string]string{"PUT /v1/kv/k": "true"})
	if code, _, errs := callWith("piped", f.env(), "kv", "put", "k", "-"); code != 0 || !strings.Contains(f.asked(), "PUT /v1/kv/k piped") {
		t.Fatalf("exit code %d, %s, asked %s", code, errs, f.asked())
	}
}

// sessionsWork waits for the node check, which sessions rest on.
func sessionsWork(m *meshtest.Mesh) {
	m.Eventually("a session", func() error {
		if status, body, err := m.Try("PUT", "/v1/session/create", nil); err != nil || status != 200 {
			return errors.New(string(body))
		}
		return nil
	})
}

func TestWatchAndLockAgainstAMesh(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{Change: func(_ *agent.Config, s *server.Config) { s.MinSessionTTL = time.Millisecond }})
	env := map[string]string{"WEFT_HTTP_ADDR": m.Addr}
	must := func(wantCode int, args ...string) (string, string) {
		t.Helper()
		code, out, errs := call(env, args...)
		if code != wantCode {
			t.Fatalf("%v: exit code %d, %s%s", args, code, out, errs)
		}
		return out, errs
	}
	sessionsWork(m)
	must(0, "kv", "put", "app/k", "v1")
	if out, _ := must(0, "watch", "-type=key", "-key=app/k"); !strings.Contains(out, `"Value": "djE="`) {
		t.Fatalf("watched %s", out)
	}
	if out, _ := must(1, "watch", "-type=keyprefix", "-prefix=app/", `read v; echo "index $CONSUL_INDEX: $v"; exit 3`); !strings.Contains(out, `"Key":"app/k"`) || strings.Contains(out, "index :") {
		t.Fatalf("the child saw %s", out)
	}
	if out, _ := must(0, "lock", "job", "echo held $CONSUL_LOCK_HELD"); out != "held true\n" {
		t.Fatalf("the child said %q", out)
	}
	if out, _ := must(0, "lock", "-n=2", "-shell=false", "sem", "echo", "-n", "direct"); out != "direct" {
		t.Fatalf("the child said %q", out)
	}
	must(0, "lock", "job", "exit 7")
	_, errs := must(exitChild, "lock", "-child-exit-code", "-verbose", "job", "exit 7")
	if !strings.Contains(errs, "the child failed: exit status 7") || !strings.Contains(errs, "Waiting for the lock at job/.lock") {
		t.Fatalf("said %s", errs)
	}
	if status, _, _ := m.Try("GET", "/v1/kv/job/.lock", nil); status != 404 {
		t.Fatalf("the lock was left behind: %d", status)
	}
}

// TestLockThatIsLost: the child of a lock whose session is destroyed is ended, and
// one that waits for a lock gives up in time.
func TestLockThatIsLost(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{})
	sessionsWork(m)
	env := map[string]string{"WEFT_HTTP_ADDR": m.Addr}
	started := filepath.Join(t.TempDir(), "started")
	type ended struct {
		code int
		errs string
	}
	done := make(chan ended, 1)
	go func() {
		code, _, errs := call(env, "lock", "-name=mine", "job", "touch "+started+"; exec sleep 60")
		done <- ended{code, errs}
	}()
	m.Eventually("the child", func() error {
		_, err := os.Stat(started)
		return err
	})
	if code, _, errs := call(env, "lock", "-timeout=100ms", "job", "true"); code != 1 || !strings.Contains(errs, "could not be had in 100ms") {
		t.Fatalf("exit code %d, %s", code, errs)
	}
	var sessions []struct{ ID, Name string }
	m.Do("GET", "/v1/session/list", nil, &sessions)
	for _, s := range sessions {
		if s.Name == "mine" {
			m.Do("PUT", "/v1/session/destroy/"+s.ID, nil, nil)
		}
	}
	select {
	case e := <-done:
		if e.code != 1 || !strings.Contains(e.errs, "the lock was lost") {
			t.Fatalf("exit code %d, %s", e.code, e.errs)
		}
	case <-time.After(meshtest.Patience):
		t.Fatal("the child runs on")
	}
}
