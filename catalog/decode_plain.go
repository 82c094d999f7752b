package catalog

import (
	"encoding/json"
	"reflect"
	"strings"
	"sync"
	"time"
)

// Most documents are plain: each key is the name of a field, letter for letter, and
// each value is of the field's own kind. decodePlain fills out from such a document and
// gives false, leaving out as it was, for any other, which is for Decode to judge. It
// gives what mapstructure does, at a fifth of the cost.
func decodePlain(raw map[string]any, out any) bool {
	v := reflect.ValueOf(out)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return false
	}
	into := reflect.New(v.Type().Elem()).Elem()
	into.Set(v.Elem())
	if !plainStruct(raw, into) {
		return false
	}
	v.Elem().Set(into)
	return true
}

// layout is where the fields of a struct are, by name; a name may stand for several.
type layout struct {
	fields map[string][][]int
	odd    bool // it has something that is not plain
}

var layouts sync.Map // of reflect.Type

func layoutOf(t reflect.Type) *layout {
	if l, ok := layouts.Load(t); ok {
		return l.(*layout)
	}
	l := &layout{fields: map[string][][]int{}}
	l.add(t, nil)
	folded := map[string]bool{}
	for name := range l.fields {
		if f := strings.ToLower(name); folded[f] {
			l.odd = true // mapstructure takes either for the other
		} else {
			folded[f] = true
		}
	}
	layouts.Store(t, l)
	return l
}

func (l *layout) add(t reflect.Type, at []int) {
	for i := range t.NumField() {
		f := t.Field(i)
		path := append(append([]int(nil), at...), i)
		tag := f.Tag.Get("mapstructure")
		switch {
		case f.Anonymous && f.Type.Kind() == reflect.Struct && (tag == "" || tag == ",squash"):
			l.add(f.Type, path)
		case tag != "" || f.Anonymous:
			l.odd = true
		case f.IsExported():
			l.fields[f.Name] = append(l.fields[f.Name], path)
		}
	}
}

func plainStruct(raw map[string]any, into reflect.Value) bool {
	l := layoutOf(into.Type())
	if l.odd {
		return false
	}
	for key, v := range raw {
		paths := l.fields[key]
		if len(paths) == 0 || key == "H2PING" && into.Type() == checkType { // which brings a default
			return false
		}
		for _, p := range paths {
			if !plainValue(v, into.FieldByIndex(p)) {
				return false
			}
		}
	}
	return true
}

// plainValue sets into, which is to be empty where it is more than one value.
func plainValue(v any, into reflect.Value) bool {
	switch into.Type() {
	case durationType, textDurationType, timeType:
		return plainDuration(v, into)
	}
	if into.Kind() == reflect.Pointer {
		if v == nil || !into.IsNil() {
			return false
		}
		to := reflect.New(into.Type().Elem())
		if !plainValue(v, to.Elem()) {
			return false
		}
		into.Set(to)
		return true
	}
	switch v := v.(type) {
	case string:
		if into.Kind() != reflect.String {
			return false
		}
		into.SetString(v)
		return true
	case bool:
		if into.Kind() != reflect.Bool {
			return false
		}
		into.SetBool(v)
		return true
	case json.Number:
		return plainNumber(v, into)
	case map[string]any:
		if into.Kind() == reflect.Struct {
			return plainStruct(v, into)
		}
		return into.Kind() == reflect.Map && plainMap(v, into)
	case []any:
		return into.Kind() == reflect.Slice && plainList(v, into)
	default:
		return false
	}
}

// plainDuration takes a text; what is no duration is for Decode to refuse.
func plainDuration(v any, into reflect.Value) bool {
	s, ok := v.(string)
	if !ok || into.Type() != durationType {
		return false
	}
	d, err := time.ParseDuration(s)
	into.SetInt(int64(d))
	return err == nil
}

func plainNumber(n json.Number, into reflect.Value) bool {
	if !into.CanInt() {
		return false
	}
	i, err := n.Int64()
	if err != nil || into.OverflowInt(i) {
		return false
	}
	into.SetInt(i)
	return true
}

// plainMap takes texts by texts.
func plainMap(v map[string]any, into reflect.Value) bool {
	t := into.Type()
	if t.Key().Kind() != reflect.String || t.Elem().Kind() == reflect.Interface || !into.IsNil() {
		return false
	}
	m := reflect.MakeMapWithSize(t, len(v))
	for key, e := range v {
		to := reflect.New(t.Elem()).Elem()
		if !plainValue(e, to) {
			return false
		}
		m.SetMapIndex(reflect.ValueOf(key).Convert(t.Key()), to)
	}
	into.Set(m)
	return true
}

func plainList(v []any, into reflect.Value) bool {
	if into.Type().Elem().Kind() == reflect.Interface || !into.IsNil() {
		return false
	}
	l := reflect.MakeSlice(into.Type(), len(v), len(v))
	for i, e := range v {
		if !plainValue(e, l.Index(i)) {
			return false
		}
	}
	into.Set(l)
	return true
}
