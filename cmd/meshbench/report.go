package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

func printMachine(rounds int, window time.Duration) {
	model := "unknown CPU"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for _, l := range strings.Split(string(b), "\n") {
			if v, ok := strings.CutPrefix(l, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(v, "\t :"))
				break
			}
		}
	}
	fmt.Printf("%s, %s, %d CPUs (%s), everything on this machine, TCP %s; medians of %d interleaved rounds of %s windows; the spread is (max−min)/median.\n\n",
		time.Now().UTC().Format("2006-01-02"), runtime.Version(), runtime.NumCPU(), model, congestionControl(), rounds, window)
}

const tableHead = "| contender | req/s, 64 conns | × direct | CPU s / 100k req | p50 µs, 1 conn | p99 ms, 64 | short conn/s | × direct | CPU ms / conn | " +
	"Gbit/s, 1 / 8 streams | CPU s / GB, 1 / 8 | p50 ms beside 4 bulk | KiB / idle conn, client + server |\n" +
	"|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"

func printTable(arms []*arm) {
	base := arms[0]
	fmt.Println(tableHead)
	for _, a := range arms {
		if len(a.samples) == 0 {
			continue
		}
		req := a.of(func(s sample) float64 { return s.requests })
		fmt.Printf("| %s | %s | %.2f | %s |", a.name(), req.text("%.0f"), req.median/base.of(func(s sample) float64 { return s.requests }).median,
			a.cell("%.2f", func(s sample) float64 { return s.cpuPer100k }))
		if a.running.short {
			fmt.Printf(" – | %.1f |%s\n", a.of(func(s sample) float64 { return s.p99.Seconds() * 1000 }).median, strings.Repeat(" – |", 7))
			continue
		}
		conn := a.of(func(s sample) float64 { return s.conns })
		bulk := a.of(func(s sample) float64 { return s.bulk1 / 1e9 })
		idle := fmt.Sprintf("%s + %s", a.cell("%.1f", func(s sample) float64 { return s.idleClient }), a.cell("%.1f", func(s sample) float64 { return s.idleServer }))
		if a.running.oneHost {
			idle = a.cell("%.1f", func(s sample) float64 { return s.idleServer })
		}
		fmt.Printf(" %s | %.1f | %s | %.2f | %s | %s / %.1f | %s / %s | %.1f | %s |\n",
			a.of(func(s sample) float64 { return float64(s.p50one.Microseconds()) }).text("%.0f"),
			a.of(func(s sample) float64 { return s.p99.Seconds() * 1000 }).median,
			conn.text("%.0f"), conn.median/base.of(func(s sample) float64 { return s.conns }).median,
			a.cell("%.3f", func(s sample) float64 { return s.cpuPerConn.Seconds() * 1000 }),
			bulk.text("%.1f"), a.of(func(s sample) float64 { return s.bulk8 / 1e9 }).median,
			a.cell("%.2f", func(s sample) float64 { return s.cpuPerGB1 }), a.cell("%.2f", func(s sample) float64 { return s.cpuPerGB8 }),
			a.of(func(s sample) float64 { return s.beside.Seconds() * 1000 }).median, idle)
	}
	fmt.Println("\nCPU is that of both proxies together.")
}

// figure is a median and how far what it is of is apart: (max−min)/median.
type figure struct{ median, spread float64 }

func figureOf(vals []float64) figure {
	vals = slices.Sorted(slices.Values(vals))
	if len(vals) == 0 {
		return figure{}
	}
	m := vals[len(vals)/2]
	if m == 0 {
		return figure{}
	}
	return figure{median: m, spread: (vals[len(vals)-1] - vals[0]) / math.Abs(m)}
}

func (f figure) text(format string) string {
	return fmt.Sprintf(format+" ±%.0f %%", f.median, f.spread*100)
}

func (a *arm) of(f func(sample) float64) figure {
	vals := make([]float64, 0, len(a.samples))
	for _, s := range a.samples {
		vals = append(vals, f(s))
	}
	return figureOf(vals)
}

func (a *arm) cell(format string, f func(sample) float64) string {
	if len(a.running.pids) == 0 {
		return "–"
	}
	return fmt.Sprintf(format, a.of(f).median)
}

// printMesh measures what only the mesh has.
func printMesh(ctx context.Context, binary string) error {
	var starts []time.Duration
	var idleRSS int64
	for range 10 {
		a, err := startMesh(ctx, binary)
		if err != nil {
			return err
		}
		starts = append(starts, a.serving)
		time.Sleep(500 * time.Millisecond)
		idleRSS = max(idleRSS, rss(a.cmd.Process.Pid))
		a.stop()
	}
	slices.Sort(starts)
	cut, allow, err := policyLatency(ctx, binary, 50)
	if err != nil {
		return err
	}
	info, err := os.Stat(binary)
	if err != nil {
		return err
	}
	fmt.Println("\n| what | figure |\n|---|---:|")
	fmt.Printf("| `intention` turned to deny → live connection closed, 50 times | p50 %.1f ms, p99 %.1f ms |\n", ms(percentile(cut, 0.5)), ms(percentile(cut, 0.99)))
	fmt.Printf("| `intention` turned to allow → first connection through, 50 times | p50 %.1f ms, p99 %.1f ms |\n", ms(percentile(allow, 0.5)), ms(percentile(allow, 0.99)))
	fmt.Printf("| `weft agent -dev` from exec to a leader that answers, 10 times | p50 %.0f ms, max %.0f ms |\n", ms(percentile(starts, 0.5)), ms(starts[len(starts)-1]))
	fmt.Printf("| resident memory, idle agent and server, most of 10 | %.1f MB |\n", float64(idleRSS)/1e6)
	fmt.Printf("| size of the binary | %.1f MB |\n", float64(info.Size())/1e6)
	return nil
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// policyLatency flips one intention n times: from the call of the API to the live
// connection that ends, and to the first connection that is let through again.
func policyLatency(ctx context.Context, binary string, n int) (cut, allow []time.Duration, err error) {
	back, err := startBackend(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer back.stop()
	m, err := startMesh(ctx, binary)
	if err != nil {
		return nil, nil, err
	}
	defer m.stop()
	upstream, err := m.pair(ctx, back.addr)
	if err != nil {
		return nil, nil, err
	}
	const exact = "/v1/connect/intentions/exact?source=web&destination=db"
	for range n {
		begin := time.Now()
		if err := m.put(ctx, exact, map[string]any{"Action": "allow"}); err != nil {
			return nil, nil, err
		}
		c, err := firstThrough(ctx, front{addr: upstream}, begin)
		if err != nil {
			return nil, nil, err
		}
		allow = append(allow, time.Since(begin))
		begin = time.Now()
		if err := m.do(ctx, http.MethodPut, exact, []byte(`{"Action":"deny"}`), nil); err != nil {
			return nil, nil, err
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err = c.Read(make([]byte, 1))
		took := time.Since(begin)
		c.Close()
		if took > 9*time.Second {
			return nil, nil, fmt.Errorf("a denied connection was still open after %s: %w", took, err)
		}
		cut = append(cut, took)
	}
	slices.Sort(cut)
	slices.Sort(allow)
	return cut, allow, nil
}
