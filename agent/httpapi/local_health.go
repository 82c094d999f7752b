package httpapi

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// localHealthAPI says with a status code how a service of this host is: made for
// load balancers.
type localHealthAPI struct{ cfg Config }

func (a localHealthAPI) routes() []Route {
	route := func(by, summary string, f func(*call) (any, error)) Route {
		return Route{
			Method: http.MethodGet, Path: "/v1/agent/health/service/" + by + "/:" + by, Summary: summary,
			Params:     []Param{{"format", "text: the state alone, in words; also taken from the header Accept: text/plain"}},
			Permission: Permission{acl.Read, acl.Service, by}, MaxBody: bodyNone, params: paramsToken, local: true, handle: f,
		}
	}
	return []Route{
		route("id", "the health of a service of this host: 200 passing, 429 warning, 503 critical or maintenance, 404 unknown", a.byID),
		route("name", "the health of all instances of a service on this host; the status is that of the worst", a.byName),
	}
}

type localHealthView struct {
	AggregatedStatus string
	Service          *agentServiceView
	Checks           []healthCheckView
}

func (a localHealthAPI) view(h *local.Host, s *catalog.Service) localHealthView {
	checks := h.ServiceChecks(s.ID)
	v := localHealthView{
		AggregatedStatus: local.AggregatedStatus(checks), Service: viewAgentService(s, a.cfg.Self.Datacenter),
		Checks: make([]healthCheckView, 0, len(checks)),
	}
	for _, c := range checks {
		v.Checks = append(v.Checks, viewHealthCheck(c))
	}
	return v
}

func (a localHealthAPI) byID(c *call) (any, error) {
	if c.tail == "" {
		return nil, badRequest("Missing service ID")
	}
	host := a.cfg.Local.Host()
	s, ok := host.Services[c.tail]
	if !ok {
		return a.unknown(c, "ServiceId "+c.tail+" not found")
	}
	v := a.view(host, s)
	return a.answer(c, v.AggregatedStatus, v)
}

func (a localHealthAPI) byName(c *call) (any, error) {
	if c.tail == "" {
		return nil, badRequest("Missing service name")
	}
	host := a.cfg.Local.Host()
	views, worst := []localHealthView{}, catalog.StatusPassing
	for _, s := range host.Services {
		if s.Service != c.tail {
			continue
		}
		v := a.view(host, s)
		views = append(views, v)
		if severity(v.AggregatedStatus) > severity(worst) {
			worst = v.AggregatedStatus
		}
	}
	if len(views) == 0 {
		return a.unknown(c, "ServiceName "+c.tail+" not found")
	}
	slices.SortFunc(views, func(x, y localHealthView) int { return cmp.Compare(x.Service.ID, y.Service.ID) })
	return a.answer(c, worst, views)
}

func (a localHealthAPI) unknown(c *call, text string) (any, error) {
	c.w.Header().Set("X-Consul-Reason", text)
	return nil, notFound(text)
}

// severity orders states; maintenance is the worst.
func severity(status catalog.Status) int {
	return slices.Index([]catalog.Status{catalog.StatusPassing, catalog.StatusWarning, catalog.StatusCritical, catalog.StatusMaintenance}, status)
}

func (a localHealthAPI) answer(c *call, status catalog.Status, v any) (any, error) {
	code := http.StatusServiceUnavailable
	switch status {
	case catalog.StatusPassing:
		code = http.StatusOK
	case catalog.StatusWarning:
		code = http.StatusTooManyRequests
	}
	c.w.Header().Set("X-Consul-Reason", status)
	if c.query.Get("format") == "text" || strings.HasPrefix(c.r.Header.Get("Accept"), "text/plain") {
		v = raw{"text/plain; charset=utf-8", []byte(status)}
	}
	return withStatus{code, v}, nil
}
