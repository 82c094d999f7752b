package agent_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/meshtest"
	"github.com/weftmesh/weft/connect"
	"github.com/weftmesh/weft/server"
)

type enforced struct {
	Index    uint64
	Enforced bool
	Proxies  []struct {
		Node, Proxy, Service, Why string
		Enforced                  bool
	}
}

const exactWebDB = "/v1/connect/intentions/exact?source=web&destination=db"

// TestWaitEnforced: once a write that waits has answered, the policy holds: no poll,
// no grace.
func TestWaitEnforced(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{})
	up := pair(t, m)
	body := func(a catalog.Action) map[string]any { return map[string]any{"SourceType": "consul", "Action": a} }
	for range 20 {
		var got enforced
		m.Do("PUT", exactWebDB+"&wait-enforced=15s", body(catalog.ActionAllow), &got)
		if !got.Enforced || len(got.Proxies) != 1 || got.Proxies[0].Service != "db" {
			t.Fatalf("allow: %+v", got)
		}
		live, err := call(up, "db")
		if err != nil {
			t.Fatalf("allowed and enforced, but: %v", err)
		}
		m.Do("DELETE", exactWebDB+"&wait-enforced=15s", nil, &got)
		if !got.Enforced {
			t.Fatalf("delete: %+v", got)
		}
		mustBeCut(t, live)
		mustRefuse(t, up, "after the deny was enforced")
	}
	var all enforced
	m.Do("GET", "/v1/connect/intentions/enforced?destination=*&wait=15s", nil, &all)
	if !all.Enforced || len(all.Proxies) != 2 {
		t.Errorf("all destinations: %+v", all)
	}
}

// TestWaitEnforcedNames: who does not enforce a policy is named, with the reason, and
// the write stands.
func TestWaitEnforcedNames(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{})
	pair(t, m)
	m.Do("PUT", "/v1/catalog/register", map[string]any{
		"Node": "elsewhere", "Address": "127.0.0.9",
		"Service": map[string]any{"Kind": "connect-proxy", "Service": "db-proxy", "Port": 1, "Proxy": map[string]any{"DestinationServiceName": "db"}},
	}, nil)
	status, answer, err := m.Try("PUT", exactWebDB+"&wait-enforced=300ms", map[string]any{"SourceType": "consul", "Action": "allow"})
	var got enforced
	if err != nil || status != http.StatusAccepted || json.Unmarshal(answer, &got) != nil {
		t.Fatalf("%d %s %v", status, answer, err)
	}
	missing := 0
	for _, p := range got.Proxies {
		if !p.Enforced {
			missing++
			if p.Node != "elsewhere" || !strings.Contains(p.Why, "has not reported") {
				t.Errorf("%+v", p)
			}
		}
	}
	if got.Enforced || missing != 1 || len(got.Proxies) != 2 {
		t.Errorf("%+v", got)
	}
	m.Do("GET", exactWebDB, nil, nil)
	if status, _, _ := m.Try("GET", "/v1/connect/intentions/enforced", nil); status != http.StatusBadRequest {
		t.Errorf("without a destination: %d", status)
	}
}

func certificateOf(t *testing.T, m *meshtest.Mesh, service string) *connect.CertificateStatus {
	t.Helper()
	var proxies []connect.Status
	m.Do("GET", "/v1/agent/connect/proxies", nil, &proxies)
	for _, p := range proxies {
		if p.Service == service && p.Certificate != nil {
			return p.Certificate
		}
	}
	t.Fatalf("%s has no certificate", service)
	return nil
}

func revoke(t *testing.T, m *meshtest.Mesh, body map[string]any) {
	t.Helper()
	var got enforced
	m.Do("PUT", "/v1/connect/ca/revocations?wait-enforced=15s", body, &got)
	if !got.Enforced {
		t.Fatalf("revoke %v: %+v", body, got)
	}
}

// TestRevokeSerial: a revoked certificate ends its connections, and its service gets
// another one, with another key.
func TestRevokeSerial(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{})
	up := pair(t, m)
	m.Intend("web", "db", catalog.ActionAllow)
	for _, service := range []string{"web", "db"} { // of either end
		live := eventuallyPasses(t, m, up, "the intention to be enforced")
		old := certificateOf(t, m, service).Serial
		revoke(t, m, map[string]any{"Serial": strings.ToUpper(strings.ReplaceAll(old, ":", ""))})
		mustBeCut(t, live)
		m.Eventually("another certificate", func() error {
			if now := certificateOf(t, m, service).Serial; now == old {
				return fmt.Errorf("it is still %s", now)
			}
			return nil
		})
		_ = eventuallyPasses(t, m, up, "connections with the new certificate").Close()
	}
	var list []struct{ Serial, URI string }
	m.Do("GET", "/v1/connect/ca/revocations", nil, &list)
	if len(list) != 2 {
		t.Errorf("%+v", list)
	}
}

// TestRevokeIdentity: a revoked identity is refused on both sides and gets no
// certificate, over a restart too, until it is trusted again.
func TestRevokeIdentity(t *testing.T) {
	dir := t.TempDir()
	m := meshtest.Start(t, meshtest.Options{DataDir: dir})
	up := pair(t, m)
	m.Intend("web", "db", catalog.ActionAllow)
	live := eventuallyPasses(t, m, up, "the intention to be enforced")
	uri := certificateOf(t, m, "web").URI
	revoke(t, m, map[string]any{"URI": uri, "Description": "host stolen"})
	mustBeCut(t, live)
	mustRefuse(t, up, "of a revoked identity")
	if status, answer, _ := m.Try("GET", "/v1/agent/connect/ca/leaf/web", nil); status != http.StatusForbidden {
		t.Errorf("a certificate for a revoked identity: %d %s", status, answer)
	}
	var verdict struct {
		Authorized bool
		Reason     string
	}
	m.Do("POST", "/v1/agent/connect/authorize", map[string]any{"Target": "db", "ClientCertURI": uri, "ClientCertSerial": "01"}, &verdict)
	if verdict.Authorized || !strings.Contains(verdict.Reason, "Revoked") {
		t.Errorf("authorize: %+v", verdict)
	}
	stranger := strings.Replace(uri, "spiffe://", "spiffe://x", 1)
	if status, answer, _ := m.Try("PUT", "/v1/connect/ca/revocations", map[string]any{"URI": stranger}); status != http.StatusBadRequest {
		t.Errorf("an identity of another trust domain: %d %s", status, answer)
	}
	var proxies []connect.Status
	m.Do("GET", "/v1/agent/connect/proxies", nil, &proxies)
	for _, p := range proxies {
		if p.Service == "web" && (p.Ready || !strings.Contains(p.Problem, "is revoked")) {
			t.Errorf("the proxy of a revoked identity: ready %v, %s", p.Ready, p.Problem)
		}
	}
	m.Stop()

	m = meshtest.Start(t, meshtest.Options{DataDir: dir})
	m.Eventually("the proxies", func() error {
		var proxies []connect.Status
		m.Do("GET", "/v1/agent/connect/proxies", nil, &proxies)
		for _, p := range proxies {
			if p.Applied == 0 || len(proxies) != 2 {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
		mustRefuse(t, up, "of a revoked identity after a restart")
	}
	m.Do("DELETE", "/v1/connect/ca/revocations?uri="+url.QueryEscape(uri), nil, nil)
	_ = eventuallyPasses(t, m, up, "the identity to be trusted again").Close()
	if status, _, _ := m.Try("DELETE", "/v1/connect/ca/revocations?uri="+url.QueryEscape(uri), nil); status != http.StatusNotFound {
		t.Errorf("what is not revoked: %d", status)
	}
}

func meshPort(port int) func(*agent.Config, *server.Config) {
	return func(a *agent.Config, _ *server.Config) { a.MeshPort = port }
}
