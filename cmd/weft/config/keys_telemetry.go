package config

import (
	"net"
	"strconv"
	"strings"

	"github.com/weftmesh/weft/agent/telemetry"
)

// Telemetry is where metrics go and what they are called.
type Telemetry struct {
	Prefix          string   `key:"telemetry.metrics_prefix"`
	DisableHostname bool     `key:"telemetry.disable_hostname"`
	Statsd          string   `key:"telemetry.statsd_address"`
	DogStatsd       string   `key:"telemetry.dogstatsd_addr"`
	DogStatsdTags   []string `key:"telemetry.dogstatsd_tags"`
	FilterDefault   bool     `key:"telemetry.filter_default"`
	PrefixFilter    []string `key:"telemetry.prefix_filter"`
	RetryFailed     bool     `key:"telemetry.retry_failed_connection"`
}

func defaultTelemetry() Telemetry {
	return Telemetry{Prefix: telemetry.DefaultPrefix, FilterDefault: true, RetryFailed: true}
}

func telemetryKeys() []Key {
	keys := with(Effective, "",
		Key{Name: "telemetry.metrics_prefix", Type: String, Default: "consul", Doc: "The first part of the names of metrics that Consul has, too. Those of weft alone begin with weft."},
		Key{Name: "telemetry.disable_hostname", Type: Bool, Default: "false", Doc: "Leave the host name out of the names of gauges that go to statsd."},
		Key{Name: "telemetry.statsd_address", Type: String, Doc: "Where metrics go as statsd: host:port of UDP. They go every 10 s: of counters what they gained, of times their number and mean."},
		Key{Name: "telemetry.dogstatsd_addr", Type: String, Doc: "Where metrics go as dogstatsd, with labels as tags: host:port of UDP."},
		Key{Name: "telemetry.dogstatsd_tags", Type: StringList, Doc: "Tags of all metrics in dogstatsd, each key:value."},
		Key{Name: "telemetry.filter_default", Type: Bool, Default: "true", Doc: "Whether metrics are shown and sent that no prefix_filter names."},
		Key{Name: "telemetry.prefix_filter", Type: StringList, Doc: "Prefixes of metrics to keep (+consul.raft) or drop (-consul.http); the longest that fits decides. They hold for all ways out, /v1/agent/metrics included."},
		Key{Name: "telemetry.retry_failed_connection", Type: Bool, Default: "true", Doc: "Start although the address of statsd or dogstatsd cannot be resolved, and try again."},
	)
	return append(keys, with(Ignored, "",
		Key{Name: "telemetry.prometheus_retention_time", Type: Duration, Default: "0s", Doc: "How long a series is kept that nobody updates.", Note: "metrics are always there for Prometheus, and kept while the agent runs"},
		Key{Name: "telemetry.disable_per_tenancy_usage_metrics", Type: Bool, Default: "false", Doc: "Has a meaning with namespaces only.", Note: "there is one tenancy"},
		Key{Name: "telemetry.enable_host_metrics", Type: Bool, Default: "false", Anyway: "false", Doc: "Report CPU, memory and disks of the host.", Note: "metrics are those of weft itself; run an exporter for the host's"},
	)...)
}

func (c *Config) validateTelemetry() error {
	t := c.Telemetry
	for key, addr := range map[string]string{"telemetry.statsd_address": t.Statsd, "telemetry.dogstatsd_addr": t.DogStatsd} {
		if addr == "" {
			continue
		}
		host, port, err := net.SplitHostPort(addr)
		if n, bad := strconv.Atoi(port); err != nil || host == "" || bad != nil || n < 1 || n > 65535 {
			return c.problem(key, "%q is not host:port", addr)
		}
	}
	if err := c.MetricRules().Validate(); err != nil {
		return c.problem("telemetry.prefix_filter", "%v", err)
	}
	if t.Prefix == "" || strings.Trim(t.Prefix, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
		return c.problem("telemetry.metrics_prefix", "%q is not a name: use letters, digits, dots, dashes and underscores", t.Prefix)
	}
	if len(t.DogStatsdTags) > 0 && t.DogStatsd == "" {
		c.Warnings = append(c.Warnings, "telemetry.dogstatsd_tags has no effect without telemetry.dogstatsd_addr")
	}
	return nil
}

// MetricNames are how metrics are called.
func (c *Config) MetricNames() telemetry.Names { return telemetry.Names{Prefix: c.Telemetry.Prefix} }

// MetricRules say which metrics are shown and sent.
func (c *Config) MetricRules() telemetry.Rules {
	return telemetry.Rules{Default: c.Telemetry.FilterDefault, Prefixes: c.Telemetry.PrefixFilter}
}
