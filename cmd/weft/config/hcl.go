package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/parser"
	"github.com/hashicorp/hcl/hcl/token"
)

// parseHCL reads HCL by its syntax tree, so that every value keeps its line.
func parseHCL(file string, src []byte) (n *node, err error) {
	if d := depth(src, true); d > maxDepth {
		return nil, errorAt(Pos{File: file}, "", "nested deeper than %d levels", maxDepth)
	}
	// The library panics on literals that its scanner lets through and its
	// converter refuses.
	defer func() {
		if r := recover(); r != nil {
			n, err = nil, errorAt(Pos{File: file}, "", "not valid HCL: %v", r)
		}
	}()
	tree, err := parser.Parse(src)
	if err != nil {
		var pe *parser.PosError
		if errors.As(err, &pe) {
			return nil, errorAt(Pos{File: file, Line: pe.Pos.Line}, "", "not valid HCL: %v", pe.Err)
		}
		return nil, errorAt(Pos{File: file}, "", "not valid HCL: %v", err)
	}
	list, ok := tree.Node.(*ast.ObjectList)
	if !ok {
		return nil, errorAt(Pos{File: file}, "", "not valid HCL: the document is not an object")
	}
	h := hclReader{file: file}
	return h.object(Pos{File: file, Line: 1}, list)
}

type hclReader struct{ file string }

func (h hclReader) pos(p token.Pos) Pos { return Pos{File: h.file, Line: p.Line} }

func (h hclReader) object(pos Pos, list *ast.ObjectList) (*node, error) {
	n := &node{pos: pos, kind: kindObject}
	at := make(map[string]int, len(list.Items))
	for _, item := range list.Items {
		f, err := h.item(item.Keys, item.Val)
		if err != nil {
			return nil, err
		}
		i, again := at[f.name]
		if !again {
			at[f.name] = len(n.fields)
			n.fields = append(n.fields, f)
			continue
		}
		// Repeated blocks are a list; anything else given twice is a mistake.
		first := n.fields[i]
		if !first.node.blocks || !f.node.blocks {
			return nil, errorAt(f.pos, f.name, "given twice, first on line %d", first.pos.Line)
		}
		first.node.items = append(first.node.items, f.node.items...)
	}
	return n, nil
}

// item turns `a "b" { … }` into a = { b = { … } }.
func (h hclReader) item(keys []*ast.ObjectKey, val ast.Node) (field, error) {
	if len(keys) == 0 {
		return field{}, errorAt(h.pos(val.Pos()), "", "not valid HCL: a value without a key")
	}
	name := fmt.Sprint(keys[0].Token.Value())
	pos := h.pos(keys[0].Pos())
	if len(keys) > 1 {
		inner, err := h.item(keys[1:], val)
		if err != nil {
			return field{}, err
		}
		obj := &node{pos: pos, kind: kindObject, fields: []field{inner}}
		return field{name: name, pos: pos, node: block(obj)}, nil
	}
	v, err := h.value(val)
	if err != nil {
		return field{}, err
	}
	if v.kind == kindObject {
		v = block(v)
	}
	return field{name: name, pos: pos, node: v}, nil
}

func block(obj *node) *node {
	return &node{pos: obj.pos, kind: kindList, items: []*node{obj}, blocks: true}
}

func (h hclReader) value(v ast.Node) (*node, error) {
	switch x := v.(type) {
	case *ast.ObjectType:
		return h.object(h.pos(x.Lbrace), x.List)
	case *ast.ListType:
		n := &node{pos: h.pos(x.Lbrack), kind: kindList}
		for _, e := range x.List {
			it, err := h.value(e)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, it)
		}
		return n, nil
	case *ast.LiteralType:
		return h.literal(x)
	default:
		return nil, errorAt(h.pos(v.Pos()), "", "not valid HCL: unexpected %T", v)
	}
}

func (h hclReader) literal(l *ast.LiteralType) (*node, error) {
	n := &node{pos: h.pos(l.Pos())}
	switch l.Token.Type {
	case token.BOOL:
		n.kind, n.scalar = kindBool, l.Token.Text == "true"
	case token.NUMBER:
		i, err := strconv.ParseInt(l.Token.Text, 0, 64)
		if err != nil {
			return nil, errorAt(n.pos, "", "%s is not a number", l.Token.Text)
		}
		n.kind, n.scalar = kindNumber, json.Number(strconv.FormatInt(i, 10))
	case token.FLOAT:
		n.kind, n.scalar = kindNumber, json.Number(l.Token.Text)
	case token.STRING, token.HEREDOC:
		s, ok := l.Token.Value().(string)
		if !ok {
			return nil, errorAt(n.pos, "", "not a string: %s", l.Token.Text)
		}
		n.kind, n.scalar = kindString, s
	default:
		return nil, errorAt(n.pos, "", "not valid HCL: unexpected %s", l.Token.Text)
	}
	return n, nil
}
