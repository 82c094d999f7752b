//go:build next

package wire

import (
	"bytes"
	"testing"

	"github.com/weftmesh/weft/catalog"
)

// TestNextIsOnTheWire holds that what this version adds is really sent.
func TestNextIsOnTheWire(t *testing.T) {
	for what, c := range map[string]struct {
		v    any
		want string
	}{
		"field":   {&catalog.SyncNode{}, "Later"},
		"message": {LaterEvent(&WatchEvent{}), "a message more"},
	} {
		b, err := Marshal(c.v)
		if err != nil || !bytes.Contains(b, []byte(c.want)) {
			t.Errorf("%s: %q lacks %q: %v", what, b, c.want, err)
		}
	}
	b, err := EncodeEntry(catalog.LaterNote())
	if err != nil || b[3]&flagIgnorable == 0 {
		t.Errorf("command: flags %v, %v", b, err)
	}
	if _, err := DecodeEntry(b); err != nil {
		t.Error(err)
	}
}
