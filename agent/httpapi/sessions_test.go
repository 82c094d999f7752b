package httpapi

import (
	"strings"
	"testing"

	"github.com/weftmesh/weft/catalog"
)

// A session that is asked for before the leader has written this host into the
// catalog waits for that, as its client could not do better.
func TestSessionWaitsForItsNode(t *testing.T) {
	r := newRig(t)
	made := make(chan answer, 1)
	go func() { made <- r.do("PUT", "/v1/session/create", "") }()
	eventually(t, "somebody waits for the check", func() bool {
		r.servers.mu.Lock()
		defer r.servers.mu.Unlock()
		for _, read := range r.servers.reads {
			if read.Query.Kind == catalog.QueryNodeChecks && read.MinIndex > 0 {
				return true
			}
		}
		return false
	})
	r.mustApply(&catalog.Register{
		Node:   &catalog.Node{Node: testNode, Address: "127.0.0.1"},
		Checks: []*catalog.Check{{Node: testNode, CheckID: catalog.NodeCheckID, Name: "Serf Health Status", Status: catalog.StatusPassing}},
	})
	r.want(<-made, 200, "")
	if a := r.do("PUT", "/v1/session/create", `{"NodeChecks":["none"]}`); a.status != 500 || !strings.Contains(a.body, "Missing check 'none'") {
		t.Fatal(a)
	}
}

func TestSessionOfAHostThatIsUnknown(t *testing.T) {
	r := newRig(t, fastConfig)
	if a := r.do("PUT", "/v1/session/create", ""); a.status != 503 || !strings.Contains(a.body, "not in the catalog yet") {
		t.Fatal(a)
	}
}
