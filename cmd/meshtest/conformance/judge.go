package conformance

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// judge compares an answer with what the step expects of it.
func judge(s *Step, r *result, env vars, sidecarShift int64) *comparison {
	c := &comparison{env: env, sidecarShift: sidecarShift}
	want := s.Expect
	if want == nil {
		return c
	}
	if want.Status != 0 && want.Status != r.status {
		c.hard("status", "expected %d, got %d (body %s)", want.Status, r.status, short(string(r.raw[:min(200, len(r.raw))])))
	}
	c.headers(want, r.header)
	c.body(s, r)
	if r.kind == "json" {
		for _, path := range slices.Sorted(maps.Keys(want.Certs)) {
			c.certificates(want.Certs[path], r.value, path)
		}
	}
	if took := r.took.Seconds(); s.Elapsed != nil && (took < s.Elapsed[0] || took > s.Elapsed[1]) {
		c.hard("elapsed", "expected %v to %v s, took %.2f s", s.Elapsed[0], s.Elapsed[1], took)
	}
	for _, check := range s.Check {
		c.holds(check, r)
	}
	return c
}

func (c *comparison) body(s *Step, r *result) {
	want := s.Expect
	if want.Kind != r.kind {
		c.hard("body", "expected a %s body %s, got %s %s", want.Kind, short(want.Body), r.kind, short(r.value))
		return
	}
	if words, ok := want.Body.(string); ok && want.Status >= 400 && want.Kind == "text" {
		c.errorText(words, text(r.value))
		return
	}
	c.value(want.Body, view(s, r), "", nil)
}

// view is the part of the answer that is compared.
func view(s *Step, r *result) any {
	body, isText := r.value.(string)
	if r.kind != "json" {
		switch {
		case isText && s.Prom != nil:
			return promView(body, s.Prom)
		case isText && s.Grep != "":
			re := regexp.MustCompile(s.Grep)
			lines := slices.DeleteFunc(strings.Split(strings.TrimSuffix(body, "\n"), "\n"),
				func(l string) bool { return !re.MatchString(l) })
			return strings.Join(lines, "\n")
		default:
			return r.value
		}
	}
	if s.Keep == nil {
		return r.value
	}
	kept := map[string]any{}
	for _, path := range s.Keep {
		hits := pick(r.value, path)
		for _, h := range hits {
			kept[h.path] = h.value
		}
		if len(hits) == 0 {
			kept[path] = "<absent>"
		}
	}
	return kept
}

var (
	promType = regexp.MustCompile(`(?m)^# TYPE (\S+ \S+)$`)
	promLine = regexp.MustCompile(`\A(?:#.*|[a-zA-Z_:][a-zA-Z0-9_:]*(\{.*\})? \S+)\z`)
)

// promView says which of the metrics are there, and whether every line is one.
func promView(body string, names []string) any {
	types := []any{}
	for _, n := range names {
		if slices.ContainsFunc(promType.FindAllStringSubmatch(body, -1), func(m []string) bool { return m[1] == n }) {
			types = append(types, n)
		}
	}
	ok := true
	for line := range strings.SplitSeq(body, "\n") {
		ok = ok && (line == "" || promLine.MatchString(line))
	}
	return map[string]any{"lines_ok": ok, "types": types}
}

func (c *comparison) certificates(want, doc any, path string) {
	var got any
	if hits := pick(doc, path); len(hits) > 0 {
		infos, err := describeCertificates(text(hits[0].value))
		if err != nil {
			c.hard("cert "+path, "cannot be read: %v", err)
			return
		}
		got = infos
	}
	c.value(want, got, "cert "+path, nil)
}

func (c *comparison) holds(check [3]any, r *result) {
	x, y := c.operand(check[0], r), c.operand(check[2], r)
	op, _ := check[1].(string)
	var ok bool
	switch op {
	case "==":
		ok = equal(x, y)
	case "!=":
		ok = !equal(x, y)
	default:
		a, okA := number(x)
		b, okB := number(y)
		ok = okA && okB && (op == ">" && a > b || op == ">=" && a >= b || op == "<" && a < b)
	}
	if !ok {
		c.hard("check", "%v %v %v does not hold (%s, %s)", check[0], op, check[2], short(x), short(y))
	}
}

func number(v any) (float64, bool) {
	n, ok := v.(json.Number)
	if s, isText := v.(string); isText {
		n, ok = json.Number(s), true
	}
	if !ok {
		return 0, false
	}
	f, err := n.Float64()
	return f, err == nil
}

var digits = regexp.MustCompile(`\A\d+\z`)

func numberIfDigits(v any) any {
	if s, ok := v.(string); ok && digits.MatchString(s) {
		return json.Number(s)
	}
	return v
}

// operand is one side of a check: of the answer, or a value saved before.
func (c *comparison) operand(a any, r *result) any {
	s, ok := a.(string)
	if !ok {
		return a
	}
	from, rest, _ := strings.Cut(s, ":")
	switch from {
	case "header":
		if v, ok := last(r.header, rest); ok {
			return numberIfDigits(v)
		}
		return nil
	case "json":
		if hits := pick(r.value, rest); len(hits) > 0 {
			return hits[0].value
		}
		return nil
	case "len":
		return length(pick(r.value, rest))
	}
	if s == "elapsed" {
		return json.Number(fmt.Sprint(r.took.Seconds()))
	}
	if m := varRE.FindStringSubmatch(s); m != nil && m[0] == s {
		if v, ok := c.env[m[1]]; ok {
			return numberIfDigits(v)
		}
	}
	return numberIfDigits(c.env.subst(s))
}

func length(hits []found) any {
	if len(hits) == 0 {
		return nil
	}
	n := 0
	switch v := hits[0].value.(type) {
	case nil:
		return nil
	case []any:
		n = len(v)
	case map[string]any:
		n = len(v)
	case string:
		n = len([]rune(v))
	}
	return json.Number(fmt.Sprint(n))
}
