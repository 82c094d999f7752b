package server

import (
	"net"
	"strings"
	"testing"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/enroll"
)

// TestClash: nobody is let in who would be taken for a living host, be it only by the
// catalog, to which the case of a node ID means nothing: it would drop that host's rows.
func TestClash(t *testing.T) {
	const id = "abcdef01-1111-4111-8111-111111111111"
	living := catalog.Member{Name: "db1", ID: id, Addr: "10.0.0.1", Status: catalog.MemberAlive}
	there, elsewhere := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2)}
	gone := living
	gone.Status = catalog.MemberFailed
	other := strings.Replace(id, "a", "0", 1)
	renewal := &enroll.Peer{}
	for _, c := range []struct {
		what   string
		asks   enroll.Admission
		member catalog.Member
		want   enroll.Reason
	}{
		{"another host", enroll.Admission{Node: "web1", NodeID: other, Remote: elsewhere}, living, ""},
		{"itself", enroll.Admission{Node: "db1", NodeID: id, Remote: there}, living, ""},
		{"itself, from a new address", enroll.Admission{Node: "db1", NodeID: id, Remote: elsewhere, Renewal: renewal}, living, ""},
		{"its name", enroll.Admission{Node: "DB1", NodeID: other, Remote: elsewhere}, living, enroll.ReasonNameTaken},
		{"its ID", enroll.Admission{Node: "evil", NodeID: id, Remote: elsewhere}, living, enroll.ReasonNodeIDInUse},
		{"its ID in capitals", enroll.Admission{Node: "evil", NodeID: strings.ToUpper(id), Remote: elsewhere}, living, enroll.ReasonNodeIDInUse},
		{"a copy of it", enroll.Admission{Node: "db1", NodeID: id, Remote: elsewhere}, living, enroll.ReasonNodeIDInUse},
		{"a copy of it in capitals", enroll.Admission{Node: "db1", NodeID: strings.ToUpper(id), Remote: elsewhere}, living, enroll.ReasonNodeIDInUse},
		{"the place of one that is gone", enroll.Admission{Node: "db1", NodeID: other, Remote: elsewhere}, gone, ""},
	} {
		if got := enroll.ReasonOf(clash(c.asks, c.member)); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}
