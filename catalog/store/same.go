package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Two values are the same when no reader could tell them apart: nil and empty
// lists and maps are the same, so are numbers of one value inside opaque maps,
// whatever their type. Raft indexes are left out. Otherwise a statement that went
// through one codec more than the stored one would be written again for ever.

var (
	raftIndexType = reflect.TypeFor[catalog.RaftIndex]()
	timeType      = reflect.TypeFor[time.Time]()
)

func same(a, b any) bool { return sameValue(reflect.ValueOf(a), reflect.ValueOf(b)) }

func sameValue(a, b reflect.Value) bool {
	if !a.IsValid() || !b.IsValid() {
		return emptyValue(a) && emptyValue(b)
	}
	if a.Kind() == reflect.Interface || b.Kind() == reflect.Interface {
		return sameValue(elem(a), elem(b))
	}
	if x, ok := number(a); ok {
		y, isNumber := number(b)
		return isNumber && x == y
	}
	if a.Type() != b.Type() {
		return false
	}
	switch a.Kind() {
	case reflect.Pointer:
		if a.IsNil() || b.IsNil() {
			return a.IsNil() && b.IsNil()
		}
		return a.Pointer() == b.Pointer() || sameValue(a.Elem(), b.Elem())
	case reflect.Struct:
		return sameStruct(a, b)
	case reflect.Slice, reflect.Array:
		if a.Len() != b.Len() {
			return false
		}
		if isBytes(a) {
			return bytes.Equal(a.Bytes(), b.Bytes())
		}
		for i := range a.Len() {
			if !sameValue(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Map:
		if a.Len() != b.Len() {
			return false
		}
		for it := a.MapRange(); it.Next(); {
			v := b.MapIndex(it.Key())
			if !v.IsValid() || !sameValue(it.Value(), v) {
				return false
			}
		}
		return true
	default:
		return a.Equal(b)
	}
}

func sameStruct(a, b reflect.Value) bool {
	switch a.Type() {
	case raftIndexType:
		return true
	case timeType:
		return a.Interface().(time.Time).Equal(b.Interface().(time.Time))
	}
	for i := range a.NumField() {
		if !sameValue(a.Field(i), b.Field(i)) {
			return false
		}
	}
	return true
}

// isBytes tells whether v is a []byte: values of keys are long.
func isBytes(v reflect.Value) bool {
	return v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8
}

func elem(v reflect.Value) reflect.Value {
	for v.IsValid() && v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	return v
}

func emptyValue(v reflect.Value) bool {
	if v = elem(v); !v.IsValid() {
		return true
	}
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Pointer:
		return v.IsNil()
	default:
		return false
	}
}

// exact is the largest whole number up to which a float64 holds all of them.
const exact = 1 << 53

// number gives numbers of one value, of whatever type, one name.
func number(v reflect.Value) (string, bool) {
	switch {
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10), true
	case v.CanUint():
		return strconv.FormatUint(v.Uint(), 10), true
	case v.CanFloat():
		if f := v.Float(); f == math.Trunc(f) && math.Abs(f) <= exact {
			return strconv.FormatInt(int64(f), 10), true
		}
		return strconv.FormatFloat(v.Float(), 'g', -1, 64), true
	default:
		return "", false
	}
}

// fingerprint writes v to h such that same values are written alike. With
// indexes, Raft indexes count too.
func fingerprint(h hash.Hash, v reflect.Value, indexes bool) {
	if v = elem(v); emptyValue(v) {
		_, _ = h.Write([]byte{'0'})
		return
	}
	if n, ok := number(v); ok {
		fingerprintText(h, n)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		fingerprint(h, v.Elem(), indexes)
	case reflect.Struct:
		if v.Type() == raftIndexType && !indexes {
			return
		}
		if v.Type() == timeType {
			fingerprintText(h, v.Interface().(time.Time).UTC().Format(time.RFC3339Nano))
			return
		}
		_, _ = h.Write([]byte{'{'})
		for i := range v.NumField() {
			fingerprint(h, v.Field(i), indexes)
		}
		_, _ = h.Write([]byte{'}'})
	case reflect.Slice, reflect.Array:
		if isBytes(v) {
			fingerprintText(h, string(v.Bytes()))
			return
		}
		_, _ = h.Write([]byte{'['})
		for i := range v.Len() {
			fingerprint(h, v.Index(i), indexes)
		}
		_, _ = h.Write([]byte{']'})
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		_, _ = h.Write([]byte{'('})
		for _, k := range keys {
			fingerprintText(h, k.String())
			fingerprint(h, v.MapIndex(k), indexes)
		}
		_, _ = h.Write([]byte{')'})
	case reflect.String:
		fingerprintText(h, v.String())
	default:
		fingerprintText(h, fmt.Sprint(v.Interface()))
	}
}

func fingerprintText(h hash.Hash, s string) {
	_, _ = h.Write(binary.BigEndian.AppendUint64([]byte{'s'}, uint64(len(s))))
	_, _ = h.Write([]byte(s))
}
