//go:build faults

package faults_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"go.etcd.io/bbolt"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// measure is one thing of a process that must not grow.
type measure struct {
	name  string
	slack float64 // that is no growth, whatever the mean
	of    func(n *proc.Node) (float64, error)
}

const mib = 1 << 20

var measures = []measure{
	{"resident MiB", 12, func(n *proc.Node) (float64, error) { return fromStatus(n, "RssAnon:") }},
	{"descriptors", 12, func(n *proc.Node) (float64, error) {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.PID()))
		return float64(len(entries)), err
	}},
	{"goroutines", 25, func(n *proc.Node) (float64, error) { return gauge(n, "consul_runtime_num_goroutines") }},
	{"metric series", 20, func(n *proc.Node) (float64, error) {
		all, err := seriesOf(n)
		return float64(len(all)), err
	}},
	{"disk MiB", 6, func(n *proc.Node) (float64, error) { return onDisk(n.Dir) }},
}

func fromStatus(n *proc.Node, field string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID()))
	_, rest, _ := strings.Cut(string(b), field)
	var kib float64
	if err == nil {
		_, err = fmt.Sscan(rest, &kib)
	}
	return kib / 1024, err
}

func gauge(n *proc.Node, name string) (float64, error) {
	_, text, err := n.Get("/v1/agent/metrics?format=prometheus")
	_, rest, ok := strings.Cut(text, "\n"+name+" ")
	if err == nil && !ok {
		err = errors.New("no metric " + name)
	}
	var v float64
	if err == nil {
		_, err = fmt.Sscan(rest, &v)
	}
	return v, err
}

// onDisk is what the files of a directory take, in MiB. What goes away meanwhile counts
// for nothing.
func onDisk(dir string) (sum float64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				sum += float64(info.Size()) / mib
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return sum, err
}

// series is one measure of one process over the hours.
type series struct{ at, is []float64 }

// fit is the straight line through the series: what grows in the whole of it, and the mean.
func (s *series) fit() (growth, mean float64) {
	n := float64(len(s.at))
	var x, y, xx, xy float64
	for i, at := range s.at {
		x, y, xx, xy = x+at, y+s.is[i], xx+at*at, xy+at*s.is[i]
	}
	if d := n*xx - x*x; d > 0 {
		growth = (n*xy - x*y) / d * (s.at[len(s.at)-1] - s.at[0])
	}
	return growth, y / n
}

// mixture is load of all kinds on a cluster whose live state stays the same.
type mixture struct {
	c    *proc.Cluster
	up   string
	done chan struct{}
	wg   sync.WaitGroup
	ops  atomic.Int64
	errs atomic.Int64
}

func (m *mixture) start(pace time.Duration) {
	m.done = make(chan struct{})
	for i, work := range []func(rng *rand.Rand, n int) error{m.keys, m.keys, m.sessions, m.services, m.policy, m.connections, m.reads} {
		m.wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for n := 0; ; n++ {
				if err := work(rng, n); err != nil {
					m.errs.Add(1)
				}
				m.ops.Add(1)
				select {
				case <-m.done:
					return
				case <-time.After(pace):
				}
			}
		})
	}
}

func (m *mixture) stop() {
	close(m.done)
	m.wg.Wait()
}

func (m *mixture) any(rng *rand.Rand) *proc.Node { return m.c.Nodes()[rng.IntN(len(m.c.Servers)+2)] }

func (m *mixture) keys(rng *rand.Rand, n int) error {
	p := &api.KVPair{Key: fmt.Sprintf("soak/%d", rng.IntN(300)), Value: make([]byte, rng.IntN(1024))}
	kv := m.any(rng).Client.KV()
	if n%10 == 0 {
		_, err := kv.Delete(p.Key, nil)
		return err
	}
	_, err := kv.Put(p, nil)
	return err
}

func (m *mixture) sessions(rng *rand.Rand, _ int) error {
	cl := m.any(rng).Client
	id, _, err := cl.Session().Create(&api.SessionEntry{TTL: "10s", Behavior: "delete"}, nil)
	if err != nil {
		return err
	}
	_, _, err = cl.KV().Acquire(&api.KVPair{Key: fmt.Sprintf("lock/%d", rng.IntN(10)), Session: id}, nil)
	if rng.IntN(10) > 0 { // the others end by themselves
		_, e := cl.Session().Destroy(id, nil)
		err = errors.Join(err, e)
	}
	return err
}

func (m *mixture) services(rng *rand.Rand, n int) error {
	a := m.c.Agents[rng.IntN(2)].Client.Agent()
	id := fmt.Sprintf("churn-%d", rng.IntN(8))
	if n%3 == 0 {
		_ = a.ServiceDeregister(id) // perhaps there is none
		return nil
	}
	return a.ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: "churn", Port: 1 + n%60000, Check: &api.AgentServiceCheck{TTL: "1m"}})
}

func (m *mixture) policy(rng *rand.Rand, n int) error {
	in := &api.Intention{SourceName: fmt.Sprintf("src-%d", rng.IntN(20)), DestinationName: "echo", Action: api.IntentionActionAllow}
	if n%2 == 0 {
		in.Action = api.IntentionActionDeny
	}
	_, err := m.any(rng).Client.Connect().IntentionUpsert(in, nil)
	return err
}

func (m *mixture) connections(*rand.Rand, int) error { return roundTripTo(m.up) }

func (m *mixture) reads(rng *rand.Rand, n int) error {
	cl := m.any(rng).Client
	_, meta, err := cl.Health().Service("churn", "", false, nil)
	if err == nil && n%4 == 0 {
		_, _, err = cl.Health().Service("churn", "", false, &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: 50 * time.Millisecond})
	}
	return err
}

// TestP33SoakWithoutGrowth puts load of all kinds on a cluster whose live state stays the
// same, while a host comes and goes. At full count, an hour or WEFT_SOAK, nothing grows
// after the first sixth of it; in the short form, goroutines and descriptors return to what they were.
func TestP33SoakWithoutGrowth(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 3})
	a, b, coming := c.Agents[0], c.Agents[1], c.Agents[2]
	register(t, b.Agent, sidecar("echo", startEcho(t).port()))
	port := proc.FreePorts(t, 1)[0]
	register(t, a.Agent, sidecar("client", 1, api.Upstream{DestinationName: "echo", LocalBindPort: port}))
	intend(t, a.Agent, "client", "echo", api.IntentionActionAllow)
	m := &mixture{c: c, up: fmt.Sprintf("127.0.0.1:%d", port)}
	proc.Eventually(t, 30*time.Second, "client reaches echo", func() error { return roundTripTo(m.up) })
	agents := []*proc.Node{a, b}
	steady := append(slices.Clone(c.Servers), agents...)

	pace := proc.Count(4*time.Millisecond, 20*time.Millisecond)
	m.start(pace)
	whole, err := time.ParseDuration(os.Getenv("WEFT_SOAK"))
	if err != nil {
		whole = time.Hour
	}
	warm := time.Now()
	for range proc.Count(1, 2) { // what a server opens when it leads, and to who leads, is kept
		for _, to := range c.Servers {
			hand(t, c, to)
		}
	}
	time.Sleep(proc.Count(3*time.Second, whole/6) - time.Since(warm))
	m.stop()
	base := settled(t, c, agents, nil)
	known := map[*proc.Node]map[string]bool{}
	for _, p := range steady {
		var err error
		known[p], err = seriesOf(p)
		must(t, err)
	}
	m.start(pace)
	all := map[*proc.Node][]series{}
	began, every := time.Now(), proc.Count(500*time.Millisecond, 10*time.Second)
	for n, length := 0, proc.Count(10*time.Second, whole*5/6); time.Since(began) < length; n++ {
		for _, p := range steady {
			sample(t, p, all, time.Since(began))
		}
		if n%6 == 3 {
			coming.Restart()
		}
		time.Sleep(every)
	}
	m.stop()
	for _, p := range steady {
		now, err := seriesOf(p)
		must(t, err)
		t.Logf("P33: metric series of %s that were not there: %s", p.Name, added(known[p], now))
	}
	judgeGrowth(t, c, agents, all)
	settled(t, c, agents, base)
	t.Logf("P33: %d operations, %d failed, %s", m.ops.Load(), m.errs.Load(), time.Since(began).Round(time.Second))
	logSizes(t, c)
}

func sample(t *testing.T, p *proc.Node, all map[*proc.Node][]series, at time.Duration) {
	t.Helper()
	if all[p] == nil {
		all[p] = make([]series, len(measures))
	}
	for i, m := range measures {
		v, err := m.of(p)
		if err != nil {
			t.Logf("%s of %s: %v", m.name, p.Name, err)
			continue
		}
		all[p][i].at, all[p][i].is = append(all[p][i].at, at.Hours()), append(all[p][i].is, v)
	}
}

// judgeGrowth fits a line through each series. At full count it must be flat: what it
// gains in all is at most a tenth of the mean, or the slack. Servers are judged
// together, as leadership moves goroutines and connections between them.
func judgeGrowth(t *testing.T, c *proc.Cluster, agents []*proc.Node, all map[*proc.Node][]series) {
	t.Helper()
	for i, m := range measures {
		var text []string
		judge := func(who string, s series) {
			growth, mean := s.fit()
			text = append(text, fmt.Sprintf("%s %.1f %+.1f (%.1f to %.1f)", who, mean, growth, slices.Min(s.is), slices.Max(s.is)))
			if proc.Full() && growth > max(mean/10, m.slack) {
				t.Errorf("%s of %s grew by %.1f to %.1f", m.name, who, growth, s.is[len(s.is)-1])
			}
		}
		var servers series
		for _, p := range c.Servers {
			servers.add(all[p][i])
		}
		judge("servers", servers)
		for _, p := range agents {
			judge(p.Name, all[p][i])
		}
		t.Logf("P33: %s, mean and growth by a straight line: %s", m.name, strings.Join(text, "; "))
	}
}

// seriesOf gives the metric series of a process, by name and labels. A histogram is one.
func seriesOf(n *proc.Node) (map[string]bool, error) {
	status, text, err := n.Get("/v1/agent/metrics?format=prometheus")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("metrics: status %d", status)
	}
	all := map[string]bool{}
	for line := range strings.Lines(text) {
		name, _, _ := strings.Cut(line, "{")
		if at := strings.LastIndexByte(line, ' '); at > 0 && line[0] != '#' && !strings.HasSuffix(name, "_bucket") && !strings.HasSuffix(name, "_sum") {
			all[line[:at]] = true
		}
	}
	return all, err
}

// added counts, by name, the series that are new: a family whose labels have no bound
// shows here first.
func added(before, after map[string]bool) string {
	n := map[string]int{}
	for s := range after {
		if name, _, _ := strings.Cut(s, "{"); !before[s] {
			n[name]++
		}
	}
	var text []string
	for _, name := range slices.Sorted(maps.Keys(n)) {
		text = append(text, fmt.Sprintf("%s %d", name, n[name]))
	}
	return strings.Join(text, ", ")
}

// add sums two series up; what one of them lacks in the end is left out.
func (s *series) add(o series) {
	if s.at == nil {
		s.at, s.is = slices.Clone(o.at), slices.Clone(o.is)
		return
	}
	n := min(len(s.at), len(o.at))
	s.at, s.is = s.at[:n], s.is[:n]
	for i := range n {
		s.is[i] += o.is[i]
	}
}

// settled waits until processes that have nothing to do hold as many goroutines and
// descriptors as they did before, servers together, or says how many that is.
func settled(t *testing.T, c *proc.Cluster, agents []*proc.Node, before map[string]float64) map[string]float64 {
	t.Helper()
	var is map[string]float64
	look := func() (err error) {
		is = map[string]float64{}
		for _, m := range measures[1:3] {
			for _, p := range c.Servers {
				v, e := m.of(p)
				err, is[m.name+" of the servers"] = errors.Join(err, e), is[m.name+" of the servers"]+v
			}
			for _, p := range agents {
				v, e := m.of(p)
				err, is[m.name+" of "+p.Name] = errors.Join(err, e), v
			}
			for key, v := range is {
				if was, known := before[key]; known && strings.HasPrefix(key, m.name) && v > was+m.slack {
					err = errors.Join(err, fmt.Errorf("%s: %.0f, were %.0f", key, v, was))
				}
			}
		}
		return err
	}
	if before == nil {
		time.Sleep(proc.Count(2*time.Second, time.Minute))
	}
	proc.Eventually(t, 90*time.Second, "goroutines and descriptors are what they were", look)
	t.Logf("P33: at rest: %v", is)
	return is
}

// logSizes holds the file of the log against what is in it.
func logSizes(t *testing.T, c *proc.Cluster) {
	t.Helper()
	for _, s := range c.Servers {
		s.Stop()
		db, err := bbolt.Open(filepath.Join(s.Dir, "raft", "raft.db"), 0o600, &bbolt.Options{ReadOnly: true, Timeout: 5 * time.Second})
		must(t, err)
		var size, free float64
		must(t, db.View(func(tx *bbolt.Tx) error { size = float64(tx.Size()) / mib; return nil }))
		free = float64(db.Stats().FreePageN) * float64(db.Info().PageSize) / mib
		must(t, db.Close())
		t.Logf("P33: the log of %s has %.1f MiB, of which %.1f are in use", s.Name, size, size-free)
	}
}

// hand makes a server the leader.
func hand(t *testing.T, c *proc.Cluster, to *proc.Node) {
	t.Helper()
	proc.Eventually(t, 30*time.Second, to.Name+" leads", func() error {
		raft, err := to.Client.Operator().RaftGetConfiguration(nil)
		if err != nil {
			return err
		}
		for _, s := range raft.Servers {
			if s.Node != to.Name || s.Leader {
				continue
			}
			if _, err := to.Client.Operator().RaftLeaderTransfer(s.ID, nil); err != nil {
				return err
			}
		}
		if l := c.Leader(); l != to {
			return fmt.Errorf("%s does", l.Name)
		}
		return nil
	})
}
