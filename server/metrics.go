package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
)

// stateMetrics tells how much the catalog holds, in Consul's names. The labels are
// kinds of services and of config entries: closed sets.
type stateMetrics struct{ counts func() store.Counts }

var (
	nodesDesc     = prometheus.NewDesc("consul_state_nodes", "Nodes in the catalog.", nil, nil)
	servicesDesc  = prometheus.NewDesc("consul_state_services", "Service names in the catalog.", nil, nil)
	instancesDesc = prometheus.NewDesc("consul_state_service_instances", "Instances of services in the catalog.", nil, nil)
	meshDesc      = prometheus.NewDesc("consul_state_connect_instances", "Instances that take part in the mesh.", []string{"kind"}, nil)
	entriesDesc   = prometheus.NewDesc("consul_state_config_entries", "Config entries.", []string{"kind"}, nil)
)

// Describe implements prometheus.Collector.
func (stateMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{nodesDesc, servicesDesc, instancesDesc, meshDesc, entriesDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m stateMetrics) Collect(ch chan<- prometheus.Metric) {
	c := m.counts()
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	gauge(nodesDesc, c.Nodes)
	gauge(servicesDesc, c.Services)
	gauge(instancesDesc, c.Instances)
	for _, k := range []catalog.ServiceKind{
		catalog.KindConnectProxy, catalog.KindMeshGateway, catalog.KindTerminatingGateway,
		catalog.KindIngressGateway, catalog.KindAPIGateway, "connect-native",
	} {
		gauge(meshDesc, c.Mesh[string(k)], string(k))
	}
	for kind, n := range c.Entries {
		gauge(entriesDesc, n, kind)
	}
}
