package config

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Every key is documented, named once, and every effective one has a field.
func TestTable(t *testing.T) {
	fields := fieldsOf(Default())
	names, flags := map[string]bool{}, map[string]string{}
	for _, k := range Keys() {
		if names[normalize(k.Name)] {
			t.Errorf("%s stands twice in the table", k.Name)
		}
		names[normalize(k.Name)] = true
		if k.Doc == "" || !strings.HasSuffix(k.Doc, ".") {
			t.Errorf("%s: the documentation %q is not a sentence", k.Name, k.Doc)
		}
		if k.Type == "" || k.Status == "" {
			t.Errorf("%s has no type or status", k.Name)
		}
		if (k.Status == Ignored || k.Status == Refused) && k.Note == "" {
			t.Errorf("%s is %s and does not say why", k.Name, k.Status)
		}
		if strings.HasSuffix(k.Note, ".") {
			t.Errorf("%s: the note %q ends in a full stop", k.Name, k.Note)
		}
		if k.Flag != "" {
			if other := flags[k.Flag]; other != "" {
				t.Errorf("%s and %s share the flag -%s", k.Name, other, k.Flag)
			}
			flags[k.Flag] = k.Name
		}
		_, hasField := fields[k.Name]
		// Keys without effect may be shown to those who ask.
		mustHave := k.Status == Effective && k.Type != Blocks
		if want := mustHave; hasField != want && (mustHave || k.Type == Blocks || k.Status == Refused) {
			t.Errorf("%s is %s: field %v, want %v", k.Name, k.Status, hasField, want)
		}
	}
	for key := range fields {
		if !names[normalize(key)] {
			t.Errorf("the field of %s has no key in the table", key)
		}
	}
}

// The defaults in the table are those that Default fills in.
func TestDefaultsAreDocumented(t *testing.T) {
	fields := fieldsOf(Default())
	for _, k := range Keys() {
		f, ok := fields[k.Name]
		if !ok || f.Kind() == reflect.Pointer {
			continue
		}
		var got string
		switch v := f.Interface().(type) {
		case time.Duration:
			d, err := time.ParseDuration(k.Default)
			if err != nil || d != v {
				t.Errorf("%s: table says %q, the field %s", k.Name, k.Default, v)
			}
			continue
		case map[string]string, map[string]any, map[string]time.Duration, []string:
			continue
		default:
			got = fmt.Sprint(v)
		}
		if got != k.Default {
			t.Errorf("%s: table says %q, the field %q", k.Name, k.Default, got)
		}
	}
}

func TestReference(t *testing.T) {
	var b bytes.Buffer
	if err := Reference(&b); err != nil {
		t.Fatal(err)
	}
	for _, k := range Keys() {
		if !strings.Contains(b.String(), "| `"+k.Name+"` |") {
			t.Errorf("the reference leaves out %s", k.Name)
		}
	}
}
