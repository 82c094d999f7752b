package remote

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// TestRate: over the rate nothing is asked for others; what the host says of itself is,
// and the rate changes while the agent runs.
func TestRate(t *testing.T) {
	f := newFake(1)
	r := inProcess(t, f, func(c *Config) { c.Rate, c.Burst = 1e-6, 2 })
	apply := func() error {
		_, err := r.Apply(t.Context(), &wire.ApplyRequest{})
		return err
	}
	if err := errors.Join(apply(), apply()); err != nil {
		t.Fatal(err)
	}
	if err := apply(); !errors.Is(err, catalog.ErrRPCRate) || f.applies.Load() != 2 {
		t.Errorf("the third: %v, %d made", err, f.applies.Load())
	}
	if _, err := r.Sync(t.Context(), catalog.NodeState{Node: &catalog.Node{Node: "a"}}); err != nil {
		t.Errorf("a statement: %v", err)
	}
	r.SetLimits(time.Second, 0, 0)
	if err := apply(); err != nil || r.pace.callTimeout() != time.Second {
		t.Errorf("without a rate: %v, %s", err, r.pace.callTimeout())
	}
}

// TestBusyServer: an agent of many servers asks again where one is at its limit, the
// agent of a server does not.
func TestBusyServer(t *testing.T) {
	for _, pooled := range []bool{true, false} {
		f := newFake(1)
		f.setFail(catalog.ErrTryElsewhere)
		r := inProcess(t, f, func(c *Config) { c.HoldTimeout = 400 * time.Millisecond })
		if pooled {
			p, err := NewPool(PoolConfig{Dial: func(context.Context, string) (net.Conn, error) { return nil, net.ErrClosed }})
			if err != nil {
				t.Fatal(err)
			}
			r.cfg.Pool = p
		}
		if _, err := r.Apply(t.Context(), &wire.ApplyRequest{}); !errors.Is(err, catalog.ErrTryElsewhere) {
			t.Error(err)
		}
		if n := f.applies.Load(); (n > 1) != pooled {
			t.Errorf("pooled %v: %d tries", pooled, n)
		}
	}
}
