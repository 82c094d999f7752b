package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// parseJSON reads JSON token by token, so that every value keeps its line.
func parseJSON(file string, src []byte) (*node, error) {
	if d := depth(src, false); d > maxDepth {
		return nil, errorAt(Pos{File: file}, "", "nested deeper than %d levels", maxDepth)
	}
	dec := json.NewDecoder(bytes.NewReader(src))
	dec.UseNumber()
	j := &jsonReader{file: file, src: src, dec: dec, line: 1}
	n, err := j.value()
	if err != nil {
		return nil, err
	}
	if n.kind != kindObject {
		return nil, errorAt(n.pos, "", "the document must be a JSON object, not %s", n.kind)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errorAt(j.pos(), "", "not valid JSON: data after the object")
	}
	return n, nil
}

type jsonReader struct {
	file string
	src  []byte
	dec  *json.Decoder
	// The line of the offset seen last: offsets only grow.
	offset int
	line   int
}

// pos is the place of the token that was read last.
func (j *jsonReader) pos() Pos { return j.at(int(j.dec.InputOffset())) }

func (j *jsonReader) at(offset int) Pos {
	offset = min(offset, len(j.src))
	if offset > j.offset {
		j.line += bytes.Count(j.src[j.offset:offset], []byte{'\n'})
		j.offset = offset
	}
	return Pos{File: j.file, Line: j.line}
}

func (j *jsonReader) token() (json.Token, Pos, error) {
	t, err := j.dec.Token()
	if err == nil {
		return t, j.pos(), nil
	}
	var se *json.SyntaxError
	if errors.As(err, &se) {
		return nil, Pos{}, errorAt(j.at(int(se.Offset)), "", "not valid JSON: %v", err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, Pos{}, errorAt(j.at(len(j.src)), "", "not valid JSON: it ends too early")
	}
	return nil, Pos{}, errorAt(j.pos(), "", "not valid JSON: %v", err)
}

func (j *jsonReader) value() (*node, error) {
	t, pos, err := j.token()
	if err != nil {
		return nil, err
	}
	n := &node{pos: pos}
	switch x := t.(type) {
	case nil:
		n.kind = kindNull
	case bool:
		n.kind, n.scalar = kindBool, x
	case json.Number:
		n.kind, n.scalar = kindNumber, x
	case string:
		n.kind, n.scalar = kindString, x
	case json.Delim:
		if x == '[' {
			return n, j.list(n)
		}
		return n, j.object(n)
	}
	return n, nil
}

func (j *jsonReader) list(n *node) error {
	n.kind = kindList
	for j.dec.More() {
		it, err := j.value()
		if err != nil {
			return err
		}
		n.items = append(n.items, it)
	}
	_, _, err := j.token()
	return err
}

func (j *jsonReader) object(n *node) error {
	n.kind = kindObject
	seen := map[string]int{}
	for j.dec.More() {
		t, pos, err := j.token()
		if err != nil {
			return err
		}
		name, _ := t.(string)
		if line, again := seen[name]; again {
			return errorAt(pos, name, "given twice, first on line %d", line)
		}
		seen[name] = pos.Line
		v, err := j.value()
		if err != nil {
			return err
		}
		if v.kind != kindNull { // null is as good as absent
			n.fields = append(n.fields, field{name: name, pos: pos, node: v})
		}
	}
	_, _, err := j.token()
	return err
}
