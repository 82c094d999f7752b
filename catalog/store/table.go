package store

import (
	"iter"
	"strings"
)

// table is one kind of rows and how they are found.
type table struct {
	name    string
	indexes []*index // the first is the key
}

// index is an order of the rows of a table. Rows of which it says the same are in the
// order of their keys.
type index struct {
	name  string
	at    int // among all indexes
	key   *index
	parts []func(row any) string
	has   func(row any) bool // nil: it has every row
	// many gives the keys of a row that has any number of them, each once; parts are then
	// those of an alias.
	many func(row any) [][]string
}

// alias stands in an index for a row that is there under several keys.
type alias struct {
	key []string
	row any
}

// rowOf is the row that an element of a tree stands for.
func rowOf(e any) any {
	if a, ok := e.(*alias); ok {
		return a.row
	}
	return e
}

// maxParts is the most that a key has, with that of the row behind it.
const maxParts = 4

// part is the i-th part of the key of an element.
func (ix *index) part(e any, i int) string {
	if i < len(ix.parts) {
		return ix.parts[i](e)
	}
	return ix.key.parts[i-len(ix.parts)](rowOf(e))
}

// compare orders an element by a key, or by the beginning of one: it is 0 where the
// element begins so.
func (ix *index) compare(e any, key []string) int {
	for i, k := range key {
		if c := strings.Compare(ix.part(e, i), k); c != 0 {
			return c
		}
	}
	return 0
}

// keyOf is the whole key of an element.
func (ix *index) keyOf(e any, buf *[maxParts]string) []string {
	n := len(ix.parts)
	if ix.key != nil {
		n += len(ix.key.parts)
	}
	for i := range n {
		buf[i] = ix.part(e, i)
	}
	return buf[:n]
}

// holds tells whether a row is in the index.
func (ix *index) holds(row any) bool { return ix.has == nil || ix.has(row) }

// aliases are what stands for a row in an index of many keys.
func (ix *index) aliases(row any) []*alias {
	var out []*alias
	for _, key := range ix.many(row) {
		out = append(out, &alias{key, row})
	}
	return out
}

func (t *table) index(name string) *index {
	for _, ix := range t.indexes {
		if ix.name == name {
			return ix
		}
	}
	panic("store: " + t.name + " has no index " + name) // a mistake in this package
}

// moment is all that is stored, as of one moment. It does not change.
type moment struct {
	applied uint64  // the index of the last command
	roots   []*node // by index
}

func newMoment() *moment { return &moment{roots: make([]*node, indexCount)} }

// find gives the row with a key.
func (m *moment) find(t *table, key ...string) (any, bool) {
	ix := t.indexes[0]
	return m.roots[ix.at].find(ix, key)
}

// rows walks the rows whose keys in an index begin with parts, in its order. The
// moment must not be that of a writer who writes to the table meanwhile.
func (m *moment) rows(t *table, name string, parts ...string) iter.Seq[any] {
	ix := t.index(name)
	return func(yield func(any) bool) {
		m.roots[ix.at].ascend(ix, parts, func(e any) bool {
			return ix.compare(e, parts) == 0 && yield(rowOf(e))
		})
	}
}

// from walks the rows whose keys are not below one.
func (m *moment) from(t *table, key string) iter.Seq[any] {
	ix := t.indexes[0]
	return func(yield func(any) bool) { m.roots[ix.at].ascend(ix, []string{key}, yield) }
}

// put writes a row in the place of the one with its key.
func (m *moment) put(by txnID, t *table, row any) {
	var buf [maxParts]string
	old, _ := m.find(t, t.indexes[0].keyOf(row, &buf)...)
	for _, ix := range t.indexes {
		m.roots[ix.at] = ix.replace(m.roots[ix.at], by, old, row)
	}
}

// drop removes the row with the key of row. There must be one.
func (m *moment) drop(by txnID, t *table, row any) {
	var buf [maxParts]string
	old, had := m.find(t, t.indexes[0].keyOf(row, &buf)...)
	if !had {
		panic("store: removed from " + t.name + ", and not in it: " + strings.Join(buf[:], " ")) // a mistake in this package
	}
	for _, ix := range t.indexes {
		m.roots[ix.at] = ix.replace(m.roots[ix.at], by, old, nil)
	}
}

// replace gives the tree of an index with row in the place of old; either may be nil.
func (ix *index) replace(root *node, by txnID, old, row any) *node {
	if ix.many != nil {
		return ix.replaceMany(root, by, old, row)
	}
	var was, now [maxParts]string
	stays := row != nil && ix.holds(row)
	key := []string(nil)
	if stays {
		key = ix.keyOf(row, &now)
	}
	if old != nil && ix.holds(old) && (!stays || ix.compare(old, key) != 0) {
		root = root.without(treePath{by, ix, ix.keyOf(old, &was)})
	}
	if stays {
		root = root.with(treePath{by, ix, key}, row)
	}
	return root
}

func (ix *index) replaceMany(root *node, by txnID, old, row any) *node {
	var buf [maxParts]string
	if old != nil {
		for _, a := range ix.aliases(old) {
			root = root.without(treePath{by, ix, ix.keyOf(a, &buf)})
		}
	}
	if row != nil {
		for _, a := range ix.aliases(row) {
			root = root.with(treePath{by, ix, ix.keyOf(a, &buf)}, a)
		}
	}
	return root
}
