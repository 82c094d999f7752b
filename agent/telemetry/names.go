package telemetry

import (
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// DefaultPrefix begins the names of metrics that mean what Consul's do.
const DefaultPrefix = "consul"

// underscored are the metrics of Consul with an underscore that stands for itself.
var underscored = map[string]string{
	"consul_cache_fetch_success": "consul.cache.fetch_success", "consul_runtime_num_goroutines": "consul.runtime.num_goroutines",
	"consul_runtime_alloc_bytes": "consul.runtime.alloc_bytes", "consul_runtime_sys_bytes": "consul.runtime.sys_bytes",
	"consul_runtime_malloc_count": "consul.runtime.malloc_count", "consul_runtime_free_count": "consul.runtime.free_count",
	"consul_runtime_heap_objects": "consul.runtime.heap_objects", "consul_runtime_total_gc_pause_ns": "consul.runtime.total_gc_pause_ns",
	"consul_runtime_total_gc_runs": "consul.runtime.total_gc_runs", "consul_state_service_instances": "consul.state.service_instances",
	"consul_rpc_rate_limit_exceeded": "consul.rpc.rate_limit.exceeded", "consul_rpc_rate_limit_log_dropped": "consul.rpc.rate_limit.log_dropped",
	"consul_state_connect_instances": "consul.state.connect_instances", "consul_state_config_entries": "consul.state.config_entries",
}

// Names gives metrics their names; the zero value gives Consul's.
type Names struct {
	// Prefix is in the place of "consul", with which they begin. Empty: that.
	Prefix string
}

// Dotted is the name of a metric as Consul's JSON and statsd have it: in parts, with
// dots. Metrics that Consul does not have keep theirs.
func (n Names) Dotted(name string) string {
	dotted, ok := underscored[name]
	if !ok {
		if !strings.HasPrefix(name, DefaultPrefix+"_") {
			return name
		}
		dotted = strings.ReplaceAll(name, "_", ".")
	}
	if n.Prefix != "" {
		dotted = n.Prefix + dotted[len(DefaultPrefix):]
	}
	return dotted
}

// Rename gives families, which the caller owns, the names that Prometheus is shown.
func (n Names) Rename(families []*dto.MetricFamily) {
	if n.Prefix == "" || n.Prefix == DefaultPrefix {
		return
	}
	for _, f := range families {
		if rest, ok := strings.CutPrefix(f.GetName(), DefaultPrefix+"_"); ok {
			name := strings.ReplaceAll(n.Prefix, ".", "_") + "_" + rest
			f.Name = &name
		}
	}
}

// Rules say which metrics there are to see: of the prefixes of a dotted name the
// longest decides, and Default where there is none.
type Rules struct {
	Default bool
	// Prefixes begin with + for what is shown and - for what is not.
	Prefixes []string
}

// Validate refuses prefixes that do not say which of both they are.
func (r Rules) Validate() error {
	for _, p := range r.Prefixes {
		if len(p) < 2 || p[0] != '+' && p[0] != '-' {
			return fmt.Errorf("%q must begin with + for metrics to show, or - for those to leave out", p)
		}
	}
	return nil
}

// Shows tells whether a metric of this dotted name is shown. Of two equal prefixes
// the one that leaves out wins.
func (r Rules) Shows(dotted string) bool {
	longest, shown := 0, r.Default
	for _, p := range r.Prefixes {
		switch n := len(p) - 1; {
		case !strings.HasPrefix(dotted, p[1:]) || n < longest:
		case n > longest:
			longest, shown = n, p[0] == '+'
		default:
			shown = shown && p[0] == '+'
		}
	}
	return shown
}

// Filter leaves out of what g gathers all that the rules do not show.
func Filter(g prometheus.Gatherer, n Names, r Rules) prometheus.Gatherer {
	if r.Default && len(r.Prefixes) == 0 {
		return g
	}
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		all, err := g.Gather()
		out := make([]*dto.MetricFamily, 0, len(all))
		for _, f := range all {
			if r.Shows(n.Dotted(f.GetName())) {
				out = append(out, f)
			}
		}
		return out, err
	})
}
