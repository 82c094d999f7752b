package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// merger writes the values of one source after the other into a Config.
type merger struct {
	config *Config
	fields map[string]reflect.Value // by key
	warned map[string]bool
	blocks []definition
	// mistakes are those found so far.
	mistakes Mistakes
}

// definition is a service, check or config entry that awaits decoding.
type definition struct {
	key  string
	pos  Pos
	node *node
}

// fieldsOf finds the field of every key by its tag.
func fieldsOf(c *Config) map[string]reflect.Value {
	out := map[string]reflect.Value{}
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if key := f.Tag.Get("key"); key != "" {
				out[key] = v.Field(i)
			} else if f.Type.Kind() == reflect.Struct {
				walk(v.Field(i))
			}
		}
	}
	walk(reflect.ValueOf(c).Elem())
	return out
}

// object goes through the keys of the object at path. A mistake in one does not hide
// those in others.
func (m *merger) object(path string, n *node) error {
	for i := range n.fields {
		m.note(m.key(path, &n.fields[i]))
	}
	return nil
}

func (m *merger) key(path string, f *field) error {
	full := strings.TrimPrefix(path+"."+f.name, ".")
	norm := normalize(full)
	if k, ok := table().keys[norm]; ok {
		return m.value(k, f)
	}
	if !table().objects[norm] {
		msg := "unknown key"
		if s := table().suggest(path, f.name); s != "" {
			msg += fmt.Sprintf("; did you mean %s?", s)
		}
		return errorAt(f.pos, full, "%s", msg)
	}
	inner, err := asObject(full, f)
	if err != nil {
		return err
	}
	return m.object(full, inner)
}

func asObject(key string, f *field) (*node, error) {
	n := f.node.only()
	if n.kind == kindList && n.blocks {
		return nil, errorAt(n.items[1].pos, key, "given twice, first on line %d", n.items[0].pos.Line)
	}
	if n.kind != kindObject {
		return nil, errorAt(f.pos, key, "must be an object, not %s", n.kind)
	}
	return n, nil
}

// value checks the type of one key and, where it acts, stores it.
func (m *merger) value(k *Key, f *field) error {
	if k.Status == Refused {
		return errorAt(f.pos, k.Name, "%s", k.Note)
	}
	v, err := m.check(k, f)
	if err != nil {
		return err
	}
	if w := k.warning(v); w != "" && !m.warned[k.Name] {
		m.warned[k.Name] = true
		m.config.Warnings = append(m.config.Warnings, fmt.Sprintf("%s: %s", f.pos, w))
	}
	if dst, ok := m.fields[k.Name]; ok {
		m.config.where[k.Name] = f.pos
		store(dst, v)
	}
	return nil
}

// check returns the value in the key's type, or says what is wrong with it.
func (m *merger) check(k *Key, f *field) (any, error) {
	n := f.node
	wrong := func(want string) error {
		return errorAt(f.pos, k.Name, "must be %s, not %s", want, n.only().kind)
	}
	switch k.Type {
	case String:
		if s, ok := n.scalar.(string); ok {
			return s, nil
		}
		return nil, wrong("a string")
	case Bool:
		if b, ok := n.scalar.(bool); ok {
			return b, nil
		}
		return nil, wrong("true or false")
	case Int:
		if num, ok := n.scalar.(json.Number); ok {
			i, err := strconv.Atoi(num.String())
			if err != nil {
				return nil, errorAt(f.pos, k.Name, "%s is not a whole number", num)
			}
			return i, nil
		}
		return nil, wrong("a whole number")
	case Float:
		if num, ok := n.scalar.(json.Number); ok {
			v, err := num.Float64()
			if err != nil {
				return nil, errorAt(f.pos, k.Name, "%s is not a number", num)
			}
			return v, nil
		}
		return nil, wrong("a number")
	case Duration:
		return duration(k.Name, f.pos, n)
	default:
		return m.checkNested(k, f)
	}
}

func duration(key string, pos Pos, n *node) (time.Duration, error) {
	s, ok := n.scalar.(string)
	if !ok {
		return 0, errorAt(pos, key, `must be a duration such as "10s", not %s`, n.only().kind)
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errorAt(pos, key, `%q is not a duration such as "10s"`, s)
	}
	if d < 0 {
		return 0, errorAt(pos, key, "%s is below zero", s)
	}
	return d, nil
}

func (m *merger) checkNested(k *Key, f *field) (any, error) {
	switch k.Type {
	case StringList:
		return stringList(k, f)
	case StringMap:
		return stringMap(k, f)
	case Durations:
		return durations(k, f)
	case AnyMap:
		n, err := asObject(k.Name, f)
		if err != nil {
			return nil, err
		}
		return native(n.object()), nil
	case Blocks:
		return nil, m.definition(k, f)
	default:
		return f.node.plain(), nil
	}
}

func stringList(k *Key, f *field) (any, error) {
	if f.node.kind != kindList {
		return nil, errorAt(f.pos, k.Name, "must be a list of strings, not %s", f.node.kind)
	}
	out := make([]string, 0, len(f.node.items))
	for i, it := range f.node.items {
		s, ok := it.scalar.(string)
		if !ok {
			return nil, errorAt(it.pos, fmt.Sprintf("%s[%d]", k.Name, i), "must be a string, not %s", it.kind)
		}
		out = append(out, s)
	}
	return out, nil
}

func stringMap(k *Key, f *field) (any, error) {
	n, err := asObject(k.Name, f)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(n.fields))
	for _, e := range n.fields {
		s, ok := e.node.scalar.(string)
		if !ok {
			return nil, errorAt(e.pos, k.Name+"."+e.name, "must be a string, not %s", e.node.only().kind)
		}
		out[e.name] = s
	}
	return out, nil
}

func durations(k *Key, f *field) (any, error) {
	n, err := asObject(k.Name, f)
	if err != nil {
		return nil, err
	}
	out := make(map[string]time.Duration, len(n.fields))
	for _, e := range n.fields {
		if out[e.name], err = duration(k.Name+"."+e.name, e.pos, e.node); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// definition collects the blocks of a key: one object, repeated ones or a list.
func (m *merger) definition(k *Key, f *field) error {
	items := []*node{f.node}
	if f.node.kind == kindList {
		items = f.node.items
	}
	for _, it := range items {
		if it.kind != kindObject {
			return errorAt(it.pos, k.Name, "must be an object, not %s", it.kind)
		}
		m.blocks = append(m.blocks, definition{key: k.Name, pos: it.pos, node: it})
	}
	return nil
}

// store sets a field: lists grow, maps are merged, the rest is replaced.
func store(dst reflect.Value, v any) {
	src := reflect.ValueOf(v)
	switch dst.Kind() {
	case reflect.Slice:
		dst.Set(reflect.AppendSlice(dst, src))
	case reflect.Map:
		if dst.IsNil() {
			dst.Set(reflect.MakeMap(dst.Type()))
		}
		for it := src.MapRange(); it.Next(); {
			dst.SetMapIndex(it.Key(), it.Value())
		}
	case reflect.Pointer:
		p := reflect.New(dst.Type().Elem())
		p.Elem().Set(src)
		dst.Set(p)
	default:
		dst.Set(src)
	}
}

// native turns exact numbers into int64 or float64 and lists of one block into
// their element, all the way down.
func native(v any) any {
	switch x := v.(type) {
	case json.Number:
		if i, err := x.Int64(); err == nil {
			return i
		}
		f, _ := x.Float64()
		return f
	case map[string]any:
		for k, e := range x {
			x[k] = native(e)
		}
		return x
	case []any:
		for i, e := range x {
			x[i] = native(e)
		}
		return x
	case []map[string]any:
		if len(x) == 1 {
			return native(x[0])
		}
		out := make([]any, 0, len(x))
		for _, e := range x {
			out = append(out, native(e))
		}
		return out
	default:
		return v
	}
}

func number(i int64) json.Number { return json.Number(strconv.FormatInt(i, 10)) }
