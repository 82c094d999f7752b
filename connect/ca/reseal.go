package ca

import (
	"fmt"

	"github.com/weftmesh/weft/catalog"
)

// Reseal gives the roots with every key that opens under old alone sealed under
// next, and whether there was one. What opens under neither is left as it is.
func Reseal(roots []*catalog.Root, old, next Sealer) ([]*catalog.Root, bool, error) {
	out := make([]*catalog.Root, len(roots))
	changed := false
	for i, r := range roots {
		out[i] = r
		if len(r.SealedKey) == 0 {
			continue
		}
		bound := aad(r.ExternalTrustDomain, r.ID)
		if plain, err := next.Open(r.SealedKey, bound); err == nil {
			clear(plain)
			continue
		}
		plain, err := old.Open(r.SealedKey, bound)
		if err != nil {
			continue
		}
		again := *r
		again.SealedKey, err = next.Seal(plain, bound)
		clear(plain)
		if err != nil {
			return nil, false, fmt.Errorf("root %s: %w", r.ID, err)
		}
		out[i], changed = &again, true
	}
	return out, changed, nil
}
