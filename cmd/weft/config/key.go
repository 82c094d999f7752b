package config

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// Type is the type of a key's value.
type Type string

// Types of values. Maps have free keys; blocks are decoded by package catalog.
const (
	String     Type = "string"
	Bool       Type = "bool"
	Int        Type = "number"
	Float      Type = "decimal"
	Duration   Type = "duration"
	StringList Type = "list of strings"
	StringMap  Type = "map of strings"
	AnyMap     Type = "map"
	IntMap     Type = "map of numbers"
	Durations  Type = "map of durations"
	Blocks     Type = "blocks"
	Anything   Type = "any"
)

// Status says what a key does in this version.
type Status string

// Statuses. Effective keys act. Accepted keys are known, checked for their type,
// and will act in a later version: one warning says so. Ignored keys never will.
// Refused keys stop the agent with a pointer to what replaces them.
const (
	Effective Status = "effective"
	Accepted  Status = "accepted"
	Ignored   Status = "ignored"
	Refused   Status = "refused"
)

// Key is one key of the configuration.
type Key struct {
	Name    string // dotted: "ports.http"
	Type    Type
	Default string // as one would write it; empty when there is none
	Flag    string // the command-line flag that sets it, without dashes
	Status  Status
	Doc     string // one sentence or two
	Note    string // why it is ignored or refused, or what its absence of effect means
	Reload  bool   // taken over by a reload
	// Anyway is the value of a key without effect that asks for what is so anyway: then
	// there is nothing to warn of.
	Anyway string
}

// warning is what is said once when the key is set to v; empty when it acts.
func (k Key) warning(v any) string {
	if k.Anyway != "" && fmt.Sprint(v) == k.Anyway {
		return ""
	}
	switch k.Status {
	case Accepted:
		if k.Note != "" {
			return fmt.Sprintf("%s has no effect yet: %s", k.Name, k.Note)
		}
		return k.Name + " has no effect yet"
	case Ignored:
		return fmt.Sprintf("%s is ignored: %s", k.Name, k.Note)
	default:
		return ""
	}
}

// index finds keys, and the objects that hold them, by normalized name.
type index struct {
	keys    map[string]*Key
	objects map[string]bool
}

// table is made when it is first asked: most processes read no configuration.
var table = sync.OnceValue(func() *index { return newIndex(Keys()) })

// pattern compiles an expression when it is first asked for, for the same reason.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

func newIndex(keys []Key) *index {
	x := &index{keys: make(map[string]*Key, len(keys)), objects: map[string]bool{"": true}}
	for i := range keys {
		k := &keys[i]
		x.keys[normalize(k.Name)] = k
		for name := k.Name; ; {
			dot := strings.LastIndexByte(name, '.')
			if dot < 0 {
				break
			}
			name = name[:dot]
			x.objects[normalize(name)] = true
		}
	}
	return x
}

// normalize makes data_dir, DataDir and datadir one key, as elsewhere.
func normalize(name string) string {
	return strings.ToLower(strings.ReplaceAll(name, "_", ""))
}

// suggest returns the known name in the object at parent that is nearest to key,
// or "".
func (x *index) suggest(parent, key string) string {
	best, score := "", 3 // at most two edits
	consider := func(full string) {
		name, ok := childOf(parent, full)
		if !ok {
			return
		}
		if d := distance(normalize(key), normalize(name)); d < score || (d == score && best != "" && name < best) {
			best, score = name, d
		}
	}
	for _, k := range x.keys {
		if k.Status == Refused {
			continue
		}
		for name := k.Name; name != ""; {
			consider(name)
			dot := strings.LastIndexByte(name, '.')
			if dot < 0 {
				break
			}
			name = name[:dot]
		}
	}
	return best
}

func childOf(parent, full string) (string, bool) {
	if parent != "" {
		if len(full) <= len(parent) || !strings.EqualFold(full[:len(parent)], parent) || full[len(parent)] != '.' {
			return "", false
		}
		full = full[len(parent)+1:]
	}
	return full, !strings.Contains(full, ".")
}

// distance is the Levenshtein distance of two short strings.
func distance(a, b string) int {
	const longest = 64
	if len(a) > longest || len(b) > longest {
		return longest
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
