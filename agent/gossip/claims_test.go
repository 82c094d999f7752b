package gossip

import (
	"log/slog"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/weftmesh/weft/catalog"
)

// nodeAt is a member as memberlist has it.
func nodeAt(t *testing.T, name, id, addr string, start int64) *memberlist.Node {
	t.Helper()
	meta, err := encodeTags(map[string]string{"id": id, startTag: strconv.FormatInt(start, 36)})
	if err != nil {
		t.Fatal(err)
	}
	return &memberlist.Node{Name: claimOf(name, addr+":8301"), Addr: net.ParseIP(addr), Port: 8301, Meta: meta}
}

// Two hosts got each other's address, and one another name: who lived at an address
// where somebody started later is not waited for, whatever memberlist believes yet.
func TestAddressIsOneMembers(t *testing.T) {
	tb := newTable(claimOf("self", "10.0.0.1:8301"), slog.New(slog.DiscardHandler))
	alive := func(n *memberlist.Node) { tb.put(n, catalog.MemberAlive) }
	want := func(name, addr string, status catalog.MemberStatus) {
		t.Helper()
		if m, ok := tb.get(name); !ok || m.Addr != addr || m.Status != status {
			t.Errorf("%s is %s at %s, want %s at %s", name, m.Status, m.Addr, status, addr)
		}
		for _, m := range tb.members() {
			if m.Name == name && m.Status != status {
				t.Errorf("%s is listed as %s", name, m.Status)
			}
		}
	}
	a, b := nodeAt(t, "a", "1", "10.0.0.4", 100), nodeAt(t, "b", "2", "10.0.0.5", 100)
	alive(a)
	alive(b)
	moved := nodeAt(t, "a", "1", "10.0.0.5", 200)
	alive(moved)
	want("a", "10.0.0.4", catalog.MemberAlive) // the original, as far as anybody knows
	want("b", "10.0.0.5", catalog.MemberFailed)
	alive(nodeAt(t, "b", "2", "10.0.0.4", 201))
	want("a", "10.0.0.5", catalog.MemberAlive)
	want("b", "10.0.0.4", catalog.MemberAlive)
	if status := tb.put(b, catalog.MemberFailed); status != catalog.MemberNone {
		t.Errorf("the end of a claim that does not count is told as %s", status)
	}
	tb.put(a, catalog.MemberFailed)
	want("a", "10.0.0.5", catalog.MemberAlive)
	alive(nodeAt(t, "renamed", "2", "10.0.0.4", 300))
	want("b", "10.0.0.4", catalog.MemberFailed)
	want("renamed", "10.0.0.4", catalog.MemberAlive)
	// What is heard late, of before, changes nothing.
	alive(nodeAt(t, "c", "3", "10.0.0.5", 50))
	want("a", "10.0.0.5", catalog.MemberAlive)
	want("c", "10.0.0.5", catalog.MemberFailed)
	// Nobody takes the place of this host.
	alive(nodeAt(t, "self", "9", "10.0.0.1", 100))
	alive(nodeAt(t, "d", "4", "10.0.0.1", 200))
	want("self", "10.0.0.1", catalog.MemberAlive)
	for _, n := range []string{"a", "b", "c", "d", "renamed"} {
		tb.apply(intent{Name: n, Prune: true})
	}
}

// The original of a copied host stays the one that counts when it is restarted, with a
// later start than its copy's.
func TestRestartDoesNotSwapOriginalAndCopy(t *testing.T) {
	tb := newTable(claimOf("self", "10.0.0.1:8301"), slog.New(slog.DiscardHandler))
	at := func(addr string, start, home int64) *memberlist.Node {
		n := nodeAt(t, "a", "1", addr, start)
		tags, err := decodeTags(n.Meta)
		if err != nil {
			t.Fatal(err)
		}
		tags[homeTag] = strconv.FormatInt(home, 36)
		if n.Meta, err = encodeTags(tags); err != nil {
			t.Fatal(err)
		}
		return n
	}
	want := func(addr string) {
		t.Helper()
		if m, ok := tb.get("a"); !ok || m.Addr != addr || m.Status != catalog.MemberAlive || m.Tags[homeTag] != "" {
			t.Errorf("a is %+v, want it at %s", m, addr)
		}
	}
	original, twin := at("10.0.0.2", 100, 100), at("10.0.0.3", 200, 200)
	tb.put(original, catalog.MemberAlive)
	tb.put(twin, catalog.MemberAlive)
	want("10.0.0.2")
	if d := tb.doubles(); len(d) != 1 || d[0].Addr != "10.0.0.3" {
		t.Errorf("the copy is not told: %v", d)
	}
	tb.put(original, catalog.MemberFailed)
	if d := tb.doubles(); len(d) != 0 {
		t.Errorf("told twice: %v", d)
	}
	want("10.0.0.3") // it may have moved
	tb.put(at("10.0.0.2", 300, 100), catalog.MemberAlive)
	want("10.0.0.2")
}

// The word of a copy that it leaves says nothing of the original, which fails then.
func TestLeaveIsOfOneClaim(t *testing.T) {
	tb := newTable(claimOf("self", "10.0.0.1:8301"), slog.New(slog.DiscardHandler))
	original, twin := nodeAt(t, "a", "1", "10.0.0.2", 100), nodeAt(t, "a", "1", "10.0.0.3", 200)
	tb.put(original, catalog.MemberAlive)
	tb.put(twin, catalog.MemberAlive)
	own := intent{Name: "a", Claim: twin.Name, At: time.Now().UnixMilli()}
	if !tb.apply(own) || tb.apply(own) {
		t.Error("word is not news once")
	}
	if tb.apply(intent{Name: "a", Claim: "a/10.0.0.9:8301"}) {
		t.Error("word of one that nobody knows is taken")
	}
	tb.put(twin, catalog.MemberFailed)
	if got := tb.put(original, catalog.MemberFailed); got != catalog.MemberFailed {
		t.Errorf("the original, which failed, is %s", got)
	}
	tb.put(original, catalog.MemberAlive)
	tb.apply(intent{Name: "a", Claim: original.Name, At: time.Now().UnixMilli()})
	if got := tb.put(original, catalog.MemberFailed); got != catalog.MemberLeft {
		t.Errorf("one that left is %s", got)
	}
}
