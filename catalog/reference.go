package catalog

import (
	"bufio"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
)

// kindAbout says in a line what entries of a kind are for.
var kindAbout = map[string]string{
	KindServiceIntentions:       "Who may talk to one service: its intentions.",
	KindServiceDefaults:         "What the instances of one service, and those that call it, have in common.",
	KindProxyDefaults:           "What all proxies have in common. The name is `global`.",
	KindServiceRouter:           "Sends requests for a service elsewhere by what they ask for. Needs an HTTP protocol.",
	KindServiceSplitter:         "Spreads requests for a service by weight. Needs an HTTP protocol.",
	KindServiceResolver:         "Which instances a service name stands for: subsets, redirects, failover, load balancing.",
	KindMesh:                    "What holds for the whole mesh. It has no name of its own; read it as `mesh`.",
	KindExportedServices:        "Which clusters may see which services. The name is `default`.",
	KindJWTProvider:             "How tokens of end users are verified that one issuer signs.",
	KindTerminatingGatewayEntry: "The services outside of the mesh that a gateway speaks for.",
	KindIngressGatewayEntry:     "What a gateway into the mesh listens on.",
	KindAPIGatewayEntry:         "What a gateway into the mesh listens on; routes bind to its listeners. The leader writes its Status.",
	KindHTTPRoute:               "Leads requests that come to listeners of gateways to services. The leader writes its Status.",
	KindTCPRoute:                "Leads connections that come to a listener of a gateway to a service. The leader writes its Status.",
	KindInlineCertificate:       "A certificate and its key. Whoever may read the entry reads the key; prefer `file-system-certificate`.",
	KindFileSystemCertificate:   "The files of a certificate and its key on a gateway's host.",
}

// ConfigEntryReference writes the kinds of config entries and their fields as Markdown.
func ConfigEntryReference(out io.Writer) error {
	w := bufio.NewWriter(out)
	fmt.Fprint(w, "Entries are written in HCL or JSON with `weft config write`, or `PUT /v1/config`. Keys may be in CamelCase or snake_case;"+
		" an unknown one is refused. Every entry has `Kind`, and answers have `Hash`, `CreateIndex` and `ModifyIndex` beside.\n\n")
	for _, kind := range ConfigKinds() {
		e, err := NewConfigEntry(kind)
		if err != nil {
			return err
		}
		if _, ok := e.(*readOnly); ok {
			continue
		}
		fmt.Fprintf(w, "## %s\n\n%s\n\n| field | type | |\n|---|---|---|\n", kind, kindAbout[kind])
		for _, f := range fieldsOf(reflect.TypeOf(e).Elem(), "") {
			fmt.Fprintf(w, "| `%s` | %s | %s |\n", f.path, f.typ, f.note)
		}
		fmt.Fprint(w, "\n")
	}
	return w.Flush() // which gives the first error of all writes
}

// field is a line of the reference.
type field struct{ path, typ, note string }

var raftIndexType = reflect.TypeFor[RaftIndex]()

// fieldsOf lists the fields of a struct, with those of the structs in it, by their paths.
func fieldsOf(t reflect.Type, prefix string) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Type == raftIndexType {
			continue
		}
		if f.Anonymous {
			out = append(out, fieldsOf(f.Type, prefix)...)
			continue
		}
		path := prefix + f.Name
		typ, inner, mark := typeName(f.Type)
		out = append(out, field{path, typ, f.Tag.Get("doc")})
		if inner != nil {
			out = append(out, fieldsOf(inner, path+mark+".")...)
		}
	}
	return out
}

// typeName says what a field holds, and gives the struct in it, when there is one,
// with the mark that stands for its place in a path.
func typeName(t reflect.Type) (name string, inner reflect.Type, mark string) {
	switch t {
	case durationType, textDurationType:
		return "duration", nil, ""
	case timeType:
		return "time", nil, ""
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem())
	case reflect.Struct:
		return "object", t, ""
	case reflect.Slice:
		n, in, m := typeName(t.Elem())
		return "list of " + plural(n), in, "[]" + m
	case reflect.Map:
		if t.Elem().Kind() == reflect.Interface {
			return "any object", nil, ""
		}
		n, in, m := typeName(t.Elem())
		return "map of " + plural(n), in, "{}" + m
	case reflect.Bool:
		return "bool", nil, ""
	case reflect.Float32, reflect.Float64:
		return "number", nil, ""
	case reflect.String:
		return "text", nil, ""
	case reflect.Interface:
		return "anything", nil, ""
	default:
		return "integer", nil, ""
	}
}

func plural(s string) string {
	if s == "any object" || strings.HasSuffix(s, "s") {
		return strings.TrimSuffix(s, "s") + "s"
	}
	return s + "s"
}

// EntryWarnings says, in sentences, what in an entry is accepted and does nothing,
// or is better done otherwise.
func EntryWarnings(e ConfigEntry) []string {
	var out []string
	if _, ok := e.(*InlineCertificate); ok {
		out = append(out, "whoever may read this entry, or a backup, reads its private key; prefer "+KindFileSystemCertificate)
	}
	idle(reflect.ValueOf(e), "", func(path, note string) {
		if s := path + " " + note; !slices.Contains(out, s) {
			out = append(out, s)
		}
	})
	return out
}

// idle visits the fields that are set and that a note is about.
func idle(v reflect.Value, path string, visit func(path, note string)) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			idle(v.Elem(), path, visit)
		}
	case reflect.Slice:
		for i := range v.Len() {
			idle(v.Index(i), path, visit)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			idle(it.Value(), path, visit)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !f.IsExported() || f.Type == raftIndexType || v.Field(i).IsZero() {
				continue
			}
			at := path
			if !f.Anonymous {
				at = strings.TrimPrefix(path+"."+f.Name, ".")
			}
			if note := f.Tag.Get("doc"); note != "" {
				visit(at, note)
				continue
			}
			idle(v.Field(i), at, visit)
		}
	}
}
