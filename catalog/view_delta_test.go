package catalog

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// drawView draws a view with rows in every list, as no query gives them: each
// list is patched alike.
func drawView(t *rapid.T, index uint64) *View {
	v := &View{Query: Query{Kind: QueryService, Name: "web"}, Index: index, Epoch: "e"}
	some := func(label string) bool { return rapid.IntRange(0, 2).Draw(t, label) > 0 }
	version := func() int { return rapid.IntRange(1, 3).Draw(t, "version") }
	for _, n := range []string{"a", "a!", "b"} {
		if some("node") {
			v.Nodes = append(v.Nodes, &Node{Node: n, Meta: map[string]string{"v": strings.Repeat("x", version())}})
		}
		if some("summary") {
			v.Services = append(v.Services, &ServiceSummary{Name: n, Instances: version()})
		}
		if some("entry") {
			v.Entries = append(v.Entries, Entry{&ServiceIntentions{Name: n, RaftIndex: RaftIndex{ModifyIndex: uint64(version())}}})
		}
		if some("root") {
			v.Roots = append(v.Roots, &Root{ID: n, SerialNumber: uint64(version())})
		}
		if some("pair") {
			v.Pairs = append(v.Pairs, &KVPair{Key: n, Flags: uint64(version())})
		}
		if some("key") {
			v.Keys = append(v.Keys, n)
		}
		if some("delay") {
			v.Delays = append(v.Delays, &KeyDelay{Key: n, Delay: time.Duration(version())})
		}
		if some("session") {
			v.Sessions = append(v.Sessions, &Session{ID: n, Name: strings.Repeat("s", version())})
		}
		for _, id := range []string{"1", "2"} {
			if some("instance") {
				v.Instances = append(v.Instances, &Instance{
					Node: &Node{Node: n}, Service: &Service{ID: id, Port: version()}, Checks: []*Check{{Output: strings.Repeat("o", version())}},
				})
			}
			if some("check") {
				v.Checks = append(v.Checks, &Check{Node: n, CheckID: id, Output: strings.Repeat("o", version())})
			}
		}
	}
	in := drawIntentions(t)
	in.Sort()
	v.Intentions = in
	v.Default = rapid.SampledFrom(decideActions).Draw(t, "default")
	if some("CA") {
		v.CAConfig = &CAConfig{ClusterID: strings.Repeat("u", version())}
	}
	return v
}

func viewJSON(t *rapid.T, v *View) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return strings.ReplaceAll(string(b), "null", "[]")
}

func TestPatchOfDiffIsTheNewView(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, now := drawView(t, 7), drawView(t, 9)
		was := viewJSON(t, old)
		d := now.Diff(old)
		if d == nil {
			t.Fatalf("no delta")
		}
		got, err := d.Patch(old)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if viewJSON(t, got) != viewJSON(t, now) {
			t.Fatalf("got  %s\nwant %s", viewJSON(t, got), viewJSON(t, now))
		}
		if viewJSON(t, old) != was {
			t.Fatalf("Patch changed the old view")
		}
		if same := drawSame(old); len(same.Diff(old).Nodes.Put)+len(same.Diff(old).Instances.Put)+len(same.Diff(old).Checks.Gone) != 0 {
			t.Fatalf("rows that did not change are in the delta")
		}
	})
}

// drawSame is old at a later index.
func drawSame(old *View) *View {
	return &View{
		Query: old.Query, Index: old.Index + 1, Epoch: old.Epoch, Nodes: old.Nodes, Services: old.Services,
		Instances: slices.Clone(old.Instances), Checks: old.Checks, Intentions: old.Intentions, Entries: old.Entries, Roots: old.Roots,
	}
}

func TestDiffKnowsWhenToSendTheWhole(t *testing.T) {
	q := Query{Kind: QueryNodes}
	old := &View{Query: q, Index: 3, Epoch: "e"}
	for name, c := range map[string][2]*View{
		"no old view":      {nil, {Query: q, Index: 4, Epoch: "e"}},
		"another epoch":    {old, {Query: q, Index: 4, Epoch: "f"}},
		"another query":    {old, {Query: Query{Kind: QueryServices}, Index: 4, Epoch: "e"}},
		"not newer":        {old, {Query: q, Index: 3, Epoch: "e"}},
		"out of order":     {old, {Query: q, Index: 4, Epoch: "e", Nodes: []*Node{{Node: "b"}, {Node: "a"}}}},
		"one row twice":    {old, {Query: q, Index: 4, Epoch: "e", Nodes: []*Node{{Node: "a"}, {Node: "a"}}}},
		"old out of order": {{Query: q, Index: 3, Epoch: "e", Nodes: []*Node{{Node: "b"}, {Node: "a"}}}, {Query: q, Index: 4, Epoch: "e"}},
	} {
		if d := c[1].Diff(c[0]); d != nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestPatchRefusesWhatDoesNotFit(t *testing.T) {
	q := Query{Kind: QueryNodes}
	old := &View{Query: q, Index: 3, Epoch: "e"}
	d := (&View{Query: q, Index: 4, Epoch: "e"}).Diff(old)
	for name, v := range map[string]*View{
		"none": nil, "another index": {Query: q, Index: 2, Epoch: "e"}, "another epoch": {Query: q, Index: 3}, "another query": {Index: 3, Epoch: "e"},
	} {
		if _, err := d.Patch(v); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, bad := range map[string]*Delta{
		"node": {Nodes: Rows[*Node]{Put: []*Node{nil}}}, "instance": {Instances: Rows[*Instance]{Put: []*Instance{{}}}},
		"entry": {Entries: Rows[Entry]{Put: []Entry{{}}}}, "check": {Checks: Rows[*Check]{Put: []*Check{nil}}},
	} {
		bad.Query, bad.From, bad.Epoch, bad.Index = q, 3, "e", 4
		if _, err := bad.Patch(old); !errors.Is(err, ErrInvalid) {
			t.Errorf("empty %s: %v", name, err)
		}
	}
}

func TestDiffIsShared(t *testing.T) {
	q := Query{Kind: QueryNodes}
	older, old := &View{Query: q, Index: 2, Epoch: "e"}, &View{Query: q, Index: 3, Epoch: "e"}
	v := &View{Query: q, Index: 4, Epoch: "e"}
	if d := v.Diff(old); d != v.Diff(old) || d == v.Diff(older) || v.Diff(older).From != 2 {
		t.Error("readers one version behind do not share their delta")
	}
}

func TestEncodedIsMadeOnce(t *testing.T) {
	n := 0
	d := &Delta{}
	v := &View{}
	for range 3 {
		_, _ = d.Encoded(func(*Delta) ([]byte, error) { n++; return nil, nil })
		_, _ = v.Encoded(func(*View) ([]byte, error) { n++; return nil, nil })
	}
	if n != 2 {
		t.Errorf("encoded %d times", n)
	}
}
