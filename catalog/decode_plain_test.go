package catalog

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// drawDocument makes JSON for a value of a type: mostly of the right kinds, now and
// then of another, with a key in another spelling or with one that nobody knows.
func drawDocument(t *rapid.T, of reflect.Type, deep int) any {
	if rapid.IntRange(0, 19).Draw(t, "odd") == 0 {
		return rapid.SampledFrom([]any{nil, "text", "10s", "7", 7, -1, 1.5, 300, true, []any{}, map[string]any{}, []any{"x"}, map[string]any{"k": 1}}).Draw(t, "value")
	}
	switch {
	case of == durationType || of == textDurationType:
		return rapid.SampledFrom([]any{"10s", "1h", "", "x", 5}).Draw(t, "duration")
	case of == timeType:
		return time.Unix(1, 0).UTC().Format(time.RFC3339Nano)
	}
	switch of.Kind() {
	case reflect.Pointer:
		return drawDocument(t, of.Elem(), deep)
	case reflect.Bool:
		return rapid.Bool().Draw(t, "bool")
	case reflect.String:
		return rapid.SampledFrom([]string{"", "a", "web"}).Draw(t, "string")
	case reflect.Slice:
		out := []any{}
		for range rapid.IntRange(0, 2).Draw(t, "length") {
			out = append(out, drawDocument(t, of.Elem(), deep+1))
		}
		return out
	case reflect.Map:
		out := map[string]any{}
		for _, k := range []string{"k", "some_Key"}[:rapid.IntRange(0, 2).Draw(t, "keys")] {
			out[k] = drawDocument(t, of.Elem(), deep+1)
		}
		return out
	case reflect.Struct:
		out := map[string]any{}
		for i := range of.NumField() {
			f := of.Field(i)
			if !f.IsExported() && !f.Anonymous || deep > 4 || rapid.IntRange(0, 2).Draw(t, "leave out") == 0 {
				continue
			}
			name := f.Name
			if rapid.IntRange(0, 29).Draw(t, "spelling") == 0 {
				name = rapid.SampledFrom([]string{"unknown", "id", "some_name", "ID"}).Draw(t, "name")
			}
			if f.Anonymous {
				for k, v := range drawFields(t, f.Type, deep) {
					out[k] = v
				}
				continue
			}
			out[name] = drawDocument(t, f.Type, deep+1)
		}
		return out
	default:
		return rapid.SampledFrom([]any{0, 1, 80, 70000}).Draw(t, "number")
	}
}

// TestPlainDocumentsDecodeAsAll: what decodePlain takes, it takes as mapstructure does.
func TestPlainDocumentsDecodeAsAll(t *testing.T) {
	type tenancy struct{ Namespace, Partition string }
	type squashed struct {
		Service `mapstructure:",squash"`
		tenancy `mapstructure:",squash"`
		ID      string // twice
	}
	makers := []func() any{
		func() any { return &Service{} }, func() any { return &Check{} }, func() any { return &CheckDefinition{} },
		func() any { return &Node{} }, func() any { return &squashed{} }, func() any { return &ServiceRegistration{} },
		func() any {
			return &ServiceRegistration{Name: "default", Port: 1, Meta: map[string]string{"was": "here"}, Tags: []string{"was"}, Weights: &Weights{Passing: 9}}
		},
	}
	plain := 0
	rapid.Check(t, func(t *rapid.T) {
		make := rapid.SampledFrom(makers).Draw(t, "type")
		a, b := make(), make()
		doc, ok := drawDocument(t, reflect.TypeOf(a).Elem(), 0).(map[string]any)
		if !ok {
			return
		}
		text, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := ParseJSON(text)
		if err != nil {
			t.Fatal(err)
		}
		if !decodePlain(raw, a) {
			if !reflect.DeepEqual(a, b) {
				t.Fatalf("%s: left %+v behind", text, a)
			}
			return
		}
		plain++
		if err := decodeAny(raw, b); err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("%s:\nplainly %#v\n   else %#v, %v", text, a, b, err)
		}
	})
	if plain == 0 {
		t.Error("no document was plain")
	}
}

// drawFields is drawDocument of an embedded struct.
func drawFields(t *rapid.T, of reflect.Type, deep int) map[string]any {
	out, _ := drawDocument(t, of, deep).(map[string]any)
	return out
}
