package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// Bounds of a source, enforced before anything parses it.
const (
	maxSource = 4 << 20 // bytes
	maxDepth  = 32      // levels of nesting
)

// Pos is where a value stands: a file and a line, or a flag (with line 0).
type Pos struct {
	File string
	Line int
}

func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Error is a mistake in a source: where, in which key, and what.
type Error struct {
	Pos Pos
	Key string
	Msg string
}

func (e *Error) Error() string {
	s := e.Msg
	if e.Key != "" {
		s = e.Key + ": " + s
	}
	if e.Pos.File == "" {
		return s
	}
	return e.Pos.String() + ": " + s
}

// Unwrap makes every mistake an ErrInvalid.
func (e *Error) Unwrap() error { return catalog.ErrInvalid }

func errorAt(p Pos, key, format string, args ...any) *Error {
	return &Error{Pos: p, Key: key, Msg: fmt.Sprintf(format, args...)}
}

type kind int

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindList
	kindObject
)

func (k kind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "a list", "an object"}[k]
}

// node is a value of a source with its place.
type node struct {
	pos    Pos
	kind   kind
	scalar any // bool, json.Number or string
	items  []*node
	fields []field
	// blocks marks a list that HCL made of repeated blocks: a list of one stands
	// for its element where one is wanted.
	blocks bool
}

type field struct {
	name string
	pos  Pos
	node *node
}

// plain gives the value as package catalog decodes it.
func (n *node) plain() any {
	switch n.kind {
	case kindObject:
		return n.object()
	case kindList:
		if n.blocks {
			out := make([]map[string]any, 0, len(n.items))
			for _, it := range n.items {
				out = append(out, it.object())
			}
			return out
		}
		out := make([]any, 0, len(n.items))
		for _, it := range n.items {
			out = append(out, it.plain())
		}
		return out
	default:
		return n.scalar
	}
}

func (n *node) object() map[string]any {
	m := make(map[string]any, len(n.fields))
	for _, f := range n.fields {
		m[f.name] = f.node.plain()
	}
	return m
}

// only unwraps a list of one block.
func (n *node) only() *node {
	if n.kind == kindList && n.blocks && len(n.items) == 1 {
		return n.items[0]
	}
	return n
}

// get finds a field by its normalized name.
func (n *node) get(name string) (field, bool) {
	for _, f := range n.only().fields {
		if normalize(f.name) == normalize(name) {
			return f, true
		}
	}
	return field{}, false
}

// locate follows a path such as "Connect.SidecarService.checks[0].htp" as far as
// it goes and returns the place of the last element found.
func (n *node) locate(path string) Pos {
	pos, at := n.pos, n
	for _, part := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		if i, err := json.Number(part).Int64(); err == nil && at.kind == kindList {
			if i < 0 || int(i) >= len(at.items) {
				return pos
			}
			at = at.items[i]
			pos = at.pos
			continue
		}
		f, ok := at.get(part)
		if !ok {
			return pos
		}
		pos, at = f.pos, f.node
	}
	return pos
}

// depth is the deepest nesting of brackets outside strings and comments.
func depth(b []byte, comments bool) int {
	deepest, d := 0, 0
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			i = skipString(b, i)
		case comments && c == '/' && i+1 < len(b) && b[i+1] == '*':
			end := bytes.Index(b[i+2:], []byte("*/"))
			if end < 0 {
				return deepest
			}
			i += 2 + end + 1
		case comments && c == '#', comments && c == '/' && i+1 < len(b) && b[i+1] == '/':
			for i < len(b) && b[i] != '\n' {
				i++
			}
		case c == '{' || c == '[':
			d++
			deepest = max(deepest, d)
		case c == '}' || c == ']':
			d--
		}
	}
	return deepest
}

func skipString(b []byte, i int) int {
	for i++; i < len(b) && b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
		if i < len(b) && b[i] == '\n' {
			return i // no string goes on over lines
		}
	}
	return i
}
