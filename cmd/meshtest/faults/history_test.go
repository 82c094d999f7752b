//go:build faults

package faults_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// What clients ask, and what they were told.
type (
	asked struct {
		op         string // get, set, cas, lock, unlock
		key, value string
		old        string // cas: what it replaces; lock and unlock: who
	}
	told struct {
		value   string // get: the value, and of a lock its holder
		done    bool
		unknown bool
	}
)

// kvModel is one register or lock for each key.
var kvModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, o := range history {
			key := o.Input.(asked).key
			by[key] = append(by[key], o)
		}
		var out [][]porcupine.Operation
		for _, h := range by {
			out = append(out, h)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in, out := input.(asked), output.(told)
		may, next := false, state
		switch in.op {
		case "get":
			return out.value == state, state
		case "set":
			return true, in.value
		case "cas":
			may, next = state == in.old, in.value
		case "lock":
			may, next = state == "" || state == in.old, in.old
		case "unlock":
			may, next = state == in.old, ""
		}
		switch {
		case out.unknown && may:
			return true, next
		case out.unknown:
			return true, state
		case out.done:
			return may, next
		}
		return !may, state
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
}

// recorder is clients that use registers, compare-and-set and locks through all
// servers, and what they saw.
type recorder struct {
	store   store
	servers []*proc.Node
	begin   time.Time
	stop    chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex
	history []porcupine.Operation
	unknown int
}

func startRecorder(t *testing.T, seed uint64, keys, each int, servers ...*proc.Node) *recorder {
	t.Helper()
	r := &recorder{store: newStore(t, 5*time.Second), servers: servers, begin: time.Now(), stop: make(chan struct{})}
	for k := range keys {
		for c := range each {
			id := k*each + c
			rng := rand.New(rand.NewPCG(seed, uint64(id)))
			if k%4 == 3 {
				session := newSession(t, r.store, servers[id%len(servers)])
				r.wg.Go(func() { r.locks(rng, id, fmt.Sprintf("lock/%d-%d", seed, k), session) })
				continue
			}
			r.wg.Go(func() { r.registers(rng, id, fmt.Sprintf("register/%d-%d", seed, k)) })
		}
	}
	t.Cleanup(r.end)
	return r
}

// newSession makes a session that nothing but its owner ends.
func newSession(t *testing.T, s store, n *proc.Node) string {
	t.Helper()
	_, body, err := s.do(http.MethodPut, n, "/v1/session/create", `{"NodeChecks":[],"Checks":[],"LockDelay":"0s"}`)
	must(t, err)
	var is struct{ ID string }
	must(t, json.Unmarshal([]byte(body), &is))
	return is.ID
}

func (r *recorder) end() {
	select {
	case <-r.stop:
	default:
		close(r.stop)
	}
	r.wg.Wait()
}

// next waits a moment, and reports false when it is over.
func (r *recorder) next(rng *rand.Rand) bool {
	select {
	case <-r.stop:
		return false
	case <-time.After(time.Duration(rng.IntN(proc.Count(45, 20))) * time.Millisecond):
		return true
	}
}

// note puts an operation into the history; one that surely did nothing is left out.
func (r *recorder) note(id int, in asked, out told, call time.Time, err error) {
	returned := time.Since(r.begin).Nanoseconds()
	if err != nil {
		if in.op == "get" || errors.Is(err, errNothing) {
			return
		}
		out, returned = told{unknown: true}, math.MaxInt64
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.unknown++
	}
	r.history = append(r.history, porcupine.Operation{
		ClientId: id, Input: in, Call: call.Sub(r.begin).Nanoseconds(), Output: out, Return: returned,
	})
}

func (r *recorder) registers(rng *rand.Rand, id int, key string) {
	known := pair{}
	for i := 0; r.next(rng); i++ {
		n := r.servers[rng.IntN(len(r.servers))]
		call := time.Now()
		in := asked{op: "get", key: key, value: fmt.Sprintf("%d-%d", id, i)}
		switch k := rng.IntN(10); {
		case k < 3:
			in.op = "set"
			done, err := r.store.put(n, key, in.value, "")
			r.note(id, in, told{done: done}, call, err)
		case k < 5:
			in.op, in.old = "cas", known.Value
			done, err := r.store.put(n, key, in.value, "?cas="+strconv.FormatUint(known.ModifyIndex, 10))
			r.note(id, in, told{done: done}, call, err)
		default:
			p, err := r.store.get(n, key, "")
			r.note(id, in, told{value: p.Value}, call, err)
			if err == nil {
				known = p
			}
		}
	}
}

func (r *recorder) locks(rng *rand.Rand, id int, key, session string) {
	for r.next(rng) {
		n := r.servers[rng.IntN(len(r.servers))]
		call := time.Now()
		in := asked{op: "get", key: key, old: session}
		switch rng.IntN(4) {
		case 0:
			in.op = "lock"
			done, err := r.store.put(n, key, session, "?acquire="+session)
			r.note(id, in, told{done: done}, call, err)
		case 1, 2:
			in.op = "unlock"
			done, err := r.store.put(n, key, session, "?release="+session)
			r.note(id, in, told{done: done}, call, err)
		default:
			p, err := r.store.get(n, key, "")
			r.note(id, in, told{value: p.Session}, call, err)
		}
	}
}

// judge holds the history against the model.
func (r *recorder) judge(t *testing.T) int {
	t.Helper()
	r.end()
	verdict := porcupine.CheckOperationsTimeout(kvModel, r.history, 5*time.Minute)
	if verdict != porcupine.Ok {
		t.Errorf("the history of %d operations is not linearizable (%s)", len(r.history), verdict)
		for _, h := range kvModel.Partition(r.history) {
			if porcupine.CheckOperationsTimeout(kvModel, h, time.Minute) == porcupine.Ok {
				continue
			}
			slices.SortFunc(h, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
			for _, o := range h {
				t.Logf("%12d %20d client %d %s", o.Call, o.Return, o.ClientId, kvModel.DescribeOperation(o.Input, o.Output))
			}
			break
		}
	}
	return len(r.history)
}

// nemesis does one thing to a cluster, and undoes it.
type nemesis struct {
	name string
	do   func(c *proc.Cluster, rng *rand.Rand, d time.Duration)
}

var nemeses = []nemesis{
	{"kill", func(c *proc.Cluster, rng *rand.Rand, d time.Duration) {
		n := victim(c, rng)
		n.Kill()
		time.Sleep(d / 2)
		n.Launch()
	}},
	{"freeze", func(c *proc.Cluster, rng *rand.Rand, d time.Duration) {
		n := victim(c, rng)
		n.Freeze()
		time.Sleep(d)
		n.Thaw()
	}},
	{"isolate", func(c *proc.Cluster, rng *rand.Rand, d time.Duration) {
		c.Isolate(victim(c, rng))
		time.Sleep(d)
		c.Network.Heal()
	}},
	{"cut one way", func(c *proc.Cluster, rng *rand.Rand, d time.Duration) {
		from := victim(c, rng)
		hears := rng.IntN(2) == 0
		for _, to := range c.Servers {
			if to == from {
				continue
			}
			if h := proc.HostOf(from, to); hears {
				c.Network.Cut(h[0], h[1])
			} else {
				c.Network.Cut(h[1], h[0])
			}
		}
		time.Sleep(d)
		c.Network.Heal()
	}},
	{"lose packets", func(c *proc.Cluster, rng *rand.Rand, d time.Duration) {
		c.Network.Lose(proc.HostOf(victim(c, rng))[0], 20)
		time.Sleep(d)
		c.Network.Heal()
	}},
	{"transfer", func(c *proc.Cluster, rng *rand.Rand, _ time.Duration) {
		_, _, _ = c.Servers[rng.IntN(len(c.Servers))].CLI("operator", "raft", "transfer-leader")
	}},
}

// victim is the leader half the time.
func victim(c *proc.Cluster, rng *rand.Rand) *proc.Node {
	if rng.IntN(2) == 0 {
		return c.Leader()
	}
	return c.Servers[rng.IntN(len(c.Servers))]
}

// TestP02Linearizable lets clients use registers, compare-and-set and locks through
// all servers, while these are killed, frozen, cut off, hand leadership over and write
// backups every 500 entries, and wants a history that one single store could have given.
// Before, while nothing is wrong, it asks how many reads a second there are of either kind.
func TestP02Linearizable(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{
		Servers: 3, Namespaces: true,
		ServerArgs: append([]string{"-hcl", "raft_snapshot_threshold = 500 raft_trailing_logs = 250 raft_snapshot_interval = \"1s\""}, manyConns...),
	})
	reportReads(t, c)
	seed := uint64(1)
	keys, each := proc.Count(8, 64), proc.Count(6, 8)
	sum, unknown, faults, backups := 0, 0, map[string]int{}, 0
	begin := time.Now()
	for batch := uint64(0); sum < proc.Count(1, 10_000_000); batch++ {
		rng := rand.New(rand.NewPCG(seed, batch))
		r := startRecorder(t, seed+batch, keys, each, c.Servers...)
		for _, i := range rng.Perm(len(nemeses)) {
			nemeses[i].do(c, rng, time.Duration(500+rng.IntN(proc.Count(2500, 7500)))*time.Millisecond)
			faults[nemeses[i].name]++
			pause(proc.Count[time.Duration](700, 2000))
		}
		c.WaitServing(60 * time.Second)
		sum += r.judge(t)
		unknown += r.unknown
		if t.Failed() {
			break
		}
		if proc.Full() {
			t.Logf("%9d operations after %s", sum, time.Since(begin).Round(time.Second))
		}
	}
	for _, n := range c.Servers {
		self, err := n.Client.Agent().Self()
		must(t, err)
		at, _ := strconv.Atoi(fmt.Sprint(self["Stats"]["raft"].(map[string]any)["last_snapshot_index"]))
		backups = max(backups, at)
	}
	equal(t, c.Servers...)
	t.Logf("%d operations, %d of them of unknown outcome, are linearizable; faults %v; the last backup is of entry %d", sum, unknown, faults, backups)
}

// reportReads says how many reads a second 32 clients get through all servers, linearizable
// and stale ones in turns.
func reportReads(t *testing.T, c *proc.Cluster) {
	t.Helper()
	s := newStore(t, 5*time.Second)
	_, err := s.put(c.Servers[0], "read", "me", "")
	must(t, err)
	window := proc.Count(200*time.Millisecond, 2*time.Second)
	rates := map[string][]float64{}
	for range 5 {
		for _, params := range []string{"", "?stale"} {
			var done, failed atomic.Int64
			var wg sync.WaitGroup
			for i := range 32 {
				wg.Go(func() {
					for until := time.Now().Add(window); time.Now().Before(until); {
						if p, err := s.get(c.Servers[i%len(c.Servers)], "read", params); err != nil || p.Value != "me" {
							failed.Add(1)
						}
						done.Add(1)
					}
				})
			}
			wg.Wait()
			if n := failed.Load(); n > 0 && params == "" {
				t.Errorf("%d of %d reads failed or did not see a write from before", n, done.Load())
			}
			rates[params] = append(rates[params], float64(done.Load())/window.Seconds())
		}
	}
	median := func(of string) float64 { slices.Sort(rates[of]); return rates[of][len(rates[of])/2] }
	t.Logf("reads a second, 32 clients: linearizable %.0f, stale %.0f, ratio %.2f (target 0.8)",
		median(""), median("?stale"), median("")/median("?stale"))
}
