package store

import "sync/atomic"

// A tree holds rows in the order of an index. It is persistent: a change copies the
// nodes on the way to its place, and all else is shared, so that whoever has a root
// keeps that moment. Those that one transaction made are changed in place by it until
// it ends. Rows are in leaves, many in each, so that what a row costs here is little
// more than its pointer; there are no channels and no copies of keys.

// maxRows is how many rows a leaf has at most, or parts a branch. Few make deep trees
// of many nodes, many make each change copy more.
const maxRows = 32

// slack is the room that a node gets beyond what it needs when it grows.
const slack = 4

// node is a leaf, or a branch with the least row of each part below it.
type node struct {
	owner txnID
	rows  []any
	parts []*node // nil in a leaf
}

// txnID names the transaction that may change a node in place.
type txnID uint64

var lastTxn atomic.Uint64

func nextTxn() txnID { return txnID(lastTxn.Add(1)) }

// treePath is what a change knows on its way through a tree.
type treePath struct {
	by  txnID
	ix  *index
	key []string
}

// find gives the row with a whole key.
func (n *node) find(ix *index, key []string) (any, bool) {
	for n != nil {
		i := n.lower(ix, key)
		at := i < len(n.rows) && ix.compare(n.rows[i], key) == 0
		switch {
		case n.parts == nil && at:
			return n.rows[i], true
		case n.parts == nil:
			return nil, false
		case !at && i == 0:
			return nil, false
		case !at:
			i--
		}
		n = n.parts[i]
	}
	return nil, false
}

// lower is the place of the first row that is not below key, which may be the
// beginning of one.
func (n *node) lower(ix *index, key []string) int {
	low, high := 0, len(n.rows)
	for low < high {
		mid := (low + high) / 2
		if ix.compare(n.rows[mid], key) < 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low
}

// ascend yields the rows from key on, all of them where it is nil, until yield has
// enough. The tree must not be changed meanwhile.
func (n *node) ascend(ix *index, key []string, yield func(row any) bool) bool {
	if n == nil {
		return true
	}
	i := 0
	if key != nil {
		if i = n.lower(ix, key); n.parts != nil && i > 0 {
			i--
		}
	}
	for ; i < len(n.rows); i++ {
		if n.parts == nil {
			if !yield(n.rows[i]) {
				return false
			}
			continue
		}
		if !n.parts[i].ascend(ix, key, yield) {
			return false
		}
		key = nil
	}
	return true
}

// with gives the tree with a row, in the place of the one with its key.
func (n *node) with(p treePath, row any) *node {
	if n == nil {
		return &node{owner: p.by, rows: []any{row}}
	}
	left, right := n.put(p, row, true)
	if right == nil {
		return left
	}
	return &node{owner: p.by, rows: []any{left.rows[0], right.rows[0]}, parts: []*node{left, right}}
}

// put gives the node with the row, and a second one where it became too large. last
// tells that nothing of the tree is behind the node.
func (n *node) put(p treePath, row any, last bool) (left, right *node) {
	n = n.own(p.by)
	i := n.lower(p.ix, p.key)
	at := i < len(n.rows) && p.ix.compare(n.rows[i], p.key) == 0
	if n.parts == nil {
		if at {
			n.rows[i] = row
			return n, nil
		}
		n.rows = insertAt(n.rows, i, row)
		return n.split(last && i == len(n.rows)-1)
	}
	if !at && i > 0 {
		i--
	}
	part, more := n.parts[i].put(p, row, last && i == len(n.parts)-1)
	n.rows[i], n.parts[i] = part.rows[0], part
	if more == nil {
		return n, nil
	}
	n.rows, n.parts = insertAt(n.rows, i+1, more.rows[0]), insertAt(n.parts, i+1, more)
	return n.split(last && i+1 == len(n.parts)-1)
}

// own gives n itself to the transaction that made it, and a copy to others.
func (n *node) own(by txnID) *node {
	if n.owner == by {
		return n
	}
	out := &node{owner: by, rows: append(make([]any, 0, len(n.rows)+1), n.rows...)}
	if n.parts != nil {
		out.parts = append(make([]*node, 0, len(n.parts)+1), n.parts...)
	}
	return out
}

// split cuts a node that is too large in two. One that rows are added to behind all
// others is left full: what comes in order, as from a backup, fills its nodes.
func (n *node) split(atEnd bool) (left, right *node) {
	if len(n.rows) <= maxRows {
		return n, nil
	}
	at := len(n.rows) / 2
	if atEnd {
		at = len(n.rows) - 1
	}
	right = &node{owner: n.owner, rows: append(make([]any, 0, len(n.rows)-at+slack), n.rows[at:]...)}
	n.rows = append(make([]any, 0, at), n.rows[:at]...)
	if n.parts != nil {
		right.parts = append(make([]*node, 0, len(n.parts)-at+slack), n.parts[at:]...)
		n.parts = append(make([]*node, 0, at), n.parts[:at]...)
	}
	return n, right
}

// without gives the tree without the row of a key that it has.
func (n *node) without(p treePath) *node {
	if n == nil {
		return nil
	}
	n = n.drop(p)
	for n != nil && n.parts != nil && len(n.parts) == 1 {
		n = n.parts[0]
	}
	if n == nil || len(n.rows) == 0 {
		return nil
	}
	return n
}

// drop gives the node without the row; it may be empty then.
func (n *node) drop(p treePath) *node {
	i := n.lower(p.ix, p.key)
	at := i < len(n.rows) && p.ix.compare(n.rows[i], p.key) == 0
	if n.parts == nil {
		if !at {
			return n
		}
		n = n.own(p.by)
		n.rows = removeAt(n.rows, i)
		return n
	}
	if !at {
		i = max(i-1, 0)
	}
	part := n.parts[i].drop(p)
	n = n.own(p.by)
	if len(part.rows) == 0 {
		n.rows, n.parts = removeAt(n.rows, i), removeAt(n.parts, i)
		return n
	}
	n.rows[i], n.parts[i] = part.rows[0], part
	n.join(p.by, i)
	return n
}

// join makes one of a small part and one beside it.
func (n *node) join(by txnID, i int) {
	if len(n.parts[i].rows) > maxRows/4 || len(n.parts) < 2 {
		return
	}
	if i == len(n.parts)-1 {
		i--
	}
	left, right := n.parts[i], n.parts[i+1]
	if len(left.rows)+len(right.rows) > maxRows*3/4 {
		return
	}
	left = left.own(by)
	left.rows = append(left.rows, right.rows...)
	if left.parts != nil {
		left.parts = append(left.parts, right.parts...)
	}
	n.parts[i] = left
	n.rows, n.parts = removeAt(n.rows, i+1), removeAt(n.parts, i+1)
}

func insertAt[T any](s []T, i int, v T) []T {
	if len(s) == cap(s) {
		s = append(make([]T, 0, len(s)+slack), s...)
	}
	s = s[:len(s)+1]
	copy(s[i+1:], s[i:])
	s[i] = v
	return s
}

func removeAt[T any](s []T, i int) []T {
	copy(s[i:], s[i+1:])
	var none T
	s[len(s)-1] = none // it must not be kept
	return s[:len(s)-1]
}
