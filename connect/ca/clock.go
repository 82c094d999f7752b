package ca

import (
	"slices"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// maxUntimely bounds the old roots that are kept although they are not good now.
const maxUntimely = 8

// good tells whether a root is one of this time. One that ended while all servers were
// off, or that was made while the clock was far ahead, vouches for nobody.
func good(r *catalog.Root, now time.Time) bool {
	return !now.Before(r.NotBefore) && now.Before(r.NotAfter)
}

// Untimely is the active root where it is to be replaced and is not good now, nil where
// there is none such. Either it is of another time, or the clock is wrong: whoever goes
// by a wrong one replaces a root that the whole mesh lives by.
func Untimely(roots []*catalog.Root, cfg Config, now time.Time) *catalog.Root {
	if r := Active(roots); r != nil && !good(r, now) && NeedsNewRoot(r, cfg, now) {
		return r
	}
	return nil
}

// former is the old root that takes over again from one that is not good now, nil
// where there is none: servers whose clocks differ are not to make roots without end.
func former(roots []*catalog.Root, cfg Config, seal Sealer, now time.Time) *catalog.Root {
	if active := Active(roots); active == nil || good(active, now) {
		return nil
	}
	var out *catalog.Root
	for _, r := range roots {
		if r.Active || !good(r, now) || asksForAnother(r, cfg) || out != nil && !r.NotAfter.After(out.NotAfter) {
			continue
		}
		if _, err := Open(r, cfg, seal); err == nil {
			out = r
		}
	}
	return out
}

// bound drops the first to end of the old roots that are not good now, when they are
// too many.
func bound(roots []*catalog.Root, now time.Time) []*catalog.Root {
	var strange []*catalog.Root
	for _, r := range roots {
		if !r.Active && !good(r, now) {
			strange = append(strange, r)
		}
	}
	if len(strange) <= maxUntimely {
		return roots
	}
	slices.SortFunc(strange, func(a, b *catalog.Root) int { return a.NotAfter.Compare(b.NotAfter) })
	drop := strange[:len(strange)-maxUntimely]
	return slices.DeleteFunc(roots, func(r *catalog.Root) bool { return slices.Contains(drop, r) })
}
