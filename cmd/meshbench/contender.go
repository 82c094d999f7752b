package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// contender is a way to reach the backend.
type contender interface {
	name() string
	// start brings it up in front of backend. An error says why it is left out.
	start(ctx context.Context, backend string) (*instance, error)
}

// instance is a contender that runs.
type instance struct {
	front
	pids    []int  // the processes whose CPU and memory it costs, with their children: server's side, client's side
	far     string // where the server's side of a pair speaks TLS, with the certificate of pem
	pem     string
	also12  bool // it cannot be told to refuse TLS 1.2
	short   bool // only its requests are of interest
	oneHost bool // both sides are one process
	resting []*resting
	stop    func()
}

// direct is no proxy at all: what all others are compared to.
type direct struct{}

func (direct) name() string { return "direct" }

func (direct) start(_ context.Context, backend string) (*instance, error) {
	return &instance{front: front{addr: backend}, stop: func() {}}, nil
}

// sample is one round of one contender.
type sample struct {
	requests   float64 // a second, 64 connections
	cpuPer100k float64 // CPU seconds of the proxies for 100,000 requests
	p50one     time.Duration
	p99        time.Duration
	conns      float64 // short connections a second
	cpuPerConn time.Duration
	bulk1      float64 // bits a second
	bulk8      float64
	cpuPerGB1  float64
	cpuPerGB8  float64
	beside     time.Duration // median of small requests beside four bulk streams
	idleServer float64       // resident memory for each idle connection, KiB
	idleClient float64
}

type arm struct {
	contender
	backend string
	running *instance
	loads   loads
	samples []sample
	failed  error // it is asked no more
}

const (
	idleConns  = 5000
	idleWarmUp = 8
)

// loads are those asked for, by name; none: all.
type loads map[string]bool

// loadNames are the loads in the order in which they run.
var loadNames = []string{"requests", "latency", "connections", "bulk", "idle", memoryLoad}

// memoryLoad is of ours alone: what an idle process and an idle tunnel cost.
const memoryLoad = "memory"

func loadsOf(list string) (loads, error) {
	l := loads{}
	for _, name := range strings.Split(list, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if !slices.Contains(loadNames, name) {
			return nil, fmt.Errorf("no load %q; there are %s", name, strings.Join(loadNames, ", "))
		}
		l[name] = true
	}
	return l, nil
}

func (l loads) has(name string) bool { return len(l) == 0 || l[name] }

// measure adds a sample.
func (a *arm) measure(ctx context.Context, window time.Duration) error {
	var s sample
	if _, err := requests(ctx, a.running.front, 8, window/4, nil); err != nil {
		return fmt.Errorf("warming up: %w", err)
	}
	for i, f := range []func(context.Context, *sample, time.Duration) error{a.requests, a.latency, a.shortConnections, a.bulk, a.idle} {
		if !a.loads.has(loadNames[i]) || a.running.short && i > 0 {
			continue
		}
		if err := f(ctx, &s, window); err != nil {
			return err
		}
	}
	a.samples = append(a.samples, s)
	return nil
}

func (a *arm) requests(ctx context.Context, s *sample, window time.Duration) error {
	var cpu time.Duration
	r, err := requests(ctx, a.running.front, 64, window, func() { cpu = a.cpu() })
	if err != nil {
		return fmt.Errorf("requests: %w", err)
	}
	s.requests, s.p99 = r.perSecond, r.p99
	if r.count > 0 {
		s.cpuPer100k = (a.cpu() - cpu).Seconds() / r.count * 100_000
	}
	return nil
}

func (a *arm) latency(ctx context.Context, s *sample, window time.Duration) error {
	r, err := requests(ctx, a.running.front, 1, window/2, nil)
	if err != nil {
		return fmt.Errorf("requests on one connection: %w", err)
	}
	s.p50one = r.p50
	return nil
}

func (a *arm) shortConnections(ctx context.Context, s *sample, window time.Duration) (err error) {
	cpu := a.cpu()
	if s.conns, err = connections(ctx, a.running.front, 8, window); err != nil {
		return fmt.Errorf("short connections: %w", err)
	}
	if n := s.conns * window.Seconds(); n > 0 {
		s.cpuPerConn = time.Duration(float64(a.cpu()-cpu) / n)
	}
	return nil
}

func (a *arm) bulk(ctx context.Context, s *sample, window time.Duration) error {
	for _, b := range []struct {
		streams   int
		bits, cpu *float64
	}{{1, &s.bulk1, &s.cpuPerGB1}, {8, &s.bulk8, &s.cpuPerGB8}} {
		cpu := a.cpu()
		bits, moved, err := bulk(ctx, a.running.front, b.streams, window)
		if err != nil {
			return fmt.Errorf("bulk, %d streams: %w", b.streams, err)
		}
		*b.bits, *b.cpu = bits, (a.cpu()-cpu).Seconds()/(float64(moved)/1e9)
	}
	var err error
	if s.beside, err = besideBulk(ctx, a.running.front, 4, window/2); err != nil {
		return fmt.Errorf("requests beside bulk: %w", err)
	}
	return nil
}

// idle measures in fresh processes: those that have been under load take idle
// connections into memory that they have already.
func (a *arm) idle(ctx context.Context, s *sample, _ time.Duration) error {
	if len(a.running.pids) == 0 {
		return nil
	}
	starts := a.contender
	if pair, ok := starts.(*weftPair); ok {
		own := *pair
		own.binary = "" // which can be asked to rest
		starts = &own
	}
	fresh, err := starts.start(ctx, a.backend)
	if err != nil {
		return fmt.Errorf("fresh processes for idle connections: %w", err)
	}
	defer fresh.stop()
	// What the first connections make once, and what starting left, is not theirs.
	if err := idle(ctx, fresh.front, idleWarmUp, answerSize, func() error { return nil }); err != nil {
		return fmt.Errorf("%d connections: %w", idleWarmUp, err)
	}
	time.Sleep(time.Second)
	before, err := fresh.atRest()
	if err != nil {
		return err
	}
	err = idle(ctx, fresh.front, idleConns, answerSize, func() error {
		now, err := fresh.atRest()
		s.idleServer, s.idleClient = float64(now[0]-before[0])/1024/idleConns, float64(now[1]-before[1])/1024/idleConns
		return err
	})
	if err != nil {
		return fmt.Errorf("%d idle connections: %w", idleConns, err)
	}
	return nil
}

// clockTick is USER_HZ, 100 on every Linux that Go runs on.
const clockTick = 100

// cpu is the processor time that the contender's processes have used.
func (a *arm) cpu() time.Duration { return processorTime(slices.Concat(a.running.sides()...)) }

// processorTime is what processes have used of the processors.
func processorTime(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// The command, in parentheses, may hold blanks: count fields after it.
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) < 13 {
			continue
		}
		user, _ := strconv.ParseInt(f[11], 10, 64)
		system, _ := strconv.ParseInt(f[12], 10, 64)
		sum += time.Duration(user+system) * time.Second / clockTick
	}
	return sum
}

// sides lists the processes of each side with their children, such as nginx's workers.
func (in *instance) sides() [][]int {
	var out [][]int
	for _, pid := range in.pids {
		side := []int{pid}
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)) // none, when it is gone
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				side = append(side, child)
			}
		}
		out = append(out, side)
	}
	return out
}

// rss is the resident memory of each side in bytes.
func (in *instance) rss() []int64 {
	var out []int64
	for _, side := range in.sides() {
		var sum int64
		for _, pid := range side {
			sum += rss(pid)
		}
		out = append(out, sum)
	}
	return out
}

// rss is the resident memory of a process in bytes, 0 when it is gone.
func rss(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
