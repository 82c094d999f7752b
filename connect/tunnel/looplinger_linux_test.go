package tunnel

import "testing"

// TestHope: where looking for events is in vain it is tried ever more rarely, and once
// it was not, always.
func TestHope(t *testing.T) {
	var h hope
	looks := 0
	for range 100_000 {
		if h.try() {
			looks++
			h.looked(false)
		}
	}
	if looks < 100 || looks > 100_000>>maxDoubt+maxDoubt+1 {
		t.Errorf("%d looks of 100,000 were in vain", looks)
	}
	for !h.try() {
	}
	h.looked(true)
	for i := range 10 {
		if !h.try() {
			t.Fatalf("rest %d after a look that was worth it", i)
		}
		h.looked(true)
	}
}
