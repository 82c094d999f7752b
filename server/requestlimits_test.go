package server

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// TestRequestLimits: over a rate, reads are to try elsewhere and writes of the leader
// later; what the mesh lives on is not counted, and limits change while the server runs.
func TestRequestLimits(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := config("")
	cfg.Registerer, cfg.Requests = reg, RequestLimits{Mode: LimitsEnforcing, ReadRate: 0, WriteRate: 0}
	r := start(t, cfg)
	r.watch(catalog.Query{Kind: catalog.QueryNodes}, func(v *catalog.View) bool { return len(v.Nodes) == 1 }) // it leads

	read := func() error {
		_, err := r.Read(t.Context(), &wire.ReadRequest{Query: catalog.Query{Kind: catalog.QueryNodes}})
		return err
	}
	write := func() error {
		_, err := r.Apply(t.Context(), &wire.ApplyRequest{Command: wire.Command{Command: &catalog.SetKey{Pair: catalog.KVPair{Key: "a"}}}})
		return err
	}
	if err := read(); !errors.Is(err, catalog.ErrTryElsewhere) {
		t.Errorf("read: %v", err)
	}
	if err := write(); !errors.Is(err, catalog.ErrTryLater) || errors.Is(err, catalog.ErrTryElsewhere) {
		t.Errorf("write: %v", err)
	}
	if _, err := r.Status(t.Context(), &wire.StatusRequest{}); err != nil {
		t.Errorf("status: %v", err)
	}
	for _, limits := range []RequestLimits{
		{Mode: LimitsPermissive}, {}, {Mode: LimitsEnforcing, ReadRate: -1, WriteRate: 1000},
	} {
		if err := r.server.SetLimits(limits, PortLimits{}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(read(), write()); err != nil {
			t.Errorf("%+v: %v", limits, err)
		}
	}
	for _, bad := range []RequestLimits{{Mode: "often"}} {
		if err := r.server.SetLimits(bad, PortLimits{}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if err := r.server.SetLimits(RequestLimits{}, PortLimits{HandshakeTimeout: -time.Second}); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("a negative time: %v", err)
	}
	got := map[string]float64{}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "consul_rpc_rate_limit_exceeded" {
			continue
		}
		for _, m := range f.GetMetric() {
			got[labels(m)] = m.GetCounter().GetValue()
		}
	}
	for _, want := range []string{
		"global/read Read enforcing", "global/write Apply enforcing", "global/read Read permissive", "global/write Apply permissive",
	} {
		if got[want] == 0 {
			t.Errorf("%q was not counted: %v", want, got)
		}
	}
}

func labels(m *dto.Metric) string {
	of := map[string]string{}
	for _, l := range m.GetLabel() {
		of[l.GetName()] = l.GetValue()
	}
	return of["limit_type"] + " " + of["op"] + " " + of["mode"]
}
