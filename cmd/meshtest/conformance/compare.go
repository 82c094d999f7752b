package conformance

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// Difference is one way in which an answer is not the recorded one.
type Difference struct {
	Step    int // 0: the case could not be run to its end
	Call    string
	Soft    bool
	Path    string
	Message string
}

func (d Difference) String() string {
	soft := ""
	if d.Soft {
		soft = "(soft) "
	}
	return fmt.Sprintf("step %d %s\n      %s%s: %s", d.Step, d.Call, soft, d.Path, d.Message)
}

// comparison gathers the differences of one answer.
type comparison struct {
	env   vars
	diffs []Difference
	// sidecarShift is what the agent's first sidecar port is above Consul's: agents
	// that run beside each other have ranges of their own.
	sidecarShift int64
}

func (c *comparison) hard(path, format string, args ...any) {
	c.add(false, path, format, args...)
}

func (c *comparison) add(soft bool, path, format string, args ...any) {
	if path == "" {
		path = "/"
	}
	c.diffs = append(c.diffs, Difference{Soft: soft, Path: path, Message: fmt.Sprintf(format, args...)})
}

func (c *comparison) failed() bool {
	return slices.ContainsFunc(c.diffs, func(d Difference) bool { return !d.Soft })
}

func (c *comparison) fork() *comparison {
	return &comparison{env: c.env, sidecarShift: c.sidecarShift}
}

// value compares an answer's value with the expected one; parent is the object
// that holds the answer's value.
func (c *comparison) value(want, got any, path string, parent any) {
	switch w := want.(type) {
	case string:
		c.text(w, got, path, parent)
	case json.Number:
		c.number(w, got, path)
	case []any:
		c.list(w, got, path)
	case map[string]any:
		_, each := w["<each>"]
		_, values := w["<map>"]
		if elems, ok := w["<unordered>"].([]any); ok {
			c.unordered(elems, got, path)
		} else if each || values {
			c.each(w, got, path)
		} else {
			c.object(w, got, path)
		}
	default: // null, true, false
		if c.sameType(want, got, path) && want != got {
			c.hard(path, "expected %s, got %s", short(want), short(got))
		}
	}
}

func (c *comparison) sameType(want, got any, path string) bool {
	if typeName(want) == typeName(got) {
		return true
	}
	c.hard(path, "expected %s (%s), got %s (%s)", short(want), typeName(want), short(got), typeName(got))
	return false
}

// Consul gives sidecars ports from 21000.
const sidecarMin, sidecarMax = 21000, 21255

func (c *comparison) number(want json.Number, got any, path string) {
	if !c.sameType(want, got, path) {
		return
	}
	if i, ok := integer(want); ok && i >= sidecarMin && i <= sidecarMax {
		want = json.Number(fmt.Sprint(i + c.sidecarShift))
	}
	if !sameNumber(want, got.(json.Number)) {
		c.hard(path, "expected %s, got %s", short(want), short(got))
	}
}

const indexEqual, indexGreater = "<index=CreateIndex>", "<index>CreateIndex>"

// text compares with a string, which may be a token for a value of another type.
func (c *comparison) text(want string, got any, path string, parent any) {
	switch want {
	case "<any>":
		return
	case indexEqual, indexGreater:
		c.modifyIndex(want, got, path, parent)
		return
	case "<bool>":
		if typeName(got) != "bool" {
			c.hard(path, "expected a boolean, got %s", short(got))
		}
		return
	case "<list>", "<object>":
		if "<"+typeName(got)+">" != want {
			c.hard(path, "expected a %s, got %s", strings.Trim(want, "<>"), short(got))
		}
		return
	}
	if n, ok := got.(json.Number); ok && c.numberToken(want, n, path) {
		return
	}
	s, ok := got.(string)
	switch {
	case slices.Contains([]string{"<int>", "<num>", "<index>", "<port>"}, want):
		c.hard(path, "expected a number %s, got %s %s", want, typeName(got), short(got))
	case !ok:
		c.hard(path, "expected %s (string), got %s (%s)", short(want), short(got), typeName(got))
	case !c.env.matches(want, s):
		c.hard(path, "expected %s, got %s", short(want), short(got))
	}
}

// numberToken tells whether the token or variable has judged the number.
func (c *comparison) numberToken(want string, got json.Number, path string) bool {
	i, whole := integer(got)
	switch want {
	case "<num>":
		return true
	case "<int>", "<port>":
		return whole
	case "<index>":
		if whole && i <= 0 {
			c.hard(path, "expected a positive index, got %s", got)
		}
		return whole
	}
	m := varRE.FindStringSubmatch(want)
	if m == nil || m[0] != want {
		return false
	}
	v, known := c.env[m[1]]
	n, _ := v.(json.Number)
	return !known && slices.Contains(portNames, m[1]) || known && sameNumber(n, got)
}

func (c *comparison) modifyIndex(want string, got any, path string, parent any) {
	i, ok := integer(got)
	if !ok || i <= 0 {
		c.hard(path, "expected a positive index, got %s", short(got))
		return
	}
	obj, _ := parent.(map[string]any)
	created, ok := integer(obj["CreateIndex"])
	if !ok {
		return
	}
	if want == indexEqual && i != created {
		c.hard(path, "expected ModifyIndex == CreateIndex, got %d and %d", i, created)
	}
	if want == indexGreater && i <= created {
		c.hard(path, "expected ModifyIndex > CreateIndex, got %d and %d", i, created)
	}
}

func (c *comparison) list(want []any, got any, path string) {
	if !c.sameType(want, got, path) {
		return
	}
	have := got.([]any)
	if len(want) != len(have) {
		c.hard(path, "expected %d elements, got %d: %s", len(want), len(have), short(got))
	}
	for i := range min(len(want), len(have)) {
		c.value(want[i], have[i], fmt.Sprintf("%s/%d", path, i), nil)
	}
}

// unordered pairs each expected element with the answer's that differs least.
func (c *comparison) unordered(want []any, got any, path string) {
	if obj, ok := got.(map[string]any); ok && obj["<unordered>"] != nil {
		got = obj["<unordered>"]
	}
	have, ok := got.([]any)
	if !ok {
		c.hard(path, "expected a list, got %s", short(got))
		return
	}
	left := make([]int, len(have))
	for i := range left {
		left[i] = i
	}
	for _, w := range want {
		best, bestAt, bestCost := (*comparison)(nil), 0, [2]int{}
		for at, i := range left {
			try := c.fork()
			try.value(w, have[i], fmt.Sprintf("%s/%d", path, i), nil)
			cost := [2]int{0, len(try.diffs)}
			for _, d := range try.diffs {
				if !d.Soft {
					cost[0]++
				}
			}
			if best == nil || slices.Compare(cost[:], bestCost[:]) < 0 {
				best, bestAt, bestCost = try, at, cost
			}
		}
		if best == nil {
			c.hard(path, "missing element %s", short(w))
			continue
		}
		left = slices.Delete(left, bestAt, bestAt+1)
		c.diffs = append(c.diffs, best.diffs...)
	}
	for _, i := range left {
		c.hard(fmt.Sprintf("%s/%d", path, i), "unexpected element %s", short(have[i]))
	}
}

// each compares all elements of a list, or values of an object, with one shape.
func (c *comparison) each(want map[string]any, got any, path string) {
	least, _ := integer(want["<min>"])
	var elems []found
	if shape, ok := want["<each>"]; ok {
		have, ok := got.([]any)
		if !ok {
			c.hard(path, "expected a list, got %s", short(got))
			return
		}
		for i, v := range have {
			elems = append(elems, found{fmt.Sprint(i), v})
		}
		want = map[string]any{"": shape}
	} else {
		have, ok := got.(map[string]any)
		if !ok {
			c.hard(path, "expected a object, got %s", short(got))
			return
		}
		for _, k := range slices.Sorted(maps.Keys(have)) {
			elems = append(elems, found{k, have[k]})
		}
		want = map[string]any{"": want["<map>"]}
	}
	if int64(len(elems)) < least {
		c.hard(path, "expected at least %d elements, got %d", least, len(elems))
	}
	for _, e := range elems {
		c.value(want[""], e.value, path+"/"+e.path, got)
	}
}

func (c *comparison) object(want map[string]any, got any, path string) {
	if !c.sameType(want, got, path) {
		return
	}
	have := got.(map[string]any)
	var patterns []string
	keys := map[string]any{}
	for k, v := range want {
		k = c.env.subst(k)
		keys[k] = v
		if isPattern(k) {
			patterns = append(patterns, k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if v, ok := have[k]; ok {
			c.value(keys[k], v, path+"/"+strings.ReplaceAll(k, "/", "~1"), got)
			continue
		}
		if !isPattern(k) {
			c.hard(path+"/"+k, "missing key (expected %s)", short(keys[k]))
			continue
		}
		hit := slices.IndexFunc(slices.Sorted(maps.Keys(have)), func(h string) bool {
			_, literal := keys[h]
			return !literal && c.env.matches(k, h)
		})
		if hit < 0 {
			c.hard(path, "missing key %s", k)
			continue
		}
		h := slices.Sorted(maps.Keys(have))[hit]
		c.value(keys[k], have[h], path+"/"+h, got)
	}
	for _, k := range slices.Sorted(maps.Keys(have)) {
		_, known := keys[k]
		if !known && !slices.ContainsFunc(patterns, func(p string) bool { return c.env.matches(p, k) }) {
			c.add(true, path+"/"+k, "extra key with %s", short(have[k]))
		}
	}
}

// errorWords are those of an error's text that clients look for; the rest is ours
// to write better.
var errorWords = []string{
	"Permission denied", "ACL not found", "ACL support disabled", "No cluster leader", "rpc error making call",
	"Unknown check ID", "unknown service ID", "Unknown service ID", "Session id", "invalid session", "lock-delay",
	"No path to datacenter", "too large", "Conflicting flags", "Method not allowed", "not a recognized HTTP API endpoint",
	"Enterprise feature", "enterprise feature", "Request decode failed", "Request decoding failed",
}

func (c *comparison) errorText(want, got string) {
	if want != "" && strings.TrimSpace(got) == "" {
		c.hard("body", "expected an error text like %s, got none", short(want))
	}
	for _, words := range errorWords {
		if strings.Contains(want, words) && !strings.Contains(strings.ToLower(got), strings.ToLower(words)) {
			c.hard("body", "the error has to say %s as in %s, got %s", short(words), short(want), short(got))
		}
	}
	if !c.env.matches(want, got) {
		c.add(true, "body", "expected %s, got %s", short(want), short(got))
	}
}

// comparedHeaders are those of which a difference, also an extra one, is told.
var comparedHeaders = []string{
	"Content-Type", "X-Consul-Index", "X-Consul-KnownLeader", "X-Consul-LastContact",
	"X-Consul-Effective-Consistency", "X-Consul-Default-ACL-Policy",
	"X-Consul-Results-Filtered-By-ACLs", "X-Consul-ContentHash", "X-Consul-Reason",
	"X-Consul-Translate-Addresses", "X-Consul-Query-Backend", "X-Cache", "Allow",
	"Location", "X-Content-Type-Options", "Content-Security-Policy",
}

// softHeaders describe how an answer was made, not what it is.
var softHeaders = []string{"x-consul-query-backend", "x-content-type-options", "content-security-policy"}

var commaRE = regexp.MustCompile(`,\s*`)

func sameSet(a, b string) bool {
	x, y := commaRE.Split(a, -1), commaRE.Split(b, -1)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(slices.Compact(x), slices.Compact(y))
}

func (c *comparison) headers(want *Expectation, got http.Header) {
	isError := want.Status >= 400
	known := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(want.Headers)) {
		value, low := want.Headers[name], strings.ToLower(name)
		known[low] = true
		ofError := isError && strings.HasPrefix(low, "x-consul-") && low != "x-consul-reason"
		soft := ofError || slices.Contains(softHeaders, low)
		have, ok := last(got, name)
		switch {
		case !ok:
			c.add(soft, "header "+name, "missing (expected %s)", value)
		case name == "Allow" && sameSet(value, have):
		case !c.env.matches(value, have):
			c.add(soft, "header "+name, "expected %s, got %s", value, have)
		}
	}
	for _, name := range comparedHeaders {
		if have, ok := last(got, name); ok && want.Status != 0 && !known[strings.ToLower(name)] {
			c.add(true, "header "+name, "extra: %s", have)
		}
	}
}

func last(h http.Header, name string) (string, bool) {
	v := h.Values(name)
	if len(v) == 0 {
		return "", false
	}
	return v[len(v)-1], true
}
