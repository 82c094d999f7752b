package httpapi

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/enroll"
)

func TestJoinTokens(t *testing.T) {
	secret := enroll.NewSecret()
	r := newRig(t, func(c *Config) {
		c.Mint = func(ttl time.Duration) (enroll.Token, error) { return secret.Mint(enroll.MintOptions{TTL: ttl}) }
	})
	for query, ttl := range map[string]time.Duration{"": enroll.DefaultTTL, "?ttl=2h": 2 * time.Hour} {
		a := r.want(r.do(http.MethodPut, "/v1/internal/join-token"+query, ""), 200, "")
		var got joinTokenView
		if err := json.Unmarshal([]byte(a.body), &got); err != nil {
			t.Fatal(err)
		}
		tok, err := enroll.ParseToken(got.Token)
		if err != nil || secret.Check(tok, time.Now()) != nil || tok.ID != got.ID || got.ClusterID != secret.ClusterID() || time.Until(got.Expires) > ttl {
			t.Errorf("%+v, %v", got, err)
		}
		if strings.Contains(r.log.String(), got.Token) || !strings.Contains(r.log.String(), got.ID) {
			t.Error("the log has to name the token, and only that")
		}
	}
	for _, ttl := range []string{"x", "-1h", "0s", "1s", "9000h"} {
		r.want(r.do(http.MethodPut, "/v1/internal/join-token?ttl="+ttl, ""), 400, "")
	}
	a := newRig(t).do(http.MethodPut, "/v1/internal/join-token", "")
	if a.status != 403 || !strings.Contains(a.body, "servers") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestRevocations(t *testing.T) {
	r := newRig(t)
	const id = "b5e2f1c0-0000-4000-8000-000000000001"
	r.mustApply(&catalog.Register{Node: &catalog.Node{Node: "Web1", ID: id, Address: "10.0.0.1"}})
	list := func() []revocationView {
		t.Helper()
		var out []revocationView
		if err := json.Unmarshal([]byte(r.want(r.do(http.MethodGet, "/v1/internal/revocations", ""), 200, "").body), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := list(); got == nil || len(got) != 0 {
		t.Errorf("%v", got)
	}
	r.want(r.do(http.MethodPut, "/v1/internal/revocation/token/00FF00ff00ff00ff?expires=2999-01-02T15:04:05Z", ""), 200, "")
	r.want(r.do(http.MethodPut, "/v1/internal/revocation/node/web1", ""), 200, "")
	const gone = "b5e2f1c0-0000-4000-8000-000000000002"
	r.want(r.do(http.MethodPut, "/v1/internal/revocation/node/"+gone, ""), 200, "")
	got := list()
	if len(got) != 3 || got[0].ID != id || got[0].Node != "Web1" || got[1].ID != gone || got[2].ID != "00ff00ff00ff00ff" || got[2].Expires == nil || got[2].Expires.Year() != 2999 {
		t.Errorf("%+v", got)
	}
	r.want(r.do(http.MethodDelete, "/v1/internal/revocation/node/WEB1", ""), 200, "")
	r.want(r.do(http.MethodDelete, "/v1/internal/revocation/node/"+gone, ""), 200, "")
	if got := list(); len(got) != 1 || got[0].Kind != catalog.RevokedToken {
		t.Errorf("%+v", got)
	}
	for target, status := range map[string]int{
		"PUT /v1/internal/revocation/node/nobody":                           404,
		"DELETE /v1/internal/revocation/node/nobody":                        404,
		"PUT /v1/internal/revocation/node/":                                 400,
		"DELETE /v1/internal/revocation/node/":                              400,
		"PUT /v1/internal/revocation/token/":                                400,
		"PUT /v1/internal/revocation/token/ff?expires=x":                    400,
		"PUT /v1/internal/revocation/token/ff?expires=9999-12-31T23:00:00Z": 400,
		"PUT /v1/internal/revocation/token/" + "%01":                        400,
		"GET /v1/internal/revocation/token/00ff00ff00ff0":                   405,
	} {
		method, path, _ := strings.Cut(target, " ")
		if a := r.do(method, path, ""); a.status != status {
			t.Errorf("%s: %d %s", target, a.status, a.body)
		}
	}
}

func TestRevocationsMeanOneNode(t *testing.T) {
	r := newRig(t)
	const bad, decoy, decoy2, bare = "b5e2f1c0-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002", "00000000-0000-4000-8000-000000000003", "db1"
	for _, n := range []catalog.Node{
		{Node: "web1", ID: bad}, {Node: "Web1", ID: decoy}, {Node: bad, ID: decoy2}, {Node: bare}, {Node: "DB1", ID: "00000000-0000-4000-8000-000000000004"},
	} {
		n.Address = "10.0.0.1"
		r.mustApply(&catalog.Register{Node: &n})
	}
	const path = "/v1/internal/revocation/node/"
	for _, by := range []string{"web1", bad, strings.ToUpper(bad)} {
		var got revocationView
		if err := json.Unmarshal([]byte(r.want(r.do(http.MethodPut, path+by, ""), 200, "").body), &got); err != nil || got.ID != bad || got.Node != "web1" {
			t.Errorf("revoked by %s: %+v, %v", by, got, err)
		}
		r.want(r.do(http.MethodDelete, path+by, ""), 200, "")
	}
	a := r.do(http.MethodPut, path+"WEB1", "")
	if a.status != 409 || !strings.Contains(a.body, "web1 ("+bad+")") || !strings.Contains(a.body, "Web1 ("+decoy+")") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := r.do(http.MethodPut, path+bare, ""); a.status != 409 || !strings.Contains(a.body, "no ID") {
		t.Errorf("%d %s", a.status, a.body)
	}
	// A node that is named like the ID of another does not stand in the way of it.
	r.want(r.do(http.MethodPut, path+bad, ""), 200, "")
	r.want(r.do(http.MethodPut, path+decoy2, ""), 200, "")
	r.want(r.do(http.MethodPut, path+decoy, ""), 200, "")
	if a := r.do(http.MethodDelete, path+"WEB1", ""); a.status != 409 || !strings.Contains(a.body, bad) || !strings.Contains(a.body, decoy) {
		t.Errorf("%d %s", a.status, a.body)
	}
	r.want(r.do(http.MethodDelete, path+bad, ""), 200, "")
	r.want(r.do(http.MethodDelete, path+"WEB1", ""), 200, "")
	if v := r.do(http.MethodGet, "/v1/internal/revocations", ""); strings.Contains(v.body, decoy) || !strings.Contains(v.body, decoy2) {
		t.Errorf("%s", v.body)
	}
}

// TestRevokedTokensStayRevoked: servers take a token for some minutes after its end, by
// their clocks, and a revocation after that end does not have this one forgotten.
func TestRevokedTokensStayRevoked(t *testing.T) {
	r := newRig(t)
	secret := enroll.NewSecret()
	now := time.Now()
	tok, err := secret.Mint(enroll.MintOptions{TTL: time.Hour, Now: now.Add(-time.Hour - time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if err := secret.Check(tok, now); err != nil {
		t.Fatalf("the token has to be good for this test: %v", err)
	}
	r.want(r.do(http.MethodPut, "/v1/internal/revocation/token/"+tok.ID+"?expires="+tok.Expires.Format(time.RFC3339), ""), 200, "")
	r.want(r.do(http.MethodPut, "/v1/internal/revocation/node/b5e2f1c0-0000-4000-8000-000000000001", ""), 200, "")
	if v := r.do(http.MethodGet, "/v1/internal/revocations", ""); !strings.Contains(v.body, tok.ID) {
		t.Errorf("the token is good again: %s", v.body)
	}
}
