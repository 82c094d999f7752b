// Command meshbench measures what the mesh costs, as ratios to a direct
// connection and to other proxies, side by side in one run: it starts each
// contender as real processes in front of one backend process, drives all of them
// in turn, several rounds, and prints medians with their spread as Markdown.
//
// With the argument control it measures the control plane instead: catalog, health,
// DNS and keys, with etcd beside it.
//
// To add a contender, write a script for both sides (pair.go) and put it into the
// list below. `make bench` runs this.
package main

import (
	"context"
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
	rounds := flag.Int("rounds", 3, "interleaved repetitions")
	window := flag.Duration("window", 2*time.Second, "how long each measurement lasts")
	only := flag.String("only", "", "comma-separated contenders to run beside direct (default: all that are installed)")
	mesh := flag.Bool("mesh", true, "also measure what only the mesh has: policy latency, start, memory, size")
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
	if err := run(ctx, *rounds, *window, *only, *mesh); err != nil {
		fmt.Fprintln(os.Stderr, "meshbench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds int, window time.Duration, only string, mesh bool) error {
	binary, err := weftBinary()
	if err != nil {
		return err
	}
	backend, err := startBackend(ctx)
	if err != nil {
		return err
	}
	defer backend.stop()

	all := []contender{
		direct{},
		&weftPair{binary: binary}, haproxy("haproxy-plain", false), haproxy("haproxy-tls", true),
		nginx(), stunnel(), relay(),
	}
	var running []*arm
	for _, c := range all {
		if _, isDirect := c.(direct); !isDirect && only != "" && !contains(only, c.name()) {
			continue
		}
		r, err := c.start(ctx, backend.addr)
		if err != nil {
			fmt.Fprintf(os.Stderr, "left out: %s: %v\n", c.name(), err)
			continue
		}
		defer r.stop()
		if err := provesMutualTLS(r); err != nil {
			return fmt.Errorf("%s is not mutual TLS 1.3: %w", c.name(), err)
		}
		running = append(running, &arm{name: c.name(), running: r})
	}
	for round := range rounds {
		for _, a := range running {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, rounds, a.name)
			if err := a.measure(ctx, window); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
		}
	}
	printMachine(rounds, window)
	printTable(running)
	if mesh {
		return printMesh(ctx, binary)
	}
	return nil
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
