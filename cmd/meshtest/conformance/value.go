package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Values are those of encoding/json with numbers as json.Number, so that 1 and
// 1.0 stay what they were.

func parseJSON(b []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return v, nil
}

// valueOf brings a Go value into the form of parsed JSON.
func valueOf(v any) any {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	out, err := parseJSON(b)
	if err != nil {
		return err.Error()
	}
	return out
}

func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "bool"
	case json.Number:
		return "number"
	case string:
		return "string"
	case []any:
		return "list"
	default:
		return "object"
	}
}

// integer gives the value of a whole number; one that is out of range, as hashes
// may be, is the largest or least that there is.
func integer(v any) (int64, bool) {
	n, ok := v.(json.Number)
	if !ok || strings.ContainsAny(n.String(), ".eE") {
		return 0, false
	}
	i, err := n.Int64()
	return i, err == nil || errors.Is(err, strconv.ErrRange)
}

func sameNumber(a, b json.Number) bool {
	if a == b {
		return true
	}
	x, errX := a.Float64()
	y, errY := b.Float64()
	return errX == nil && errY == nil && x == y
}

func equal(a, b any) bool {
	switch x := a.(type) {
	case json.Number:
		y, ok := b.(json.Number)
		return ok && sameNumber(x, y)
	case []any:
		y, ok := b.([]any)
		return ok && slices.EqualFunc(x, y, equal)
	case map[string]any:
		y, ok := b.(map[string]any)
		return ok && maps.EqualFunc(x, y, equal)
	default:
		return typeName(a) == typeName(b) && a == b
	}
}

// short is a value for a message.
func short(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
	s := strings.TrimSpace(b.String())
	if len(s) >= 180 {
		s = s[:175] + "…"
	}
	return s
}

type found struct {
	path  string
	value any
}

// pick gives everything under a pointer like /a/*/0; "~1" stands for "/" inside a
// key, a negative number counts from the end of a list.
func pick(doc any, pointer string) []found {
	at := []found{{"", doc}}
	for part := range strings.SplitSeq(pointer, "/") {
		if part == "" {
			continue
		}
		part = strings.ReplaceAll(part, "~1", "/")
		var next []found
		for _, f := range at {
			next = append(next, children(f, part)...)
		}
		at = next
	}
	return at
}

func children(f found, key string) []found {
	under := func(k string) string { return f.path + "/" + strings.ReplaceAll(k, "/", "~1") }
	var out []found
	switch v := f.value.(type) {
	case map[string]any:
		if key == "*" {
			for _, k := range slices.Sorted(maps.Keys(v)) {
				out = append(out, found{under(k), v[k]})
			}
		} else if x, ok := v[key]; ok {
			out = append(out, found{under(key), x})
		}
	case []any:
		if key == "*" {
			for i, x := range v {
				out = append(out, found{under(strconv.Itoa(i)), x})
			}
		} else if i, err := strconv.Atoi(key); err == nil && i < len(v) && i >= -len(v) {
			out = append(out, found{under(key), v[(i+len(v))%len(v)]})
		}
	}
	return out
}

// vars are the values that ${name} stands for: the run's ports and names, and
// what steps saved.
type vars map[string]any

var varRE = regexp.MustCompile(`\$\{([a-zA-Z0-9_]+)\}`)

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	default:
		return fmt.Sprint(v)
	}
}

// subst puts values into a text; names that are not known stay.
func (env vars) subst(s string) string {
	return varRE.ReplaceAllStringFunc(s, func(m string) string {
		if v, ok := env[m[2:len(m)-1]]; ok {
			return text(v)
		}
		return m
	})
}

// substJSON puts values into the text of a JSON document: where a string is
// nothing but a variable the value keeps its type. The order of keys stays.
func (env vars) substJSON(doc []byte) []byte {
	whole := regexp.MustCompile(`"\$\{([a-zA-Z0-9_]+)\}"(\s*:)?`)
	doc = whole.ReplaceAllFunc(doc, func(m []byte) []byte {
		name := whole.FindSubmatch(m)
		v, ok := env[string(name[1])]
		if !ok {
			return m
		}
		if len(name[2]) > 0 { // a key is a string
			v = text(v)
		}
		b, _ := json.Marshal(v)
		return append(b, name[2]...)
	})
	return varRE.ReplaceAllFunc(doc, func(m []byte) []byte {
		v, ok := env[string(m[2:len(m)-1])]
		if !ok {
			return m
		}
		b, _ := json.Marshal(text(v))
		return b[1 : len(b)-1]
	})
}

// merge lays one document over another, object by object.
func merge(a, b map[string]any) map[string]any {
	out := maps.Clone(a)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range b {
		under, ok1 := out[k].(map[string]any)
		over, ok2 := v.(map[string]any)
		if ok1 && ok2 {
			out[k] = merge(under, over)
		} else {
			out[k] = v
		}
	}
	return out
}
