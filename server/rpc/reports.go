package rpc

import (
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

const (
	// reportTTL is for how long a report counts: agents repeat theirs well within it. A
	// sequence begins with the agent's clock in nanoseconds, and two that are farther apart
	// say that the clock was set in between, not which report is the newer.
	reportTTL = 30 * time.Second
	// maxReporters and maxReported bound the hosts that report here and the proxies of each.
	maxReporters = 1 << 16
	maxReported  = 4096
)

// reports are what agents said last. They are lost with the process and come back
// within one heartbeat.
type reports struct {
	now func() time.Time

	mu      sync.Mutex
	swept   time.Time // when reports that count no more were forgotten last
	nodes   map[string]*nodeReport
	changed chan struct{} // closed at the next report that brings news
}

type nodeReport struct {
	heard   time.Time
	seq     uint64
	proxies []wire.ProxyReport
}

func newReports(now func() time.Time) *reports {
	return &reports{now: now, nodes: map[string]*nodeReport{}, changed: make(chan struct{})}
}

func (r *reports) put(req *wire.ReportRequest) error {
	switch {
	case req.Node == "":
		return catalog.Invalidf("report: it names no node")
	case len(req.Proxies) > maxReported:
		return catalog.Invalidf("report of node %s: %d proxies, at most %d are taken", req.Node, len(req.Proxies), maxReported)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if now.Sub(r.swept) > reportTTL { // hosts that came once must not be kept for ever
		r.sweep(now)
	}
	old := r.nodes[req.Node]
	if old == nil && len(r.nodes) >= maxReporters {
		r.sweep(now)
		if len(r.nodes) >= maxReporters {
			return catalog.Invalidf("report of node %s: %d hosts report to this server already, the most allowed", req.Node, len(r.nodes))
		}
	}
	if old != nil && now.Sub(old.heard) <= reportTTL && old.seq > req.Seq && old.seq-req.Seq <= uint64(reportTTL) {
		return nil // it was overtaken
	}
	r.nodes[req.Node] = &nodeReport{heard: now, seq: req.Seq, proxies: req.Proxies}
	close(r.changed)
	r.changed = make(chan struct{})
	return nil
}

func (r *reports) sweep(now time.Time) {
	r.swept = now
	for node, rep := range r.nodes {
		if now.Sub(rep.heard) > reportTTL {
			delete(r.nodes, node)
		}
	}
}

// list gives the reports that count, and a channel that is closed when there is news.
func (r *reports) list() ([]wire.NodeReport, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	r.sweep(now)
	out := make([]wire.NodeReport, 0, len(r.nodes))
	for node, rep := range r.nodes {
		out = append(out, wire.NodeReport{Node: node, Seq: rep.seq, Age: now.Sub(rep.heard), Proxies: rep.proxies})
	}
	return out, r.changed
}
