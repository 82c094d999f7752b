package store

import (
	"testing"

	"github.com/weftmesh/weft/catalog"
)

func (b *bell) rang() bool {
	select {
	case <-b.rings:
		return true
	default:
		return false
	}
}

// TestBellsRingForWhatTheyHangOn: a bell rings for a change below its prefixes and of
// its rows, and for nothing else; one that was taken down leaves nothing behind.
func TestBellsRingForWhatTheyHangOn(t *testing.T) {
	s := newStore(t, Config{})
	w := &s.state.Load().waits
	hang := func(queries ...catalog.Query) *bell {
		on := &basis{}
		for _, q := range queries {
			s.state.Load().read().queryIndex(on, q)
		}
		b := newBell(w)
		if b.hangsOn(on) || !b.hangsOn(on) {
			t.Fatalf("a new bell on %v hung already, or does not hang now", queries)
		}
		return b
	}
	tree := hang(catalog.Query{Kind: catalog.QueryKeyTree, Name: "app/we"})
	key := hang(catalog.Query{Kind: catalog.QueryKey, Name: "app/web"})
	service := hang(serviceQuery("web"), serviceQuery("db"))
	for _, step := range []struct {
		cmd                catalog.Command
		tree, key, service bool
	}{
		{setKey("app/web/port", "80"), true, false, false},
		{setKey("app/wo", "1"), false, false, false},
		{setKey("app/web", "1"), true, true, false},
		{&catalog.DeleteKey{Key: "app/web"}, true, true, false},
		{&catalog.DeleteKeys{Prefix: "app/web/"}, true, false, false},
		{registerOn("n", "web", 80), false, false, true},
		{registerOn("n", "other", 80), false, false, false},
		{registerOn("n", "db", 80), false, false, true},
	} {
		apply(t, s, step.cmd)
		if got := [...]bool{tree.rang(), key.rang(), service.rang()}; got != [...]bool{step.tree, step.key, step.service} {
			t.Errorf("%+v: rang %v", step.cmd, got)
		}
	}
	for _, b := range []*bell{tree, key, service} {
		b.stop()
	}
	if len(w.rows) > 0 || len(w.prefixes) > 0 {
		t.Errorf("left behind: %v %v", w.rows, w.prefixes)
	}
}
