package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
)

// Decode fills out, a pointer to a struct, from decoded JSON or HCL. Keys match
// fields in CamelCase, snake_case or any case; unknown keys and wrong types are
// refused with an error that wraps ErrInvalid. Durations may be strings ("10s")
// or numbers of nanoseconds. HCL's one-element lists stand for their element
// where a struct or map is wanted.
//
// Keys of maps (Meta, Config …) are data and are left as they are.
func Decode(raw map[string]any, out any) error {
	if decodePlain(raw, out) {
		return nil
	}
	return decodeAny(raw, out)
}

func decodeAny(raw map[string]any, out any) error {
	var md mapstructure.Metadata
	dec, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Metadata:  &md,
		Result:    out,
		MatchName: sameKey,
		Squash:    true,
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			decodeDuration, decodeTime, unwrapBlock, decodeCheck, decodeNumber,
		),
	})
	if err != nil {
		return err
	}
	if err := dec.Decode(raw); err != nil {
		return Invalidf("%s", flattenDecodeError(err))
	}
	if len(md.Unused) > 0 {
		sort.Strings(md.Unused)
		key := md.Unused[0]
		return &UnknownKeyError{Path: key}
	}
	return nil
}

// UnknownKeyError names a key that no field takes.
type UnknownKeyError struct {
	Path string // dotted, from the root of the document
}

// Key is the last element of the path.
func (e *UnknownKeyError) Key() string {
	return e.Path[strings.LastIndexByte(e.Path, '.')+1:]
}

// Error speaks as encoding/json does, which clients know.
func (e *UnknownKeyError) Error() string { return fmt.Sprintf("json: unknown field %q", e.Key()) }

// Unwrap makes an unknown key an ErrInvalid.
func (e *UnknownKeyError) Unwrap() error { return ErrInvalid }

// maxDepth bounds the nesting of a document before anything walks it.
const maxDepth = 64

// DecodeJSON decodes one JSON object, strictly, into out, a pointer to a struct.
// Syntax errors are those of encoding/json.
func DecodeJSON(b []byte, out any) error {
	raw, err := ParseJSON(b)
	if err != nil {
		return err
	}
	return Decode(raw, out)
}

// ParseJSON reads one JSON object with bounded depth and nothing after it.
// Numbers stay exact until Decode knows their type.
func ParseJSON(b []byte) (map[string]any, error) {
	if depth(b) > maxDepth {
		return nil, Invalidf("nested deeper than %d levels", maxDepth)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var raw map[string]any
	if err := dec.Decode(&raw); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, Invalidf("data after the JSON object")
	}
	return raw, nil
}

func depth(b []byte) int {
	deepest, d := 0, 0
	inString, escaped := false, false
	for _, c := range b {
		switch {
		case escaped:
			escaped = false
		case inString && c == '\\':
			escaped = true
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			d++
			deepest = max(deepest, d)
		case c == '}' || c == ']':
			d--
		}
	}
	return deepest
}

func sameKey(key, field string) bool {
	return strings.EqualFold(strings.ReplaceAll(key, "_", ""), field)
}

var (
	durationType     = reflect.TypeFor[time.Duration]()
	textDurationType = reflect.TypeFor[Duration]()
	timeType         = reflect.TypeFor[time.Time]()
	checkType        = reflect.TypeFor[CheckDefinition]()
	numberType       = reflect.TypeFor[json.Number]()
)

func decodeDuration(from, to reflect.Type, v any) (any, error) {
	if to != durationType && to != textDurationType {
		return v, nil
	}
	s, ok := v.(string)
	if n, isNumber := v.(json.Number); isNumber {
		i, err := n.Int64()
		return time.Duration(i), err
	}
	if !ok {
		return v, nil
	}
	if s == "" {
		return time.Duration(0), nil
	}
	return time.ParseDuration(s)
}

func decodeTime(from, to reflect.Type, v any) (any, error) {
	if s, ok := v.(string); ok && to == timeType {
		return time.Parse(time.RFC3339Nano, s)
	}
	return v, nil
}

// unwrapBlock takes HCL's [{…}] for {…} where one struct or map is wanted.
func unwrapBlock(from, to reflect.Type, v any) (any, error) {
	for to.Kind() == reflect.Pointer {
		to = to.Elem()
	}
	if to.Kind() != reflect.Struct && to.Kind() != reflect.Map {
		return v, nil
	}
	if l, ok := v.([]map[string]any); ok {
		switch len(l) {
		case 0:
			return nil, nil
		case 1:
			return l[0], nil
		default:
			if to.Kind() == reflect.Map {
				return joinBlocks(l)
			}
			return nil, fmt.Errorf("given %d times, at most once is allowed", len(l))
		}
	}
	return v, nil
}

// decodeCheck takes the other name of the command of a check, and has an HTTP/2 ping go
// over TLS where nobody says.
func decodeCheck(_, to reflect.Type, v any) (any, error) {
	m, ok := v.(map[string]any)
	if !ok || to != checkType && to != reflect.PointerTo(checkType) {
		return v, nil
	}
	out := maps.Clone(m)
	pings, says := false, false
	for k, value := range m {
		switch {
		case sameKey(k, "args"):
			delete(out, k)
			out["ScriptArgs"] = value
		case sameKey(k, "H2PING"):
			pings = value != nil && value != ""
		case sameKey(k, "H2PingUseTLS"):
			says = true
		}
	}
	if pings && !says {
		out["H2PingUseTLS"] = true
	}
	return out, nil
}

// joinBlocks takes HCL's `subsets "a" {…} subsets "b" {…}` for one map.
func joinBlocks(l []map[string]any) (any, error) {
	out := map[string]any{}
	for _, m := range l {
		for k, v := range m {
			if _, twice := out[k]; twice {
				return nil, fmt.Errorf("%q is given more than once", k)
			}
			out[k] = v
		}
	}
	return out, nil
}

// decodeNumber turns exact JSON numbers into what the field holds, and inside
// opaque values into int64 or float64.
func decodeNumber(from, to reflect.Type, v any) (any, error) {
	if from != numberType {
		if to.Kind() == reflect.Interface || (to.Kind() == reflect.Map && to.Elem().Kind() == reflect.Interface) {
			return plain(v), nil
		}
		return v, nil
	}
	n := v.(json.Number)
	switch to.Kind() {
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		i, err := strconv.ParseUint(n.String(), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number from 0 on", n.String())
		}
		return i, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		i, err := n.Int64()
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number", n.String())
		}
		return i, nil
	case reflect.Float32, reflect.Float64, reflect.Interface:
		return n.Float64()
	case reflect.Pointer:
		return v, nil // asked again of what it points to
	default:
		return nil, fmt.Errorf("a number cannot be a %s", to.Kind())
	}
}

// plain replaces json.Number by float64 and HCL's block lists by their only
// element, all the way down, as encoding/json alone would have decoded them.
func plain(v any) any {
	switch x := v.(type) {
	case json.Number:
		f, _ := x.Float64()
		return f
	case int:
		return float64(x)
	case int64:
		return float64(x)
	case map[string]any:
		m := make(map[string]any, len(x))
		for k, e := range x {
			m[k] = plain(e)
		}
		return m
	case []any:
		l := make([]any, len(x))
		for i, e := range x {
			l[i] = plain(e)
		}
		return l
	case []map[string]any:
		if len(x) == 1 {
			return plain(x[0])
		}
		l := make([]any, len(x))
		for i, e := range x {
			l[i] = plain(e)
		}
		return l
	default:
		return v
	}
}

func flattenDecodeError(err error) string {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		parts := make([]string, 0, 4)
		for _, e := range joined.Unwrap() {
			parts = append(parts, flattenDecodeError(e))
		}
		return strings.Join(parts, "; ")
	}
	return err.Error()
}
