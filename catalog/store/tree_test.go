package store

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// thing is a row with a key of two parts, a name that it may lack, and many tags.
type thing struct {
	a, b, name string
	tags       []string
	version    int
}

var tableThings = newTable("things",
	on(byID, func(t *thing) string { return t.a }, func(t *thing) string { return t.b }),
	on(byName, func(t *thing) string { return t.name }).where(func(t *thing) bool { return t.name != "" }),
	onMany(byReference, 1, func(t *thing) [][]string { return apart(t.tags) }))

type thingKey struct{ a, b string }

func things(m *moment, index string, parts ...string) []thing {
	var out []thing
	for row := range m.rows(tableThings, index, parts...) {
		out = append(out, *row.(*thing))
	}
	return out
}

// wantThings is what the index shall give, by way of a plain map.
func wantThings(rows map[thingKey]thing, index string, parts ...string) []thing {
	type found struct {
		key []string
		row thing
	}
	var all []found
	for _, r := range rows {
		id := []string{r.a, r.b}
		switch index {
		case byID:
			all = append(all, found{id, r})
		case byName:
			if r.name != "" {
				all = append(all, found{append([]string{r.name}, id...), r})
			}
		case byReference:
			for _, tag := range slices.Compact(slices.Sorted(slices.Values(r.tags))) {
				all = append(all, found{append([]string{tag}, id...), r})
			}
		}
	}
	slices.SortFunc(all, func(x, y found) int { return slices.Compare(x.key, y.key) })
	var out []thing
	for _, f := range all {
		if slices.Equal(f.key[:len(parts)], parts) {
			out = append(out, f.row)
		}
	}
	return out
}

func sameThings(a, b []thing) bool {
	return slices.EqualFunc(a, b, func(x, y thing) bool { return fmt.Sprint(x) == fmt.Sprint(y) })
}

// depth checks that a tree is well formed, and gives its depth.
func (n *node) depth(t fataler, ix *index) int {
	t.Helper()
	if n == nil {
		return 0
	}
	if len(n.rows) == 0 || len(n.rows) > maxRows || n.parts != nil && len(n.parts) != len(n.rows) {
		t.Fatalf("a node of %d rows and %d parts", len(n.rows), len(n.parts))
	}
	var buf [maxParts]string
	for i := 1; i < len(n.rows); i++ {
		if ix.compare(n.rows[i-1], ix.keyOf(n.rows[i], &buf)) >= 0 {
			t.Fatalf("rows out of order")
		}
	}
	below := 0
	for i, p := range n.parts {
		if p.rows[0] != n.rows[i] {
			t.Fatalf("a branch does not know the least row of a part")
		}
		d := p.depth(t, ix)
		if i > 0 && d != below {
			t.Fatalf("parts of depth %d and %d", below, d)
		}
		below = d
	}
	return below + 1
}

// TestTreeAgainstMap: after any changes every index gives what a plain map does, and
// every moment that was kept is still what it was.
func TestTreeAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type kept struct {
			m    *moment
			rows map[thingKey]thing
		}
		var past []kept
		m, rows, txn := newMoment(), map[thingKey]thing{}, nextTxn()
		word := rapid.SampledFrom([]string{"", "a", "ab", "b", "\xff", "é"})
		for step := range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "do") {
			case 0: // a moment ends
				past = append(past, kept{m, maps.Clone(rows)})
				m, txn = &moment{roots: slices.Clone(m.roots)}, nextTxn()
			case 1: // rows go, from the front, the back or anywhere
				keys := slices.SortedFunc(maps.Keys(rows), func(x, y thingKey) int {
					return cmp.Or(cmp.Compare(x.a, y.a), cmp.Compare(x.b, y.b))
				})
				at := rapid.IntRange(0, len(keys)).Draw(t, "at")
				for _, k := range keys[at:min(at+rapid.IntRange(0, 200).Draw(t, "n"), len(keys))] {
					m.drop(txn, tableThings, &thing{a: k.a, b: k.b})
					delete(rows, k)
				}
			default: // rows come, or change, in some order
				begin, by := rapid.IntRange(0, 999).Draw(t, "begin"), rapid.IntRange(1, 999).Draw(t, "by")
				a, name, tags := word.Draw(t, "a"), word.Draw(t, "name"), rapid.SliceOfN(word, 0, 3).Draw(t, "tags")
				for i := range rapid.IntRange(0, 200).Draw(t, "n") {
					r := thing{a: a, b: fmt.Sprintf("%03d", (begin+i*by)%1000), name: name, tags: tags, version: step}
					m.put(txn, tableThings, &r)
					rows[thingKey{r.a, r.b}] = r
				}
			}
		}
		past = append(past, kept{m, rows})
		for _, p := range past {
			for _, ix := range tableThings.indexes {
				p.m.roots[ix.at].depth(t, ix)
			}
			for _, index := range []string{byID, byName, byReference} {
				for _, parts := range [][]string{nil, {word.Draw(t, "part")}} {
					if got, want := things(p.m, index, parts...), wantThings(p.rows, index, parts...); !sameThings(got, want) {
						t.Fatalf("%s %q:\n got %v\nwant %v", index, parts, got, want)
					}
				}
			}
			for _, b := range []string{"000", "500", "999"} {
				k := thingKey{word.Draw(t, "part"), b}
				want, there := p.rows[k]
				row, ok := p.m.find(tableThings, k.a, k.b)
				if ok != there || ok && fmt.Sprint(*row.(*thing)) != fmt.Sprint(want) {
					t.Fatalf("%v: %v %v", k, row, ok)
				}
			}
		}
	})
}

// TestTreeInOrder: rows that come in order fill their nodes.
func TestTreeInOrder(t *testing.T) {
	m, txn := newMoment(), nextTxn()
	const n = 10 * maxRows * maxRows
	for i := range n {
		m.put(txn, tableThings, &thing{a: fmt.Sprintf("%06d", i)})
	}
	ix := tableThings.indexes[0]
	var leaves, rows int
	var walk func(n *node)
	walk = func(n *node) {
		if n.parts == nil {
			leaves, rows = leaves+1, rows+len(n.rows)
		}
		for _, p := range n.parts {
			walk(p)
		}
	}
	walk(m.roots[ix.at])
	if d := m.roots[ix.at].depth(t, ix); rows != n || leaves > n/maxRows+1 || d > 4 {
		t.Errorf("%d rows in %d leaves, %d deep", rows, leaves, d)
	}
}
