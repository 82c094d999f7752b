package consensus

import (
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
)

// diskMetrics tell how the disk under the log is, and what was made of it.
type diskMetrics struct {
	probe, write, install              prometheus.Histogram
	hung, low, free                    prometheus.Gauge
	heartbeat, trailing, stuckFollower prometheus.Gauge
}

func newDiskMetrics() *diskMetrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0001, 2, 20)})
	}
	return &diskMetrics{
		probe:         histogram("weft_disk_probe_seconds", "Time of a small write and sync in the data directory, tried twice a second."),
		write:         histogram("weft_raft_log_write_seconds", "Time of a write to the Raft log file, sync included."),
		install:       histogram("weft_raft_install_seconds", "Time to bring a backup of the state to a server that lagged too far."),
		hung:          gauge("weft_disk_hung", "1 while the disk of the data directory does not finish writes, or is full: this server does not lead then."),
		low:           gauge("weft_disk_low", "1 while there is too little space for new writes."),
		free:          gauge("weft_disk_free_bytes", "Free space for the data directory, without the reserve."),
		heartbeat:     gauge("weft_raft_heartbeat_timeout_seconds", "Silence after which this server doubts its leader; longer while the host runs late."),
		trailing:      gauge("weft_raft_trailing_logs", "Log entries that are kept after a backup; more where sending a backup takes long."),
		stuckFollower: gauge("weft_raft_followers_stuck", "Servers that answer this leader's heartbeats and take no log entries."),
	}
}

// collectors are all of them, those of the log file included.
func (m *diskMetrics) collectors(d *disk) []prometheus.Collector {
	out := []prometheus.Collector{m.probe, m.write, m.install, m.hung, m.low, m.free, m.heartbeat, m.trailing, m.stuckFollower}
	if d.bolt == nil {
		return out
	}
	of := func(name, help string, get func(s bbolt.Stats) float64) {
		out = append(out, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return get(d.bolt.Stats()) }))
	}
	of("consul_raft_boltdb_numFreePages", "Free pages in the Raft log file.", func(s bbolt.Stats) float64 { return float64(s.FreePageN) })
	of("consul_raft_boltdb_freelistBytes", "Size of the list of free pages.", func(s bbolt.Stats) float64 { return float64(s.FreelistInuse) })
	return append(out, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "consul_raft_boltdb_logSize", Help: "Size of the Raft log file in bytes. It shrinks at a start only.",
	}, func() float64 {
		info, err := os.Stat(d.file())
		if err != nil {
			return 0
		}
		return float64(info.Size())
	}))
}
