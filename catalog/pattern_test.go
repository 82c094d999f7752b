package catalog

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, name Name
		want          bool
	}{
		{"job-*", "job-1", true},
		{"job-*", "job-", true},
		{"job-*", "job", false},
		{"job-*", "jobs-1", false},
		{"*", "x", true},
		{"x", "x", true},
		{"x", "xy", false},
		{"job-*", "job-*", true},
		{"job-*", "job-a*", true},
		{"job-a*", "job-*", false},
	} {
		if got := Covers(c.pattern, c.name); got != c.want {
			t.Errorf("%s covers %s: %t, want %t", c.pattern, c.name, got, c.want)
		}
	}
	for name, want := range map[Name][]Name{
		"job": {"job*", "jo*", "j*"}, "jo*": {"j*"}, "j*": {}, "*": {}, "": {},
	} {
		if got := WiderNames(name); !slices.Equal(got, want) {
			t.Errorf("wider than %q are %q, want %q", name, got, want)
		}
	}
}

// TestWiderNamesAreThoseThatCover: no pattern that covers a name is missed by who looks
// it up, and none is found that does not.
func TestWiderNamesAreThoseThatCover(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(what string) Name {
			n := rapid.StringOfN(rapid.SampledFrom([]rune("abé")), 0, 5, -1).Draw(t, what)
			if rapid.Bool().Draw(t, what+" is a pattern") {
				n += Wildcard
			}
			return n
		}
		pattern, name := draw("pattern"), draw("name")
		if !IsPartial(pattern) || pattern == name {
			return
		}
		if got := slices.Contains(WiderNames(name), pattern); got != Covers(pattern, name) {
			t.Fatalf("%q among the wider names of %q: %t, covers: %t", pattern, name, got, Covers(pattern, name))
		}
	})
}
