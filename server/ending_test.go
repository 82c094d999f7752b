package server

import (
	"context"
	"errors"
	"testing"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// TestEnding: what waits for news, which may come late or never, does not hold up a
// server that stops. What is being done is let end.
func TestEnding(t *testing.T) {
	e := newEnding()
	e.begin()
	for _, c := range []struct {
		req  any
		ends bool
	}{
		{&wire.ReadRequest{}, true},
		{&wire.EnforcedRequest{}, true},
		{&wire.ApplyRequest{}, false},
	} {
		_, err := e.reads(t.Context(), c.req, nil, func(ctx context.Context, _ any) (any, error) {
			if c.ends {
				<-ctx.Done()
			}
			return nil, context.Cause(ctx)
		})
		if errors.Is(err, catalog.ErrUnavailable) != c.ends {
			t.Errorf("%T: %v", c.req, err)
		}
	}
}
