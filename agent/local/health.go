package local

import (
	"slices"
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// ServiceChecks gives the checks that count for a service, its own and those of
// the node, by ID.
func (h *Host) ServiceChecks(serviceID string) []*catalog.Check {
	out := []*catalog.Check{}
	for _, c := range h.Checks {
		if c.ServiceID == "" || c.ServiceID == serviceID {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *catalog.Check) int { return strings.Compare(a.CheckID, b.CheckID) })
	return out
}

// AggregatedStatus folds checks into one word: maintenance before critical before
// warning before passing.
func AggregatedStatus(list []*catalog.Check) catalog.Status {
	worst := catalog.StatusPassing
	for _, c := range list {
		if c.CheckID == catalog.NodeMaintenanceCheckID || strings.HasPrefix(c.CheckID, catalog.ServiceMaintenancePrefix) {
			return catalog.StatusMaintenance
		}
		worst = catalog.Worse(worst, c.Status)
	}
	return worst
}

// IsExternal tells whether a proxy is run by somebody else than this agent:
// Proxy.Config has external = true.
func IsExternal(svc *catalog.Service) bool { return external(svc.Proxy.Config) }

func external(config map[string]any) bool {
	switch v := config["external"].(type) {
	case bool:
		return v
	case string:
		return v == "true"
	default:
		return false
	}
}

// RunsHere tells whether svc is a proxy that this agent runs.
func RunsHere(svc *catalog.Service) bool {
	return svc.Kind == catalog.KindConnectProxy && svc.Proxy.DestinationServiceName != "" && !IsExternal(svc)
}
