package consensus

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
)

// How long, in virtual time, the faults of one seed last.
const (
	shortRun = 20 * time.Second
	longRun  = 6 * time.Minute
)

// TestP03VirtualTime runs real nodes, on disks and a network in memory, through
// partitions, kills, freezes and backups in virtual time, and checks all that the
// clients and watchers saw. At full count, or with WEFT_SEEDS=10000, as many random
// seeds run, each for longer; WEFT_SEED=n repeats the faults of one (which goroutine
// runs first is not ours to repeat, so run it some times).
func TestP03VirtualTime(t *testing.T) {
	count, length, first := 20, shortRun, uint64(1)
	if n := fullCount(0, 10_000); n > 0 {
		count, length, first = n, longRun, rand.Uint64N(1<<40)
	}
	if n, err := strconv.Atoi(os.Getenv("WEFT_SEEDS")); err == nil {
		count, length, first = n, longRun, rand.Uint64N(1<<40)
	}
	if n, err := strconv.ParseUint(os.Getenv("WEFT_SEED"), 10, 64); err == nil {
		count, length, first = 1, longRun, n
	}
	begin := time.Now()
	var sum tally
	var mu sync.Mutex
	for i := range count {
		t.Run(fmt.Sprint("seed=", first+uint64(i)), func(t *testing.T) {
			t.Parallel()
			v := newVirtual(first+uint64(i), length)
			synctest.Test(t, v.run)
			v.check(t)
			if t.Failed() {
				t.Logf("replay with: WEFT_SEED=%d go test -race -run TestP03VirtualTime ./server/consensus", v.seed)
			}
			mu.Lock()
			defer mu.Unlock()
			sum.add(v.tally())
		})
	}
	t.Cleanup(func() {
		t.Logf("%d seeds in %s: %s", count, time.Since(begin).Round(100*time.Millisecond), sum)
	})
}

// tally counts what happened.
type tally struct {
	virtual                                       time.Duration
	acked, unknown, reads, events, terms, applied int
	nemesis                                       map[string]int
}

func (s *tally) add(o tally) {
	s.virtual += o.virtual
	s.acked += o.acked
	s.unknown += o.unknown
	s.reads += o.reads
	s.events += o.events
	s.terms += o.terms
	s.applied += o.applied
	if s.nemesis == nil {
		s.nemesis = map[string]int{}
	}
	for k, n := range o.nemesis {
		s.nemesis[k] += n
	}
}

func (s tally) String() string {
	return fmt.Sprintf("%s of virtual time, %d writes acknowledged, %d of unknown outcome, %d linearizable reads, %d watch events, "+
		"%d terms with a leader, %d entries applied; faults %v",
		s.virtual.Round(time.Second), s.acked, s.unknown, s.reads, s.events, s.terms, s.applied, s.nemesis)
}

// vnode is one server, over all its runs.
type vnode struct {
	id, addr string
	disk     *vdisk

	mu    sync.Mutex
	node  *Node // nil while it is down
	store *store.Store
	run   *vrun
	hurry chan struct{} // closed when it is to end, and applies at once
}

func (n *vnode) get() (*Node, *store.Store) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.node, n.store
}

// virtual is one run of the test.
type virtual struct {
	seed   uint64
	length time.Duration
	rng    *rand.Rand // of the nemesis
	net    *vnet
	nodes  []*vnode
	keys   []string

	mu      sync.Mutex
	begin   time.Time
	took    time.Duration
	history []porcupine.Operation
	events  []vevent
	log     map[uint64]uint64 // hash of the command by index, as applied first
	values  map[string][]vversion
	applied int
	faults  []string
	nemesis map[string]int
}

// vevent is a view that a watcher got.
type vevent struct {
	watcher int
	index   uint64
	key     string
	value   string
	epoch   string
}

// vversion is a key's value from an index on.
type vversion struct {
	index uint64
	value string
}

func newVirtual(seed uint64, length time.Duration) *virtual {
	v := &virtual{
		seed: seed, length: length, rng: rand.New(rand.NewPCG(seed, 0)), net: newVnet(seed),
		log: map[uint64]uint64{}, values: map[string][]vversion{}, nemesis: map[string]int{},
	}
	size := 3
	if seed%3 == 0 {
		size = 5
	}
	for i := range size {
		v.nodes = append(v.nodes, &vnode{id: fmt.Sprintf("node-%d", i), addr: fmt.Sprintf("10.0.0.%d:8300", i+1), disk: newVdisk(seed + uint64(i)<<32)})
	}
	for i := range 5 {
		v.keys = append(v.keys, fmt.Sprint("k", i))
	}
	return v
}

func (v *virtual) wrong(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.faults) < 20 {
		v.faults = append(v.faults, fmt.Sprintf("%s: ", time.Since(v.begin).Round(time.Millisecond))+fmt.Sprintf(format, args...))
	}
}

// start runs a server, again or for the first time.
func (v *virtual) start(n *vnode, bootstrap bool) error {
	st, err := store.New(store.Config{Epoch: "one"})
	if err != nil {
		return err
	}
	run := n.disk.mount()
	var at uint64
	hurry := make(chan struct{})
	var lagged time.Time
	lag := rand.New(rand.NewPCG(v.seed, uint64(n.id[len(n.id)-1])))
	cfg := Config{
		NodeID: n.id, Addr: n.addr, Bootstrap: bootstrap, Store: st, Transport: v.net.attach(raft.ServerAddress(n.addr)),
		Timers: Timers{Snapshot: 3 * time.Second}, Logger: vlogger(n.id),
		hooks: hooks{memory: &memory{log: run, snapshots: run, probe: run.sync, space: n.disk.space}, observe: func(index uint64, b []byte) {
			if index <= at {
				v.wrong("%s applied %d after %d", n.id, index, at)
			}
			at = index
			v.observe(n.id, index, b)
			// One server's store may be behind those of others for a moment, and goes on.
			if time.Since(lagged) > time.Second && lag.IntN(4) == 0 {
				select {
				case <-time.After(time.Duration(lag.IntN(200)) * time.Millisecond):
				case <-hurry:
				}
				lagged = time.Now()
			}
		}},
	}
	node, err := New(cfg)
	if err != nil {
		st.Close()
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.node, n.store, n.run, n.hurry = node, st, run, hurry
	return nil
}

func vlogger(id string) *slog.Logger {
	if os.Getenv("WEFT_SIM_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", id)
}

// kill ends a server as a kill -9 does.
func (v *virtual) kill(n *vnode) {
	n.mu.Lock()
	node, st, run, hurry := n.node, n.store, n.run, n.hurry
	n.node, n.store = nil, nil
	n.mu.Unlock()
	if node == nil {
		return
	}
	close(hurry) // what Raft has given to the store when it ends is never answered
	time.Sleep(time.Millisecond)
	if t := v.net.at(raft.ServerAddress(n.addr)); t != nil {
		_ = t.Close()
	}
	run.kill()
	_ = node.Close() // its disk says that it was killed
	st.Close()
}

// observe compares what servers apply.
func (v *virtual) observe(id string, index uint64, command []byte) {
	h := fnv.New64a()
	h.Write(command)
	sum := h.Sum64()
	v.mu.Lock()
	was, known := v.log[index]
	if !known {
		v.log[index] = sum
		v.model(index, command)
	}
	v.applied++
	v.mu.Unlock()
	if known && was != sum {
		v.wrong("%s applied another command at %d than the others", id, index)
	}
}

// model applies a command to what keys should hold. Called with mu held, in the
// order of the log: an entry is applied somewhere first after all before it.
func (v *virtual) model(index uint64, command []byte) {
	cmd, err := wire.DecodeEntry(command)
	if err != nil {
		v.faults = append(v.faults, err.Error())
		return
	}
	set, ok := cmd.(*catalog.SetKey)
	if !ok {
		return
	}
	versions := v.values[set.Pair.Key]
	var last uint64
	if len(versions) > 0 {
		last = versions[len(versions)-1].index
	}
	if set.CAS && set.Index != last {
		return
	}
	v.values[set.Pair.Key] = append(versions, vversion{index, string(set.Pair.Value)})
}

// run is the body of the test in its bubble of virtual time.
func (v *virtual) run(t *testing.T) {
	v.begin = time.Now()
	for i, n := range v.nodes {
		if err := v.start(n, i == 0); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		for _, n := range v.nodes {
			n.disk.thaw()
			v.kill(n)
		}
		time.Sleep(time.Second) // what waited for a frozen disk ends
	}()
	waitLeader(t, v.nodes[0].node)
	for _, n := range v.nodes[1:] {
		if err := v.nodes[0].node.raft.AddVoter(raft.ServerID(n.id), raft.ServerAddress(n.addr), 0, patience).Error(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var clients, watchers sync.WaitGroup
	for c := range 6 {
		clients.Go(func() { v.client(ctx, c) })
	}
	watching, endWatching := context.WithCancel(t.Context())
	for w := range 6 {
		watchers.Go(func() { v.watcher(watching, w) })
	}
	v.disturb()
	v.repair()
	time.Sleep(5 * time.Second) // life goes on
	stop()
	clients.Wait()
	v.settle(t.Context())
	time.Sleep(time.Second)
	endWatching()
	watchers.Wait()
	v.took = time.Since(v.begin)
}

// disturb does what the seed says.
func (v *virtual) disturb() {
	for time.Since(v.begin) < v.length {
		time.Sleep(time.Duration(200+v.rng.IntN(2500)) * time.Millisecond)
		n := v.nodes[v.rng.IntN(len(v.nodes))]
		if v.rng.IntN(2) == 0 {
			if l := v.leader(); l != nil {
				n = l
			}
		}
		v.fault(n, v.rng.IntN(11))
	}
}

func (v *virtual) fault(n *vnode, which int) {
	what := "heal"
	defer func() { v.nemesis[what]++ }()
	switch which {
	case 0, 1:
		what = "kill"
		v.kill(n)
	case 2, 3:
		what = "restart"
		for _, n := range v.nodes {
			if node, _ := n.get(); node == nil {
				v.restart(n)
			}
		}
	case 4:
		what = "one-way cut"
		v.cutOff(n, v.rng.IntN(2) == 0, v.rng.IntN(2) == 0)
	case 5:
		what = "isolate"
		v.cutOff(n, true, true)
	case 6:
		what = "slow link"
		v.net.mu.Lock()
		v.net.slow[raft.ServerAddress(n.addr)] = time.Duration(v.rng.IntN(250)) * time.Millisecond
		v.net.mu.Unlock()
	case 7:
		what = "freeze"
		n.disk.freeze()
		for range v.rng.IntN(5) {
			time.Sleep(time.Second)
		}
		n.disk.thaw()
	case 8:
		what = "backup"
		v.shorten(n)
	case 9:
		what = "transfer"
		if node, _ := n.get(); node != nil {
			ctx, end := context.WithTimeout(context.Background(), time.Second)
			defer end()
			_ = node.TransferLeadership(ctx, "") // some do not lead
		}
	default:
		v.net.heal()
	}
}

// shorten makes a backup and keeps nearly nothing of the log before it, so that
// those who lag need the backup.
func (v *virtual) shorten(n *vnode) {
	node, _ := n.get()
	if node == nil {
		return
	}
	rc := node.raft.ReloadableConfig()
	rc.TrailingLogs = 8
	if err := node.raft.ReloadConfig(rc); err != nil {
		v.wrong("reload: %v", err)
	}
	ctx, end := context.WithTimeout(context.Background(), 2*time.Second)
	defer end()
	_ = node.Backup(ctx) // a frozen one does not
}

func (v *virtual) restart(n *vnode) {
	if err := v.start(n, false); err != nil {
		v.wrong("%s does not start: %v", n.id, err)
	}
}

func (v *virtual) cutOff(n *vnode, in, out bool) {
	v.net.mu.Lock()
	defer v.net.mu.Unlock()
	for _, o := range v.nodes {
		if o == n {
			continue
		}
		a, b := raft.ServerAddress(n.addr), raft.ServerAddress(o.addr)
		if out {
			v.net.cut[[2]raft.ServerAddress{a, b}] = true
		}
		if in {
			v.net.cut[[2]raft.ServerAddress{b, a}] = true
		}
	}
}

func (v *virtual) leader() *vnode {
	for _, n := range v.nodes {
		if node, _ := n.get(); node != nil && node.readyTerm.Load() != 0 {
			return n
		}
	}
	return nil
}

func (v *virtual) repair() {
	v.net.heal()
	for _, n := range v.nodes {
		n.disk.thaw()
		if node, _ := n.get(); node == nil {
			v.restart(n)
		}
	}
	end := time.Now().Add(15 * time.Second)
	for v.leader() == nil {
		if time.Now().After(end) {
			v.wrong("nobody leads 15 s after the last fault:%s", v.states())
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// settle waits until all servers have applied the same, and compares them. Raft leaves a
// follower that failed it often alone for 10.24 s, and may meet the last fault once more.
func (v *virtual) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var index uint64
	for index == 0 {
		if l := v.leader(); l != nil {
			node, _ := l.get()
			if i, _, err := node.Apply(ctx, &catalog.SetKey{Pair: catalog.KVPair{Key: "end"}}); err == nil {
				index = i
			}
		}
		if ctx.Err() != nil {
			v.wrong("no write got through after all was repaired:%s", v.states())
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	prints := map[string]bool{}
	for _, n := range v.nodes {
		_, st := n.get()
		if err := st.WaitIndex(ctx, index); err != nil {
			v.wrong("%s did not catch up to %d, it is at %d: %v:%s", n.id, index, st.Index(), err, v.states())
			return
		}
		prints[st.Fingerprint()] = true
	}
	if len(prints) != 1 {
		v.wrong("%d different states in the end", len(prints))
	}
	v.compareLogs()
}

// states describes all servers, where one of them stays behind.
func (v *virtual) states() string {
	var b strings.Builder
	for _, n := range v.nodes {
		if node, _ := n.get(); node != nil {
			fmt.Fprintf(&b, "\n%s: %v, base %+v, disk %v", n.id, node.Stats(), node.disk.base.Load(), node.disk.failure())
		}
	}
	return b.String()
}

// compareLogs: what is in two logs at one index is equal.
func (v *virtual) compareLogs() {
	seen := map[uint64]string{}
	for _, n := range v.nodes {
		first, _ := n.disk.log.FirstIndex()
		last, _ := n.disk.log.LastIndex()
		for i := first; i <= last && i > 0; i++ {
			var l raft.Log
			if n.disk.log.GetLog(i, &l) != nil {
				continue
			}
			entry := fmt.Sprintf("%d %d %x", l.Term, l.Type, l.Data)
			if was, ok := seen[i]; ok && was != entry {
				v.wrong("%s has another entry %d in its log than others", n.id, i)
			}
			seen[i] = entry
		}
	}
}

// reach gives the server that leads, as one who asks server n finds it, after the
// time that the way there takes.
func (v *virtual) reach(n *vnode) (*Node, error) {
	node, _ := n.get()
	if node == nil {
		return nil, errUnreachable
	}
	addr, self, err := node.Leader()
	if err != nil || self {
		return node, err
	}
	if err := v.net.carry(raft.ServerAddress(n.addr), raft.ServerAddress(addr)); err != nil {
		return nil, err
	}
	for _, o := range v.nodes {
		if o.addr == addr {
			if leader, _ := o.get(); leader != nil {
				return leader, nil
			}
		}
	}
	return nil, errUnreachable
}

type vinput struct {
	op         string // set, cas or get
	key, value string
	old        string // of a cas
}

type voutput struct {
	value string
	done  bool // a cas that won
}

// forever is when an operation ends of which nobody knows whether it happened.
const forever = int64(1) << 62

func (v *virtual) client(ctx context.Context, id int) {
	rng := rand.New(rand.NewPCG(v.seed, 100+uint64(id)))
	known := map[string]vversion{}
	for i := 0; ctx.Err() == nil; i++ {
		time.Sleep(time.Duration(5+rng.IntN(120)) * time.Millisecond)
		in := vinput{op: "get", key: v.keys[rng.IntN(len(v.keys))]}
		if k := rng.IntN(10); k < 3 {
			in.op, in.value = "set", fmt.Sprintf("%d-%d", id, i)
		} else if k < 5 {
			in.op, in.value, in.old = "cas", fmt.Sprintf("%d-%d", id, i), known[in.key].value
		}
		n := v.nodes[rng.IntN(len(v.nodes))]
		short, end := context.WithTimeout(ctx, 2*time.Second)
		call := time.Now()
		out, index, err := v.do(short, n, in, known[in.key].index)
		end()
		returned := time.Since(v.begin).Nanoseconds()
		switch {
		case err == nil && in.op == "get":
			known[in.key] = vversion{index, out.value}
		case err == nil && out.done:
			known[in.key] = vversion{index, in.value}
		case err == nil:
		case in.op == "get" || errors.Is(err, catalog.ErrNoLeader) || errors.Is(err, errUnreachable):
			continue // nothing happened
		default:
			returned = forever
			out = voutput{value: "?"}
		}
		v.mu.Lock()
		v.history = append(v.history, porcupine.Operation{
			ClientId: id, Input: in, Call: call.Sub(v.begin).Nanoseconds(), Output: out, Return: returned,
		})
		v.mu.Unlock()
	}
}

func (v *virtual) do(ctx context.Context, n *vnode, in vinput, at uint64) (voutput, uint64, error) {
	var term uint64 // before the leader hears of it
	if self, _ := n.get(); self != nil {
		term = self.Term()
	}
	leader, err := v.reach(n)
	if err != nil {
		return voutput{}, 0, err
	}
	if in.op != "get" {
		cmd := &catalog.SetKey{Pair: catalog.KVPair{Key: in.key, Value: []byte(in.value)}, CAS: in.op == "cas", Index: at}
		index, result, err := leader.Apply(ctx, cmd)
		done, _ := result.(bool)
		return voutput{done: done}, index, err
	}
	index, err := leader.ReadIndexFor(ctx, n.id, term)
	if err != nil {
		return voutput{}, 0, err
	}
	_, st := n.get()
	if st == nil {
		return voutput{}, 0, errUnreachable
	}
	if err := st.WaitIndex(ctx, index); err != nil {
		return voutput{}, 0, err
	}
	view, err := st.Read(catalog.Query{Kind: catalog.QueryKey, Name: in.key})
	if err != nil {
		return voutput{}, 0, err
	}
	value, changed := pairOf(view)
	return voutput{value: value}, changed, nil
}

func pairOf(view *catalog.View) (value string, index uint64) {
	if len(view.Pairs) == 0 {
		return "", 0
	}
	return string(view.Pairs[0].Value), view.Pairs[0].ModifyIndex
}

// watcher follows a key, on one server after another, with the index that it has.
func (v *virtual) watcher(ctx context.Context, id int) {
	rng := rand.New(rand.NewPCG(v.seed, 200+uint64(id)))
	q := catalog.Query{Kind: catalog.QueryKey, Name: v.keys[id%len(v.keys)]}
	after := uint64(0)
	for ctx.Err() == nil {
		_, st := v.nodes[rng.IntN(len(v.nodes))].get()
		if st == nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		w := st.Watch(q)
		stay, leave := context.WithTimeout(ctx, time.Duration(1+rng.IntN(8))*time.Second)
		for {
			view, index, err := w.Next(stay, after)
			if errors.Is(err, catalog.ErrStale) {
				v.wrong("a watcher was told of another history: %v", err)
			}
			if err != nil {
				break
			}
			if index <= after {
				v.wrong("a watcher's index fell from %d to %d", after, index)
			}
			after = index
			value, _ := pairOf(view)
			v.mu.Lock()
			v.events = append(v.events, vevent{id, index, q.Name, value, st.Epoch()})
			v.mu.Unlock()
		}
		leave()
	}
}

// valueAt is what a key held at an index.
func (v *virtual) valueAt(key string, index uint64) string {
	value := ""
	for _, x := range v.values[key] {
		if x.index <= index {
			value = x.value
		}
	}
	return value
}

// registers is what porcupine holds the clients' history against.
var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, o := range history {
			if in, ok := o.Input.(vinput); ok {
				by[in.key] = append(by[in.key], o)
			}
		}
		var out [][]porcupine.Operation
		for _, h := range by {
			out = append(out, h)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in, out := input.(vinput), output.(voutput)
		switch {
		case in.op == "get":
			return out.value == state, state
		case in.op == "set":
			return true, in.value
		case out.value == "?": // a cas that may have won
			if state == in.old {
				return true, in.value
			}
			return true, state
		case out.done:
			return state == in.old, in.value
		default:
			return state != in.old, state
		}
	},
}

// check judges, in real time, what was seen.
func (v *virtual) check(t *testing.T) {
	for _, f := range append(v.faults, v.net.faults...) {
		t.Error(f)
	}
	if got := porcupine.CheckOperationsTimeout(registers, v.history, time.Minute); got != porcupine.Ok {
		t.Errorf("the history of %d operations is not linearizable (%s)", len(v.history), got)
	}
	for _, o := range v.history {
		in, out := o.Input.(vinput), o.Output.(voutput)
		if in.op == "get" || o.Return == forever || !out.done {
			continue
		}
		found := false
		for _, x := range v.values[in.key] {
			found = found || x.value == in.value
		}
		if !found {
			t.Errorf("an acknowledged write is lost: %s = %s", in.key, in.value)
		}
	}
	last := map[int]vevent{}
	for _, e := range v.events {
		if want := v.valueAt(e.key, e.index); e.value != want {
			t.Errorf("a watcher was told that %s is %q at %d, it was %q", e.key, e.value, e.index, want)
		}
		last[e.watcher] = e
	}
	for id := range 6 {
		key := v.keys[id%len(v.keys)]
		if want := v.valueAt(key, forever64); last[id].value != want {
			t.Errorf("watcher %d ended with %s = %q, it is %q", id, key, last[id].value, want)
		}
	}
	if s := v.tally(); s.acked == 0 || s.reads == 0 || s.events == 0 {
		t.Errorf("nothing happened: %s", s)
	}
}

const forever64 = ^uint64(0)

func (v *virtual) tally() tally {
	s := tally{virtual: v.took, events: len(v.events), terms: len(v.net.leaders), applied: v.applied, nemesis: v.nemesis}
	for _, o := range v.history {
		in := o.Input.(vinput)
		switch {
		case in.op == "get":
			s.reads++
		case o.Return == forever:
			s.unknown++
		default:
			s.acked++
		}
	}
	return s
}
