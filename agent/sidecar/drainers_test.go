package sidecar

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect"
)

// reported keeps the last report.
type reported struct {
	mu   sync.Mutex
	last map[string]wire.ProxyReport
}

func (r *reported) Report(_ context.Context, req *wire.ReportRequest) (*wire.ReportReply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = map[string]wire.ProxyReport{}
	for _, p := range req.Proxies {
		r.last[p.ID] = p
	}
	return &wire.ReportReply{}, nil
}

// enforce tells whether everything reported enforces the intentions of an index, and
// how many are reported.
func (r *reported) enforce(index uint64) (bool, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.last {
		if p.Intentions < index {
			return false, len(r.last)
		}
	}
	return true, len(r.last)
}

// pages is a ledger of two processes, of which one writes and one reads.
type pages struct {
	mu      sync.Mutex
	writer  bool
	full    bool // nothing can be written
	alive   bool // the old process lives
	carried map[string]catalog.Name
	shared  *pages
}

const oldPID = 7

func (p *pages) Carry(proxies map[string]catalog.Name) error {
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	if p.shared.full {
		return syscall.ENOSPC
	}
	p.shared.carried = proxies
	return nil
}

func (p *pages) Ended(id string) {
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	delete(p.shared.carried, id)
}

func (p *pages) Others() map[int]map[string]catalog.Name {
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	if p.writer || p.shared.carried == nil {
		return nil
	}
	return map[int]map[string]catalog.Name{oldPID: maps.Clone(p.shared.carried)}
}

func (p *pages) Alive(pid int) bool {
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	return pid == oldPID && p.shared.alive
}

// heeding is a proxy that can be kept from what it is to enforce, and carries a
// connection until over is closed.
type heeding struct {
	fakeProxy
	stuck, over chan struct{}
}

func (p *heeding) Run(_ context.Context, src catalog.Watch[*connect.Snapshot]) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-p.over; cancel() }()
	return p.fakeProxy.Run(ctx, slowly{src, p.stuck})
}

// slowly gives nothing new while stuck is taken.
type slowly struct {
	src   catalog.Watch[*connect.Snapshot]
	stuck chan struct{}
}

func (s slowly) Next(ctx context.Context, after uint64) (*connect.Snapshot, uint64, error) {
	snap, index, err := s.src.Next(ctx, after)
	s.stuck <- struct{}{}
	<-s.stuck
	return snap, index, err
}

// beside is the Feed of a process that lives beside this one and can stop to hear it.
type beside struct {
	m    *Manager
	deaf chan struct{} // what the old process says waits while this is taken
}

func (b beside) Follow(ctx context.Context, id string, carried func(context.Context) Carried, take func(Fed)) {
	var wg sync.WaitGroup
	defer b.m.Draining(id, oldPID, nil)
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, after := b.m.Snapshot(id), uint64(0)
	for {
		snap, index, err := watch.Next(ctx, after)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, catalog.ErrNotFound) {
			take(Fed{Gone: true})
			return
		}
		take(Fed{Snapshot: snap, Listens: true, Anew: after == 0})
		if after == 0 {
			wg.Go(func() {
				for said := carried(ctx); ctx.Err() == nil; said = carried(ctx) {
					b.deaf <- struct{}{}
					b.m.Draining(id, oldPID, &said)
					<-b.deaf
				}
			})
		}
		after = index
	}
}

// TestReportWaitsForDrainers: what a host is said to enforce is what the process before
// enforces, too, for as long as that carries connections.
func TestReportWaitsForDrainers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ledger, report := &pages{}, &reported{}
		written := &pages{writer: true, shared: ledger}
		stuck, deaf, end := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
		drainer := newRig(t, "", func(cfg *Config) {
			cfg.Ledger = written
			cfg.start = func(pc connect.ProxyConfig) (proxy, error) {
				return &heeding{fakeProxy{cfg: pc}, stuck, end}, nil
			}
		})
		next := newRig(t, "", func(cfg *Config) {
			cfg.Ledger, cfg.Reporter, cfg.Node = &pages{shared: ledger}, report, "here"
		})
		deny := func(source string) uint64 {
			next.views.setIntentions("web", &catalog.Intention{SourceName: source, DestinationName: "web", Action: catalog.ActionDeny})
			return next.views.next
		}
		for _, r := range []*rig{drainer, next} {
			r.setHost(sidecarService())
			r.views.setRoots("R1")
			r.views.setIntentions("web")
		}
		time.Sleep(2 * time.Second)
		drainer.m.GiveUp()
		drained := make(chan struct{})
		expect := func(what string, index uint64, enforced bool, entries int) {
			t.Helper()
			time.Sleep(2 * reportBehind)
			if is, n := report.enforce(index); is != enforced || n != entries {
				t.Errorf("%s: enforced %v by %d: %+v", what, is, n, report.last)
			}
		}
		first := deny("a")
		expect("the old process has not been heard", first, false, 2)
		go func() { defer close(drained); drainer.m.Drain(t.Context(), beside{next.m, deaf}, time.Hour) }()
		expect("the old process follows", first, true, 1)

		stuck <- struct{}{} // its proxy does not take what comes
		second := deny("b")
		expect("its proxy is behind", second, false, 2)
		report.mu.Lock()
		p := report.last["web-sidecar-proxy (draining in process 7)"]
		report.mu.Unlock()
		if p.Intentions != first || p.Service != "web" {
			t.Errorf("the old process is not named: %+v", report.last)
		}
		<-stuck
		expect("its proxy has caught up", second, true, 1)

		deaf <- struct{}{} // it is frozen
		third := deny("c")
		expect("it does not answer", third, false, 2)
		written.Ended("web-sidecar-proxy") // as when it is killed
		expect("it is gone", third, true, 1)
		<-deaf
		close(end)
		<-drained
		drainer.stop()
		next.stop()
	})
}

// TestReportNamesWhatDrainsHere: a proxy that was deregistered is reported until the
// last of its connections has ended.
func TestReportNamesWhatDrainsHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := &reported{}
		r := newRig(t, "", func(cfg *Config) {
			cfg.Reporter, cfg.Node = report, "here"
			cfg.start = func(pc connect.ProxyConfig) (proxy, error) {
				return &fakeProxy{cfg: pc, drain: time.Minute}, nil
			}
		})
		r.setHost(sidecarService())
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		time.Sleep(time.Second)
		r.setHost()
		time.Sleep(time.Second)
		if _, n := report.enforce(0); n != 1 {
			t.Errorf("%d are reported while it drains", n)
		}
		time.Sleep(time.Minute)
		if _, n := report.enforce(0); n != 0 {
			t.Errorf("%d are reported once it has drained", n)
		}
	})
}

// hung is a ledger on a disk that does not answer.
type hung struct{ busy, answer chan struct{} }

func (h hung) wait() {
	select {
	case h.busy <- struct{}{}:
	default:
	}
	<-h.answer
}

func (h hung) Carry(map[string]catalog.Name) error { h.wait(); return nil }
func (h hung) Ended(string)                        { h.wait() }

func (h hung) Others() map[int]map[string]catalog.Name { h.wait(); return nil }
func (h hung) Alive(int) bool                          { return true }

// TestStatusWhileTheDiskHangs: the proxies can be asked how they fare, as the watchdog
// does, while what other processes carry cannot be read or written.
func TestStatusWhileTheDiskHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, end := hung{make(chan struct{}, 1), make(chan struct{})}, make(chan struct{})
		r := newRig(t, "", func(cfg *Config) {
			cfg.Ledger, cfg.Reporter, cfg.Node = disk, &reported{}, "here"
			cfg.start = func(pc connect.ProxyConfig) (proxy, error) {
				return &heeding{fakeProxy{cfg: pc}, make(chan struct{}, 1), end}, nil
			}
		})
		r.setHost(sidecarService())
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		<-disk.busy
		synctest.Wait() // the proxy is there
		r.m.Status()
		given := make(chan struct{})
		go func() { defer close(given); r.m.GiveUp() }()
		<-disk.busy
		r.m.Status()
		disk.answer <- struct{}{} // one of the two
		disk.answer <- struct{}{}
		<-given
		r.m.end(r.m.running["web-sidecar-proxy"], errStopped)
		close(end)
		<-disk.busy
		r.m.Status()
		close(disk.answer)
		r.stop()
	})
}

// TestReportWaitsWithoutALedger: a process that could not write down what it carries is
// waited for from when it has said what it enforces until it ends.
func TestReportWaitsWithoutALedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ledger, report, deaf, end := &pages{full: true, alive: true}, &reported{}, make(chan struct{}, 1), make(chan struct{})
		drainer := newRig(t, "", func(cfg *Config) {
			cfg.Ledger = &pages{writer: true, shared: ledger}
			cfg.start = func(pc connect.ProxyConfig) (proxy, error) {
				return &heeding{fakeProxy{cfg: pc}, make(chan struct{}, 1), end}, nil
			}
		})
		next := newRig(t, "", func(cfg *Config) {
			cfg.Ledger, cfg.Reporter, cfg.Node = &pages{shared: ledger}, report, "here"
		})
		for _, r := range []*rig{drainer, next} {
			r.setHost(sidecarService())
			r.views.setRoots("R1")
			r.views.setIntentions("web")
		}
		expect := func(what string, enforced bool) {
			t.Helper()
			time.Sleep(2 * reportEvery)
			if is, _ := report.enforce(next.views.next); is != enforced {
				t.Errorf("%s: enforced %v: %+v", what, is, report.last)
			}
		}
		time.Sleep(time.Second)
		drainer.m.GiveUp()
		drained := make(chan struct{})
		go func() { defer close(drained); drainer.m.Drain(t.Context(), beside{next.m, deaf}, time.Hour) }()
		expect("it follows", true)
		deaf <- struct{}{} // it is frozen
		time.Sleep(2 * tellEvery)
		next.views.setIntentions("web", &catalog.Intention{SourceName: "a", DestinationName: "web", Action: catalog.ActionDeny})
		expect("it does not answer", false)
		next.m.Draining("web-sidecar-proxy", oldPID, nil)
		expect("nor is it heard", false)
		ledger.mu.Lock()
		ledger.alive = false
		ledger.mu.Unlock()
		expect("it is gone", true)
		<-deaf
		close(end)
		<-drained
		drainer.stop()
		next.stop()
	})
}

// TestDrainedCounts: what an earlier process has counted is shown for a while after its end,
// its gauges are not, and there are no more of such processes than may drain.
func TestDrainedCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		reg := prometheus.NewRegistry()
		reg.MustRegister(r.m)
		tell := func(pid, value int) {
			text := fmt.Sprintf(`{"Began":%q,"Number":%d,"Series":{"weft_proxy_connections_open":[{"Labels":["inbound","web","db"],"Value":%[2]d}],
				"weft_proxy_applied_index":[{"Labels":["p"],"Value":3}],
				"weft_proxy_connections_total":[{"Labels":["inbound","web","db","ok"],"Value":%[2]d}]}}`, time.Now().Format(time.RFC3339Nano), value)
			c, err := connect.ReadCounts([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			r.m.Counted(pid, c)
		}
		shown := func() (out []string) {
			families, err := reg.Gather()
			if err != nil {
				t.Error(err)
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					for _, l := range m.GetLabel() {
						if l.GetName() == "process" {
							out = append(out, fmt.Sprint(l.GetValue(), ":", f.GetType(), ":", m.GetGauge().GetValue()+m.GetCounter().GetValue()))
						}
					}
				}
			}
			return out
		}
		tell(7, 5)
		if got := fmt.Sprint(shown()); got != "[7:GAUGE:5 7:COUNTER:5]" {
			t.Error(got)
		}
		time.Sleep(silentAfter + time.Second)
		if got := fmt.Sprint(shown()); got != "[7:COUNTER:5]" {
			t.Error("once it is silent: ", got)
		}
		for pid := range 2 * maxDrainers {
			tell(100+pid, 1)
		}
		if n := len(shown()); n != 1+2*(maxDrainers-1) {
			t.Errorf("%d series of many processes", n)
		}
		time.Sleep(keepTallies + time.Second)
		if got := shown(); len(got) > 0 {
			t.Error("long after their end: ", got)
		}
		r.stop()
	})
}
