package sidecar

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// validAddr tells whether addr is host:port with both.
func validAddr(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// ejection reads when an instance of an upstream is left alone: what Consul calls
// passive_health_check. Failures to connect count; what needs HTTP does not.
func ejection(p *problems, up *catalog.Upstream) connect.Ejection {
	var e connect.Ejection
	m, ok := up.Config["passive_health_check"].(map[string]any)
	if !ok {
		return e
	}
	e.Failures = either(p, m, "max_failures", "MaxFailures")
	e.MaxPercent = min(either(p, m, "max_ejection_percent", "MaxEjectionPercent"), 100)
	e.Within = eitherDuration(p, up, m, "interval", "Interval")
	e.Base = eitherDuration(p, up, m, "base_ejection_time", "BaseEjectionTime")
	return e
}

// either reads a number in either spelling: registrations are written with one,
// entries with the other.
func either(p *problems, m map[string]any, snake, camel string) int {
	if _, ok := m[snake]; ok {
		return cfgInt(p, m, snake)
	}
	return cfgInt(p, m, camel)
}

// eitherDuration reads "30s", or a number of nanoseconds, as Consul writes both.
func eitherDuration(p *problems, up *catalog.Upstream, m map[string]any, snake, camel string) time.Duration {
	v, ok := m[snake]
	if !ok {
		if v = m[camel]; v == nil {
			return 0
		}
	}
	var d time.Duration
	var err error
	switch x := v.(type) {
	case string:
		d, err = time.ParseDuration(x)
	case float64:
		d = time.Duration(x)
	case int:
		d = time.Duration(x)
	case int64:
		d = time.Duration(x)
	default:
		err = fmt.Errorf("a %T", v)
	}
	if err != nil || d < 0 || d > 24*time.Hour {
		p.add(fmt.Sprintf("upstream %s: passive_health_check %s = %v is no duration of at most a day; the default is used", up.DestinationName, snake, v))
		return 0
	}
	return d
}
