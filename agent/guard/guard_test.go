package guard

import (
	"net/netip"
	"strings"
	"testing"
)

func TestRulesAreValidated(t *testing.T) {
	good := func() Rules { return Rules{InboundPort: 21000, OutboundPort: 15001} }
	for name, c := range map[string]struct {
		change func(*Rules)
		want   string
	}{
		"no inbound port":  {func(r *Rules) { r.InboundPort = 0 }, "inbound port: 0 is not between"},
		"no outbound port": {func(r *Rules) { r.OutboundPort = 70000 }, "outbound port: 70000 is not between"},
		"one port":         {func(r *Rules) { r.OutboundPort = 21000 }, "both 21000"},
		"an excluded port": {func(r *Rules) { r.ExcludeInboundPorts = []int{22, -1} }, "excluded port -1"},
		"too many":         {func(r *Rules) { r.ExcludeUIDs = make([]uint32, maxExcluded+1) }, "more than 1024 exceptions"},
		"no network":       {func(r *Rules) { r.ExcludeOutboundCIDRs = []netip.Prefix{{}} }, "network is none"},
	} {
		r := good()
		c.change(&r)
		if err := r.validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	r := good()
	if err := r.validate(); err != nil {
		t.Error(err)
	}
}
