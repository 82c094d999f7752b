package catalog

import (
	"math"
	"strings"
)

// In intentions a name may end in the wildcard: "job-*" stands for every service whose
// name begins with "job-", and the wildcard alone for every service.

// IsPattern tells whether a name of an intention stands for more than one service.
func IsPattern(n Name) bool { return strings.HasSuffix(n, Wildcard) }

// IsPartial tells whether it stands for some services, not for all.
func IsPartial(n Name) bool { return n != Wildcard && IsPattern(n) }

// Covers tells whether a name of an intention stands for a service; a pattern is also
// covered by itself, and by patterns that are wider.
func Covers(pattern, service Name) bool {
	if begin, ok := strings.CutSuffix(pattern, Wildcard); ok {
		return strings.HasPrefix(service, begin)
	}
	return pattern == service
}

// WiderNames are the partial patterns that cover a name, besides itself, the most
// exact first.
func WiderNames(n Name) []Name {
	begin := strings.TrimSuffix(n, Wildcard)
	last := len(begin)
	if last < len(n) {
		last-- // the longest is n
	}
	out := make([]Name, 0, max(0, last))
	for i := last; i > 0; i-- {
		out = append(out, begin[:i]+Wildcard)
	}
	return out
}

// exactness ranks names: the fewer services one may stand for, the higher. Two that
// cover one service are of one rank only if they are equal.
func exactness(n Name) int {
	if !IsPattern(n) {
		return math.MaxInt
	}
	return len(n)
}

// validPattern takes names, and those that end in one wildcard.
func validPattern(field string, n Name) error {
	if at := strings.Index(n, Wildcard); at >= 0 && at != len(n)-1 {
		return Invalidf("%s: wildcard character '*' cannot be used with partial values but at the end: %q could be %q", field, n, n[:at+1])
	}
	return nil
}
