package main

import (
	"errors"
	"fmt"
	"strings"
)

// results is what a run found out.
type results struct {
	arms    []*arm
	fresh   []float64 // MB of an idle process, by round
	tunnels []tunnelSample
}

// target is what the data plane is to reach: in each round the value is at most, or at
// least, the limit; what counts is the median.
type target struct {
	what   string
	sign   string // ≤ or ≥
	limit  float64
	unit   string
	values func(r *results) (vals []float64, missing string)
}

// The contenders that open a TLS connection for each of an application.
var oneTLSEach = []string{"haproxy-tls", "nginx-stream", "stunnel", "ghostunnel", "go-relay"}

func requestRate(s sample) float64 { return s.requests }
func requestCPU(s sample) float64  { return s.cpuPer100k }
func connRate(s sample) float64    { return s.conns }
func latencyOf(s sample) float64   { return s.p50one.Seconds() }
func bulkCPU1(s sample) float64    { return s.cpuPerGB1 }
func bulkCPU8(s sample) float64    { return s.cpuPerGB8 }

// targets is the table that decides whether the data plane is what it is to be.
func targets() []target {
	const kib = " KiB"
	return []target{
		{"CPU a request, 64 connections, one peer", "≤", 0.5, " × haproxy-tls", ratio("weft", requestCPU, "haproxy-tls")},
		{"the same, so that it is below its mode without TLS", "≤", 1, " × haproxy-plain", ratio("weft", requestCPU, "haproxy-plain")},
		{"the same, 8 peers", "≤", 0.6, " × haproxy-tls", ratio("weft-8-peers", requestCPU, "haproxy-tls")},
		{"the same, 64 peers", "≤", 0.8, " × haproxy-tls", ratio("weft-64-peers", requestCPU, "haproxy-tls")},
		{"the same, peers without tunnels", "≤", 0.8, " × haproxy-tls", ratio("weft-no-tunnels", requestCPU, "haproxy-tls")},
		{"requests a second, one peer", "≥", 0.42, " × direct", ratio("weft", requestRate, "direct")},
		{"short connections a second", "≥", 7, " × the best with a TLS connection for each", ratio("weft", connRate, oneTLSEach...)},
		{"the same, not below HAProxy without TLS", "≥", 1, " × haproxy-plain", ratio("weft", connRate, "haproxy-plain")},
		{"p50 at one connection", "≤", 0.85, " × haproxy-tls", ratio("weft", latencyOf, "haproxy-tls")},
		{"CPU a GB, 1 stream", "≤", 1, " × ghostunnel", ratio("weft", bulkCPU1, "ghostunnel")},
		{"CPU a GB, 8 streams", "≤", 1, " × ghostunnel", ratio("weft", bulkCPU8, "ghostunnel")},
		{"CPU a GB, 1 stream, against the plain Go relay", "≤", 1, " × go-relay", ratio("weft", bulkCPU1, "go-relay")},
		{"CPU a GB, 8 streams, against the plain Go relay", "≤", 1, " × go-relay", ratio("weft", bulkCPU8, "go-relay")},
		{"idle connection, client's side", "≤", 1, kib, plain("weft", func(s sample) float64 { return s.idleClient })},
		{"idle connection, server's side", "≤", 1, kib, plain("weft", func(s sample) float64 { return s.idleServer })},
		{"idle process, the larger side", "≤", 25, " MB", func(r *results) ([]float64, string) { return r.fresh, asked(r.fresh) }},
		{"idle tunnel, client's side", "≤", 16, kib, ofTunnels(func(s tunnelSample) float64 { return s.client })},
		{"idle tunnel, server's side", "≤", 16, kib, ofTunnels(func(s tunnelSample) float64 { return s.server })},
		{fmt.Sprintf("tunnels of %d not closed when quiet after bulk", manyTunnels), "≤", 0, "", ofTunnels(func(s tunnelSample) float64 { return s.left })},
		{"small requests beside four bulk streams, p50", "≤", 3, " ms", plain("weft", func(s sample) float64 { return s.beside.Seconds() * 1000 })},
		{"two services of one host, requests a second", "≥", 0.25, " × direct", ratio("weft-one-host", requestRate, "direct")},
		{"two services of one host, CPU a GB", "≤", 0.25, " s", plain("weft-one-host", bulkCPU1)},
	}
}

// ratio compares a contender with the best of others, round by round.
func ratio(who string, f func(sample) float64, others ...string) func(*results) ([]float64, string) {
	return func(r *results) ([]float64, string) {
		mine, missing := plain(who, f)(r)
		if missing != "" {
			return nil, missing
		}
		var base []float64
		for _, o := range others {
			theirs, _ := plain(o, f)(r)
			for i, v := range theirs {
				if i == len(base) {
					base = append(base, v)
				}
				base[i] = max(base[i], v)
			}
		}
		var out []float64
		for i := range min(len(mine), len(base)) {
			if base[i] > 0 {
				out = append(out, mine[i]/base[i])
			}
		}
		if len(out) == 0 {
			return nil, strings.Join(others, ", ") + " did not run"
		}
		return out, ""
	}
}

// plain is what a contender measured, round by round.
func plain(who string, f func(sample) float64) func(*results) ([]float64, string) {
	return func(r *results) ([]float64, string) {
		var out []float64
		for _, a := range r.arms {
			if a.name() == who {
				for _, s := range a.samples {
					out = append(out, f(s))
				}
			}
		}
		if len(out) == 0 {
			return nil, who + " did not run"
		}
		return out, ""
	}
}

func ofTunnels(f func(tunnelSample) float64) func(*results) ([]float64, string) {
	return func(r *results) ([]float64, string) {
		var out []float64
		for _, s := range r.tunnels {
			out = append(out, f(s))
		}
		return out, asked(out)
	}
}

func asked(vals []float64) string {
	if len(vals) == 0 {
		return "not asked for"
	}
	return ""
}

// printTargets says of each target what was measured, and whether it is met.
func (r *results) printTargets() {
	fmt.Println("\n| target | wanted | measured | |\n|---|---:|---:|---|")
	for _, t := range targets() {
		vals, missing := t.values(r)
		f := figureOf(vals)
		wanted := fmt.Sprintf("%s %g%s", t.sign, t.limit, t.unit)
		switch {
		case missing != "":
			fmt.Printf("| %s | %s | – | not measured: %s |\n", t.what, wanted, missing)
		case t.met(f.median):
			fmt.Printf("| %s | %s | %s | met |\n", t.what, wanted, f.text("%.2f"))
		default:
			fmt.Printf("| %s | %s | %s | **not met** |\n", t.what, wanted, f.text("%.2f"))
		}
	}
	if len(r.tunnels) > 0 {
		c, _ := ofTunnels(func(s tunnelSample) float64 { return s.bulkClient })(r)
		s, _ := ofTunnels(func(s tunnelSample) float64 { return s.bulkServer })(r)
		fmt.Printf("\nRatios are of figures of the same round, then their median. A tunnel that has just carried bulk: %.0f + %.0f KiB, until it is closed.\n",
			figureOf(c).median, figureOf(s).median)
	}
}

func (t target) met(v float64) bool {
	if t.sign == "≥" {
		return v >= t.limit
	}
	return v <= t.limit
}

// failures tells what did not run to its end: others are left out with a word, ours are
// an error.
func (r *results) failures() error {
	var errs error
	for _, a := range r.arms {
		switch {
		case a.failed == nil:
		case strings.HasPrefix(a.name(), "weft") || a.name() == "direct":
			errs = errors.Join(errs, fmt.Errorf("%s: %w", a.name(), a.failed))
		default:
			fmt.Printf("\n%s ended early: %v\n", a.name(), a.failed)
		}
	}
	return errs
}
