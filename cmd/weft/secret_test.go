package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/connect/enroll"
)

func TestSecretAndTokenOffline(t *testing.T) {
	dir := t.TempDir()
	secret, token := filepath.Join(dir, "cluster.secret"), filepath.Join(dir, "join.token")
	code, out, errs := call(nil, "secret", "new")
	if _, err := enroll.ParseSecret(out); code != 0 || err != nil || errs != "" {
		t.Fatalf("%d, %v, %s", code, err, errs)
	}
	if code, out, _ = call(nil, "secret", "new", "-out", secret); code != 0 || strings.Contains(out, "weft-secret-1-") {
		t.Fatalf("%d, %s", code, out)
	}
	if code, _, errs = call(nil, "secret", "new", "-out", secret); code == 0 || !strings.Contains(errs, "not overwritten") {
		t.Errorf("%d, %s", code, errs)
	}
	s, err := enroll.ReadSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	check := func(text string, ttl time.Duration) {
		t.Helper()
		tok, err := enroll.ParseToken(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Check(tok, time.Now()); err != nil {
			t.Error(err)
		}
		if left := time.Until(tok.Expires); left > ttl || left < ttl-time.Minute {
			t.Errorf("good for %s, want %s", left, ttl)
		}
	}
	code, out, errs = call(nil, "join-token", "-secret-file", secret)
	if code != 0 || !strings.Contains(errs, s.ClusterID()) || strings.Contains(errs, "weft-join-1-") {
		t.Fatalf("%d, %s", code, errs)
	}
	check(out, enroll.DefaultTTL)
	if code, out, errs = call(map[string]string{"WEFT_CLUSTER_SECRET_FILE": secret}, "join-token", "-ttl", "1h", "-out", token); code != 0 || strings.Contains(out+errs, "weft-join-1-") {
		t.Fatalf("%d, %s, %s", code, out, errs)
	}
	written, err := enroll.ReadToken(token) // which looks at its mode, too
	if err != nil {
		t.Fatal(err)
	}
	check(written.Text(), time.Hour)
	var view tokenView
	code, out, errs = call(nil, "join-token", "-secret-file", secret, "-format", "json")
	if err := json.Unmarshal([]byte(out), &view); code != 0 || err != nil || errs != "" || view.ClusterID != s.ClusterID() {
		t.Errorf("%d, %s, %s", code, out, errs)
	}
	check(view.Token, enroll.DefaultTTL)
	for name, tc := range map[string]struct {
		args []string
		say  string
	}{
		"a short life":     {[]string{"-secret-file", secret, "-ttl", "1s"}, "one minute"},
		"no file":          {[]string{"-secret-file", filepath.Join(dir, "none")}, "no such file"},
		"a token":          {[]string{"-secret-file", token}, "join token"},
		"an argument":      {[]string{"-secret-file", secret, "x"}, "takes no arguments"},
		"an unknown shape": {[]string{"-secret-file", secret, "-format", "x"}, "neither"},
	} {
		if code, out, errs := call(nil, append([]string{"join-token"}, tc.args...)...); code == 0 || !strings.Contains(errs, tc.say) || strings.Contains(out+errs, "weft-join-1-") {
			t.Errorf("%s: %d, %s%s", name, code, out, errs)
		}
	}
	if err := os.Chmod(secret, 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := call(nil, "join-token", "-secret-file", secret); code == 0 || !strings.Contains(errs, "chmod 600 "+secret) {
		t.Errorf("%d, %s", code, errs)
	}
}

func TestTrustCommands(t *testing.T) {
	tok, err := enroll.NewSecret().Mint(enroll.MintOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const rows = `[{"Kind":"node","ID":"n1","Node":"web1","At":"2026-01-01T00:00:00Z"},{"Kind":"token","ID":"00ff00ff00ff00ff","At":"2026-01-01T00:00:00Z","Expires":"2026-01-02T00:00:00Z"}]`
	all := map[string]string{"GET /v1/internal/revocations": rows}
	runCases(t, []commandCase{
		{
			name: "join-token", args: []string{"join-token", "-ttl", "2h"},
			answers: map[string]string{"PUT /v1/internal/join-token?ttl=2h0m0s": `{"ID":"` + tok.ID + `","Token":"` + tok.Text() + `","ClusterID":"c","Expires":"2026-01-01T00:00:00Z"}`},
			out:     tok.Text() + "\n", err: "Join token " + tok.ID + " of cluster c, good until 2026-01-01T00:00:00Z:",
		},
		{
			name: "join-token on an agent", args: []string{"join-token"},
			answers: map[string]string{"PUT /v1/internal/join-token?ttl=24h0m0s": "403 ask on a server's host"}, code: 1, err: "ask on a server's host",
		},
		{
			name: "join-token list", args: []string{"join-token", "list"}, answers: all,
			out: "ID                Node  Revoked               Expires\n00ff00ff00ff00ff        2026-01-01T00:00:00Z  2026-01-02T00:00:00Z\n",
		},
		{
			name: "join-token list of none", args: []string{"join-token", "list"}, answers: map[string]string{"GET /v1/internal/revocations": "[]"}, err: "No join token was revoked.",
		},
		{
			name: "join-token revoke", args: []string{"join-token", "revoke", "00ff00ff00ff00ff"},
			answers: map[string]string{"PUT /v1/internal/revocation/token/00ff00ff00ff00ff": "{}"}, out: "Join token 00ff00ff00ff00ff was revoked. Hosts that have joined by it stay.\n",
		},
		{
			name: "join-token revoke, the whole", args: []string{"join-token", "revoke", tok.Text()},
			answers: map[string]string{"PUT /v1/internal/revocation/token/" + tok.ID: "{}"}, out: "Join token " + tok.ID + " was revoked. Hosts that have joined by it stay.\n",
			asked: "expires=",
		},
		{name: "join-token revoke nonsense", args: []string{"join-token", "revoke", "x"}, code: 2, err: "16 hexadecimal digits"},
		{
			name: "node revoke", args: []string{"node", "revoke", "web1"},
			answers: map[string]string{"PUT /v1/internal/revocation/node/web1": `{"ID":"n1","Node":"web1"}`},
			out:     "Node web1 (n1) was revoked: its connections are closed, and it does not come back.\n",
		},
		{
			name: "node allow", args: []string{"node", "allow", "n1"},
			answers: map[string]string{"DELETE /v1/internal/revocation/node/n1": `{"ID":"n1"}`}, out: "Node n1 is allowed again.\n",
		},
		{
			name: "node revoked", args: []string{"node", "revoked"}, answers: all,
			out: "ID  Node  Revoked               Expires\nn1  web1  2026-01-01T00:00:00Z  \n",
		},
	})
}
