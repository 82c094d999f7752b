package sidecar

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect"
)

// Ledger is where the processes of an agent write down what they carry still when
// another one takes over, so that it is known whether they answer or not.
type Ledger interface {
	// Carry notes the proxies whose connections this process carries, and their services.
	Carry(proxies map[string]catalog.Name) error
	// Ended notes that it carries nothing of a proxy any more.
	Ended(proxyID string)
	// Others gives what the other processes carry that are alive, by process; one that has
	// noted the end of all is among them.
	Others() map[int]map[string]catalog.Name
	// Alive tells whether a process of this host has not ended.
	Alive(pid int) bool
}

// Carried is what a process that drains says of a proxy.
type Carried struct {
	Peers []connect.PeerStatus `json:",omitempty"`
	// Applied is the index of the newest snapshot heard from this process that it
	// enforces; 0: of none.
	Applied uint64 `json:",omitempty"`
}

// drainer is a proxy in a process that drains.
type drainer struct {
	Carried
	inForce basis
	service catalog.Name
	told    bool // it has said what it enforces: it is of a version that does
	lost    bool // it is not heard any more
	booked  bool // the ledger has had its process
}

// maxDrainers bounds the processes that are known to drain one proxy.
const maxDrainers = 16

// Draining notes what an earlier process of this agent says of a proxy; nil: it is not
// heard any more.
func (m *Manager) Draining(proxyID string, pid int, said *Carried) {
	m.mu.Lock()
	defer m.mu.Unlock()
	by := m.draining[proxyID]
	d := by[pid]
	switch {
	case said == nil:
		if d != nil && d.told && m.cfg.Ledger != nil && m.cfg.Reporter != nil {
			d.Carried, d.lost = Carried{}, true // until it is looked at
		} else {
			m.forget(proxyID, pid)
		}
		m.cfg.news()
		return
	case d == nil && len(by) >= maxDrainers:
		return
	case d == nil:
		d = &drainer{}
		if by == nil {
			by = map[int]*drainer{}
			m.draining[proxyID] = by
		}
		by[pid] = d
	}
	before := d.inForce
	d.Carried, d.lost = *said, false
	d.told = d.told || d.Applied > 0
	if s := m.running[proxyID]; s != nil {
		d.service = cmp.Or(d.service, s.service)
	}
	if m.running[proxyID].inStep(d); d.inForce != before {
		m.cfg.news()
	}
}

// keepTallies is for how long what a process has counted is shown after it said so last:
// its end may be between two looks of who collects metrics.
const keepTallies = 5 * time.Minute

// Counts is what the proxies that this process runs have counted until now.
func (m *Manager) Counts() connect.Counts { return m.cfg.Metrics.Counts() }

// Counted takes what an earlier process of this agent has counted until now.
func (m *Manager) Counted(pid int, counts *connect.Counts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropTallies()
	t, known := m.tallies[pid]
	if !known && len(m.tallies) >= maxDrainers {
		return
	}
	t.add(counts)
	if m.tallies == nil {
		m.tallies = map[int]tally{}
	}
	m.tallies[pid] = t
}

// dropTallies forgets the processes that ended a while ago; m.mu is held.
func (m *Manager) dropTallies() {
	maps.DeleteFunc(m.tallies, func(_ int, t tally) bool { return time.Since(t.counted) > keepTallies })
}

// forget drops what a process said of a proxy; m.mu is held.
func (m *Manager) forget(proxyID string, pid int) {
	by := m.draining[proxyID]
	if delete(by, pid); len(by) == 0 {
		delete(m.draining, proxyID)
	}
}

// unbooked gives what processes carry of which others, the ledger, knows nothing, since it
// could not be written: those that have said what they enforce, until they end. m.mu is held.
func (m *Manager) unbooked(others map[int]map[string]catalog.Name) map[int]map[string]catalog.Name {
	if m.cfg.Ledger == nil || m.gaveUp {
		return nil
	}
	out := map[int]map[string]catalog.Name{}
	for id, by := range m.draining {
		for pid, d := range by {
			_, booked := others[pid]
			ended := d.booked && !booked // a process that nobody has waited for looks alive
			d.booked = d.booked || booked
			switch {
			case ended, d.lost && (booked || !m.cfg.Ledger.Alive(pid)):
				m.forget(id, pid)
			case !booked && d.told && d.service != "":
				if out[pid] == nil {
					out[pid] = map[string]catalog.Name{}
				}
				out[pid][id] = d.service
			}
		}
	}
	return out
}

// inStep notes that a drainer enforces what the proxy here is to enforce, where it does.
func (s *sidecar) inStep(d *drainer) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := &s.progress; p.made > 0 && d.Applied >= p.made {
		d.inForce = p.of
	}
}

// drained lists what earlier processes carry for a proxy; m.mu is held.
func (m *Manager) drained(proxyID string) []connect.DrainerStatus {
	var out []connect.DrainerStatus
	for _, pid := range slices.Sorted(maps.Keys(m.draining[proxyID])) {
		if peers := m.draining[proxyID][pid].Peers; len(peers) > 0 {
			out = append(out, connect.DrainerStatus{PID: pid, Peers: peers})
		}
	}
	return out
}

// maxReported is how many proxies servers take in a report.
const maxReported = 4096

// others gives what other processes carry. It reads files, which may hang, and so not
// with m.mu: who asks whether this agent is alive waits for that.
func (m *Manager) others() map[int]map[string]catalog.Name {
	m.mu.Lock()
	gaveUp := m.gaveUp
	m.mu.Unlock()
	if m.cfg.Ledger == nil || gaveUp {
		return nil
	}
	return m.cfg.Ledger.Others()
}

// enforced lists what each proxy of this host enforces. What drains, here and in the other
// processes, is listed beside its proxy where it does not enforce the same; behind tells
// whether anything is.
func (m *Manager) enforced(others map[int]map[string]catalog.Name) (out []wire.ProxyReport, behind bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	own := map[string]int{}
	for id, s := range m.running {
		own[id] = len(out)
		out = append(out, s.enforces())
	}
	add := func(name string, r wire.ProxyReport) {
		i, there := own[r.ID]
		if there && out[i].Service == r.Service && covers(r, out[i]) {
			return
		}
		behind = true
		if j, taken := own[name]; taken {
			i, there = j, true
		} else if len(out) < maxReported {
			own[name] = len(out)
			r.ID = name
			out = append(out, r)
			return
		}
		if there { // no place to name it
			out[i].Intentions, out[i].Roots, out[i].Epoch = r.Intentions, r.Roots, r.Epoch
		}
	}
	for s := range m.alive {
		switch {
		case m.running[s.id] == s || s.external:
		case m.running[s.id] == nil:
			add(s.id, s.enforces())
		default:
			add(s.id+" (draining)", s.enforces())
		}
	}
	for _, known := range []map[int]map[string]catalog.Name{m.unbooked(others), others} {
		for pid, carried := range known {
			for id, service := range carried {
				add(fmt.Sprintf("%s (draining in process %d)", id, pid), m.drains(id, service, pid))
			}
		}
	}
	return out, behind
}

// drains says what a process enforces of a proxy that it carries; m.mu is held.
func (m *Manager) drains(id string, service catalog.Name, pid int) wire.ProxyReport {
	d := m.draining[id][pid]
	if d == nil {
		d = &drainer{} // it has not said anything
	}
	if s := m.running[id]; s != nil && s.service == service {
		s.inStep(d)
	}
	return d.inForce.report(id, service)
}

// covers tells whether a enforces all that b does.
func covers(a, b wire.ProxyReport) bool {
	return a.Epoch == b.Epoch && a.Intentions >= b.Intentions && a.Roots >= b.Roots
}

func (b basis) report(id string, service catalog.Name) wire.ProxyReport {
	return wire.ProxyReport{ID: id, Service: service, Intentions: b.intentions, Roots: b.roots, Epoch: b.epoch}
}
