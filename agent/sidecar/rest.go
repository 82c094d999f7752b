package sidecar

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

const (
	restMaintenance = "maintenance"
	restCritical    = "critical"
	// criticalGrace is how long the connections of an instance whose checks are critical
	// may go on: long enough for most troubles to pass, as a check may be wrong where
	// those who are connected are well served.
	criticalGrace = 30 * time.Second
)

// restOf says whether the service behind a proxy should rest: its own checks and
// those of the host count, those of the proxy do not.
func restOf(h *local.Host, proxy *catalog.Service) string {
	why := ""
	for id, c := range h.Checks {
		if c.ServiceID != "" && c.ServiceID != proxy.Proxy.DestinationServiceID || c.Status != catalog.StatusCritical {
			continue
		}
		if id == catalog.NodeMaintenanceCheckID || strings.HasPrefix(id, catalog.ServiceMaintenancePrefix) {
			return restMaintenance
		}
		why = restCritical
	}
	return why
}

// rest is what the proxy is told of it.
func rest(in inputs, p *problems) *connect.Rest {
	cfg := in.proxy.Proxy.Config
	switch in.rest {
	case restMaintenance:
		return &connect.Rest{
			Why:   "the service or the host is in maintenance",
			Grace: cmp.Or(cfgMillis(p, cfg, "drain_timeout_ms"), in.drain, 5*time.Second),
		}
	case restCritical:
		grace := cmp.Or(cfgMillis(p, cfg, "critical_drain_timeout_ms"), criticalGrace)
		return &connect.Rest{Why: fmt.Sprintf("a check is critical; critical_drain_timeout_ms is %d", grace.Milliseconds()), Grace: grace}
	default:
		return nil
	}
}
