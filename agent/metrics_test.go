package agent

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
)

func TestHostMetrics(t *testing.T) {
	m := hostMetrics{version: "1.2.3", members: func() []catalog.Member {
		return []catalog.Member{
			{Name: "a", Status: catalog.MemberAlive, Tags: map[string]string{"role": "consul"}},
			{Name: "b", Status: catalog.MemberAlive, Tags: map[string]string{"role": "node"}},
			{Name: "c", Status: catalog.MemberAlive, Tags: map[string]string{"role": "node"}},
			{Name: "d", Status: catalog.MemberFailed, Tags: map[string]string{"role": "consul"}},
		}
	}}
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(m); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
	}
	if got["consul_members_servers"] != 1 || got["consul_members_clients"] != 2 || got["consul_version"] != 1 ||
		got["consul_runtime_num_goroutines"] < 1 || len(got) != 11 {
		t.Errorf("%v", got)
	}
}
