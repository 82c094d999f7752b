// Command meshbench measures what the mesh costs, as ratios to a direct
// connection and to other proxies, side by side in one run: it starts each
// contender as real processes in front of one backend process, drives all of them
// in turn, several rounds, and prints medians with their spread as Markdown.
//
// With the argument control it measures the control plane instead: catalog, health,
// DNS and keys, with etcd beside it; with hosts, three servers and many agents.
//
// To add a contender, write a script for both sides (pair.go) and put it into the
// list below. `make bench` runs this.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "backend" {
		fmt.Fprintln(os.Stderr, "backend:", runBackend())
		os.Exit(1)
	}
	if len(os.Args) == 6 && os.Args[1] == "relay" {
		fmt.Fprintln(os.Stderr, "relay:", runRelay(os.Args[2], os.Args[3], os.Args[4], os.Args[5]))
		os.Exit(1)
	}
	if len(os.Args) > 3 && os.Args[1] == "proxies" {
		if err := runProxies(os.Args[2] == "one-to-one", os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, "proxies:", err)
			os.Exit(1)
		}
		return
	}
	if code, done := ownNetwork(); done {
		os.Exit(code)
	}
	if err := loopbackUp(); err != nil {
		fmt.Fprintln(os.Stderr, "meshbench: own network:", err)
		os.Exit(1)
	}
	rounds := flag.Int("rounds", 3, "interleaved repetitions")
	window := flag.Duration("window", 2*time.Second, "how long each measurement lasts")
	only := flag.String("only", "", "comma-separated contenders to run beside direct (default: all that are installed)")
	which := flag.String("loads", "", "comma-separated loads to run: "+strings.Join(loadNames, ", ")+" (default: all)")
	mesh := flag.Bool("mesh", true, "also measure what only the mesh has: policy latency, start, memory, size")
	agents := flag.String("agents", "10,100,1000", "how many agents `meshbench hosts` runs, one after the other")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if flag.Arg(0) == "control" {
		if err := runControl(ctx, *rounds, *window); err != nil {
			fmt.Fprintln(os.Stderr, "meshbench:", err)
			os.Exit(1)
		}
		return
	}
	if flag.Arg(0) == "hosts" {
		sizes, err := sizesOf(*agents)
		if err == nil {
			err = runHosts(ctx, *rounds, *window, sizes)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "meshbench:", err)
			os.Exit(1)
		}
		return
	}
	asked, err := loadsOf(*which)
	if err == nil {
		err = run(ctx, *rounds, *window, *only, asked, *mesh)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "meshbench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds int, window time.Duration, only string, asked loads, mesh bool) error {
	binary, err := weftBinary()
	if err != nil {
		return err
	}
	backend, err := startBackend(ctx)
	if err != nil {
		return err
	}
	defer backend.stop()
	begin := time.Now()
	r := &results{}
	if r.arms, err = startArms(ctx, contenders(binary), backend.addr, only); err != nil {
		return err
	}
	defer func() {
		for _, a := range r.arms {
			a.running.stop()
		}
	}()
	var rig *tunnelRig
	if mesh && asked.has(memoryLoad) {
		if rig, err = newTunnelRig(ctx, backend.addr); err != nil {
			return fmt.Errorf("many tunnels: %w", err)
		}
		defer rig.stop()
	}
	for round := range rounds {
		for _, a := range r.arms {
			if a.failed != nil {
				continue
			}
			a.loads = asked
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, rounds, a.name())
			if a.failed = a.measure(ctx, window); ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if rig != nil {
			fmt.Fprintf(os.Stderr, "round %d of %d: memory of processes and tunnels\n", round+1, rounds)
			if err := r.memory(ctx, binary, backend.addr, rig); err != nil {
				return fmt.Errorf("memory: %w", err)
			}
		}
	}
	printMachine(rounds, window)
	printTable(r.arms)
	fmt.Printf("\nMeasured in %s, checks of mutual TLS included.\n", time.Since(begin).Round(time.Second))
	if mesh && len(asked) == 0 {
		if err := printMesh(ctx, binary); err != nil {
			return err
		}
	}
	r.printTargets()
	return r.failures()
}

func contenders(binary string) []contender {
	return []contender{
		direct{},
		&weftPair{binary: binary, label: "weft", peers: 1},
		&weftPair{label: "weft-8-peers", peers: 8, short: true}, &weftPair{label: "weft-64-peers", peers: 64, short: true},
		&weftPair{label: "weft-no-tunnels", peers: 1, oneToOne: true, short: true}, &weftHost{binary: binary},
		haproxy("haproxy-plain", false, false), haproxy("haproxy-tls", true, false), haproxy("haproxy-http", true, true),
		nginx(), stunnel(), ghostunnel(), relay(),
	}
}

// startArms brings up those that are asked for and installed, and proves what they are.
func startArms(ctx context.Context, all []contender, backend, only string) (arms []*arm, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, a := range arms {
			a.running.stop()
		}
	}()
	for _, c := range all {
		if _, isDirect := c.(direct); !isDirect && only != "" && !contains(only, c.name()) {
			continue
		}
		if p, ok := c.(*pair); ok {
			if err := p.refusesWrongServers(ctx); errors.As(err, new(errNotInstalled)) {
				fmt.Fprintf(os.Stderr, "left out: %s: %v\n", c.name(), err)
				continue
			} else if err != nil {
				return arms, fmt.Errorf("%s, client's side: %w", c.name(), err)
			}
		}
		r, err := c.start(ctx, backend)
		if err != nil {
			fmt.Fprintf(os.Stderr, "left out: %s: %v\n", c.name(), err)
			continue
		}
		arms = append(arms, &arm{contender: c, backend: backend, running: r})
		if err := provesMutualTLS(r); err != nil {
			return arms, fmt.Errorf("%s is not mutual TLS 1.3: %w", c.name(), err)
		}
	}
	return arms, nil
}

func contains(list, name string) bool {
	for _, n := range strings.Split(list, ",") {
		if strings.TrimSpace(n) == name {
			return true
		}
	}
	return false
}

// weftBinary is the binary under test: WEFT_BINARY, or bin/weft.
func weftBinary() (string, error) {
	path := os.Getenv("WEFT_BINARY")
	if path == "" {
		path = "bin/weft"
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("no weft binary at %s: run `make build`, or set WEFT_BINARY: %w", path, err)
	}
	return exec.LookPath(path)
}
