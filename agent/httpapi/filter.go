package httpapi

import (
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/hashicorp/go-bexpr"
	"github.com/hashicorp/go-bexpr/grammar"
)

const (
	maxFilter = 8 << 10
	// maxFilterSteps bounds the parser, which backtracks: nested parentheses would
	// cost it exponential time.
	maxFilterSteps = 100_000
)

// filter selects elements of an answer by an expression of the caller's, over the
// fields of the API's own views. The zero filter selects everything.
type filter[T any] struct {
	eval *bexpr.Evaluator
}

// newFilter compiles expr and checks its selectors against T.
func newFilter[T any](expr string) (filter[T], error) {
	return compileTyped[T](expr, reflect.TypeFor[T]())
}

// compileTyped compiles expr and checks its selectors against t, what T holds. With
// t nil no selector is checked before there is something to select from.
func compileTyped[T any](expr string, t reflect.Type) (filter[T], error) {
	if expr == "" {
		return filter[T]{}, nil
	}
	if len(expr) > maxFilter {
		return filter[T]{}, filterError(fmt.Errorf("it has %d bytes, at most %d are allowed", len(expr), maxFilter))
	}
	ast, err := grammar.Parse("", []byte(expr), grammar.MaxExpressions(maxFilterSteps))
	if err != nil {
		return filter[T]{}, filterError(err)
	}
	node, ok := ast.(grammar.Expression)
	if !ok {
		return filter[T]{}, filterError(fmt.Errorf("%q is no expression", expr))
	}
	w := &filterWriter{}
	w.expression(node, scope{root: t})
	if w.err != nil {
		return filter[T]{}, filterError(w.err)
	}
	if w.changed {
		expr = w.out.String()
	}
	eval, err := bexpr.CreateEvaluator(expr, bexpr.WithMaxExpressions(maxFilterSteps))
	if err != nil {
		return filter[T]{}, filterError(err)
	}
	return filter[T]{eval}, nil
}

// match tells whether v is selected.
func (f filter[T]) match(v T) (bool, error) {
	if f.eval == nil {
		return true, nil
	}
	ok, err := f.eval.Evaluate(v)
	if err != nil {
		return false, filterError(err)
	}
	return ok, nil
}

// slice gives the elements that are selected, never nil.
func (f filter[T]) slice(in []T) ([]T, error) {
	out := make([]T, 0, len(in))
	for _, v := range in {
		ok, err := f.match(v)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, v)
		}
	}
	return out, nil
}

// filterMap gives the entries that are selected, never nil.
func filterMap[T any](f filter[T], in map[string]T) (map[string]T, error) {
	out := make(map[string]T, len(in))
	for k, v := range in {
		ok, err := f.match(v)
		if err != nil {
			return nil, err
		}
		if ok {
			out[k] = v
		}
	}
	return out, nil
}

// filterError is 500, as clients know it, with the parser's text.
func filterError(err error) error {
	return &httpError{http.StatusInternalServerError, "Failed to create boolean expression evaluator: " + err.Error()}
}

// scope is what names in an expression may stand for.
type scope struct {
	root  reflect.Type
	bound map[string]reflect.Type // by `any … as name`; nil type: anything
}

// filterWriter checks the selectors of an expression and writes it again where bexpr
// would read it otherwise than Consul does. A selector through a list ("Checks.Status") means any
// of its elements, which bexpr says as `any Checks as c { … }`; and what is behind a
// nil pointer is not there, instead of being an error.
type filterWriter struct {
	out   strings.Builder
	err   error // the first selector that names nothing
	names int

	changed bool // bexpr has to be given what is in out
}

func (w *filterWriter) expression(e grammar.Expression, s scope) {
	switch e := e.(type) {
	case *grammar.UnaryExpression:
		w.out.WriteString("(not ")
		w.expression(e.Operand, s)
		w.out.WriteString(")")
	case *grammar.BinaryExpression:
		op := " and "
		if e.Operator == grammar.BinaryOpOr {
			op = " or "
		}
		w.out.WriteString("(")
		w.expression(e.Left, s)
		w.out.WriteString(op)
		w.expression(e.Right, s)
		w.out.WriteString(")")
	case *grammar.MatchExpression:
		w.match(e, e.Selector.Path, s)
	case *grammar.CollectionExpression:
		w.collection(e, s)
	}
}

func (w *filterWriter) match(e *grammar.MatchExpression, path []string, s scope) {
	if full := unfold(path, s); len(full) != len(path) {
		path, w.changed = full, true
	}
	if at := w.listIn(path, s); at > 0 {
		w.changed = true
		w.names++
		name := "element" + strconv.Itoa(w.names)
		elem, _ := resolve(path[:at], s)
		inner := scope{root: s.root, bound: map[string]reflect.Type{name: elem.Elem()}}
		for k, v := range s.bound {
			inner.bound[k] = v
		}
		w.out.WriteString("(any " + selector(path[:at]) + " as " + name + " { ")
		w.match(e, append([]string{name}, path[at:]...), inner)
		w.out.WriteString(" })")
		return
	}
	if _, err := resolve(path, s); err != nil && w.err == nil {
		w.err = fmt.Errorf("Selector %q is not valid", e.Selector.String()) //nolint:staticcheck // the words clients know
	}
	if guards := w.pointersIn(path, s); len(guards) > 0 {
		w.changed = true
		op := " is not nil and "
		if e.Operator.NotPresentDisposition() {
			op = " is nil or "
		}
		for _, g := range guards {
			w.out.WriteString("(" + selector(g) + op)
		}
		w.compare(e, selector(path))
		w.out.WriteString(strings.Repeat(")", len(guards)))
		return
	}
	w.compare(e, selector(path))
}

// compare writes what is asked of one plain selector.
func (w *filterWriter) compare(e *grammar.MatchExpression, sel string) {
	switch e.Operator {
	case grammar.MatchEqual:
		w.out.WriteString(sel + " == " + quote(e.Value.Raw))
	case grammar.MatchNotEqual:
		w.out.WriteString(sel + " != " + quote(e.Value.Raw))
	case grammar.MatchIn:
		w.out.WriteString(quote(e.Value.Raw) + " in " + sel)
	case grammar.MatchNotIn:
		w.out.WriteString(quote(e.Value.Raw) + " not in " + sel)
	case grammar.MatchContains:
		w.out.WriteString(sel + " contains " + quote(e.Value.Raw))
	case grammar.MatchNotContains:
		w.out.WriteString(sel + " not contains " + quote(e.Value.Raw))
	case grammar.MatchMatches:
		w.out.WriteString(sel + " matches " + quote(e.Value.Raw))
	case grammar.MatchNotMatches:
		w.out.WriteString(sel + " not matches " + quote(e.Value.Raw))
	case grammar.MatchIsEmpty:
		w.out.WriteString(sel + " is empty")
	case grammar.MatchIsNotEmpty:
		w.out.WriteString(sel + " is not empty")
	case grammar.MatchIsNil:
		w.out.WriteString(sel + " is nil")
	case grammar.MatchIsNotNil:
		w.out.WriteString(sel + " is not nil")
	}
}

func (w *filterWriter) collection(e *grammar.CollectionExpression, s scope) {
	inner := scope{root: s.root, bound: map[string]reflect.Type{}}
	for k, v := range s.bound {
		inner.bound[k] = v
	}
	path := unfold(e.Selector.Path, s)
	if len(path) != len(e.Selector.Path) {
		w.changed = true
	}
	t, err := resolve(path, s)
	if err != nil && w.err == nil {
		w.err = fmt.Errorf("Selector %q is not valid", e.Selector.String()) //nolint:staticcheck // the words clients know
	}
	var elem reflect.Type
	if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Map) {
		elem = t.Elem()
	}
	b := e.NameBinding
	as := b.Default
	switch {
	case b.Index != "" && b.Value != "":
		as = b.Index + ", " + b.Value
	case b.Index != "":
		as = b.Index + ", _"
	case b.Value != "":
		as = "_, " + b.Value
	}
	for _, n := range []string{b.Default, b.Index} {
		if n != "" {
			inner.bound[n] = nil
		}
	}
	if b.Value != "" {
		inner.bound[b.Value] = elem
	}
	if b.Default != "" && t != nil && t.Kind() == reflect.Slice {
		inner.bound[b.Default] = elem
	}
	w.out.WriteString("(" + strings.ToLower(string(e.Op)) + " " + selector(path) + " as " + as + " { ")
	w.expression(e.Inner, inner)
	w.out.WriteString(" })")
}

// pointersIn gives the prefixes of path that may be nil, outermost first. bexpr does
// not go through them; what is behind one is as a key that a map does not have.
func (w *filterWriter) pointersIn(path []string, s scope) [][]string {
	var out [][]string
	for i := 1; i < len(path); i++ {
		if t, err := resolveRaw(path[:i], s); err == nil && t != nil && t.Kind() == reflect.Pointer {
			out = append(out, path[:i])
		}
	}
	return out
}

// listIn gives the length of the shortest prefix of path that is a list of structs
// and that the path goes on through; 0 for none.
func (w *filterWriter) listIn(path []string, s scope) int {
	for i := 1; i < len(path); i++ {
		t, err := resolve(path[:i], s)
		if err != nil || t == nil {
			return 0
		}
		if t.Kind() != reflect.Slice {
			continue
		}
		if _, err := strconv.Atoi(path[i]); err != nil {
			return i
		}
	}
	return 0
}

// unfold names the embedded structs on a path, which JSON does not show and bexpr
// does not see through.
func unfold(path []string, s scope) []string {
	out := make([]string, 0, len(path)+1)
	t := s.root
	if len(path) > 0 {
		if b, ok := s.bound[path[0]]; ok {
			t, out, path = b, append(out, path[0]), path[1:]
		}
	}
	for i, part := range path {
		if t = deref(t); t == nil {
			return append(out, path[i:]...)
		}
		switch t.Kind() {
		case reflect.Struct:
			f, ok := t.FieldByName(part)
			if !ok {
				return append(out, path[i:]...)
			}
			for at := 1; at < len(f.Index); at++ {
				out = append(out, t.FieldByIndex(f.Index[:at]).Name)
			}
			t = f.Type
		case reflect.Map, reflect.Slice:
			t = t.Elem()
		default:
			return append(out, path[i:]...)
		}
		out = append(out, part)
	}
	return out
}

// resolve gives the type that a path leads to; nil where types do not tell.
func resolve(path []string, s scope) (reflect.Type, error) {
	t, err := resolveRaw(path, s)
	return deref(t), err
}

// resolveRaw is resolve that tells a pointer from what it points to.
func resolveRaw(path []string, s scope) (reflect.Type, error) {
	t := s.root
	if len(path) > 0 {
		if b, ok := s.bound[path[0]]; ok {
			t, path = b, path[1:]
		}
	}
	for _, part := range path {
		if t = deref(t); t == nil {
			return nil, nil
		}
		switch t.Kind() {
		case reflect.Struct:
			f, ok := t.FieldByName(part)
			if !ok || !f.IsExported() || f.Tag.Get("bexpr") == "-" {
				return nil, fmt.Errorf("no field %q", part)
			}
			t = f.Type
		case reflect.Map, reflect.Slice:
			t = t.Elem()
		case reflect.Interface:
			return nil, nil
		default:
			return nil, fmt.Errorf("%q is inside of a plain value", part)
		}
	}
	return t, nil
}

func deref(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// selector writes a path so that the parser reads the same path.
func selector(path []string) string {
	var b strings.Builder
	for i, p := range path {
		switch {
		case i == 0:
			b.WriteString(p)
		case isIdentifier(p):
			b.WriteString("." + p)
		default:
			b.WriteString("[" + quote(p) + "]")
		}
	}
	return b.String()
}

func isIdentifier(s string) bool {
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c != '_' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != ""
}

// quote writes a string literal. The grammar ends one at the first quotation mark,
// so marks inside are written as escapes.
func quote(s string) string {
	parts := strings.Split(s, `"`)
	for i, p := range parts {
		q := strconv.Quote(p)
		parts[i] = q[1 : len(q)-1]
	}
	return `"` + strings.Join(parts, `\x22`) + `"`
}
