package agent

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
)

// hostMetrics tells of the process and of who is alive, in Consul's names, which
// dashboards made for Consul look for.
type hostMetrics struct {
	version string
	members func() []catalog.Member
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("consul_"+name, help, labels, nil)
}

var (
	versionDesc    = describe("version", "Always 1; the label says which version runs.", "version")
	goroutinesDesc = describe("runtime_num_goroutines", "Goroutines.")
	allocDesc      = describe("runtime_alloc_bytes", "Bytes in use on the heap.")
	sysDesc        = describe("runtime_sys_bytes", "Bytes obtained from the operating system.")
	mallocDesc     = describe("runtime_malloc_count", "Objects allocated since the start.")
	freeDesc       = describe("runtime_free_count", "Objects freed since the start.")
	objectsDesc    = describe("runtime_heap_objects", "Objects on the heap.")
	gcPauseDesc    = describe("runtime_total_gc_pause_ns", "Nanoseconds that garbage collection stopped the process since the start.")
	gcRunsDesc     = describe("runtime_total_gc_runs", "Runs of the garbage collection since the start.")
	serversDesc    = describe("members_servers", "Servers alive in the gossip pool of this datacenter.")
	clientsDesc    = describe("members_clients", "Agents without a server alive in the gossip pool of this datacenter.")
)

// Describe implements prometheus.Collector.
func (hostMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		versionDesc, goroutinesDesc, allocDesc, sysDesc, mallocDesc, freeDesc, objectsDesc,
		gcPauseDesc, gcRunsDesc, serversDesc, clientsDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m hostMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	gauge(versionDesc, 1, m.version)
	gauge(goroutinesDesc, float64(runtime.NumGoroutine()))
	gauge(allocDesc, float64(mem.Alloc))
	gauge(sysDesc, float64(mem.Sys))
	gauge(mallocDesc, float64(mem.Mallocs))
	gauge(freeDesc, float64(mem.Frees))
	gauge(objectsDesc, float64(mem.HeapObjects))
	gauge(gcPauseDesc, float64(mem.PauseTotalNs))
	gauge(gcRunsDesc, float64(mem.NumGC))
	if m.members == nil {
		return
	}
	servers, clients := 0, 0
	for _, member := range m.members() {
		switch {
		case member.Status != catalog.MemberAlive:
		case member.Tags["role"] == "consul":
			servers++
		default:
			clients++
		}
	}
	gauge(serversDesc, float64(servers))
	gauge(clientsDesc, float64(clients))
}
