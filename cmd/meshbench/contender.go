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
	addr string // where the load goes
	pids []int  // the processes whose CPU and memory it costs, with their children
	far  string // where the server's side of a pair speaks TLS, with the certificate of pem
	pem  string
	stop func()
}

// direct is no proxy at all: what all others are compared to.
type direct struct{}

func (direct) name() string { return "direct" }

func (direct) start(_ context.Context, backend string) (*instance, error) {
	return &instance{addr: backend, stop: func() {}}, nil
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
	cpuPerGB   float64
	idleKiB    float64 // resident memory of the proxies for each idle connection, KiB
}

type arm struct {
	name    string
	running *instance
	samples []sample
}

const idleConns = 1000

func (a *arm) measure(ctx context.Context, window time.Duration) error {
	var s sample
	addr := a.running.addr
	if _, _, _, err := requests(ctx, addr, 8, window/4); err != nil { // warm up
		return err
	}
	var err error
	cpu := a.cpu()
	if s.requests, _, s.p99, err = requests(ctx, addr, 64, window); err != nil {
		return err
	}
	if n := s.requests * window.Seconds(); n > 0 {
		s.cpuPer100k = (a.cpu() - cpu).Seconds() / n * 100_000
	}
	if _, s.p50one, _, err = requests(ctx, addr, 1, window/2); err != nil {
		return err
	}
	cpu = a.cpu()
	if s.conns, err = connections(ctx, addr, 8, window); err != nil {
		return err
	}
	if n := s.conns * window.Seconds(); n > 0 {
		s.cpuPerConn = time.Duration(float64(a.cpu()-cpu) / n)
	}
	cpu = a.cpu()
	var moved int64
	if s.bulk1, moved, err = bulk(ctx, addr, 1, window); err != nil {
		return err
	}
	s.cpuPerGB = (a.cpu() - cpu).Seconds() / (float64(moved) / 1e9)
	if s.bulk8, _, err = bulk(ctx, addr, 8, window); err != nil {
		return err
	}
	if len(a.running.pids) > 0 {
		before := a.rss()
		err = idle(ctx, addr, idleConns, func() error {
			s.idleKiB = float64(a.rss()-before) / 1024 / idleConns
			return nil
		})
		if err != nil {
			return err
		}
	}
	a.samples = append(a.samples, s)
	return nil
}

// clockTick is USER_HZ, 100 on every Linux that Go runs on.
const clockTick = 100

// cpu is the processor time that the contender's processes have used.
func (a *arm) cpu() time.Duration {
	var sum time.Duration
	for _, pid := range a.all() {
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

// all lists the processes with their children, such as nginx's workers.
func (a *arm) all() []int {
	out := slices.Clone(a.running.pids)
	for _, pid := range a.running.pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				out = append(out, child)
			}
		}
	}
	return out
}

func (a *arm) rss() int64 {
	var sum int64
	for _, pid := range a.all() {
		sum += rss(pid)
	}
	return sum
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
