package agent_test

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"testing"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/meshtest"
)

// verdictByForce is what policy says, without cleverness: the most exact pair decides.
func verdictByForce(rules map[[2]string]catalog.Action, source, destination string) bool {
	names := func(n string) []string {
		out := []string{n}
		for i := len(n); i >= 0; i-- {
			out = append(out, n[:i]+"*")
		}
		return out
	}
	for _, d := range names(destination) {
		for _, s := range names(source) {
			if a, ok := rules[[2]string{s, d}]; ok {
				return a == catalog.ActionAllow
			}
		}
	}
	return false
}

// TestP17OneJudge changes intentions at random and holds what is said of each pair
// against the policy: by the API, by the proxies, with a connection, and by force.
func TestP17OneJudge(t *testing.T) {
	rounds := 6 // of 16 pairs; 10,000 verdicts at full count
	if os.Getenv("WEFT_PROMISE") == "full" {
		rounds = 625
	}
	m := meshtest.Start(t, meshtest.Options{})
	names := []string{"s0", "s1", "sb2", "sb3"}
	ports := map[[2]string]int{}
	for _, src := range names {
		var upstreams []any
		for _, dst := range names {
			port := meshtest.FreePort(t)
			ports[[2]string{src, dst}] = port
			upstreams = append(upstreams, map[string]any{"DestinationName": dst, "LocalBindPort": port})
		}
		m.Register(map[string]any{"Name": src, "Port": meshtest.Echo(t, src), "Connect": map[string]any{
			"SidecarService": map[string]any{"Proxy": map[string]any{"Upstreams": upstreams}},
		}})
	}
	rules := map[[2]string]catalog.Action{{"*", "*"}: catalog.ActionAllow}
	m.Intend("*", "*", catalog.ActionAllow)
	for pair, port := range ports {
		m.Eventually(fmt.Sprint("the way of ", pair), func() error {
			c, err := call(port, pair[1])
			if err == nil {
				_ = c.Close()
			}
			return err
		})
	}
	r := rand.New(rand.NewPCG(17, 4)) //nolint:gosec // the same each time
	some := append([]string{"*", "s*", "sb*"}, names...)
	for round := range rounds {
		for range 3 {
			pair := [2]string{some[r.IntN(len(some))], some[r.IntN(len(some))]}
			switch r.IntN(3) {
			case 0:
				delete(rules, pair)
				m.Unintend(pair[0], pair[1])
			case 1:
				rules[pair] = catalog.ActionDeny
				m.Intend(pair[0], pair[1], catalog.ActionDeny)
			default:
				rules[pair] = catalog.ActionAllow
				m.Intend(pair[0], pair[1], catalog.ActionAllow)
			}
		}
		var all enforced
		m.Do("GET", "/v1/connect/intentions/enforced?destination=*&wait=15s", nil, &all)
		if !all.Enforced {
			t.Fatalf("round %d: %+v", round, all)
		}
		for pair, port := range ports {
			want := verdictByForce(rules, pair[0], pair[1])
			var said struct {
				Allowed bool
				Reason  string
			}
			m.Do("GET", "/v1/connect/intentions/check?source="+url.QueryEscape(pair[0])+"&destination="+url.QueryEscape(pair[1]), nil, &said)
			c, err := call(port, pair[1])
			if err == nil {
				_ = c.Close()
			}
			if said.Allowed != want || (err == nil) != want {
				t.Fatalf("round %d, %v: by force %v, the API says %v (%s), a connection: %v; rules %v", round, pair, want, said.Allowed, said.Reason, err, rules)
			}
		}
	}
	t.Logf("%d verdicts, three times each", rounds*len(ports))
}

// All sidecars of a host may share one port; its number is in the catalog.
func TestMeshPortOfTheHost(t *testing.T) {
	port := meshtest.FreePort(t)
	m := meshtest.Start(t, meshtest.Options{Change: meshPort(port)})
	up := pair(t, m)
	var list []struct{ Service struct{ Port int } }
	for _, name := range []string{"web", "db"} {
		m.Do("GET", "/v1/health/connect/"+name, nil, &list)
		if len(list) != 1 || list[0].Service.Port != port {
			t.Fatalf("%s: %+v, want port %d", name, list, port)
		}
	}
	mustRefuse(t, up, "with no intention")
	m.Intend("web", "db", catalog.ActionAllow)
	live := eventuallyPasses(t, m, up, "the intention to be enforced")
	m.Do("DELETE", exactWebDB+"&wait-enforced=15s", nil, nil)
	mustBeCut(t, live)
}
